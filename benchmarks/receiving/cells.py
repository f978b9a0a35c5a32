"""What is measured, each on a server that was started for it, in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

import pydicom

from benchmarks.receiving.network import LOOPBACK, Network
from benchmarks.receiving.node import CAMERA, Node, cpu_seconds, running_node, wait_until
from benchmarks.receiving.senders import environment_of, send
from benchmarks.receiving.servers import SERVERS, ours, peak_mb


def empty(folder: Path) -> None:
    """Free the blocks of a folder's files and keep the files.

    ext4 gives no inode again within minutes of its release, and looks at each such inode at every creation: a folder of
    thousands that is removed between two cells makes a creation 40 times as slow for all that come after. The sync keeps
    what one server left unwritten out of the next one's time.
    """
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.truncate(path, 0)
    flush(folder)


def flush(folder: Path) -> None:
    """Nothing of its file system is left unwritten."""
    subprocess.run(["sync", "-f", str(folder)], check=True)


def creation_ms(disk: Path) -> float:
    """Mean time to create a file; 0.03 where nothing was removed lately."""
    folder = Path(tempfile.mkdtemp(dir=disk))
    began = time.perf_counter()
    for number in range(500):
        (folder / str(number)).touch()
    return 1000 * (time.perf_counter() - began) / 500


def measure_cell(
    server: str, instances: list[Path], nodelay: bool, seconds: float, disk: Path, network: Network = LOOPBACK
) -> float:
    """Instances per second of one association per folder of `instances`."""
    folder = Path(tempfile.mkdtemp(dir=disk))
    environment = environment_of(nodelay)
    with SERVERS[server](folder, environment, network):
        rate = send(instances, environment, seconds, network.host)
    empty(folder)
    return rate


def measure_large(instance: Path, disk: Path) -> dict[str, float]:
    """Peak memory of a receiver with nothing mounted that takes one large object."""
    folder = Path(tempfile.mkdtemp(dir=disk))
    with ours(folder, environment_of(True)) as (child,):
        facts = _send_large(instance, child.pid, folder / "store")
    empty(folder)
    return facts


def measure_large_into_node(instance: Path, disk: Path) -> dict[str, float]:
    """The same of the whole node's receiver process."""
    folder = Path(tempfile.mkdtemp(dir=disk))
    with running_node(folder, _settings(enhance=True), idle=3600) as node:
        facts = _send_large(instance, node.receiver(), node.store)
    empty(folder)
    return facts


def measure_node(
    instances: Path, pictures: Path, enhance: bool, nodelay: bool, seconds: float, disk: Path
) -> dict[str, float]:
    """One association into the whole node, while its worker enhances `pictures` or passes them on as they came.

    With `enhance` the cell begins once the first is enhanced and has to end before the last is; `jobs list` says so
    before and after, and objects have to be made in between. Without, it begins once all jobs are done. The measured
    instances come from a peer whose series is not complete before the cell ends.

    Raises:
        RuntimeError: There were not enough pictures, or none was enhanced meanwhile.
    """
    folder = Path(tempfile.mkdtemp(dir=disk))
    with running_node(folder, _settings(enhance=enhance), idle=3600) as node:
        count = sum(1 for _ in pictures.iterdir())
        rate = send([pictures], environment_of(True), 300, title=CAMERA)
        assert rate > 0, "the pictures were not taken"
        if enhance:
            wait_until(node.derived, 120)
        else:
            wait_until(lambda: _received(node) == count and not _unfinished(node), 120)
        before, made, used = _unfinished(node), node.derived(), cpu_seconds(node.worker())
        began = time.perf_counter()
        rate = send([instances], environment_of(nodelay), seconds)
        wall = time.perf_counter() - began
        used, made, after = cpu_seconds(node.worker()) - used, node.derived() - made, _unfinished(node)
        if enhance and not (before and after and made):
            raise RuntimeError(f"not busy all through the cell: {before} jobs before, {after} after, {made} enhanced")
        if not enhance and (before or after or made):
            raise RuntimeError("the node had something to do")
    empty(folder)
    return {
        "instances_per_second": rate,
        "enhanced_per_second": made / wall,
        "processors_of_the_worker": used / wall,
        "unfinished_jobs_before": before,
        "unfinished_jobs_after": after,
    }


def _settings(*, enhance: bool) -> str:
    return (
        f'[[peers]]\nae_title = "STORESCU"\n[[peers]]\nae_title = "{CAMERA}"\nidle_seconds = 1.0\n'
        f'[[rules]]\ncalling = ["{CAMERA}"]\ndestinations = []\nenhance = {str(enhance).lower()}\n'
        "[[rules]]\ndestinations = []\nenhance = false\n"
    )


def _unfinished(node: Node) -> int:
    return sum(job["state"] in ("queued", "working") for job in node.jobs())


def _received(node: Node) -> int:
    return sum(event["instances"] for event in node.events() if event["event"] == "sealed")


def _send_large(instance: Path, receiver: int, store: Path) -> dict[str, float]:
    before, began = peak_mb(receiver), time.perf_counter()
    rate = send([instance], environment_of(True), 300)
    seconds = time.perf_counter() - began
    assert rate > 0, "the large object was not taken"
    (stored,) = (store / "pending").rglob("*.dcm")
    assert pydicom.dcmread(stored, stop_before_pixels=True).NumberOfFrames > 1
    return {"peak_mb": peak_mb(receiver), "peak_before_mb": before, "seconds": seconds}
