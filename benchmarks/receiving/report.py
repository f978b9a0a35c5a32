"""Tables, and which aims are met."""

from __future__ import annotations

from benchmarks.receiving.servers import SERVERS

AIMS = {"0.5 MB": 8.0, "16 kB": 15.0}
"""Ours over the faster of the others, from a sender as it comes."""
MEMORY_MB = 80
IDLE, BUSY = "nothing to enhance", "while enhancing"
Cells = dict[str, dict[str, float]]


def table(cells: Cells, columns: list[str] | None = None) -> str:
    """Rows are cells."""
    names = columns or list(SERVERS)
    lines = ["| instances, associations, sender | " + " | ".join(names) + " |", "|---" + "|---:" * len(names) + "|"]
    for cell, rates in cells.items():
        lines.append(f"| {cell} | " + " | ".join(f"{rates[name]:.0f}" for name in names) + " |")
    return "\n".join(lines)


def judge(cells: Cells, *, delayed: bool = False) -> dict[str, bool]:
    """Aim -> whether it is met. The others' stalls are a matter of loopback: no factors where there is a delay."""
    verdicts = {}
    for cell, rates in cells.items():
        kind, associations, sender = cell.split(", ")
        best = max(rates["ours, 1 receiver"], rates["ours, 2 receivers"])
        verdicts[f"{cell}: not slower than Orthanc"] = best >= rates["Orthanc, SyncStorageArea"]
        if sender == "stock" and associations == "1 association" and not delayed:
            others = max(rates["DCMTK storescp --fork"], rates["Orthanc, SyncStorageArea"])
            verdicts[f"{cell}: {AIMS[kind]:.0f} times the others"] = rates["ours, 1 receiver"] >= AIMS[kind] * others
        if associations == "4 associations":
            one = cells[f"{kind}, 1 association, {sender}"]["ours, 1 receiver"]
            verdicts[f"{cell}: 2 receivers 1.5 times one association of one"] = rates["ours, 2 receivers"] >= 1.5 * one
    return verdicts


def judge_large(receiver: dict[str, float], node: dict[str, float]) -> dict[str, bool]:
    """Both below the aim."""
    return {
        f"207 MB: below {MEMORY_MB} MB": receiver["peak_mb"] < MEMORY_MB,
        f"207 MB into the whole node: below {MEMORY_MB} MB": node["peak_mb"] < MEMORY_MB,
    }


def judge_node(cells: Cells) -> dict[str, bool]:
    """At least half the rate while the worker enhances."""
    return {f"{cell}: at least half {BUSY}": rates[BUSY] >= rates[IDLE] / 2 for cell, rates in cells.items()}
