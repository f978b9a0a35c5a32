"""What `archive run` costs beside `enhance`, with a real network on real sized pictures.

    python benchmarks/archive_overhead.py [--series 20 80] [--instances 1] [--side 768] [--repeats 3] [--recipe NAME]
                                          [-o archive_overhead.json]

Both do the same series (colour fundus photographs, op-fundus-stillgan) in processes of their own: `enhance` on the
folder, and `archive run` of a plan of it with one worker, SQLite and a folder as destination. Taken is the processor time
of all processes, and the time on the wall, for two numbers of series, so that what is paid once (imports, weights) falls
out of the difference. Repeats go round both, and the median of each counts: other work on the machine slows both alike.
With `--recipe identity --side 16` next to nothing is enhanced, and what is left is the cost of a series itself.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
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


def seconds_of(*words: str | Path) -> tuple[float, float]:
    """Processor time of a command and of all that it starts, and the time until it has ended."""
    started = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{words[0]}: exit code {done.returncode}\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used, time.perf_counter() - started


def measure(series: int, instances: int, side: int, recipe: str, repeats: int) -> dict[str, list[tuple[float, float]]]:
    """What both take for so many series, again and again."""
    took: dict[str, list[tuple[float, float]]] = {"enhance": [], "archive run": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "archive").mkdir()
        write(folder / "archive", series, instances, side)
        for number in range(repeats):
            one, two, plan = (folder / f"{what}{number}" for what in ("one", "two", "plan"))
            took["enhance"].append(seconds_of("enhance", folder / "archive", "-o", one, "--recipe", recipe))
            seconds_of("archive", "plan", folder / "archive", "--plan", plan, "--recipe", recipe)
            took["archive run"].append(seconds_of("archive", "run", plan, "--output", two))
            made = [sorted(str(path.relative_to(out)) for path in out.rglob("*.dcm")) for out in (one, two)]
            if made[0] != made[1] or len(made[0]) != series * instances:
                raise SystemExit("they did not make the same instances")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=int, nargs=2, default=[20, 80])
    parser.add_argument("--instances", type=int, default=1, help="of each series")
    parser.add_argument("--side", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--recipe", default="op-fundus-stillgan")
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    took = [measure(n, asked.instances, asked.side, asked.recipe, asked.repeats) for n in asked.series]
    few, many = asked.series
    each = {}
    for name in took[0]:
        for kind, what in enumerate(("processor", "wall")):
            less, more = (statistics.median(seconds[kind] for seconds in of[name]) for of in took)
            each[f"{name}, {what}"] = 1e3 * (more - less) / (many - few)
    for name, value in each.items():
        print(f"{name:<24} {value:7.1f} ms a series")
    more = each["archive run, processor"] / each["enhance, processor"] - 1
    print(f"archive run: {100 * more:+.1f} % of processor time")
    if asked.output:
        told = vars(asked) | {"output": None, "seconds": took, "each_ms": each, "more": more}
        asked.output.write_text(json.dumps(told, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
