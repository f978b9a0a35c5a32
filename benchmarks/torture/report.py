"""The report of a run as Markdown."""

from __future__ import annotations

import platform
from collections import Counter
from importlib.metadata import version

from benchmarks.torture.rig import Result

NOT_DONE = (
    "A power cut is ext4's own shutdown (FS_IOC_SHUTDOWN without flushing its log) on an image whose journal commits only "
    "when somebody flushes. What the device has taken survives it, so a disk that lies about flushes is not covered, and "
    "one flush commits the names that others left unflushed on the same file system.",
    "The wall clock jumps for the node's processes only; time stamps of files stay true.",
    "The 20,000-instance series is passed on and committed, not enhanced.",
    "One host: workers on other hosts, and a store on a network file system, are not covered. TLS is not either.",
    "Fault kinds and their parameters follow from the seed; the moments at which they hit do not.",
)


def markdown(results: list[Result], command: str) -> str:
    """Tables of faults, totals and invariants, and what was not done."""
    kinds: Counter[str] = Counter()
    for result in results:
        kinds += result.faults
    holds = all(result.verdict.holds for result in results)
    lines = [
        "# The node under faults", "",
        f"    {command}", "",
        f"{sum(kinds.values())} faults, seed {results[0].seed}, {sum(r.seconds for r in results) / 60:.0f} minutes. "
        f"{'Every invariant held.' if holds else '**Not every invariant held.**'}", "",
        f"medenhance-dicom {version('medenhance-dicom')}, pynetdicom {version('pynetdicom')}, DBOS {version('dbos')}, "
        f"Python {platform.python_version()}, Linux {platform.release().split('-')[0]}.", "",
        "A supervisor starts the node anew when it ends, as systemd does. Two threads send series of 1 to 8 instances by "
        "C-STORE and STOW-RS the whole time and repeat what was not acknowledged. ARCHIVE gets originals and derived "
        "objects and commits them; COPY gets derived ones, without commitment.", "",
        "## Invariants", "",
        f"| | {' | '.join(r.database for r in results)} |", f"|---|{'---:|' * len(results)}",
    ]  # fmt: skip
    rules = list(dict.fromkeys(rule for result in results for rule in result.verdict.broken))
    for rule in rules:
        cells = (str(len(r.verdict.broken.get(rule, []))) for r in results)
        lines.append(f"| {_NAMES.get(rule, f'broken: {rule}')} | {' | '.join(cells)} |")
    for result in results:
        for rule, how in result.verdict.broken.items():
            lines += ["", f"{result.database}, {rule}:", "", *(f"- {line}" for line in how[:20])] if how else []
    lines += ["", "## Totals", "", f"| | {' | '.join(r.database for r in results)} |", f"|---|{'---:|' * len(results)}"]
    totals = [r.verdict.counts | r.facts for r in results]
    for name in dict.fromkeys(name for total in totals for name in total):
        lines.append(f"| {name} | {' | '.join(_cell(total.get(name, '')) for total in totals)} |")
    lines += ["", "## Faults", "", "| | times |", "|---|---:|"]
    lines += [f"| {kind} | {count} |" for kind, count in sorted(kinds.items())]
    lines += ["", "## Not covered", "", *(f"- {words}" for words in NOT_DONE)]
    return "\n".join(lines) + "\n"


_NAMES = {
    "lost": "acknowledged and lost",
    "doubled": "doubled, or sent with two contents",
    "wrong patient": "of the wrong patient",
    "not asked for": "sent where they should not go",
    "left over": "left over: `.part` files and others",
    "audit trail": "breaks of the audit trail",
}


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {count}" for name, count in value.items()) or "none"
    return str(value)
