"""Enhance the series of a job: once, with every start and failure written down."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medenhance_dicom.errors import OUT_OF_MEMORY, ConfigurationError, FrameError, ModelError, RecipeError
from medenhance_dicom.jobs import ENHANCE, Result, Task
from medenhance_dicom.node.delivery import pause_after
from medenhance_dicom.node.jobfolder import LEDGER, flush, read_lines, said, write_lines
from medenhance_dicom.node.settings import Enhancing as EnhanceTable
from medenhance_dicom.node.settings import NodeSettings
from medenhance_dicom.withheld import FOLDER

if TYPE_CHECKING:
    from medenhance_dicom.decoding import Decoder
    from medenhance_dicom.enhance import Enhancement
    from medenhance_dicom.selection import Settings

JOURNAL = "enhance.jsonl"
"""Of the starts and failures of a job's enhancement, in its folder."""

_KEPT = 3
"""Enhancements of a process with their weights: the node's own, an archive's and what that is compared with."""

_GATHERED_SECONDS = 2.0
"""How long a series that is enhanced waits for others, so that what follows is done for all of them in a row."""

log = logging.getLogger(__name__)


class _StoppedError(Exception):
    """The worker is to stop."""


class Turns:
    """Who enhances next in this process: one at a time, and an archive's series only when no other one waits."""

    def __init__(self) -> None:
        lock = threading.Lock()
        self._live, self._behind = threading.Condition(lock), threading.Condition(lock)
        self._taken, self._waiting, self._waiting_behind = False, 0, 0
        self._gathered, self._gathering_ends = threading.Condition(lock), 0.0

    @contextmanager
    def turn(self, *, behind: bool, stopping: threading.Event) -> Iterator[bool]:
        """Wait for a turn. False: the worker is to stop.

        Args:
            behind: Let those go first that are not.
            stopping: Ends the waiting.
        """
        mine_comes = self._behind if behind else self._live
        with mine_comes:
            self._waiting += not behind
            self._waiting_behind += behind
            try:
                while self._taken or (behind and self._waiting):
                    if stopping.is_set():
                        break
                    mine_comes.wait(1.0)  # a turn that ends wakes one; `stopping` does not
            finally:
                self._waiting -= not behind
                self._waiting_behind -= behind
            mine = not stopping.is_set() and not self._taken
            self._taken = self._taken or mine
        try:
            yield mine
        finally:
            if mine:
                with self._live:
                    self._taken = False
                    (self._live if self._waiting else self._behind).notify()

    def gather(self, stopping: threading.Event) -> None:
        """Wait for others that have had their turns, and go on together.

        What follows an enhancement takes half the processor time or less right after the same for another series:
        an enhancement has emptied the processor's caches. So it is waited until nobody has a turn or waits for one, or
        `_GATHERED_SECONDS` after the first came.

        Args:
            stopping: Ends the waiting.
        """
        with self._gathered:
            now = time.monotonic()
            if self._gathering_ends <= now:
                self._gathering_ends = now + _GATHERED_SECONDS
            ends = self._gathering_ends
            while self._gathering_ends == ends and not stopping.is_set():
                left = ends - time.monotonic()
                if left <= 0 or not (self._taken or self._waiting or self._waiting_behind):
                    self._gathering_ends = 0.0
                    self._gathered.notify_all()
                else:
                    self._gathered.wait(left)


class Enhancing:
    """The stage "enhance"; its gos run one after the other in a process, see `Turns`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Args: clock: seconds since the epoch."""
        self._clock = clock
        self._enhancements: dict[object, Enhancement] = {}
        self._decoder: Decoder | None = None

    def go(
        self, folder: Path, made: float, settings: NodeSettings, stopping: threading.Event
    ) -> dict[str, Any] | Result:
        """What goes into enhanced.json, or a Result where that has to wait.

        Args:
            folder: Of the job.
            made: Time that the derived objects carry, the same in every go: a repeat writes the same bytes.
            settings: Of the node.
            stopping: The worker is to stop; looked at after every instance.

        Raises:
            OSError: The start cannot be written down.
        """
        journal = folder / JOURNAL
        failures, crashes, why = tries(read_lines(journal))
        if failures >= settings.work.attempts or crashes >= settings.work.attempts:
            return {"failed": f"{failures + crashes} attempts; the last one: {why or 'the worker died'}", "derived": []}
        # A start that ends with the machine is none of the series' fault.
        write_lines(journal, [{"event": "started", "at": self._clock()}], durable=False)
        try:
            counts, derived = self._enhance(folder, made, settings, stopping)
        except _StoppedError:
            write_lines(journal, [{"event": "stopped", "at": self._clock()}])
            return Result("waiting", "the worker stopped", (Task(ENHANCE),))
        except (ModelError, RecipeError, ConfigurationError) as error:  # until a person mends it
            write_lines(journal, [{"event": "failed", "at": self._clock(), "why": str(error)}])
            return {"failed": str(error), "derived": []}
        except Exception as error:
            why = said(error)
            log.warning("job %s: enhancing: %s", folder.name, why)
            write_lines(journal, [{"event": "failed", "at": self._clock(), "why": why}])
            pause = pause_after(failures + 1, settings.work) if failures + 1 < settings.work.attempts else 0.0
            return Result("waiting", why, (Task(ENHANCE, pause),))
        return {"counts": counts, "derived": derived}

    def _enhance(
        self, folder: Path, made: float, settings: NodeSettings, stopping: threading.Event
    ) -> tuple[dict[str, int], list[str]]:
        """Counts of results, and the derived files that may be sent, relative to the folder."""
        from medenhance_dicom.decoding import Decoder
        from medenhance_dicom.report import RunReport

        first = settings.enhance not in self._enhancements
        run = self._enhancement_for(settings, folder / "derived", folder.name, made=made)
        report = RunReport(
            folder / "run_report.json", started=self._now(), device=run.device, engine=run.engine,
            precision=run.precision,
        )  # fmt: skip
        counts, derived, short = Counter[str](), [], 0
        self._decoder = self._decoder or Decoder(run.settings.limits)
        try:
            for outcome in run.outcomes([folder / "source"], decoder=self._decoder):
                report.add(outcome)
                counts[outcome.result] += 1
                short += (outcome.reason or "").startswith(OUT_OF_MEMORY)
                if outcome.result in ("enhanced", "warned") and outcome.derived:
                    derived.append("/".join(("derived", *Path(outcome.derived).parts[-3:])))
                if stopping.is_set():
                    raise _StoppedError
            if short and not self._is_last_attempt(folder, settings):  # there may be memory later
                raise FrameError(OUT_OF_MEMORY, f"too little memory for {short} of {counts.total()} instances")
        except BaseException:  # the next go begins anew, and the journal keeps why
            report.discard()
            raise
        report.close(finished=self._now())
        flush(report.path)  # its name is flushed with that of enhanced.json
        if first:  # libraries and weights are loaded, and stay: no collection looks through them again
            gc.unfreeze()  # weights that these have displaced
            gc.collect()
            gc.freeze()
        return dict(counts), derived

    def _enhancement_for(self, settings: NodeSettings, output: Path, job: str, *, made: float) -> Enhancement:
        """The process's Enhancement of these options, so that weights load once; the last few are kept."""
        from medenhance_dicom.enhance import Enhancement

        asked = settings.enhance
        now = datetime.fromtimestamp(made, UTC)
        run = self._enhancements.pop(asked, None) or Enhancement(run_settings(asked, output), now=now)
        self._enhancements[asked] = run
        while len(self._enhancements) > _KEPT:
            del self._enhancements[next(iter(self._enhancements))]
        days, kept = settings.retention.keep_withheld_days, settings.store / FOLDER / job
        run.settings = replace(
            run.settings, output=output, ledger=settings.store / LEDGER, keep_withheld=days, withheld=kept
        )
        run.now = now
        return run

    def _is_last_attempt(self, folder: Path, settings: NodeSettings) -> bool:
        failures, _, _ = tries(read_lines(folder / JOURNAL))
        return failures + 1 >= settings.work.attempts

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


def run_settings(asked: EnhanceTable, output: Path) -> Settings:
    """The settings of a run of `enhance` by the options of a configuration's `[enhance]`."""
    from medenhance_dicom.selection import Settings

    return Settings(
        output=output,
        recipe=asked.recipe,
        guide=None if asked.guide == "auto" else asked.guide,
        device=asked.device,
        engine=asked.engine,
        precision=asked.precision,
        gate=asked.gate,
        allow=frozenset(name.upper() for name in asked.allow),
        sign_key=asked.sign_key,
    )


def tries(lines: Sequence[dict[str, Any]]) -> tuple[int, int, str]:
    """Of an enhancement since the last retry: failures, starts that never ended, and why it failed last."""
    failures, crashes, why = 0, 0, ""
    for line in lines:
        match line["event"]:
            case "started":
                crashes += 1
            case "stopped":
                crashes -= 1
            case "failed":
                failures, crashes, why = failures + 1, crashes - 1, line["why"]
            case "retried":
                failures, crashes = 0, 0
    return failures, max(crashes, 0), why
