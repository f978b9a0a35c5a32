"""What `archive run` costs beside `enhance`, with a real network on real sized pictures.

    python benchmarks/archive_overhead.py [--series 20 80] [--instances 1] [--side 768] [-o archive_overhead.json]

Both do the same series (colour fundus photographs, op-fundus-stillgan) in processes of their own: `enhance` on the
folder, and `archive run` of a plan of it with one worker, SQLite and a folder as destination. Taken is the processor time
of all processes, for two numbers of series, so that what is paid once (imports, weights) falls out of the difference.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from skimage import data, transform

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.synthetic import make_instance

COMMAND = [sys.executable, "-m", "medenhance_dicom"]


def write(folder: Path, series: int, instances: int, side: int) -> None:
    """As many photographs: a retina, each a little brighter or darker, so that no two are the same."""
    retina = transform.resize(data.retina(), (side, side), anti_aliasing=True)
    instance = make_instance("OP8", rows=side, columns=side)
    for number in range(series * instances):
        instance.PixelData = (retina * (255 - number % 64)).astype(np.uint8).tobytes()
        instance.StudyInstanceUID = f"1.2.826.0.1.9999.6.{number // instances}"
        instance.SeriesInstanceUID = f"1.2.826.0.1.9999.7.{number // instances}"
        instance.SOPInstanceUID = instance.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.9999.8.{number}"
        instance.save_as(folder / f"{number}.dcm", enforce_file_format=True)


def seconds_of(*words: str | Path) -> float:
    """Processor time of a command and of all that it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{words[0]}: exit code {done.returncode}\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=int, nargs=2, default=[20, 80])
    parser.add_argument("--instances", type=int, default=1, help="of each series")
    parser.add_argument("--side", type=int, default=768)
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    took: dict[str, list[float]] = {"enhance": [], "archive run": []}
    for series in asked.series:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "archive").mkdir()
            write(folder / "archive", series, asked.instances, asked.side)
            recipe = ("--recipe", "op-fundus-stillgan")
            took["enhance"].append(seconds_of("enhance", folder / "archive", "-o", folder / "one", *recipe))
            seconds_of("archive", "plan", folder / "archive", "--plan", folder / "plan", *recipe)
            took["archive run"].append(seconds_of("archive", "run", folder / "plan", "--output", folder / "two"))
            made = [sorted(str(p.relative_to(folder / n)) for p in (folder / n).rglob("*.dcm")) for n in ("one", "two")]
            if made[0] != made[1] or len(made[0]) != series * asked.instances:
                raise SystemExit("they did not make the same instances")
    few, many = asked.series
    each = {name: (seconds[1] - seconds[0]) / (many - few) for name, seconds in took.items()}
    more = each["archive run"] / each["enhance"] - 1
    for name, value in each.items():
        print(f"{name:<12} {1e3 * value:7.0f} ms of processor time a series")
    print(f"archive run: {100 * more:+.1f} %")
    if asked.output:
        asked.output.write_text(
            json.dumps(
                vars(asked) | {"output": None, "seconds": took, "each": each, "more": more}, indent=1, default=str
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
