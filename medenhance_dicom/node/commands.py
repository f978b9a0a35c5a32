"""The commands `node` and `worker`, and the way of this package's commands into the program's."""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medenhance_dicom.errors import ConfigurationError
from medenhance_dicom.node.commands_audit import audit_app
from medenhance_dicom.node.commands_jobs import jobs_app
from medenhance_dicom.node.commands_peers import echo, query, send
from medenhance_dicom.node.console import DEFAULT_CONFIG, ConfigArgument, Json, LogFormat, note, print_json

if TYPE_CHECKING:
    from medenhance_dicom.node.settings import NodeSettings

_DRAIN_SECONDS = 120.0
_RELOAD_SECONDS = 10.0

node_app = typer.Typer(
    no_args_is_help=True, help="The DICOM node: receive, enhance, send on, prove it. See docs/node.md and node.toml."
)


def add_to(app: typer.Typer) -> None:
    """Add `node`, `jobs`, `audit`, `worker`, `send`, `query` and `echo` to the program's commands."""
    app.add_typer(node_app, name="node")
    app.add_typer(jobs_app, name="jobs")
    app.add_typer(audit_app, name="audit")
    for command in (worker, send, query, echo):
        app.command(command.__name__)(command)


@node_app.command("run")
def node_run(config: ConfigArgument = DEFAULT_CONFIG, log_format: LogFormat = "text") -> None:
    """Serve until SIGTERM: then take nothing more, finish what runs, and exit with 0. SIGHUP reads CONFIG anew."""
    from medenhance_dicom.node.logs import set_up_logs
    from medenhance_dicom.node.serve import NodeProcess

    keep_private()
    set_up_logs(log_format)
    raise typer.Exit(NodeProcess(config.absolute(), log_format=log_format).run())


def keep_private() -> None:
    """Files for our user alone, and no core dumps: both would hold pictures of patients."""
    import resource

    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@node_app.command("check")
def node_check(
    config: ConfigArgument = DEFAULT_CONFIG,
    peers: Annotated[bool, typer.Option(help="Ask the destinations.")] = True,
    json: Json = False,
) -> None:
    """Validate CONFIG, then try the store, disk, ports, weights, certificates, database and every destination.

    Exit code 2 where something is wrong here, 11 where only other machines do not answer as they should.
    """
    from medenhance_dicom.node.check import Finding, check, exit_code
    from medenhance_dicom.node.settings import load_settings

    findings: list[Finding] = []
    try:
        settings = load_settings(config)
    except ConfigurationError as error:
        findings.append(Finding("configuration", "wrong", str(error)))
    else:
        findings.append(Finding("configuration", "ok", str(config)))
        for finding in check(settings, now=_now(), peers=peers):
            findings.append(finding)
            if sys.stderr.isatty() and not json:
                note(f"{finding.what} …")
    if json:
        lines = [{"what": f.what, "level": f.level, "words": f.words} for f in findings]
        print_json({"findings": lines, "exit_code": exit_code(findings)})
    else:
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            typer.echo(f"{finding.level:8}{finding.what:{width}}  {finding.words}")
    raise typer.Exit(exit_code(findings))


def _now() -> datetime:
    return datetime.fromtimestamp(time.time(), UTC)


@node_app.command("status")
def node_status(config: ConfigArgument = DEFAULT_CONFIG, json: Json = False) -> None:
    """Tell whether the node runs, what comes in, what waits. Exit code 3 where it does not run."""
    from medenhance_dicom.node.settings import load_settings

    status = _status(load_settings(config))
    if json:
        print_json(status)
    else:
        for name, value in status.items():
            shown = "; ".join(map(str, value)) if isinstance(value, list) else value
            typer.echo(f"{name.replace('_', ' '):26}{'' if shown is None else shown}")
    raise typer.Exit(0 if status["running"] else 3)


def _status(settings: NodeSettings) -> dict[str, Any]:
    """What a person wants to know first; from the store, and from the node's /readyz where it has one."""
    from medenhance_dicom.node.check import set_aside_bytes
    from medenhance_dicom.node.metrics import Metrics, unfinished
    from medenhance_dicom.node.spool import Spool
    from medenhance_dicom.node.state import read_state, running_process

    store = settings.store
    pid = running_process(store)
    said = read_state(store)
    status: dict[str, Any] = {"running": pid is not None, "state": said.get("state") if pid else "stopped", "pid": pid}
    status |= {name: said.get(name) for name in ("version", "since", "listener", "http")}
    if not (store / "secret").exists():
        return status
    spool = Spool(store)
    pending, waiting = list(spool.pending()), unfinished(store)
    oldest = min(waiting.values(), default=None)
    status |= {
        "open_associations": sum(1 for _ in spool.associations()),
        "pending_series": len(pending),
        "pending_instances": sum(series.count for series in pending),
        "unfinished_jobs": len(waiting),
        "oldest_unfinished_seconds": None if oldest is None else round(max(0.0, time.time() - oldest)),
        "dead_letters": len(Metrics(spool).dead_letters()),
        **spool.set_aside(),
        **{f"{name}_gigabytes": round(size / 1e9, 3) for name, size in set_aside_bytes(store).items()},
        "free_gigabytes": round(spool.free_bytes() / 1e9, 1),
        "problems": _problems(said["http"]) if pid is not None and said.get("http") else None,
    }
    return status


def _problems(address: str) -> list[str]:
    import httpx

    try:
        answer = httpx.get(f"{address}/readyz", timeout=10.0, trust_env=False)
        return list(answer.json()["problems"])
    except (httpx.HTTPError, ValueError, LookupError) as error:
        return [f"HTTP does not answer ({type(error).__name__})"]


@node_app.command("drain")
def node_drain(
    config: ConfigArgument = DEFAULT_CONFIG,
    seconds: Annotated[float, typer.Option(help="How long to wait for its end.", min=0)] = _DRAIN_SECONDS,
) -> None:
    """Have the node take nothing more, finish what runs, and end. Exit code 3 where none runs, 4 where it goes on."""
    from medenhance_dicom.node.settings import load_settings
    from medenhance_dicom.node.state import running_process

    store = load_settings(config).store
    _signal(store, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while running_process(store) is not None:
        if time.monotonic() > deadline:
            note(f"it still drains after {seconds:.0f} s")
            raise typer.Exit(4)
        time.sleep(0.1)
    note("drained")


@node_app.command("reload")
def node_reload(config: ConfigArgument = DEFAULT_CONFIG, json: Json = False) -> None:
    """Have the node read CONFIG anew: peers, destinations, rules, limits. A wrong file is not taken."""
    from medenhance_dicom.node.settings import load_settings
    from medenhance_dicom.node.state import read_state

    store = load_settings(config).store
    before = read_state(store).get("reload", {}).get("n", 0)
    _signal(store, signal.SIGHUP)
    deadline = time.monotonic() + _RELOAD_SECONDS
    while (done := read_state(store).get("reload", {"n": 0})).get("n", 0) == before:
        if time.monotonic() > deadline:
            note("the node does not say that it has read it")
            raise typer.Exit(4)
        time.sleep(0.1)
    if json:
        print_json(done)
    if done["refused"]:
        raise ConfigurationError(done["refused"])
    later = done["at_the_next_start"]
    note(f"reloaded{'; takes effect at the next start: ' + ', '.join(later) if later else ''}")


def _signal(store: Path, number: signal.Signals) -> None:
    from medenhance_dicom.node.state import running_process

    pid = running_process(store)
    if pid is None:
        note("no node runs on this store here")
        raise typer.Exit(3)
    try:
        os.kill(pid, number)
    except PermissionError:
        raise ConfigurationError(f"process {pid} belongs to another user; do it as that user") from None


def worker(config: ConfigArgument = DEFAULT_CONFIG, log_format: LogFormat = "text") -> None:
    """Work on the node's jobs, on this or another host that shares its store and database, until SIGTERM."""
    from medenhance_dicom.node.logs import set_up_logs
    from medenhance_dicom.node.settings import load_settings
    from medenhance_dicom.node.worker import work_until_stopped

    keep_private()
    set_up_logs(log_format)
    work_until_stopped(partial(load_settings, config.absolute()))
