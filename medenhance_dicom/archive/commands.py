"""The commands `archive`: plan, run, pause, resume, cancel, status, report."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medenhance_dicom.node.commands import keep_private
from medenhance_dicom.node.console import Json, note, print_json

if TYPE_CHECKING:
    from medenhance_dicom.archive.plan import Plan
    from medenhance_dicom.archive.running import Coordinator, Progress, Request
    from medenhance_dicom.node.settings import NodeSettings

archive_app = typer.Typer(
    no_args_is_help=True,
    help="Whole archives: what there is and what it will cost, then all of it, resumably. See docs/archive.md.",
)

PlanArgument = Annotated[Path, typer.Argument(help="The plan's folder.", metavar="PLAN")]
ConfigOption = Annotated[
    Path | None,
    typer.Option("-c", "--config", metavar="CONFIG", help="A node's TOML file: its store, database and destinations."),
]
Share = Annotated[str, typer.Option(metavar="SHARE", help="Such as 5%.")]

_TELL_SECONDS = 30.0


def add_to(app: typer.Typer) -> None:
    """Add `archive` to the program's commands."""
    app.add_typer(archive_app, name="archive")


# ---------------------------------------------------------------- plan


@archive_app.command("plan")
def archive_plan(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders, files, zips, DICOMDIRs, @list.csv, AET@HOST:PORT?StudyDate=…, https://…/dicom-web?…, "
            "s3://bucket/prefix; none: those that the plan has.",
            metavar="SOURCE...",
        ),
    ] = None,
    plan: Annotated[Path, typer.Option("--plan", help="The plan's folder, made where it is missing.")] = Path("plan"),
    origin: Annotated[
        str | None, typer.Option("--from", help="Where UIDs of a list are looked up: a PACS or DICOMweb.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A recipe's name, or auto: by SOP class and modality. Kept in the plan.")
    ] = None,
    guide: Annotated[str | None, typer.Option(help="Stored guide, or auto.", metavar="KEY")] = None,
    allow: Annotated[
        list[str] | None, typer.Option("--allow", help="Opt in to what is off by default: CT, MG.", metavar="MODALITY")
    ] = None,
    gate: Annotated[str | None, typer.Option(help="withhold, warn, off or blend.")] = None,
    device: Annotated[str | None, typer.Option("-d", "--device", help="Of the enhancement.")] = None,
    sign_key: Annotated[
        Path | None, typer.Option(help="Site key that signs the derived objects.", metavar="FILE|FOLDER")
    ] = None,
    sample: Annotated[
        str | None, typer.Option(help="Enhance this share, such as 0.1%, and forecast the rest.", metavar="SHARE")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    json: Json = False,
) -> None:
    """Find what there is by headers alone, choose what is to be done with it, and say why not the rest.

    Run it again to go on after an interruption, to add sources, and to take up what is new in them.
    """
    from medenhance_dicom.archive import planning
    from medenhance_dicom.archive.plan import Plan
    from medenhance_dicom.node.sources import open_source

    keep_private()
    given = {"recipe": recipe, "guide": guide, "allow": allow, "gate": gate, "device": device}
    given["sign_key"] = str(sign_key.absolute()) if sign_key is not None else None
    with _interruptible(f"`archive plan --plan {plan}`"):
        names = [planning.source_name(text) for text in sources or ()]
        for name in names:  # a wrong one makes no plan
            open_source(name, origin=origin if name.startswith("@") else None)
        with Plan(plan, create=True) as opened:
            _set_options(opened, {name: value for name, value in given.items() if value not in (None, [])})
            for name in names:
                opened.add_source(name, **({"origin": origin} if origin and name.startswith("@") else {}))
            if not opened.sources():
                raise typer.BadParameter("a new plan needs a source")
            with _telling(quiet=json) as tell:
                judged = planning.make_plan(opened, tell=tell)
                forecasts = None
                if sample is not None:
                    sampling = planning.Sampling(opened, _share(sample, "--sample"), now=_now(), seed=seed)
                    forecasts = sampling.run(tell=tell)
            _say_plan(opened, judged, forecasts, json=json)


def _set_options(plan: Plan, given: dict[str, Any]) -> None:
    """Options that are not given stay as they were. Wrong ones are refused."""
    from pydantic import ValidationError

    from medenhance_dicom.errors import ConfigurationError
    from medenhance_dicom.node.settings import Enhancing

    options = plan.options | given
    try:
        Enhancing.model_validate(options)
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigurationError(said) from error
    plan.set_options(options)


def _say_plan(plan: Plan, judged: Any, forecasts: Any, *, json: bool) -> None:
    from medenhance_dicom.archive import planning, reporting

    counts = plan.counts()
    forecast = None if forecasts is None else planning.as_json(forecasts)
    if json:
        print_json({"plan": str(plan.folder), **counts, "judged": asdict(judged), "forecast": forecast})
    else:
        found = reporting.report(plan, now=_now())
        typer.echo("\n".join(reporting.report_lines(found)))
    raise typer.Exit(0 if counts["series"].get("chosen") else 11 if judged.later else 3)


# ---------------------------------------------------------------- run


@archive_app.command("run")
def archive_run(
    plan: PlanArgument,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for the derived objects.")] = None,
    to: Annotated[str | None, typer.Option(metavar="NAME", help="A destination of CONFIG.")] = None,
    config: ConfigOption = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes of its own; by default 1, and with --config none.")
    ] = None,
    max_per_hour: Annotated[int | None, typer.Option(min=1, help="Series.")] = None,
    off_peak: Annotated[
        str | None, typer.Option(help="Hours to work in, such as 20:00-06:00, local time.", metavar="HH:MM-HH:MM")
    ] = None,
    ahead: Annotated[int, typer.Option(min=1, help="Most series in the queue at once: bounds disk and memory.")] = 64,
    shadow: Annotated[
        str | None, typer.Option(help="Compare with this recipe; what it makes goes nowhere.", metavar="RECIPE")
    ] = None,
    share: Share = "5%",
    shadow_output: Annotated[Path | None, typer.Option(help="Keep what the shadow makes, here.")] = None,
    wait: Annotated[bool, typer.Option(help="Where the plan is being run already, wait for the end of that.")] = False,
    log_format: Annotated[str, typer.Option("--log-format", help="text or json; of the log on stderr.")] = "text",
    json: Json = False,
) -> None:
    """Enhance what is open in PLAN; what has a result is never done again. Ctrl-C ends orderly, to be run again."""
    from medenhance_dicom.archive.pace import OffPeak
    from medenhance_dicom.archive.plan import Plan
    from medenhance_dicom.archive.running import Coordinator, Request, only_one
    from medenhance_dicom.node.logs import set_up_logs
    from medenhance_dicom.report import exit_code

    if (output is None) == (to is None):
        raise typer.BadParameter("give --output DIR, or --to NAME with --config")
    if to is not None and config is None:
        raise typer.BadParameter("--to needs --config")
    keep_private()
    set_up_logs("json" if log_format == "json" else "text")
    try:
        hours = None if off_peak is None else OffPeak.parse(off_peak)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--off-peak") from None
    with _interruptible("the same command"), Plan(plan) as opened, only_one(plan, wait=wait) as alone:
        stop = _stop_on_signals()
        if not alone:
            note(f"{plan} is being run already; `archive status {plan}` tells how far it is")
            raise typer.Exit(0)
        settings, path = _settings(plan, config)
        request = Request(
            output=output, to=to, ahead=ahead, max_per_hour=max_per_hour, off_peak=hours,
            workers=(0 if config is not None else 1) if workers is None else workers,
            shadow=None if shadow is None else _shadow(shadow, share, shadow_output),
        )  # fmt: skip
        _say_what_is_open(opened, request)
        coordinator = Coordinator(opened, settings, request, config=path)
        try:
            with _showing(quiet=json) as tell:
                progress = coordinator.run(stop, tell=tell)
        finally:
            coordinator.close()
        _say_run(opened, progress, json=json)
        if shadow is not None and progress.series and not progress.shadows:
            note(f"no series of the share had a shadow: {shadow} fits none, or is their own recipe")
        if stop.is_set():
            note(f"interrupted; the same command goes on, and `archive status {plan}` tells how far it is")
            raise typer.Exit(130)
        code = exit_code(progress.results + Counter(failed=progress.failed_jobs))
        raise typer.Exit(0 if code == 3 else code)


def _settings(plan: Path, config: Path | None) -> tuple[NodeSettings, Path]:
    """The store that jobs go through, and its file."""
    from medenhance_dicom.archive.running import own_config
    from medenhance_dicom.node.settings import load_settings

    path = (config or own_config(plan)).absolute()
    return load_settings(path), path


def _shadow(recipe: str, share: str, output: Path | None) -> Any:
    from medenhance_dicom.archive.running import Shadow
    from medenhance_dicom.archive.shadow import ShadowMethods
    from medenhance_dicom.manifest import load_manifest

    return Shadow(ShadowMethods(recipe, load_manifest()), _share(share, "--share"), output=output)


def _say_what_is_open(plan: Plan, request: Request) -> None:
    """What a person should know before it begins."""
    from medenhance_dicom.archive import planning
    from medenhance_dicom.errors import ConfigurationError

    counts = plan.counts()
    if counts["series"].get("new"):
        note(f"{counts['series']['new']} series are not judged yet: `archive plan` has to come to its end")
    if plan.meta("judged by") not in (None, planning.judged_by(plan)):
        raise ConfigurationError(
            f"recipes, weights or guides have changed since {plan.folder} was planned: "
            f"`archive plan --plan {plan.folder}` again"
        )
    where = str(request.output.absolute()) if request.output is not None else f"to {request.to}"
    before = plan.meta("destination")
    if before not in (None, where) and (counts["results"] or counts["earlier"]):
        note(f"what was done before went {before}; it is not done again")
    plan.set_meta(destination=where)
    note(f"{counts['open_series']} series with {counts['open_instances']} instances are open")


def _say_run(plan: Plan, progress: Progress, *, json: bool) -> None:
    results = dict(sorted(progress.results.items()))
    left = plan.counts()["open_series"]
    if json:
        print_json(
            {"series": progress.series, "results": results, "open_series": left, "failed_jobs": progress.failed_jobs,
             "shadows": progress.shadows, "seconds": round(progress.seconds, 1)}
        )  # fmt: skip
        return
    counted = ", ".join(f"{count} {result}" for result, count in results.items()) or "nothing was left to do"
    typer.echo(f"{progress.series} series: {counted}")
    if progress.failed_jobs:
        typer.echo(f"{progress.failed_jobs} series could not be done; `archive status` lists them")
    if left:
        typer.echo(f"{left} series are open")


def _stop_on_signals() -> threading.Event:
    """Set on SIGINT and SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


# ---------------------------------------------------------------- from another terminal


@archive_app.command("pause")
def archive_pause(plan: PlanArgument) -> None:
    """Begin nothing more until `archive resume`; workers of the run end their step and go."""
    from medenhance_dicom.archive.plan import Plan

    with Plan(plan) as opened:
        opened.set_meta(paused=True)
        opened.note("paused")
    note("paused")


@archive_app.command("resume")
def archive_resume(plan: PlanArgument) -> None:
    """Go on after `archive pause`."""
    from medenhance_dicom.archive.plan import Plan
    from medenhance_dicom.archive.running import only_one

    with Plan(plan) as opened:
        opened.set_meta(paused=False)
        opened.note("resumed")
    with only_one(plan) as alone:
        note(f"no run is going on; begin one with `archive run {plan} …`" if alone else "it goes on")


@archive_app.command("cancel")
def archive_cancel(plan: PlanArgument, config: ConfigOption = None) -> None:
    """Give up what is in the queue, and end the run. What is done stays done; `archive run` begins with the rest."""
    from medenhance_dicom.archive.plan import Plan
    from medenhance_dicom.archive.running import only_one

    with Plan(plan) as opened:
        opened.set_meta(cancelled=True)
        with only_one(plan) as alone:
            if not alone:
                note("the run is told to give up")
                return
            coordinator = _idle_coordinator(opened, plan, config)
            try:
                given_up = coordinator.cancel()
            finally:
                coordinator.close()
    note(f"{given_up} series were given up")


def _idle_coordinator(opened: Plan, plan: Path, config: Path | None) -> Coordinator:
    from medenhance_dicom.archive.running import Coordinator, Request

    settings, path = _settings(plan, config)
    return Coordinator(opened, settings, Request(output=plan, workers=0), config=path)


@archive_app.command("status")
def archive_status(plan: PlanArgument, json: Json = False) -> None:
    """Tell how far PLAN is, how fast it goes, what is left and what has failed; at any time."""
    from medenhance_dicom.archive import reporting
    from medenhance_dicom.archive.plan import Plan

    with Plan(plan, readonly=True) as opened:
        found = reporting.status(opened, now=time.time())
    if json:
        print_json(found)
    else:
        typer.echo("\n".join(reporting.status_lines(found)))


@archive_app.command("report")
def archive_report(
    plan: PlanArgument,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page.", metavar="FILE")] = None,
    files: Annotated[
        Path | None, typer.Option(help="Write a JSON line for every file: what became of it, and why.", metavar="FILE")
    ] = None,
    json: Json = False,
) -> None:
    """Explain every file of PLAN: enhanced, warned, withheld, skipped, failed or open; by device and modality."""
    from medenhance_dicom.archive import reporting
    from medenhance_dicom.archive.plan import Plan

    keep_private()
    with Plan(plan, readonly=True) as opened:
        found = reporting.report(opened, now=_now())
        if files is not None:
            reporting.write_files(opened, files)
    if html is not None:
        reporting.write_page(found, html)
    if json:
        print_json(found)
    else:
        typer.echo("\n".join(reporting.report_lines(found)))


# ---------------------------------------------------------------- parts


def _now() -> datetime:
    return datetime.fromtimestamp(time.time(), UTC).astimezone()


def _share(text: str, option: str) -> float:
    """0.05 from `5%` or `0.05`."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise typer.BadParameter(f"{text!r} is no share; write such as 5%", param_hint=option)
    return value


@contextmanager
def _interruptible(again: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        note(f"interrupted; {again} goes on where it stopped")
        raise typer.Exit(130) from None


@contextmanager
def _telling(*, quiet: bool) -> Iterator[Callable[[str, int, int | None], None] | None]:
    """Progress of planning on stderr: a line that is written over on a terminal, else a line now and then."""
    if quiet:
        yield None
        return
    line = _Line()

    def tell(what: str, done: int, total: int | None) -> None:
        line.show(what, f"{what}: {done}" if total is None else f"{what}: {done} of {total}", done, total)

    try:
        yield tell
    finally:
        line.end()


@contextmanager
def _showing(*, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """Progress of a run on stderr."""
    from medenhance_dicom.archive.reporting import duration

    if quiet:
        yield lambda progress: None
        return
    line = _Line()

    def tell(progress: Progress) -> None:
        words = f"{progress.series} series done, {progress.left} left, {progress.open_jobs} in the queue"
        if progress.failed_jobs:
            words += f", {progress.failed_jobs} failed"
        if progress.rate:
            words += f", {progress.rate * 3600:.0f} an hour, {duration(progress.seconds_left)} left"
        line.show("running", f"{words}; {progress.waits}" if progress.waits else words, progress.series, None)

    try:
        yield tell
    finally:
        line.end()


class _Line:
    """A line on stderr that says how far something is."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._shown = time.monotonic() if not self._terminal else 0.0
        self._what, self._width = "", 0
        self._began, self._first = time.monotonic(), 0

    def show(self, what: str, words: str, done: int, total: int | None) -> None:
        """Show it, if it is time to."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._began, self._first = what, now, done
        if now - self._shown < (0.5 if self._terminal else _TELL_SECONDS):
            return
        self._shown = now
        if total and done > self._first:
            words += f", {(now - self._began) / (done - self._first) * (total - done):.0f} s left"
        if self._terminal:
            sys.stderr.write(f"\r{words:{self._width}}")
            self._width = len(words)
            sys.stderr.flush()
        else:
            note(words)

    def end(self) -> None:
        """Wipe it."""
        if self._terminal and self._width:
            sys.stderr.write(f"\r{'':{self._width}}\r")
            sys.stderr.flush()
