"""Throw mutated DICOM and HTTP at a node, and look after each batch whether it is none the worse.

    python -m benchmarks.fuzz --seconds 600 --seed 7 --report docs/results/fuzz.md
    python -m benchmarks.fuzz --replay docs/results/fuzz-findings/1.jsonl

Runs itself in a network namespace of its own. Exit code 1 where an invariant does not hold; then the inputs of the batch
lie beside the report, to be replayed.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path

_INSIDE = "--inside"
_BATCH = 50
_AT_ONCE = 3
_MOST_FINDINGS = 20
_ALIKE = 3


@dataclass
class Result:
    """Of a run."""

    inputs: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    batches: int = 0
    seconds: float = 0.0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", choices=("dicom", "http"))
    parser.add_argument("--replay", type=Path, help="inputs of a finding, in place of new ones")
    parser.add_argument("--report", type=Path, help="Markdown; findings go to a folder beside it")
    parser.add_argument(_INSIDE, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        return _run(options)
    command = ["unshare", "-n", "-p", "-f", "--mount-proc", "--kill-child", "bash", "-c"]
    command += ['ip link set lo up && "$@"; exit $?', "fuzz", sys.executable, "-m", "benchmarks.fuzz", _INSIDE]
    return subprocess.run([*command, *sys.argv[1:]], check=False).returncode


def _inputs(options: argparse.Namespace) -> Iterator:
    """Without end, or those of the file."""
    from benchmarks.fuzz import pdus, requests
    from benchmarks.fuzz.chance import Chance, Input

    if options.replay is not None:
        yield from map(Input.of_line, options.replay.read_text().splitlines())
        return
    makers = {"dicom": [pdus.make], "http": [requests.make], None: [pdus.make, pdus.make, requests.make]}[options.only]
    number = 0
    while True:
        yield makers[number % len(makers)](Chance(options.seed * 1_000_000 + number))
        number += 1


def _run(options: argparse.Namespace) -> int:
    from benchmarks.fuzz.watch import Watch

    folder, result = Path(tempfile.mkdtemp(prefix="fuzz-")), Result()
    kept = options.report.with_name(options.report.stem + "-findings") if options.report else folder / "findings"
    inputs = _inputs(options)
    with Watch(folder, options.seed) as watch, ThreadPoolExecutor(_AT_ONCE) as pool:
        began = time.monotonic()
        while result.seconds < options.seconds and len(result.findings) < _MOST_FINDINGS:
            batch = list(islice(inputs, _BATCH))
            if not batch:
                break
            for what, answer in zip(batch, pool.map(watch.throw, batch), strict=True):
                result.inputs[f"{what.to}, {what.name.split(':')[0]}"] += 1
                if said := watch.judge(what, answer):
                    _keep(result, options.seed, kept, "HTTP", said, [what])
            result.batches += 1
            for rule, how in watch.look():
                _keep(result, options.seed, kept, rule, how, batch)
            result.seconds = time.monotonic() - began
            if watch.node.ended_by_itself() is not None:
                break
        code = watch.node.terminate(30.0)
        if code != 0:
            _keep(result, options.seed, kept, "the node does not stop", f"exit code {code}", batch)
        for rule, how in watch.words():
            _keep(result, options.seed, kept, rule, how, batch)
    text = _markdown(result, watch, options)
    print(text)
    if options.report is not None:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(text)
    if result.findings:
        print(f"files are in {folder} and {kept}")
        return 1
    shutil.rmtree(folder)
    return 0


def _keep(result: Result, seed: int, folder: Path, rule: str, how: str, inputs: list) -> None:
    """A finding, with the inputs that may have caused it; of many that are alike the first ones."""
    if result.findings.count(f"{rule}: {how}") >= _ALIKE:
        return
    folder.mkdir(parents=True, exist_ok=True)
    result.findings.append(f"{rule}: {how}")
    path = folder / f"{len(result.findings)}.jsonl"
    path.write_text("".join(what.line() + "\n" for what in inputs))
    print(f"seed {seed}, batch {result.batches}: {rule}: {how}: {path}", flush=True)
    if len(inputs) == 1:
        print(inputs[0].line()[:2000], flush=True)


def _markdown(result: Result, watch, options: argparse.Namespace) -> str:
    words = shlex.join(word for word in sys.argv[1:] if word != _INSIDE)
    total = sum(result.inputs.values())
    lines = [
        "# The node under malformed input", "", f"    python -m benchmarks.fuzz {words}", "",
        f"{total} inputs in {result.batches} batches, seed {options.seed}, {result.seconds / 60:.1f} minutes. "
        f"{'**Findings below.**' if result.findings else 'No finding.'}", "",
        f"medenhance-dicom {version('medenhance-dicom')}, pynetdicom {version('pynetdicom')}, uvicorn {version('uvicorn')}, "
        f"Python {platform.python_version()}.", "",
        "After each batch: every process is the one that was started and at most 100 MB larger, a worker 400 MB; no "
        "connection, `.part` or marker of an association is left; C-ECHO, a new C-STORE and /healthz go well; the log and the audit trail name no "
        "patient, no UID and no traceback. HTTP 500 is never an answer.", "",
        f"Largest growth: {', '.join(f'{role} {more} MB' for role, more in watch.growth.items())}. Longest wait for the last connection of a batch: "
        f"{watch.longest_slot:.1f} s.", "",
        "| input | |", "|---|---:|", *(f"| {name} | {count} |" for name, count in sorted(result.inputs.items())), "",
        "| HTTP status | |", "|---|---:|", *(f"| {code} | {count} |" for code, count in sorted(watch.statuses.items())),
    ]  # fmt: skip
    if watch.errors:
        lines += ["", "| logged as an error | |", "|---|---:|"]
        lines += [f"| {said} | {count} |" for said, count in watch.errors.most_common(20)]
    if result.findings:
        lines += ["", "## Findings", "", *(f"- {found}" for found in result.findings)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
