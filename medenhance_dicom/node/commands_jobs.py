"""The commands `jobs`: what a person sees of the jobs, and does about them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from medenhance_dicom.node.console import DEFAULT_CONFIG, ConfigOption, Json, note, print_json, table

if TYPE_CHECKING:
    from medenhance_dicom.node.control import Control

jobs_app = typer.Typer(no_args_is_help=True, help="Series that the node works on, dead letters among them.")

JobIds = Annotated[list[str], typer.Argument(help="Job ids, or how they begin.", metavar="JOB...")]
JobId = Annotated[str, typer.Argument(help="Job id, or how it begins.", metavar="JOB")]
State = Literal["queued", "working", "waiting", "done", "failed", "cancelled"]


class _Jobs:
    """The control of a node's jobs, closed at the end; an unknown job is a line on stderr and exit code 3."""

    def __init__(self, config: Path) -> None:
        from medenhance_dicom.node.control import Control
        from medenhance_dicom.node.settings import load_settings

        self._control = Control(load_settings(config))

    def __enter__(self) -> Control:
        return self._control

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._control.close()
        if isinstance(error, KeyError):
            note(f"no job, or more than one, begins with {error.args[0]}")
            raise typer.Exit(3) from None


@jobs_app.command("list")
def jobs_list(
    config: ConfigOption = DEFAULT_CONFIG,
    state: Annotated[State | None, typer.Option(help="Only these; failed ones are the dead letters.")] = None,
    json: Json = False,
) -> None:
    """List the jobs, oldest first."""
    with _Jobs(config) as control:
        found = [job for job in control.all() if state in (None, job["state"])]
    if json:
        print_json(found)
        return
    columns = ("job", "state", "created", "calling_ae", "Modality", "instances", "say")
    shown = [job | {"job": job["job"][:8], "say": job["say"] or ("partial" if job["partial"] else "")} for job in found]
    table(columns, ([job[column] for column in columns] for job in shown))


@jobs_app.command("show")
def jobs_show(job: JobId, config: ConfigOption = DEFAULT_CONFIG, json: Json = False) -> None:
    """Show one job: its stages, what was made of it, and what each destination has had."""
    with _Jobs(config) as control:
        found = control.show(job)
    if json:
        print_json(found)
        return
    for name, value in found.items():
        if name not in ("stages", "destinations", "withheld"):
            shown = ", ".join(f"{n} {what}" for what, n in value.items()) if isinstance(value, dict) else value
            typer.echo(f"{name:14}{'' if shown is None else shown}")
    table(
        ("stage", "state", "next", "say"), ([s[c] for c in ("stage", "state", "next", "say")] for s in found["stages"])
    )
    if found["destinations"]:
        columns = ("sent", "refused", "committed", "failures", "finished")
        rows = ([name, *(had[column] for column in columns)] for name, had in found["destinations"].items())
        table(("destination", *columns), rows)
    if found["withheld"]:
        table(("withheld", "kept", "why"), ([w["source"], w["kept"], w["reason"]] for w in found["withheld"]))


@jobs_app.command("why")
def jobs_why(job: JobId, config: ConfigOption = DEFAULT_CONFIG, json: Json = False) -> None:
    """Tell what happened to a job, what it waits for, and what can be done."""
    with _Jobs(config) as control:
        sentences = control.why(job)
    if json:
        print_json({"job": job, "why": sentences})
    else:
        typer.echo("\n".join(sentences))


@jobs_app.command("retry")
def jobs_retry(
    jobs: Annotated[list[str] | None, typer.Argument(help="Job ids, or how they begin.", metavar="JOB...")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    failed: Annotated[bool, typer.Option("--failed", help="All dead letters.")] = False,
    json: Json = False,
) -> None:
    """Go at failed, cancelled or waiting jobs now, from where they stopped. Exit code 3 where none needed it."""
    if bool(jobs) == failed:
        raise typer.BadParameter("name jobs, or give --failed")
    with _Jobs(config) as control:
        asked = [job["job"] for job in control.all() if job["state"] == "failed"] if failed else list(jobs or ())
        done = {job: control.retry(job) for job in asked}
    nothing = "nothing to retry, see `jobs why`"
    _tell(done, {job: ", ".join(stages) or nothing for job, stages in done.items()}, json=json)


@jobs_app.command("cancel")
def jobs_cancel(jobs: JobIds, config: ConfigOption = DEFAULT_CONFIG, json: Json = False) -> None:
    """Give jobs up; their files stay, and the same instances may be sent again. Exit code 3 where all are done."""
    with _Jobs(config) as control:
        done = {job: control.cancel(job) for job in jobs}
        running = {job for job in jobs if not control.may_come_again(job)}
    words = {True: "cancelled; a step of it still runs: cancel it again when that is over", False: "cancelled"}
    said = {job: words[job in running] if cancelled else "is done already" for job, cancelled in done.items()}
    _tell(done, said, json=json)


def _tell(done: Mapping[str, object], words: Mapping[str, str], *, json: bool) -> NoReturn:
    """Say what was done to each job, and exit: with 3 where it was nothing."""
    if json:
        print_json(done)
    for job, what in words.items():
        note(f"{job[:8]}  {what}")
    raise typer.Exit(0 if any(done.values()) else 3)


@jobs_app.command("recover")
def jobs_recover(
    worker_name: Annotated[
        str | None, typer.Argument(help="The dead one; none: list workers.", metavar="WORKER")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Declare a worker dead, so that a living one takes its jobs over at once and not after `silent_seconds`."""
    with _Jobs(config) as control:
        workers = control.jobs.workers()
        if worker_name is not None:
            if worker_name not in workers:
                note(f"no worker {worker_name}; there are {', '.join(workers) or 'none'}")
                raise typer.Exit(3)
            control.recover(worker_name)
            workers = control.jobs.workers()
    states = {name: "stopped" if beats < 0 else "working" for name, beats in workers.items()}
    if json:
        print_json(states)
    else:
        table(("worker", "state"), states.items())
