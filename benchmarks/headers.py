"""Headers read per second: our walk, alone and as a folder is scanned, beside pydicom's reader told to read as little.

    python benchmarks/headers.py [--files 2000] [--folder DIR]

Writes so many small instances (CT-like headers of some 90 elements with a private block, 32 KiB of pixels) to a scratch
folder and reads each once before anything is measured, so that figures are of the readers, not of the disk.
All of it is in one process.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import pydicom

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from medenhance_dicom.headers import ARCHIVE_FACTS, LAST_FACT, Blocks, read_facts
from medenhance_dicom.node.sources import Found, open_source
from tests.synthetic import make_instance


def write(folder: Path, files: int) -> None:
    """Instances of series of 100, with a header as a scanner writes it."""
    instance = make_instance("CT", rows=128, columns=128)
    block = instance.private_block(0x0019, "SCANNERS LTD", create=True)
    for element in range(40):
        block.add_new(element, "LO", f"value {element}")
    block.add_new(0x40, "OB", bytes(2000))
    for number in range(files):
        series = f"1.2.826.0.1.9999.5.{number // 100}"
        instance.SOPInstanceUID = instance.file_meta.MediaStorageSOPInstanceUID = f"{series}.{number}"
        instance.SeriesInstanceUID = series
        target = folder / f"{number // 1000}" / f"{number:07}"
        target.parent.mkdir(exist_ok=True)
        instance.save_as(target, enforce_file_format=True)


def differs(path: Path) -> bool:
    """Whether a value is not what pydicom says."""
    keywords = [fact.name for fact in ARCHIVE_FACTS.values()]
    read = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=keywords)
    with Blocks.of_file(path) as blocks:
        facts = read_facts(blocks, ARCHIVE_FACTS, LAST_FACT, bare=True)
    return any(facts.get(keyword, "") != str(read.get(keyword, "")) for keyword in keywords)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--folder", type=Path, help="An archive of yours instead; nothing is written.")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.folder or Path(scratch)
        if asked.folder is None:
            write(folder, asked.files)
        paths = [path for path in folder.rglob("*") if path.is_file()]
        for path in paths:
            path.read_bytes()
        keywords = [fact.name for fact in ARCHIVE_FACTS.values()]

        def walk() -> int:
            for path in paths:
                with Blocks.of_file(path) as blocks:
                    read_facts(blocks, ARCHIVE_FACTS, LAST_FACT, bare=True)
            return len(paths)

        def by_pydicom() -> int:
            for path in paths:
                read = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=keywords)
                for keyword in keywords:
                    read.get(keyword)
            return len(paths)

        def scan(readers: int | None) -> int:
            source = open_source(str(folder), readers=readers)
            return sum(isinstance(item, Found) for item in source.scan(lambda *_: False))

        def scan_known() -> int:
            return len(paths) + sum(1 for _ in open_source(str(folder)).scan(lambda *_: True))

        figures: dict[str, float] = {}
        for name, task in (
            ("pydicom", by_pydicom),
            ("walk", walk),
            ("scan of a folder, one thread", lambda: scan(1)),
            ("scan of a folder, threads as by default", lambda: scan(None)),
            ("scan of a folder that is known already", scan_known),
        ):
            started, load = time.perf_counter(), time.process_time()
            count = task()
            seconds = time.perf_counter() - started
            figures[name] = round(count / seconds)
            print(f"{name:45} {count / seconds:8.0f} headers/s  ({time.process_time() - load:.2f} s of this process)")
        differing = sum(differs(path) for path in paths)
        print(f"{differing} of {len(paths)} files give other values than pydicom")
        print(json.dumps({"files": len(paths), "headers_per_second": figures, "differing": differing}))


if __name__ == "__main__":
    main()
