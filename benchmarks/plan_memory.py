"""Memory of `archive plan` while it grows, and how fast both passes are.

    python benchmarks/plan_memory.py [--series 100000] [--folder DIR] [-o plan_memory.json]

Writes as many small CT-like instances, each a series of its own (the worst case for the second pass, which looks at one
instance of every series), and plans them with the command in a process of its own. Every half second: what is in the plan,
and the resident memory of the process and its children, shared pages counted once.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.archive_scale import family, resident
from tests.synthetic import make_instance

EVERY = 0.5


def write(folder: Path, series: int) -> None:
    """One file a series, a thousand files a folder: the bytes of one instance, with other UIDs of the same length."""
    template = folder / "template"
    instance = make_instance("CT", rows=16, columns=16)
    old = {
        keyword: f"1.2.826.0.1.9999.{n}.9999999"
        for n, keyword in ((6, "StudyInstanceUID"), (7, "SeriesInstanceUID"), (8, "SOPInstanceUID"))
    }
    for keyword, uid in old.items():
        setattr(instance, keyword, uid)
    instance.file_meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
    instance.save_as(template, enforce_file_format=True)
    content = template.read_bytes()
    template.unlink()
    for number in range(series):
        target = folder / f"{number // 1000}" / f"{number:07}"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content.replace(b".9999999", f".{number + 1000000}".encode()))


def planned(plan: Path) -> tuple[int, int]:
    """Instances found and series judged so far."""
    with (
        suppress(sqlite3.Error),
        closing(sqlite3.connect(f"{plan.as_uri()}/plan.sqlite?mode=ro", uri=True)) as database,
    ):
        found = database.execute("SELECT COALESCE(MAX(id), 0) FROM instance").fetchone()[0]
        new = database.execute("SELECT COUNT(*) FROM series WHERE state = 'new'").fetchone()[0]
        return found, database.execute("SELECT COALESCE(MAX(id), 0) FROM series").fetchone()[0] - new
    return 0, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=int, default=100_000)
    parser.add_argument(
        "--folder", type=Path, help="where the archive and the plan are written; by default a temporary one"
    )
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="plan-memory-", dir=asked.folder))
    try:
        (scratch / "archive").mkdir()
        write(scratch / "archive", asked.series)
        command = [
            sys.executable,
            "-m",
            "medenhance_dicom",
            "archive",
            "plan",
            str(scratch / "archive"),
            "--allow",
            "CT",
        ]
        started = time.perf_counter()
        curve = []
        process = subprocess.Popen([*command, "--plan", str(scratch / "plan"), "--json"], stdout=subprocess.PIPE)
        while process.poll() is None:
            time.sleep(EVERY)
            memory = sum(map(resident, family(process.pid)))
            curve.append(
                (round(time.perf_counter() - started, 1), *planned(scratch / "plan"), round(memory / 2**20, 1))
            )
        seconds = time.perf_counter() - started
        told = json.loads(process.communicate()[0])
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    walked = next(at for at, found, _, _ in curve if found >= asked.series)
    curve = [point for point in curve if point[3]]
    tenths = [curve[int(n * (len(curve) - 1) / 20)] for n in range(21)]
    for point in tenths:
        print("{:>8.1f} s {:>9,} found {:>9,} judged {:>8.1f} MiB".format(*point))
    print(f"headers {asked.series / walked:,.0f}/s, judging {asked.series / (seconds - walked):,.0f} series/s; {told}")
    if asked.output:
        points = [dict(zip(("seconds", "found", "judged", "mib"), point, strict=True)) for point in tenths]
        asked.output.write_text(
            json.dumps({"series": asked.series, "seconds": seconds, "walk_seconds": walked, "curve": points}, indent=1)
            + "\n"
        )


if __name__ == "__main__":
    main()
