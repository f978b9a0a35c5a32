"""The command line: parse, call one function, print, exit code. The only clock and the only print.

Each command imports what it needs, so that `--help` is instant.
"""

from __future__ import annotations

import json as json_module
import os
import signal
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medenhance_dicom import __version__
from medenhance_dicom.allocator import keep_one_arena
from medenhance_dicom.archive import commands as archive_commands
from medenhance_dicom.calibration.commands import calibrate, train_gate
from medenhance_dicom.errors import (
    ConfigurationError,
    InputError,
    MedenhanceError,
    ModelError,
    OutputError,
    PeerError,
    RecipeError,
    TargetTakenError,
)
from medenhance_dicom.evaluation.commands import evaluate
from medenhance_dicom.node import commands as node_commands
from medenhance_dicom.node.console import progress_bar
from medenhance_dicom.verification.commands import keys_app, verify

if TYPE_CHECKING:
    from collections.abc import Callable

    from medenhance_dicom.manifest import Manifest
    from medenhance_dicom.recipe import Recipe
    from medenhance_dicom.report import Outcome
    from medenhance_dicom.selection import Settings

EXIT_CODES = (
    "Exit codes: 0 all done, 1 unexpected error, 2 usage, 3 nothing matched, 4 some failed, 5 all failed, "
    "6 input unreadable, 7 output not writable, 8 model missing or altered, 9 all withheld by the gate, "
    "10 some withheld, 11 peer refused or unreachable, 13 verification failed, 130 interrupted."
)

app = typer.Typer(
    name="medenhance-dicom",
    help="Enhance low-quality DICOM images and write derived objects that say how they were made. "
    "Originals are never touched; only the node and what names a peer contact a network.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
recipes_app = typer.Typer(no_args_is_help=True, help="What is enhanced, and how: the recipes.")
models_app = typer.Typer(no_args_is_help=True, help="Trained weights: list, show, verify.")
guides_app = typer.Typer(no_args_is_help=True, help="Stored guides, which lead HQG-Net: make, list, show, verify.")
app.add_typer(recipes_app, name="recipes")
app.add_typer(models_app, name="models")
app.add_typer(guides_app, name="guides")

Engine = Literal["auto", "torch", "openvino"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Gate = Literal["withhold", "warn", "off", "blend"]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Paths = Annotated[
    list[Path], typer.Argument(help="DICOM files, folders, zip archives or a DICOMDIR.", metavar="PATH...")
]
Allow = Annotated[
    list[str], typer.Option("--allow", help="Opt in to what is off by default: CT, MG.", metavar="MODALITY")
]


def _exit_code_of(error: MedenhanceError) -> int:
    if isinstance(error, InputError):
        return 6
    if isinstance(error, OutputError | TargetTakenError):
        return 7
    if isinstance(error, ModelError):
        return 8
    if isinstance(error, PeerError):
        return 11
    return 2 if isinstance(error, RecipeError | ConfigurationError) else 1


def main() -> None:
    """Run the command line; our own errors become one line on stderr and their exit code."""
    keep_one_arena()
    if "train" not in sys.argv[1:2]:
        # OpenMP's threads spin while they wait for each other, and where other processes want the cores, for long.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(standalone_mode=True)
    except MedenhanceError as error:
        print(f"medenhance-dicom: {error}", file=sys.stderr)
        raise SystemExit(_exit_code_of(error)) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _now() -> datetime:
    return datetime.now(UTC).astimezone()


def _print_json(value: Any) -> None:
    print(json_module.dumps(value, indent=1))


def _version(value: bool) -> None:
    if value:
        print(f"medenhance-dicom {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(epilog=EXIT_CODES)
def enhance(
    paths: Paths,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the derived objects.")] = Path("enhanced"),
    recipe: Annotated[str, typer.Option(help="A recipe's name, or auto: by SOP class and modality.")] = "auto",
    weights: Annotated[str | None, typer.Option(help="Weights that replace the recipe's.", metavar="KEY")] = None,
    guide: Annotated[
        str, typer.Option(help="Stored guide, for networks led by one; auto: by modality and camera.", metavar="KEY")
    ] = "auto",
    device: Annotated[str, typer.Option("-d", "--device", help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
    engine: Annotated[Engine, typer.Option(help="What runs the network.")] = "auto",
    precision: Annotated[Precision, typer.Option(help="What the network computes in.")] = "auto",
    gate: Annotated[
        Gate,
        typer.Option(help="What a failed structure check does; blend: the source comes back where structure changed."),
    ] = "withhold",
    allow: Allow = [],  # noqa: B006 - typer copies it
    preview: Annotated[
        bool, typer.Option(help="Write PNGs beside each instance: before and after, and where structure changed.")
    ] = False,
    sr: Annotated[
        bool, typer.Option("--sr", help="Write a structured report (TID 1500) on each derived instance.")
    ] = False,
    sign_key: Annotated[
        Path | None,
        typer.Option(help="Site key that signs the derived objects; the last of a folder.", metavar="FILE|FOLDER"),
    ] = None,
    keep_withheld: Annotated[
        float, typer.Option(min=0, help="Days to keep what the gate withholds, in OUTPUT/withheld; 0: not.")
    ] = 30,
    report: Annotated[
        Path | None, typer.Option(help="Report file, by default OUTPUT/run_report.json, and a copy that stays.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Write derived objects again that are there already.")] = False,
    fail_fast: Annotated[bool, typer.Option(help="Stop at the first failed instance.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Only tell what would be done.")] = False,
    json: Json = False,
) -> None:
    """Enhance DICOM images; write a new derived series for each source series."""
    from medenhance_dicom.selection import Settings

    settings = Settings(
        output=output, recipe=recipe, weights=weights, guide=None if guide == "auto" else guide, device=device,
        engine=engine, precision=precision, gate=gate, allow=frozenset(a.upper() for a in allow), preview=preview,
        structured_report=sr, keep_withheld=keep_withheld, overwrite=overwrite, sign_key=sign_key,
    )  # fmt: skip
    if dry_run:
        _inspect(paths, settings, json=json)
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is threading.main_thread():  # a scheduler's end leaves a report, and no scratch files
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _enhance(paths, settings, report, fail_fast=fail_fast, json=json)
    except KeyboardInterrupt:
        print("interrupted; run the same command again: what is written is not written twice", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _enhance(paths: list[Path], settings: Settings, path: Path | None, *, fail_fast: bool, json: bool) -> None:
    from medenhance_dicom.enhance import Enhancement
    from medenhance_dicom.report import RunReport
    from medenhance_dicom.withheld import drop_expired

    run = Enhancement(settings, now=_now())
    drop_expired(settings.withheld_folder, now=run.now)
    report = RunReport(
        path or settings.output / "run_report.json", started=_now(), device=run.device, engine=run.engine,
        precision=run.precision, keep=path is None,
    )  # fmt: skip
    tell = None if json else _outcome_printer(max(len(recipe.name) for recipe in run.recipes))
    complete = derived = False
    try:
        with progress_bar("enhancing") as advance:
            for outcome in run.outcomes(paths, progress=advance):
                report.add(outcome)
                derived = derived or outcome.derived is not None
                if tell:
                    tell(outcome)
                if fail_fast and outcome.result == "failed":
                    break
            else:
                complete = True
    finally:
        report.close(finished=_now(), interrupted=not complete, also=sys.stdout if json else None)
    if not json:
        print(", ".join(f"{n} {result}" for result, n in sorted(report.counts.items())) or "nothing found")
        print((f"derived objects: {settings.output}\n" if derived else "") + f"report: {report.path}")
    raise typer.Exit(report.exit_code)


def _outcome_printer(width: int) -> Callable[[Outcome], None]:
    """What prints an outcome at once, in a pipe too; width: of the longest recipe's name."""
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    colour = {"enhanced": "green", "warned": "yellow", "withheld": "yellow", "failed": "red", "skipped": "dim"}

    def tell(o: Outcome) -> None:
        score = " " * 12 if o.lassim is None else f"LaSSIM {o.lassim:.3f}"
        first = Text.assemble((f"{o.result:9}", colour[o.result]), f"{score}  {o.recipe or '':{width}}  {o.source}")
        more = [
            o.reason,
            f"finished before{': verified, not written again' if o.derived else ''}" if o.repeated else None,
            f"replaces {o.replaces}, which was made of its source before a correction" if o.replaces else None,
            f"kept: {o.kept}" if o.kept else None,
            *(f"left behind: {what}" for what in o.left_behind),
        ]
        with console.capture() as lines:  # rich would write past the progress bar, and into it
            console.print(first, *(Text(f"{'':9}{line}", style="dim") for line in more if line), sep="\n")
        print(lines.get(), end="", flush=True)

    return tell


@app.command(epilog=EXIT_CODES)
def inspect(
    paths: Paths,
    recipe: Annotated[str, typer.Option(help="A recipe's name, or auto.")] = "auto",
    allow: Allow = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Tell what would be enhanced, by which recipe, and why not the rest."""
    from medenhance_dicom.selection import Settings

    _inspect(paths, Settings(recipe=recipe, allow=frozenset(a.upper() for a in allow)), json=json)


def _inspect(paths: list[Path], settings: Settings, *, json: bool) -> None:
    from medenhance_dicom.report import UNREADABLE, exit_code
    from medenhance_dicom.selection import plan

    series = list(plan(paths, settings))
    if json:
        _print_json({"series": series})
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        columns = ("result", "instances", "modality", "size", "recipe", "guide", "source", "reason")
        said = {"result": "would be", "source": "first source"}
        for column in columns:
            table.add_column(said.get(column, column), overflow="fold")
        for s in series:
            values = (s[column] for column in columns)
            table.add_row(*("" if v is None else str(v) for v in values))
        Console().print(table)
    if any(s["result"] == "enhanced" for s in series):
        raise typer.Exit(0)
    failed = [s for s in series if s["result"] == "failed"]
    unreadable = sum(str(s["reason"]).startswith(UNREADABLE) for s in failed)
    raise typer.Exit(exit_code({"failed": len(failed)}, unreadable=unreadable))


@app.command(epilog=EXIT_CODES)
def release(
    kept: Annotated[Path, typer.Argument(help="What `enhance` has kept: OUTPUT/withheld/….withheld.", metavar="KEPT")],
    by: Annotated[str, typer.Option(help="Who releases it: Family^Given.", metavar="NAME")],
    reason: Annotated[str, typer.Option(help="Why, in a sentence.", metavar="TEXT")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for the derived object, by default that of the run.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("-c", "--config", help="Of the node that has kept it.", metavar="CONFIG")
    ] = None,
    sign_key: Annotated[
        Path | None, typer.Option(help="Site key that signs it; by default the node's.", metavar="FILE|FOLDER")
    ] = None,
    json: Json = False,
) -> None:
    """Release a picture that the gate withheld, on a person's word: the object says who, why, and the verdict."""
    from medenhance_dicom.ledger import NAME
    from medenhance_dicom.node.jobfolder import LEDGER
    from medenhance_dicom.releasing import release
    from medenhance_dicom.report import RunReport

    folders = kept.absolute().parents
    of_node = len(folders) > 2 and (folders[2] / "audit").is_dir()
    if of_node and (config is None or output is None):
        raise typer.BadParameter("it lies in the store of a node: name --config and --output", param_hint="KEPT")
    node = None
    if config is not None:
        from medenhance_dicom.node.settings import load_settings

        node = load_settings(config)
    folder, started = output or folders[1], _now()
    key = sign_key or (node.enhance.sign_key if node else None)
    ledger = node.store / LEDGER if node else folders[1] / NAME
    outcome, said = release(kept, folder, by=by, reason=reason, now=started, sign_key=key, ledger=ledger)
    report = RunReport(
        folder / "run_report.json", started=started, device=said["device"], engine=said["engine"],
        precision=said["precision"], keep=True,
    )  # fmt: skip
    report.add(outcome)
    if node is not None:
        from medenhance_dicom.node.trail import open_trail

        open_trail(node).append("released", job=folders[0].name, by=by, why=reason)
    report.close(finished=_now(), also=sys.stdout if json else None)
    if not json:
        print(f"released{' before' if outcome.repeated else ''}: {outcome.derived}")


SourceArgument = Annotated[Path, typer.Argument(help="The originals: a file or folder.", metavar="SOURCE")]
DerivedArgument = Annotated[Path, typer.Argument(help="What was made of them: a file or folder.", metavar="DERIVED")]
PairRecipe = Annotated[
    str, typer.Option(help="Whose masks and limits apply; auto: the one that a derived object names, or that fits.")
]
PairWeights = Annotated[str | None, typer.Option(help="Whose limits apply instead.", metavar="KEY")]


@app.command(epilog=EXIT_CODES)
def gate(
    source: SourceArgument,
    derived: DerivedArgument,
    recipe: PairRecipe = "auto",
    weights: PairWeights = None,
    json: Json = False,
) -> None:
    """Judge what was enhanced elsewhere or before: pairs of DICOM files, by their references, or of pictures, by name.

    Exit 9 where the gate would withhold all, 10 where some.
    """
    from medenhance_dicom.comparison.judging import judge_pairs
    from medenhance_dicom.comparison.pairs import open_pairs

    found = []
    with open_pairs(source, derived, recipe=recipe, weights=weights) as pairs, progress_bar("judging") as advance:
        for judgement in judge_pairs(pairs):
            found.append(judgement)
            advance(len(found))
            if not json:
                _print_judgement(judgement)
    if json:
        _print_json({"pairs": [judgement.to_json() for judgement in found]})
    raise typer.Exit(_judged_exit_code(found))


@app.command(epilog=EXIT_CODES)
def compare(
    source: SourceArgument,
    derived: DerivedArgument,
    page: Annotated[Path, typer.Option("--html", help="The page to write.", metavar="FILE")],
    recipe: PairRecipe = "auto",
    weights: PairWeights = None,
    identify: Annotated[
        bool, typer.Option("--identify", help="Show patients' names and identifiers, and files' names.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Pairs with pictures, at most.")] = 24,
    json: Json = False,
) -> None:
    """Show pairs on one page that works offline: a slider, difference and structure maps, scores."""
    from medenhance_dicom.comparison.page import write_page
    from medenhance_dicom.comparison.pairs import open_pairs

    with open_pairs(source, derived, recipe=recipe, weights=weights) as pairs, progress_bar("comparing"):
        found = write_page(pairs, page, identify=identify, most=limit)
    if json:
        _print_json({"page": str(page), "pairs": [judgement.to_json() for judgement in found]})
    else:
        print(f"{page}: {len(found)} pairs")
    raise typer.Exit(_judged_exit_code(found))


def _print_judgement(judgement: Any) -> None:
    score = " " * 12 if judgement.lassim is None else f"LaSSIM {judgement.lassim:.3f}"
    result = "passed" if judgement.result == "enhanced" else judgement.result
    print(f"{result:9}{score}  {judgement.pair.derived}")
    if judgement.reason:
        print(f"{'':9}{judgement.reason}")
    for number, frame in enumerate(judgement.frames if len(judgement.frames) > 1 else [], 1):
        values = {"lassim": frame.lassim, **frame.checks}
        said = "  ".join(f"{name} {'none' if value is None else f'{value:.3f}'}" for name, value in values.items())
        print(f"{'':9}frame {number}: {said}")
    sys.stdout.flush()


def _judged_exit_code(found: list[Any]) -> int:
    from medenhance_dicom.report import UNREADABLE, exit_code

    counts = {result: sum(j.result == result for j in found) for result in ("enhanced", "warned", "withheld", "failed")}
    return exit_code(counts, unreadable=sum((j.reason or "").startswith(UNREADABLE) for j in found))


@recipes_app.command("list")
def recipes_list(json: Json = False) -> None:
    """List the recipes."""
    from medenhance_dicom.recipe import load_recipes

    recipes = load_recipes()
    if json:
        _print_json([r.model_dump(mode="json") | {"digest": r.digest} for r in recipes])
        return
    for r in recipes:
        print(f"{r.name:28} {r.summary}")


@recipes_app.command("show")
def recipes_show(name: str, json: Json = False) -> None:
    """Show one recipe."""
    recipe = _recipe(name)
    value = recipe.model_dump(mode="json") | {"digest": recipe.digest}
    if json:
        _print_json(value)
    else:
        from rich.console import Console

        Console().print_json(data=value)


@recipes_app.command("verify")
def recipes_verify(json: Json = False) -> None:
    """Load every recipe and check that the weights it names are there, and for all that it is for."""
    from medenhance_dicom.manifest import load_manifest
    from medenhance_dicom.recipe import load_recipes

    manifest = load_manifest()
    results = [{"recipe": r.name, "problem": _problem(r, manifest)} for r in load_recipes()]
    if json:
        _print_json(results)
    else:
        for result in results:
            print(f"{result['recipe']:28} {result['problem'] or 'ok'}")
    if any(result["problem"] for result in results):
        raise typer.Exit(8)


def _problem(recipe: Recipe, manifest: Manifest) -> str | None:
    key = recipe.enhancer.weights
    if key is None:
        return None
    if key not in manifest.weights:
        return f"weights {key} are not in the manifest"
    wider = [
        k for k, values in manifest.weights[key].match.items() if not set(recipe.match.get(k, [""])) <= set(values)
    ]
    return f"weights {key} are not for all of its {', '.join(wider)}" if wider else None


def _recipe(name: str) -> Any:
    from medenhance_dicom.recipe import load_recipes

    found = [r for r in load_recipes() if r.name == name]
    if not found:
        raise RecipeError(f"no recipe {name!r}; see `medenhance-dicom recipes list`")
    return found[0]


@models_app.command("list")
def models_list(json: Json = False) -> None:
    """List the weights."""
    from medenhance_dicom.manifest import load_manifest

    manifest = load_manifest()
    if json:
        _print_json({key: entry.model_dump(mode="json") for key, entry in manifest.weights.items()})
        return
    for key, entry in manifest.weights.items():
        print(f"{key:24} {entry.network:10} {'research only  ' if entry.research_only else ''}{entry.licence}")


@models_app.command("show")
def models_show(key: str, json: Json = False) -> None:
    """Show one entry of the manifest, and its card."""
    from medenhance_dicom.manifest import load_manifest

    manifest = load_manifest()
    if key not in manifest.weights:
        raise ModelError(f"no weights {key!r}; see `medenhance-dicom models list`")
    if json:
        _print_json(manifest.weights[key].model_dump(mode="json"))
        return
    card = manifest.root / "cards" / f"{key}.md"
    print(card.read_text() if card.is_file() else manifest.weights[key])
    print("Only for")
    for keyword, values in manifest.weights[key].match.items():
        print(f"  {keyword:26} {', '.join(map(str, values))}")


@models_app.command("verify")
def models_verify(json: Json = False) -> None:
    """Check weights, guide encoders and shipped guides. Exit 8 where one is missing or altered."""
    from medenhance_dicom.guides import find_guides, verify_guide
    from medenhance_dicom.manifest import load_manifest, verify_all

    manifest = load_manifest()
    problems = verify_all(manifest)
    for key, path in find_guides([manifest.root / "guides"]).items():
        problems[f"guide {key}"] = verify_guide(path, manifest)
    if json:
        _print_json(problems)
    else:
        for key, problem in problems.items():
            print(f"{key:24} {problem or 'ok'}")
    if any(problems.values()):
        raise typer.Exit(8)


@guides_app.command("add", epilog=EXIT_CODES)
def guides_add(
    paths: Annotated[
        list[Path], typer.Argument(help="High-quality pictures, DICOM files, folders.", metavar="PICTURE|DICOM...")
    ],
    weights: Annotated[str, typer.Option(help="Weights that it leads.", metavar="KEY")],
    key: Annotated[str, typer.Option(help="Name of the guide.", metavar="NAME")],
    field: Annotated[
        str | None, typer.Option(help="Modality that it is for, by default the DICOM's.", metavar="OP")
    ] = None,
    device_class: Annotated[
        str, typer.Option(help="Camera that it is for: part of its maker's or model's name.", metavar="TEXT")
    ] = "any",
    output: Annotated[Path | None, typer.Option(help="Folder, by default the user's guides.", metavar="DIR")] = None,
    json: Json = False,
) -> None:
    """Encode high-quality pictures as a stored guide: 64 numbers, their mean; no picture and no name is kept."""
    from medenhance_dicom.guides import KEY, guide_folders, quality_warnings, save_guide
    from medenhance_dicom.guiding import make_guide

    if not KEY.fullmatch(key):
        raise typer.BadParameter("at most 48 characters of a-z, 0-9, hyphen and dot", param_hint="--key")
    guide = make_guide(paths, key, weights=weights, field=field, device_class=device_class, created=_now())
    if guide is None:
        print("no picture found", file=sys.stderr)
        raise typer.Exit(3)
    path = save_guide(guide, output or guide_folders()[0])
    warnings = quality_warnings(guide)
    if json:
        _print_json(guide.description() | {"file": str(path), "warnings": warnings})
        return
    print(f"{path}: {len(guide.sources)} pictures, sha256 {guide.digest[:12]}")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


@guides_app.command("list")
def guides_list(json: Json = False) -> None:
    """List the stored guides."""
    from medenhance_dicom.guides import find_guides, load_guide

    found: list[dict[str, Any]] = []
    for key, path in find_guides().items():
        try:
            found.append(load_guide(path).description() | {"file": str(path), "problem": None})
        except ModelError as error:
            found.append({"key": key, "file": str(path), "problem": str(error)})
    if json:
        _print_json(found)
        return
    for guide in found:
        what = guide["problem"] or f"{guide['weights']:24} {guide['field']:8} {guide['device_class']}"
        print(f"{guide['key']:24} {what}")


@guides_app.command("show")
def guides_show(key: str, json: Json = False) -> None:
    """Show how a guide was made."""
    from medenhance_dicom.guides import load_guide

    path = _guide_path(key)
    value = load_guide(path).description() | {"file": str(path)}
    if json:
        _print_json(value)
    else:
        from rich.console import Console

        Console().print_json(data=value)


@guides_app.command("verify")
def guides_verify(
    key: Annotated[str | None, typer.Argument(help="One guide, by default all.")] = None, json: Json = False
) -> None:
    """Check that guides are whole and that their weights are here. Exit 8 where one is not."""
    from medenhance_dicom.guides import find_guides, verify_guide
    from medenhance_dicom.manifest import load_manifest

    manifest = load_manifest()
    found = {key: _guide_path(key)} if key else find_guides()
    problems = {name: verify_guide(path, manifest) for name, path in found.items()}
    if json:
        _print_json(problems)
    else:
        for name, problem in problems.items():
            print(f"{name:24} {problem or 'ok'}")
    if any(problems.values()):
        raise typer.Exit(8)


@guides_app.command("influence", epilog=EXIT_CODES)
def guides_influence(
    image: Annotated[Path, typer.Argument(help="A picture or a DICOM file.")],
    weights: Annotated[str | None, typer.Option(help="By default those that fit the image.", metavar="KEY")] = None,
    device: Annotated[str, typer.Option("-d", "--device", help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
    json: Json = False,
) -> None:
    """Enhance one image under every guide that fits, and tell how much the choice matters, in grey levels."""
    from medenhance_dicom.guiding import guide_influence

    chosen, found = guide_influence(image, weights, device=device)
    if json:
        _print_json({
            "weights": chosen, "rms_to_mean": found.to_mean, "largest_pairwise_rms": found.largest,
            "pair": found.pair, "verdict": found.verdict,
        })  # fmt: skip
        return
    for key, rms in found.to_mean.items():
        print(f"{key:24} {rms:8.3f}")
    print(found.verdict)


def _guide_path(key: str) -> Path:
    from medenhance_dicom.guides import find_guides

    found = find_guides()
    if key not in found:
        raise ModelError(f"no guide {key!r}; see `medenhance-dicom guides list`")
    return found[key]


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A training recipe: a TOML file, or the name of a shipped one.")],
    data: Annotated[Path | None, typer.Option(help="Root of the data, by default $MEDENHANCE_DATA.")] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of checkpoints and log, by default runs/RECIPE.")] = None,
    device: Annotated[str, typer.Option("-d", "--device", help="auto, cpu, cuda or mps.")] = "auto",
    devices: Annotated[int, typer.Option(help="Devices per node.")] = 1,
    nodes: Annotated[int, typer.Option(help="Nodes.")] = 1,
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed or 16-mixed.")] = "bf16-mixed",
    resume: Annotated[bool, typer.Option(help="Go on from the run's last checkpoint.")] = False,
    set_: Annotated[
        list[str], typer.Option("--set", help="Override, as schedule.steps=100.", metavar="KEY=VALUE")
    ] = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Train a network; resumable to the step."""
    import tomllib

    from medenhance_dicom.dicom_pictures import DicomPictures
    from medenhance_dicom.recipe import pipelines_folder

    try:
        from medenhance_dicom.training.fit import fit
        from medenhance_dicom.training.recipe import load_training_recipe
    except ModuleNotFoundError as error:
        print(f"training needs the [train] extra: {error.name} is missing", file=sys.stderr)
        raise typer.Exit(2) from None

    path = recipe if recipe.suffix == ".toml" else pipelines_folder() / "train" / f"{recipe}.toml"
    try:
        overrides = {k: tomllib.loads(f"v = {v}")["v"] for k, v in (item.split("=", 1) for item in set_)}
    except (ValueError, tomllib.TOMLDecodeError):
        raise typer.BadParameter("write KEY=VALUE with a TOML value", param_hint="--set") from None
    loaded = load_training_recipe(path, overrides)
    root = data or Path(os.environ.get("MEDENHANCE_DATA", "."))
    folder = run or Path("runs") / loaded.name
    with progress_bar("training") as advance:

        def tell(done: int, total: int, terms: dict[str, float]) -> None:
            advance(done, total, " ".join(f"{name} {value:.3f}" for name, value in terms.items()))

        try:
            best = fit(
                loaded, data_root=root, run=folder, device=device, devices=devices, nodes=nodes,
                precision=precision, resume=resume, report=tell, dicom=DicomPictures(),
            )  # fmt: skip
        except KeyboardInterrupt:
            print("interrupted; the same command with --resume goes on from the last checkpoint", file=sys.stderr)
            raise typer.Exit(130) from None
    if json:
        _print_json({"recipe": loaded.name, "weights": str(best), "log": str(folder / "log.jsonl")})
    else:
        print(f"best weights: {best}")


app.command(epilog=EXIT_CODES)(verify)
app.add_typer(keys_app, name="keys")
app.command(epilog=EXIT_CODES)(evaluate)
app.command(epilog=EXIT_CODES)(calibrate)
app.command(epilog=EXIT_CODES)(train_gate)
node_commands.add_to(app)
archive_commands.add_to(app)
