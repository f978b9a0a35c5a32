"""The commands `audit`: is the trail of a store whole, and how far had it come?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medenhance_dicom.node.console import DEFAULT_CONFIG, ConfigOption, Json, note, print_json
from medenhance_dicom.node.jobfolder import ARCHIVE

if TYPE_CHECKING:
    from medenhance_dicom.audit import Trail

audit_app = typer.Typer(no_args_is_help=True, help="The audit trail of a node's or an archive's store.")

StoreOption = Annotated[
    Path | None,
    typer.Option("--store", help="A store, or its trail, in place of the configuration's.", metavar="DIR|FILE"),
]

_SAID = {
    "whole": "whole",
    "none": "there is no trail",
    "empty": "EMPTY: its lines are gone, or none was ever written",
    "deleted": "DELETED: there is no file, and there was one",
    "cut": "CUT: it ends before its anchor",
    "rewritten": "REWRITTEN: the line that the anchor names is another one",
    "broken": "BROKEN: a line was changed, taken out or put in",
    "torn": "TORN: its last line is not whole, by a crash or a cut",
}


@audit_app.command("verify")
def audit_verify(
    store: StoreOption = None,
    anchor: Annotated[
        Path | None,
        typer.Option(help="File with how far the trail had come, by default the configuration's.", metavar="FILE"),
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Check the audit trail: its chain, and by an anchor that nothing was cut off. Exit 13 where it is not whole.

    Without an anchor lines that were cut off the end do not show.
    """
    from medenhance_dicom.audit import examine

    path, known = _places(store, config)
    anchor = anchor or known
    trail = examine(path, anchor if anchor is not None else ())
    state = "deleted" if trail.state == "none" and _in_use(path) else trail.state
    if json:
        print_json({
            "trail": str(path), "anchor": str(anchor) if anchor is not None else None, "state": state,
            "lines": trail.lines, "line": trail.line, "end": _end(trail),
        })  # fmt: skip
    else:
        where = f", line {trail.line} of the file" if trail.line is not None else ""
        typer.echo(f"{path}: {_SAID[state]}{where} ({trail.lines} lines)")
    if anchor is None and state == "whole":
        note("no anchor given: lines cut off the end would not show")
    raise typer.Exit({"whole": 0, "none": 3}.get(state, 13))


@audit_app.command("anchor")
def audit_anchor(
    store: StoreOption = None,
    anchor: Annotated[Path | None, typer.Option(help="Add a line to this file.", metavar="FILE")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Tell how far the trail has come, to be kept elsewhere: print it as one line of JSON, or add it to FILE.

    Exit 13, and no anchor, where the trail is not whole.
    """
    from medenhance_dicom.audit import examine
    from medenhance_dicom.errors import OutputError

    path, _ = _places(store, config)
    trail = examine(path, anchor if anchor is not None and anchor.exists() else ())
    if trail.end is None:
        note(f"{path}: {_SAID[trail.state]}")
        raise typer.Exit(3 if trail.state == "none" else 13)
    if anchor is not None:
        try:
            with anchor.open("a", encoding="ascii") as file:
                file.write(trail.end.line() + "\n")
        except OSError as error:
            raise OutputError(f"{anchor}: {error.strerror}") from error
    if json:
        print_json(_end(trail))
    elif anchor is None:
        typer.echo(trail.end.line())
    else:
        typer.echo(f"{anchor}: line {trail.end.n} of {path}")


def _end(trail: Trail) -> dict[str, object] | None:
    return {"n": trail.end.n, "digest": trail.end.digest} if trail.end is not None else None


def _places(store: Path | None, config: Path) -> tuple[Path, Path | None]:
    """The trail, and the anchor that the configuration names."""
    from medenhance_dicom.node.settings import load_settings
    from medenhance_dicom.node.trail import trail_path

    if store is not None:
        return (trail_path(store) if store.is_dir() else store), None
    settings = load_settings(config)
    return trail_path(settings.store), settings.audit.anchor


def _in_use(path: Path) -> bool:
    """Whether a store has been worked in: a job is sealed in the trail before it is worked on."""
    store = path.parent.parent
    if path.parent.name != "audit":
        return False
    return path.parent.is_dir() or any(any((store / folder).glob("*")) for folder in ("jobs", ARCHIVE))
