"""What must hold in the end, whatever was done to the node."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.torture.archive import Stored
from benchmarks.torture.senders import BULK, Acknowledged


@dataclass
class Verdict:
    """Counts, and under each invariant what broke it. No entry in `broken` may have any."""

    counts: dict[str, int] = field(default_factory=dict)
    broken: dict[str, list[str]] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether every invariant does."""
        return not any(self.broken.values())


def judge(
    acknowledged: Iterable[Acknowledged],
    archives: Mapping[str, Mapping[str, Stored]],
    *,
    dead: frozenset[str] = frozenset(),
    changed: Mapping[str, Iterable[str]] | None = None,
) -> Verdict:
    """Compare what senders were promised with what archives have; a pure function.

    Args:
        acknowledged: Every instance that was answered with success.
        archives: Their objects by SOP Instance UID. The first shall have originals and derived ones, others derived.
        dead: First digits (32) of the digests of instances whose jobs are in dead letters, where a person sees them.
        changed: By archive, UIDs that were sent to it with two contents.
    """
    first = next(iter(archives))
    promised: dict[str, str] = {}
    broken: dict[str, list[str]] = {name: [] for name in ("lost", "doubled", "wrong patient", "not asked for")}
    patients: dict[str, str] = {}
    bulk: set[str] = set()
    excused = 0
    for item in acknowledged:
        instance = item.instance
        patients[instance.uid] = instance.patient
        if promised.setdefault(instance.uid, instance.digest) != instance.digest:
            broken["lost"].append(f"{instance.uid}: two contents were acknowledged")
        if item.calling == BULK:
            bulk.add(instance.uid)
    made = {title: _by_source(objects) for title, objects in archives.items()}
    for uid, digest in promised.items():
        if digest[:32] in dead:
            excused += 1
            continue
        kept = archives[first].get(uid)
        if kept is None or kept.digest != digest:
            broken["lost"].append(f"{uid}: {'not' if kept is None else 'other bytes'} at {first}")
        for title in archives:
            if uid not in bulk and not made[title].get(uid):
                broken["lost"].append(f"{uid}: nothing derived of it at {title}")
    for title, objects in archives.items():
        for source, derived in made[title].items():
            if len(derived) > 1:
                broken["doubled"].append(f"{source}: {len(derived)} derived objects at {title}")
        broken["doubled"] += [f"{uid}: two contents were sent to {title}" for uid in (changed or {}).get(title, ())]
        for uid, kept in objects.items():
            patient = patients.get(kept.source or uid)
            if patient is not None and patient != kept.patient:
                broken["wrong patient"].append(f"{uid} at {title}")
            if title != first and not kept.source:
                broken["not asked for"].append(f"{uid}: an original at {title}")
    originals = sum(not kept.source for kept in archives[first].values())
    counts = {
        "acknowledged instances": len(promised),
        "originals at the archive": originals,
        "of them never acknowledged to their sender": originals - len(promised.keys() & archives[first].keys()),
        "derived at the archive": len(archives[first]) - originals,
        "instances in dead letters": excused,
    }
    for title in list(archives)[1:]:
        counts[f"derived at {title}"] = len(archives[title])
    resent = sum(kept.times - 1 for objects in archives.values() for kept in objects.values())
    counts["sent again after the archive had stored them, same bytes"] = resent
    return Verdict(counts, broken)


def _by_source(objects: Mapping[str, Stored]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for uid, kept in objects.items():
        if kept.source:
            found[kept.source].append(uid)
    return found


def leftovers(store: Path) -> list[str]:
    """Files that nothing needs any more, on a store whose node was stopped and whose jobs are done."""
    parts = [str(path.relative_to(store)) for path in store.rglob("*.part")]
    incoming = [str(path.relative_to(store)) for path in (store / "incoming").iterdir() if path.suffix != ".part"]
    return sorted(parts + incoming)


def dead_digests(store: Path, jobs: Iterable[str]) -> frozenset[str]:
    """First digits of the digests of the instances of jobs, by their files' names."""
    return frozenset(
        path.stem.split(".")[1] for job in jobs for path in (store / "jobs" / job / "source").glob("*.dcm")
    )
