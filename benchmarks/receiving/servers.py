"""The receivers that are compared; each is a context that yields its processes once it listens."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.receiving.network import LOOPBACK, Network
from benchmarks.receiving.serving import PORT

ORTHANC_HTTP = 8042


@contextlib.contextmanager
def ours(folder: Path, environment: dict[str, str], network: Network = LOOPBACK, receivers: int = 1):
    """Receiver processes of the node on one port, nothing mounted."""
    command = [
        *network.inside,
        sys.executable,
        "-m",
        "benchmarks.receiving.serving",
        str(folder / "store"),
        network.host,
    ]
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
        for _ in range(receivers)
    ]
    with ended(children):
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "up\n"
        yield children


@contextlib.contextmanager
def dcmtk(folder: Path, environment: dict[str, str], network: Network = LOOPBACK):
    """It flushes nothing."""
    (folder / "files").mkdir()
    child = subprocess.Popen(
        [*network.inside, "/usr/bin/storescp", "--fork", "-od", str(folder / "files"), str(PORT)],
        stderr=subprocess.DEVNULL, env=environment, start_new_session=True,
    )  # fmt: skip
    with ended([child]):
        wait_for(network.host, PORT)
        yield [child]


@contextlib.contextmanager
def orthanc(
    folder: Path,
    environment: dict[str, str],
    network: Network = LOOPBACK,
    *,
    title: str = "NODE",
    port: int = PORT,
    **more: object,
):
    """With SyncStorageArea; `more` of its settings."""
    settings = {
        "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "storage"), "DicomPort": port,
        "HttpPort": ORTHANC_HTTP, "DicomAet": title, "DicomCheckCalledAet": False, "SyncStorageArea": True,
        "DicomAlwaysAllowStore": True, "OverwriteInstances": False, "Plugins": [],
    } | more  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings))
    child = subprocess.Popen(
        [*network.inside, "/usr/sbin/Orthanc", str(folder / "orthanc.json")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True,
    )  # fmt: skip
    with ended([child]):
        wait_for(network.host, port)
        wait_for(network.host, ORTHANC_HTTP)
        yield [child]


SERVERS = {
    "ours, 1 receiver": ours,
    "ours, 2 receivers": lambda folder, environment, network: ours(folder, environment, network, 2),
    "DCMTK storescp --fork": dcmtk,
    "Orthanc, SyncStorageArea": orthanc,
}


@contextlib.contextmanager
def ended(children: list[subprocess.Popen]):
    """SIGTERM to them, and to what they started, on leaving."""
    try:
        yield
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)  # storescp's own children too
        for child in children:
            child.wait(60)


def wait_for(host: str, port: int) -> None:
    """Until something listens there."""
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
            return
        time.sleep(0.1)
    raise TimeoutError(port)


def peak_mb(pid: int) -> float:
    """Peak resident memory of a process so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
