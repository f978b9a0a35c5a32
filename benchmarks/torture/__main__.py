"""Torture the node, and write a report.

    python -m benchmarks.torture --faults 300 --seed 7 --large 20000 --report docs/results/torture.md
    python -m benchmarks.torture --minutes 5 --seed 7

Runs itself in network, mount and process namespaces of its own, on a file system in an image file, so it needs root on
Linux; nothing that it starts outlives it. Exit code 1 where an invariant does not hold; then its folder is kept.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_INSIDE = "--inside"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torture", description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=300, help="how many in all")
    parser.add_argument(
        "--minutes", type=float, default=600.0, help="of faults; they end when it or their number is up"
    )
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--large", type=int, default=0, help="instances of one large series, sent once")
    parser.add_argument("--database", choices=("both", "sqlite", "postgresql"), default="both")
    parser.add_argument("--settle", type=float, default=120.0, help="seconds that work may stand still in the end")
    parser.add_argument("--folder", type=Path, help="for its files; default: a temporary one")
    parser.add_argument("--report", type=Path, help="Markdown, and JSON beside it")
    parser.add_argument(_INSIDE, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        return _inside(sys.argv[1:])
    return _run(options)


def _inside(words: list[str]) -> int:
    """Namespaces of our own. A shell is the first process there: it buries orphans."""
    command = ["unshare", "-n", "-m", "-p", "-f", "--mount-proc", "--kill-child"]
    command += ["bash", "-c", 'ip link set lo up && "$@"; exit $?', "torture"]
    return subprocess.run(
        [*command, sys.executable, "-m", "benchmarks.torture", _INSIDE, *words], check=False
    ).returncode


def _run(options: argparse.Namespace) -> int:
    from benchmarks.torture.node import PostgreSQL
    from benchmarks.torture.report import markdown
    from benchmarks.torture.rig import Rig

    folder = options.folder or Path(tempfile.mkdtemp(prefix="torture-"))
    shares = {"sqlite": 0.75, "postgresql": 0.25} if options.database == "both" else {options.database: 1.0}
    if not PostgreSQL.is_here():
        shares = {"sqlite": 1.0}
    results = []
    for database, share in shares.items():
        with Rig(folder / database, options.seed, database=database) as rig:
            count = round(options.faults * share)
            rig.torture(
                count, options.minutes * 60 * share, lambda words, at=database: print(f"{at:10} {words}", flush=True)
            )
            large = options.large if database == "sqlite" else 0
            if large:
                print(f"{database:10} a series of {large} instances", flush=True)
                rig.send_large(large)
            print(f"{database:10} peace", flush=True)
            result = rig.settle(options.settle)
        results.append(result)
        print(
            json.dumps(
                {"broken": result.verdict.broken, "counts": result.verdict.counts, "facts": result.facts}, indent=1
            ),
            flush=True,
        )
    if options.report is not None:
        words = [word for word in sys.argv[1:] if word != _INSIDE]
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(markdown(results, f"python -m benchmarks.torture {shlex.join(words)}"))
        table = [
            {"database": r.database, "seed": r.seed, "seconds": round(r.seconds), "faults": dict(sorted(r.faults.items())),
             "broken": r.verdict.broken, "counts": r.verdict.counts, "facts": r.facts, "finished": round(time.time())}
            for r in results
        ]  # fmt: skip
        options.report.with_suffix(".json").write_text(json.dumps(table, indent=1) + "\n")
    holds = all(result.verdict.holds for result in results)
    if holds and options.folder is None:
        shutil.rmtree(folder)
    else:
        print(f"files are in {folder}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
