"""How fast instances are received, beside DCMTK and Orthanc, in one run on one disk.

    python benchmarks/receiving.py [--rounds 3] [--seconds 8] [--folder DIR] [-o receiving.json]

Runs itself in a network namespace of its own (DCMTK and Orthanc listen on every interface), so it needs the right to
make one. Ours flushes every instance before it says 0x0000; Orthanc has SyncStorageArea on; DCMTK flushes nothing.
Senders are DCMTK's storescu, as it comes and with TCP_NODELAY=1; DCMTK's and Orthanc's receivers then have that too, as
their answers would stall otherwise. A cell is the median over the rounds of instances per
second, all associations together, from the first sender's start to the last one's end; the servers take turns, so that
a machine that gets slower does so for all. Then one object of 207 MB, and the peak memory of the process that took it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medenhance_dicom.node.receive import Receiver
from medenhance_dicom.node.settings import NodeSettings
from medenhance_dicom.node.spool import Spool

PORT, ORTHANC_HTTP = 11112, 8042
CT = "1.2.840.10008.5.1.4.1.1.2"
KINDS = {"0.5 MB": (512, 16), "16 kB": (128, 8)}
"""Rows = columns, and bits."""
AIMS = {"0.5 MB": 8.0, "16 kB": 15.0}
"""Ours over the faster of the others, from a sender as it comes."""


# ---------------------------------------------------------------- instances


def make_instances(folder: Path, count: int, side: int, bits: int, frames: int = 1) -> None:
    folder.mkdir(parents=True)
    study, series = generate_uid(), generate_uid()
    random = np.random.default_rng(0)
    for number in range(count):
        dataset = Dataset()
        dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = CT, generate_uid(), "CT"
        dataset.PatientName, dataset.PatientID = "Bench^Mark", "0"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.InstanceNumber = study, series, number + 1
        dataset.Rows = dataset.Columns = side
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
        dataset.BitsAllocated = dataset.BitsStored = bits
        dataset.HighBit = bits - 1
        if frames > 1:
            dataset.NumberOfFrames = frames
        pixels = random.integers(0, 256, frames * side * side * bits // 8, dtype=np.uint8).tobytes()
        dataset.add_new(0x7FE00010, "OW", pixels)
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.save_as(folder / f"{number:05}.dcm", enforce_file_format=True)


# ---------------------------------------------------------------- servers


def serve(store: Path) -> None:
    """One receiver process; what `--serve` runs."""
    listener = {"ae_title": "NODE", "port": PORT, "maximum_associations_of_a_peer": 20, "reserve_bytes": 0}
    settings = NodeSettings.model_validate({"store": store, "listener": listener, "peers": [{"ae_title": "STORESCU"}]})
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    receiver = Receiver(settings, Spool(store))
    receiver.start()
    print("up", flush=True)
    stop.wait()
    receiver.stop()


@contextlib.contextmanager
def ours(folder: Path, environment: dict[str, str], receivers: int = 1):
    command = [sys.executable, __file__, "--serve", str(folder / "store")]
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
        for _ in range(receivers)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
    with ended(children):
        yield children


@contextlib.contextmanager
def dcmtk(folder: Path, environment: dict[str, str]):
    (folder / "files").mkdir()
    child = subprocess.Popen(
        ["/usr/bin/storescp", "--fork", "-od", str(folder / "files"), str(PORT)],
        stderr=subprocess.DEVNULL, env=environment, start_new_session=True,
    )  # fmt: skip
    with ended([child]):
        wait_for(PORT)
        yield [child]


@contextlib.contextmanager
def orthanc(folder: Path, environment: dict[str, str]):
    settings = {
        "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "storage"), "DicomPort": PORT,
        "HttpPort": ORTHANC_HTTP, "DicomAet": "NODE", "DicomCheckCalledAet": False, "SyncStorageArea": True,
        "DicomAlwaysAllowStore": True, "OverwriteInstances": False, "Plugins": [],
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings))
    child = subprocess.Popen(
        ["/usr/sbin/Orthanc", str(folder / "orthanc.json")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True,
    )  # fmt: skip
    with ended([child]):
        wait_for(PORT)
        wait_for(ORTHANC_HTTP)
        yield [child]


@contextlib.contextmanager
def ended(children):
    try:
        yield
    finally:
        for child in children:
            os.killpg(child.pid, signal.SIGTERM)  # storescp's own children too
        for child in children:
            child.wait(60)


def wait_for(port: int) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise TimeoutError(port)


SERVERS = {
    "ours, 1 receiver": lambda folder, environment: ours(folder, environment, 1),
    "ours, 2 receivers": lambda folder, environment: ours(folder, environment, 2),
    "DCMTK storescp --fork": dcmtk,
    "Orthanc, SyncStorageArea": orthanc,
}


# ---------------------------------------------------------------- senders


def environment_of(nodelay: bool) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "TCP_NODELAY"}
    return environment | {"OMP_NUM_THREADS": "1"} | ({"TCP_NODELAY": "1"} if nodelay else {})


def send(folders: list[Path], environment: dict[str, str], seconds: float) -> float:
    """Instances per second: a storescu for every folder, all at once; each ends after `seconds` at the latest."""
    answers = [0] * len(folders)
    began = time.perf_counter()

    def run(at: int) -> None:
        command = ["/usr/bin/storescu", "-v", "+sd", "-aec", "NODE", "127.0.0.1", str(PORT), str(folders[at])]
        sender = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True)
        assert sender.stdout is not None
        for line in sender.stdout:
            answers[at] += "Received Store Response (Success)" in line
            if time.perf_counter() - began > seconds:
                sender.terminate()
                break
        sender.stdout.close()
        sender.wait()

    threads = [threading.Thread(target=run, args=(at,)) for at in range(len(folders))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(answers) / (time.perf_counter() - began)


def measure_cell(server, instances: list[Path], nodelay: bool, seconds: float, disk: Path) -> float:
    folder = Path(tempfile.mkdtemp(dir=disk))
    try:
        environment = environment_of(nodelay)
        with SERVERS[server](folder, environment):
            return send(instances, environment, seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure_large(instance: Path, disk: Path) -> dict[str, float]:
    folder = Path(tempfile.mkdtemp(dir=disk))
    try:
        with ours(folder, environment_of(True)) as (child,):
            before = peak_mb(child.pid)
            began = time.perf_counter()
            rate = send([instance], environment_of(True), 300)
            seconds = time.perf_counter() - began
            assert rate > 0, "the large object was not taken"
            (stored,) = (folder / "store" / "pending").rglob("*.dcm")
            assert pydicom.dcmread(stored, stop_before_pixels=True).NumberOfFrames > 1
            return {"peak_mb": peak_mb(child.pid), "peak_before_mb": before, "seconds": seconds}
    finally:
        shutil.rmtree(folder)


def peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


# ---------------------------------------------------------------- report


def table(cells: dict[str, dict[str, float]]) -> str:
    names = list(SERVERS)
    lines = ["| instances, associations, sender | " + " | ".join(names) + " |", "|---" + "|---:" * len(names) + "|"]
    for cell, rates in cells.items():
        lines.append(f"| {cell} | " + " | ".join(f"{rates[name]:.0f}" for name in names) + " |")
    return "\n".join(lines)


def judge(cells: dict[str, dict[str, float]], large: dict[str, float] | None) -> dict[str, bool]:
    """Aim -> whether it is met."""
    verdicts = {}
    for cell, rates in cells.items():
        kind, associations, sender = cell.split(", ")
        best = max(rates["ours, 1 receiver"], rates["ours, 2 receivers"])
        verdicts[f"{cell}: not slower than Orthanc"] = best >= rates["Orthanc, SyncStorageArea"]
        if sender == "stock" and associations == "1 association":
            others = max(rates["DCMTK storescp --fork"], rates["Orthanc, SyncStorageArea"])
            verdicts[f"{cell}: {AIMS[kind]:.0f} times the others"] = rates["ours, 1 receiver"] >= AIMS[kind] * others
        if associations == "4 associations":
            one = cells[f"{kind}, 1 association, {sender}"]["ours, 1 receiver"]
            verdicts[f"{cell}: 2 receivers 1.5 times one association of one"] = rates["ours, 2 receivers"] >= 1.5 * one
    if large is not None:
        verdicts["207 MB: below 80 MB"] = large["peak_mb"] < 80
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="at most, of one sender")
    parser.add_argument("--count", type=int, default=0, help="instances of one sender; 0: enough for the seconds")
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to be measured")
    parser.add_argument("--no-large", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    if not options.inside:
        words = [sys.executable, *sys.argv, "--inside"]
        os.execvp("unshare", ["unshare", "-n", "bash", "-c", 'ip link set lo up; exec "$@"', "receiving", *words])
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        disk = Path(scratch)
        sent = {}
        for kind, (side, bits) in KINDS.items():
            count = options.count or int(options.seconds * (300 if side > 128 else 500))
            sent[kind] = [disk / f"{side}-{number}" for number in range(4)]
            for folder in sent[kind]:
                make_instances(folder, count, side, bits)
        cells: dict[str, dict[str, list[float]]] = {}
        for _ in range(options.rounds):
            for kind, folders in sent.items():
                for associations in (1, 4):
                    for sender in ("stock", "TCP_NODELAY"):
                        cell = f"{kind}, {associations} association{'s' * (associations > 1)}, {sender}"
                        for server in SERVERS:
                            rate = measure_cell(
                                server, folders[:associations], sender == "TCP_NODELAY", options.seconds, disk
                            )
                            cells.setdefault(cell, {}).setdefault(server, []).append(rate)
                            print(f"{cell}, {server}: {rate:.1f}/s", file=sys.stderr)
        medians = {cell: {name: statistics.median(r) for name, r in rates.items()} for cell, rates in cells.items()}
        large = None
        if not options.no_large:
            make_instances(disk / "large", 1, 512, 16, frames=395)
            large = measure_large(disk / "large", disk)
    verdicts = judge(medians, large)
    print(table(medians))
    if large:
        print(f"\n207 MB object: peak {large['peak_mb']:.0f} MB, {large['seconds']:.1f} s")
    print()
    for aim, met in verdicts.items():
        print(f"{'met' if met else 'MISSED'}: {aim}")
    if options.output:
        result = {"instances_per_second": medians, "rounds": cells, "large": large, "aims": verdicts}
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
