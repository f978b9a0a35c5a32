"""The commands `verify` and `keys`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medenhance_dicom.node.console import Json, print_json, progress_bar

if TYPE_CHECKING:
    from medenhance_dicom.verification.files import State, Verified

keys_app = typer.Typer(no_args_is_help=True, help="Site keys, which sign derived objects: make, show, list.")

KeyFile = Annotated[Path, typer.Argument(help="A key file.", metavar="FILE")]


def verify(
    path: Annotated[Path, typer.Argument(help="A derived object, or a folder of them.")],
    source: Annotated[Path | None, typer.Option(help="Folder or file of the sources, to compare with.")] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="Site key, or a folder of them: each object has to be signed by one.", metavar="FILE|FOLDER"),
    ] = None,
    json: Json = False,
) -> None:
    """Check our derived objects: provenance, digests, required attributes. Exit 13 where one has a problem.

    A file that is damaged or altered is reported by name, and the others go on. Exit 3 where nothing is ours, 6 where
    nothing of it could be read.
    """
    from medenhance_dicom.site_keys import load_public_keys
    from medenhance_dicom.verification.files import exit_code, verify_files

    keys = load_public_keys(key) if key is not None else None
    states: Counter[State] = Counter()
    kept: list[dict[str, Any]] = []
    with progress_bar("verifying") as tell:
        for result in verify_files(path, source, keys):
            states[result.state] += 1
            if json:
                kept.append(asdict(result))
            else:
                _print(result)
            tell(states.total())
    if json:
        print_json({"objects": kept, "counts": dict(sorted(states.items()))})
    else:
        bad = states.total() - states["ok"] - states["unreadable"]
        unreadable = f", {states['unreadable']} unreadable files" if states["unreadable"] else ""
        typer.echo(f"{states.total() - states['unreadable']} derived objects, {bad} with problems{unreadable}")
    raise typer.Exit(exit_code(states))


def _print(result: Verified) -> None:
    typer.echo(f"{result.state if result.state == 'ok' else result.state.upper()}  {result.path}")
    for problem in result.problems:
        typer.echo(f"         {problem}")


@keys_app.command("create")
def keys_create(
    file: Annotated[Path, typer.Argument(help="The private key to be; the public one gets .pub behind it.")],
    json: Json = False,
) -> None:
    """Make a site key (Ed25519). FILE signs and stays where it is, of mode 0600; FILE.pub goes to those who verify."""
    from medenhance_dicom.site_keys import create_key

    made = create_key(file)
    public = file.with_name(f"{file.name}.pub")
    if json:
        print_json({"id": made.id, "private": str(file), "public": str(public)})
    else:
        typer.echo(f"key {made.id}: {file} (private, keep it so), {public}")


@keys_app.command("public")
def keys_public(file: KeyFile, json: Json = False) -> None:
    """Print the public half of a key, PEM; nothing of the private one."""
    from medenhance_dicom.site_keys import load_public_keys

    keys = load_public_keys(file)
    if json:
        print_json([{"id": key.id, "public": key.pem()} for key in keys.values()])
    else:
        typer.echo("".join(key.pem() for key in keys.values()), nl=False)


@keys_app.command("list")
def keys_list(
    place: Annotated[Path, typer.Argument(help="A key file, or a folder of them.", metavar="FILE|FOLDER")],
    json: Json = False,
) -> None:
    """List the keys that verify, by id, and the one that signs, where there is a private one."""
    from medenhance_dicom.errors import ConfigurationError
    from medenhance_dicom.site_keys import load_public_keys, load_signing_key

    keys = load_public_keys(place)
    try:
        signs = load_signing_key(place).id
    except ConfigurationError:
        signs = None
    if json:
        print_json([{"id": key, "signs": key == signs} for key in keys])
    else:
        for key in keys:
            typer.echo(f"{key}{'  signs' if key == signs else ''}")
