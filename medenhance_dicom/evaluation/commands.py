"""The command `evaluate`."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from medenhance_dicom.errors import InputError
from medenhance_dicom.node.console import Json, note, print_json, progress_bar, table


def evaluate(
    recipe: Annotated[
        Path | None, typer.Argument(help="A name in pipelines/evaluate, or a TOML file.", metavar="RECIPE")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DIR",
            help="With a recipe the data root, by default $MEDENHANCE_DATA; else a folder of pictures or of DICOM.",
        ),
    ] = None,
    targets: Annotated[Path | None, typer.Option(metavar="DIR", help="The truth, by the pictures' names.")] = None,
    masks: Annotated[Path | None, typer.Option(metavar="DIR", help="True structures, by the pictures' names.")] = None,
    grades: Annotated[Path | None, typer.Option(metavar="CSV", help="True levels: columns file, grade.")] = None,
    points: Annotated[Path | None, typer.Option(metavar="CSV", help="True places: columns file, row, column.")] = None,
    degradation: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A model of docs/degradation.md; the pictures are the truth then."),
    ] = None,
    field_of_view: Annotated[
        Literal["none", "ellipse", "border"] | None, typer.Option(help="Where metrics look.")
    ] = None,
    enhancers: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Recipes' names, baseline:ID, directory:PATH.")
    ] = None,
    metrics: Annotated[str | None, typer.Option(metavar="X,Y,…", help="Metric ids; `list` tells them.")] = None,
    predictor: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A trained segmenter, grader, locator or quality judge.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FILE", help="A metric's parameter file, see docs/metrics.md.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="By default runs/evaluate/NAME.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many pictures, spread evenly.")] = None,
    resume: Annotated[
        Literal["automatic", "never"], typer.Option(help="Do only what results.jsonl lacks, or everything again.")
    ] = "automatic",
    write_results: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write evaluate-NAME.md and .json there.")
    ] = None,
    device: Annotated[str, typer.Option("-d", "--device", help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
    engine: Annotated[Literal["auto", "torch", "openvino"], typer.Option(help="What runs networks.")] = "auto",
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="Of networks.")] = "auto",
    json: Json = False,
) -> None:
    """Measure enhancers on a set of pictures: one table with significance, an HTML page, all scores.

    Every enhancer is compared with the original. An interrupted run goes on where it stopped.
    """
    if metrics == "list":
        _list_metrics(json=json)
        return
    from medenhance_dicom.evaluation import reporting
    from medenhance_dicom.evaluation.enhancers import Runtime
    from medenhance_dicom.report import exit_code

    given: dict[str, Any] = {
        "targets": targets, "masks": masks, "grades": grades, "points": points, "degradation": degradation,
        "field_of_view": field_of_view,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    asked = {
        "enhancers": enhancers and [_absolute(one) for one in enhancers.split(",")],
        "metrics": metrics and metrics.split(","),
        "predictors": [str(file.absolute()) for file in predictor or ()],
        "models": dict(_pair(one) for one in model or ()),
    }
    asked = {name: value for name, value in asked.items() if value}
    chosen, root = _of_file(recipe, data, given, asked) if recipe else _of_options(data, given, asked)
    folder = output or Path("runs") / "evaluate" / chosen.name
    with progress_bar("evaluating") as tell:
        try:
            finished = reporting.evaluate_recipe(
                chosen, root, folder, limit=limit, afresh=resume == "never",
                runtime=Runtime(device, engine, precision), progress=tell,
            )  # fmt: skip
        except KeyboardInterrupt:
            note("interrupted; the same command goes on where it stopped")
            raise typer.Exit(130) from None
    report, scored = finished.report, finished.scored
    if write_results:
        reporting.write_results(report, write_results)
    if json:
        print_json(report)
    else:
        _say(report, finished.html)
    done = sum(map(len, scored.rows.values()))
    counts = Counter(enhanced=done, failed=len(scored.failed))
    raise typer.Exit(exit_code(counts, unreadable=scored.unreadable))


def _list_metrics(*, json: bool) -> None:
    from medenhance_dicom.metrics.registry import metric_ids

    known = metric_ids()
    if json:
        print_json(known)
    else:
        table(("metric", "definition"), known.items())


def _absolute(enhancer: str) -> str:
    """The folder of `directory:PATH` is looked for from here, not from the data root."""
    kind, colon, path = enhancer.partition(":")
    return f"directory:{Path(path).absolute()}" if colon and kind == "directory" else enhancer


def _pair(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or not path:
        raise typer.BadParameter("write NAME=FILE", param_hint="--model")
    return name, str(Path(path).absolute())


def _of_file(recipe: Path, data: Path | None, given: dict[str, Any], asked: dict[str, Any]) -> tuple[Any, Path]:
    """A recipe from a file; the command line replaces its lists."""
    from medenhance_dicom.evaluation.recipe import load_evaluation_recipe, make_evaluation_recipe
    from medenhance_dicom.recipe import pipelines_folder

    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise typer.BadParameter(f"{names}: a recipe says that itself", param_hint="RECIPE")
    path = recipe if recipe.suffix == ".toml" else pipelines_folder() / "evaluate" / f"{recipe}.toml"
    loaded = load_evaluation_recipe(path)
    root = data or Path(os.environ.get("MEDENHANCE_DATA", "."))
    if not asked:
        return loaded, root
    told = loaded.model_dump() | asked
    if "enhancers" in asked:
        told["tables"] = [layout | {"rows": []} for layout in told["tables"]]
    if "metrics" in asked:
        told["tables"] = []
    return make_evaluation_recipe(told, str(path)), root


def _of_options(data: Path | None, given: dict[str, Any], asked: dict[str, Any]) -> tuple[Any, Path]:
    """A recipe from the command line alone."""
    from medenhance_dicom.evaluation.columns import DEFAULT_METRICS, TARGET_METRICS
    from medenhance_dicom.evaluation.recipe import make_evaluation_recipe

    if data is None or "enhancers" not in asked:
        raise typer.BadParameter("name a recipe, or --data and --enhancers")
    if not data.exists():
        raise InputError(f"no such file or folder: {data}")
    there: dict[str, Any] = {"pictures": [{"folder": "."}]} if _has_pictures(data) else {"dicom": "."}
    for name in ("targets", "masks"):
        if name in given:
            there[name] = [{"folder": str(given.pop(name).absolute())}]
    for name in ("grades", "points"):
        if name in given:
            there[name] = {"table": str(given.pop(name).absolute())}
    has_targets = "targets" in there or given.get("degradation", "none") != "none"
    ids = [*DEFAULT_METRICS, *(TARGET_METRICS if has_targets else ())]
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in data.absolute().name.lower()).split()
    told = {
        "name": "-".join(words)[:48].strip("-") or "pictures",
        "summary": "", "data": there | given, "metrics": ids, **asked,
    }  # fmt: skip
    return make_evaluation_recipe(told, "the command line"), data


def _has_pictures(folder: Path) -> bool:
    from medenhance_dicom.guides import PICTURE_SUFFIXES

    return folder.is_dir() and any(path.suffix.lower() in PICTURE_SUFFIXES for path in folder.iterdir())


def _say(report: dict[str, Any], html: Path) -> None:
    from medenhance_dicom.evaluation.table import KEY, layouts_of, table_rows, unavailable

    for layout in layouts_of(report):
        typer.echo(f"{layout.title}")
        headings, rows = table_rows(report, layout)
        for columns in _parts(headings, rows, shutil.get_terminal_size((200, 24)).columns):
            table([headings[k] for k in columns], [[row[k] for k in columns] for row in rows])
        for name, why in unavailable(report, layout):
            typer.echo(f"{name} is unavailable: {why}")
        typer.echo(f"{layout.note}\n")
    typer.echo(KEY)
    for one in report["failed"]:
        note(f"failed: {one['name']} {one['enhancer']}: {one['reason']}")
    if report["left_out"]:
        note(f"{len(report['left_out'])} left out, see the report")
    typer.echo(f"report: {html}")


def _parts(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[list[int]]:
    """Columns of a table that fit beside the first one, and the next ones beside it again."""
    wide = [2 + max(len(cell) for cell in column) for column in zip(headings, *rows, strict=True)]
    part = [0]
    for k in range(1, len(wide)):
        if len(part) > 1 and sum(wide[c] for c in part) + wide[k] > width:
            yield part
            part = [0]
        part.append(k)
    if len(part) > 1:
        yield part
