"""What commands share: options, and output. The result goes to stdout, what is told on the way to stderr."""

from __future__ import annotations

import json as json_module
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

DEFAULT_CONFIG = Path("/etc/medenhance/node.toml")

_FIRST_LINE = 5.0
"""Seconds until a first line of progress where stderr is no terminal, and until the second one."""
_LAST_LINES = 60.0
"""Seconds between two later on."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
LogFormat = Annotated[Literal["text", "json"], typer.Option("--log-format", help="Of the log on stderr.")]
_CONFIG: dict[str, Any] = {"metavar": "CONFIG", "envvar": "MEDENHANCE_NODE", "help": "The node's TOML file."}
ConfigArgument = Annotated[Path, typer.Argument(**_CONFIG)]
ConfigOption = Annotated[Path, typer.Option("-c", "--config", **_CONFIG)]


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    typer.echo(json_module.dumps(value, indent=1))


def table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Print a table whose last column may wrap; None is an empty cell."""
    from rich.console import Console
    from rich.table import Table

    found = Table(box=None, pad_edge=False)
    names = list(columns)
    for name in names:
        found.add_column(name, overflow="fold", no_wrap=name != names[-1])
    for row in rows:
        found.add_row(*("" if value is None else str(value) for value in row))
    width = None if sys.stdout.isatty() else 200
    Console(highlight=False, markup=False, width=width).print(found)


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[..., None]]:
    """Progress on stderr, whatever stdout is: a bar on a terminal, else a line now and then, from a thread.

    Yields:
        advance(done, total, text): total None: not known; text: more that is to be said.
    """
    if not sys.stderr.isatty():
        with _lines(description) as advance:
            yield advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    results_there = sys.stdout.isatty()  # lines of results have to go above the bar
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=results_there) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total=None, text="": bar.update(
            task, completed=done, total=total, description=f"{description} {text}".strip()
        )


@contextmanager
def _lines(description: str) -> Iterator[Callable[..., None]]:
    """A line after 5 seconds and, ever more seldom, up to every minute: also while nothing gets done."""
    began, ended = time.monotonic(), threading.Event()
    so_far = [""]

    def advance(done: int, total: int | None = None, text: str = "") -> None:
        count = f"{done} of {total}" if total is not None else str(done)
        so_far[0] = f" {count} {text}".rstrip()

    def tell() -> None:
        pause = _FIRST_LINE
        while not ended.wait(pause):
            note(f"{description}{so_far[0]}, {time.monotonic() - began:.0f} s")
            pause = min(2 * pause, _LAST_LINES)

    teller = threading.Thread(target=tell, name="progress", daemon=True)
    teller.start()
    try:
        yield advance
    finally:
        ended.set()
        teller.join()


def note(words: str) -> None:
    """Tell something that is not the result."""
    typer.echo(words, err=True)
