"""How the instances of an archive's job come into its folder, how it is enhanced, and where what is made of them goes.

In the folder of such a job:

    job.json          "archive": the plan; "series", "Modality", "instances"; "groups": for each source its name,
                      options and the instances that are wanted of it
    plan.json         "destinations", "enhance", "made" as of any job; "archive": true, "priority", "options" of the
                      enhancement in place of the node's, "folders": destinations that the node's configuration lacks
    fetch.jsonl       starts and failures of fetching
    fetched.json      fetching has ended: "missing", place of what did not come -> why; left out where everything lay on
                      disks, and came
    source/<n>.dcm    what came, or links to it; source/<group>/<n>.dcm where there are several groups

What comes over a network does so in a stage of its own, "fetch". What lies on disks is brought when it is enhanced: to
link it takes less than to write down that it is linked, and may be done again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medenhance_dicom.errors import PeerError, RecipeError
from medenhance_dicom.jobs import ENHANCE, FETCH, Result, Task
from medenhance_dicom.node.delivery import pause_after
from medenhance_dicom.node.enhancing import tries
from medenhance_dicom.node.jobfolder import read_lines, read_whole, said, write_lines, write_whole
from medenhance_dicom.node.settings import Destination, Enhancing, NodeSettings, Work
from medenhance_dicom.node.sources import on_disks

log = logging.getLogger(__name__)


class Fetching:
    """The stage "fetch", and fetching without it; gos may run in several threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Args: clock: seconds since the epoch."""
        self._clock = clock

    def go(self, folder: Path, work: Work, stopping: threading.Event) -> Result:
        """Bring the instances of a job into its source/. What came before a failure stays and is not fetched again.

        Raises:
            OSError, OutputError: The disk does not take it.
        """
        then = (Task(ENHANCE),)
        fetched = read_whole(folder / "fetched.json")
        if fetched is not None:
            return Result("done", _told(fetched["missing"]), then)
        journal = folder / "fetch.jsonl"
        failures, crashes, why = tries(read_lines(journal))
        if failures >= work.attempts or crashes >= work.attempts:
            return Result("failed", f"{failures + crashes} attempts to fetch; the last one: {why or 'the worker died'}")
        write_lines(journal, [{"event": "started", "at": self._clock()}])
        try:
            missing = _fetch(folder, groups_of(folder), stopping)
        except _StoppedError:
            write_lines(journal, [{"event": "stopped", "at": self._clock()}])
            return Result("waiting", "the worker stopped", (Task(FETCH),))
        except OSError:
            write_lines(journal, [{"event": "stopped", "at": self._clock()}])
            raise
        except Exception as error:
            why = said(error)
            write_lines(journal, [{"event": "failed", "at": self._clock(), "why": why}])
            if (isinstance(error, PeerError) and error.permanent) or isinstance(error, RecipeError):
                return Result("failed", why)
            log.warning("job %s: fetching: %s", folder.name, why)
            pause = pause_after(failures + 1, work) if failures + 1 < work.attempts else 0.0
            return Result("waiting", why, (Task(FETCH, pause),))
        write_whole(folder / "fetched.json", {"missing": missing})
        return Result("done", _told(missing), then)

    def at_once(self, folder: Path, stopping: threading.Event) -> Result | None:
        """Bring what lies on disks, if it is not there; None: everything is, or nothing was to be brought.

        Raises:
            OSError, OutputError: The disk does not take it.
        """
        groups = groups_of(folder)
        if not groups or (folder / "fetched.json").exists():
            return None
        if not all(on_disks(group["source"]) for group in groups):
            return Result("waiting", "it has not been fetched", (Task(FETCH),))
        try:
            missing = _fetch(folder, groups, stopping)
        except _StoppedError:
            return Result("waiting", "the worker stopped", (Task(ENHANCE),))
        if missing:
            write_whole(folder / "fetched.json", {"missing": missing})
        return None


class _StoppedError(Exception):
    """The worker is to stop."""


def _fetch(folder: Path, groups: list[dict[str, Any]], stopping: threading.Event) -> dict[str, str]:
    """Place, relative to source/, of everything that did not come -> why."""
    from medenhance_dicom.node.sources import Wanted, open_source

    missing: dict[str, str] = {}
    for number, group in enumerate(groups):
        wanted = [Wanted(*fields) for fields in group["wanted"]]
        places = places_of(number, len(wanted), len(groups))
        target = (folder / "source" / places[0]).parent
        target.mkdir(mode=0o700, exist_ok=True)
        reasons = []
        for reason in open_source(group["source"], **group["options"]).fetch(wanted, target):
            reasons.append(reason)
            if stopping.is_set():
                raise _StoppedError
        if stopping.is_set():
            raise _StoppedError
        absent = [place for place in places if not (folder / "source" / place).is_file()]
        if len(absent) != len(reasons):  # it said too little
            reasons = ["MISSING: it did not come"] * len(absent)
        missing |= dict(zip(absent, reasons, strict=True))
    return missing


def groups_of(folder: Path) -> list[dict[str, Any]]:
    """What is to be brought into the folder of a job; nothing for a job of the node."""
    groups: list[dict[str, Any]] = (read_whole(folder / "job.json") or {}).get("groups", [])
    return groups


def places_of(group: int, count: int, groups: int) -> list[str]:
    """Where the instances of a group come to lie, relative to source/."""
    return [f"{group}/{n}.dcm" if groups > 1 else f"{n}.dcm" for n in range(count)]


def settings_of(plan: dict[str, Any], settings: NodeSettings) -> NodeSettings:
    """The node's settings as a job has them: an archive's enhances in its own way, and sends nothing but derived files.

    Args:
        plan: The job's plan.json.
        settings: The node's.
    """
    if "archive" not in plan:
        return settings
    own = [Destination(name=name, folder=Path(folder)) for name, folder in plan.get("folders", {}).items()]
    kept = [there for there in settings.destinations if there.name not in plan.get("folders", {})]
    return settings.model_copy(
        update={
            "enhance": Enhancing.model_validate(settings.enhance.model_dump() | plan.get("options", {})),
            "destinations": tuple(there.model_copy(update={"send": "derived"}) for there in (*kept, *own)),
        }
    )


def _told(missing: dict[str, str]) -> str:
    return f"{len(missing)} instances did not come" if missing else ""
