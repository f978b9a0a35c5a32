"""What commands share: options, and output. The result goes to stdout, what is told on the way to stderr."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

DEFAULT_CONFIG = Path("/etc/medenhance/node.toml")

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
def progress_bar(description: str, *, quiet: bool) -> Iterator[Any]:
    """A progress bar on stderr after two seconds, on a terminal only; yields advance(done, total, text)."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total, text="": None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total, text="": bar.update(
            task, completed=done, total=total, description=f"{description} {text}".strip()
        )


def note(words: str) -> None:
    """Tell something that is not the result."""
    typer.echo(words, err=True)
