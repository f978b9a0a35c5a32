"""An evaluation from its recipe to its files: results.jsonl, report.json, report.html, and the results for docs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from medenhance_dicom import __version__
from medenhance_dicom.errors import OutputError, RecipeError
from medenhance_dicom.evaluation.columns import build_columns
from medenhance_dicom.evaluation.enhancers import Candidate, Runtime, build_candidates
from medenhance_dicom.evaluation.page import page
from medenhance_dicom.evaluation.pictures import Mask, PictureSet, Unit, listed, open_pictures, spread
from medenhance_dicom.evaluation.previews import Previews
from medenhance_dicom.evaluation.recipe import Data, EvaluationRecipe
from medenhance_dicom.evaluation.results import Results
from medenhance_dicom.evaluation.scoring import Progress, Scored, score
from medenhance_dicom.evaluation.squares import squared
from medenhance_dicom.evaluation.table import columns_found, figures, markdown
from medenhance_dicom.guides import read_picture
from medenhance_dicom.masks import field_of_view
from medenhance_dicom.metrics.fundus import fit_colours, save_colours

SCHEMA = "medenhance-dicom/evaluation/1"
EXAMPLES = 6
"""Pictures that the page shows."""


@dataclass(frozen=True)
class Finished:
    """What an evaluation came to."""

    report: dict[str, Any]
    scored: Scored
    html: Path


def evaluate_recipe(
    recipe: EvaluationRecipe,
    root: Path,
    output: Path,
    *,
    limit: int | None = None,
    afresh: bool = False,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> Finished:
    """Evaluate, and write `results.jsonl`, `report.json`, `report.html` and `pictures/` into a folder.

    What `results.jsonl` holds already is not done again: it is known by the digests of picture and enhancer and by the
    metric's id.

    Args:
        recipe: What on what.
        root: Of the recipe's relative paths.
        output: The folder, made where it is missing.
        limit: At most so many pictures, spread evenly.
        afresh: Forget earlier results.
        runtime: Where networks run; None: chosen here.
        progress: See `score`.

    Raises:
        RecipeError: An enhancer, metric, folder or table that is not there.
        ModelError: Weights, a guide or a predictor are missing or altered.
        InputError: Targets or masks are missing; each is named.
        OutputError: The folder cannot be written.
    """
    predictors = []
    if recipe.predictors:
        from medenhance_dicom.training.predictors import load_predictor

        predictors = [load_predictor(root / path) for path in recipe.predictors]
    candidates = build_candidates(recipe.rows, runtime or Runtime(), root)
    models = {name: root / path for name, path in recipe.models.items()}
    if recipe.data.good and "good-colours" not in models:
        models["good-colours"] = _good_colours(recipe.data, root, output)
    with open_pictures(recipe.data, root, limit) as pictures:
        columns = build_columns(recipe.metrics, models, predictors, pictures.has)
        names = [entry.name for entry in spread(pictures.entries, EXAMPLES)]
        previews = Previews(output / "pictures", frozenset(names))
        with Results(output / "results.jsonl", afresh=afresh) as results:
            scored = score(
                pictures, candidates, columns, results,
                progress=progress, look=previews.write, looked_at=previews.are_there,
            )  # fmt: skip
        described = columns_found(columns, scored)
        report = make_report(recipe, pictures, candidates, scored, described)
    html = output / "report.html"
    write_private(output / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    write_private(html, page(report, scored, previews, names))
    return Finished(report, scored, html)


def _good_colours(data: Data, root: Path, output: Path) -> Path:
    """Fit the colours of the good pictures, and keep them with the results.

    Raises:
        RecipeError: A folder or table is missing, or too few of the pictures are colour photographs with a field.
    """

    def each() -> Iterator[tuple[Unit, Mask]]:
        for path in listed(data.good, root):
            picture = read_picture(path)
            picture = picture if data.size is None else squared(picture, data.size)
            yield picture, field_of_view(picture, data.field_of_view)

    try:
        good = fit_colours(each())
    except ValueError as error:
        raise RecipeError(f"data.good: {error}") from error
    path = output / "good-colours.json"
    try:
        output.mkdir(parents=True, exist_ok=True)
        save_colours(path, good)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
    return path


def make_report(
    recipe: EvaluationRecipe,
    pictures: PictureSet,
    candidates: Sequence[Candidate],
    scored: Scored,
    columns: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Everything but the pictures, as JSON.

    Returns:
        `schema`, `version`, `name`, `summary`, `data` (as in the recipe), `pictures` (how many were read), `enhancers`
        [{id, about, seconds (median for one picture)}], `columns` (see `columns_found`), `figures` (see `figures`),
        `tables` (as in the recipe), `failed` [{name, enhancer, reason}], `left_out` [{name, reason}], and `undefined`
        [{column, enhancer, reason, pictures}]: scores that do not exist.
    """
    unread = sum(not row.enhancer for row in scored.failed)
    return {
        "schema": SCHEMA,
        "version": __version__,
        "name": recipe.name,
        "summary": recipe.summary,
        "data": recipe.data.model_dump(mode="json"),
        "pictures": len(pictures.entries) - unread,
        "enhancers": [{"id": one.id, "about": one.about, "seconds": _seconds(scored, one.id)} for one in candidates],
        "columns": list(columns),
        "figures": figures(scored, columns),
        "tables": [table.model_dump(mode="json") for table in recipe.tables],
        "failed": [{"name": row.name, "enhancer": row.enhancer, "reason": row.failed} for row in scored.failed],
        "left_out": list(pictures.left_out),
        "undefined": _undefined(scored, columns),
    }


def _seconds(scored: Scored, enhancer: str) -> float | None:
    took = [row.seconds for row in scored.rows[enhancer] if row.seconds is not None]
    return round(median(took), 3) if took else None


def _undefined(scored: Scored, columns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    wanted = {column["id"] for column in columns}
    counts: dict[tuple[str, str, str], int] = {}
    for enhancer, rows in scored.rows.items():
        for row in rows:
            for column, reason in row.reasons.items():
                if column in wanted:
                    counts[column, enhancer, reason] = counts.get((column, enhancer, reason), 0) + 1
    return [
        {"column": column, "enhancer": enhancer, "reason": reason, "pictures": n}
        for (column, enhancer, reason), n in counts.items()
    ]


def write_results(report: Mapping[str, Any], folder: Path) -> None:
    """Write `evaluate-NAME.md` and `evaluate-NAME.json`, which name no picture, into a folder of results.

    Raises:
        OutputError: The folder cannot be written.
    """
    public = dict(report) | {"failed": [], "left_out": [], "failures": len(report["failed"])}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"evaluate-{report['name']}.json").write_text(json.dumps(public, indent=1, allow_nan=False) + "\n")
        (folder / f"evaluate-{report['name']}.md").write_text(markdown(public), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}") from error


def write_private(path: Path, text: str) -> None:
    """Write a file for its owner alone, whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        part.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
