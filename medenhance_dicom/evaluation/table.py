"""From scores to tables: mean, deviation, intervals, and whether an enhancer differs from the original."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from medenhance_dicom.evaluation.columns import Column
from medenhance_dicom.evaluation.recipe import ORIGINAL, Layout
from medenhance_dicom.evaluation.scoring import Scored
from medenhance_dicom.metrics.significance import bootstrap_interval, compare_paired, holm

LEVEL = 0.05
"""An enhancer differs where both paired tests, corrected by Holm over the enhancers, stay below it."""
MARKS = {"better": " ▲", "worse": " ▼", "different": " ◆"}
ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}
KEY = (
    "Mean ± deviation over the pictures. ▲ better, ▼ worse, ◆ different from the original: paired t-test and "
    f"Wilcoxon's signed rank test both below {LEVEL} after Holm's correction over the enhancers."
)


def columns_found(columns: Sequence[Column], scored: Scored) -> list[dict[str, Any]]:
    """What each column is; a metric of all pictures with several figures becomes several columns.

    Returns:
        [{`id`, `asked` (as the recipe names it), `metric`, `label`, `better`, `unit`, `predictor`, `of` (one "picture"
        or "all"), `unavailable`}].
    """
    told = []
    for column in columns:
        metric = column.metric
        what = {
            "asked": column.asked,
            "metric": metric.id, "label": metric.label, "better": metric.better, "unit": metric.unit,
            "predictor": None if column.predictor is None else column.predictor.id,
            "of": "all" if column.is_of_set else "picture", "unavailable": column.unavailable or None,
        }  # fmt: skip
        parts = dict.fromkeys(
            name for figures in scored.sets.values() for name in figures if name.startswith(f"{column.id} / ")
        )
        told += [
            {"id": name, **what, "label": f"{metric.label} {name.removeprefix(f'{column.id} / ')}"} for name in parts
        ] or [{"id": column.id, **what}]
    return told


def values_of(scored: Scored, enhancer: str, column: str) -> dict[str, float]:
    """Picture -> score; infinite ones too, undefined ones not."""
    values = {row.name: row.scores.get(column) for row in scored.rows[enhancer]}
    return {name: value for name, value in values.items() if value is not None}


def figures(scored: Scored, columns: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Enhancer -> column -> cell.

    A cell of one picture each: `mean`, `deviation` (n - 1), `n`, `interval` of the mean (95 %, bootstrap), `infinite`
    (pictures left out of these because their score is), and but for the original `against_original`: `difference` of
    the means over the pictures that both have, its `interval`, `n`, `t`, `effect` (Cohen's d of the differences),
    `p_t`, `p_wilcoxon`, the same corrected over the enhancers as `p_t_holm`, `p_wilcoxon_holm`, and `verdict`: better,
    worse, different or not told apart. A cell of all pictures: `value`. Empty cells are left
    out; figures that do not exist are None.
    """
    cells: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in scored.rows}
    for column in columns:
        name = column["id"]
        if column["of"] == "all":
            for enhancer, of_set in scored.sets.items():
                if (value := of_set.get(name)) is not None:
                    cells[enhancer][name] = {
                        "value": value if math.isfinite(value) else None,
                        "n": len(scored.rows[enhancer]),
                    }
            continue
        values = {enhancer: values_of(scored, enhancer, name) for enhancer in scored.rows}
        for enhancer, found in values.items():
            if found:
                cells[enhancer][name] = _cell(found)
        against = {
            enhancer: comparison
            for enhancer, found in values.items()
            if enhancer != ORIGINAL and (comparison := _against(found, values[ORIGINAL])) is not None
        }
        _correct(against, column["better"])
        for enhancer, comparison in against.items():
            cells[enhancer][name]["against_original"] = comparison
    return cells


def _cell(found: Mapping[str, float]) -> dict[str, Any]:
    finite = np.array([v for v in found.values() if math.isfinite(v)])
    return {
        "mean": float(finite.mean()) if finite.size else None,
        "deviation": float(finite.std(ddof=1)) if finite.size > 1 else None,
        "n": int(finite.size),
        "interval": list(bootstrap_interval(finite)) if finite.size > 1 else None,
        "infinite": len(found) - int(finite.size),
    }


def _against(found: Mapping[str, float], original: Mapping[str, float]) -> dict[str, Any] | None:
    both = [name for name in found if math.isfinite(found[name]) and math.isfinite(original.get(name, math.nan))]
    if len(both) < 2:
        return None
    after, before = (np.array([side[name] for name in both]) for side in (found, original))
    tested = compare_paired(after, before)
    numbers = {"t": tested.t, "effect": tested.effect, "p_t": tested.p_t, "p_wilcoxon": tested.p_wilcoxon}
    return {
        "difference": tested.difference, "interval": list(bootstrap_interval(after - before)), "n": tested.n,
        **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
    }  # fmt: skip


def _correct(against: Mapping[str, dict[str, Any]], better: str) -> None:
    """Add the corrected p-values and the verdicts."""
    for test in ("p_t", "p_wilcoxon"):
        for one, p in zip(against.values(), holm([one[test] for one in against.values()]), strict=True):
            one[f"{test}_holm"] = p
    for one in against.values():
        if max(one["p_t_holm"], one["p_wilcoxon_holm"]) >= LEVEL:
            one["verdict"] = "not told apart"
        elif better == "neither":
            one["verdict"] = "different"
        else:
            one["verdict"] = "better" if (one["difference"] > 0) == (better == "higher") else "worse"


# ---------------------------------------------------------------- words


def number(value: float | None, like: float | None = None) -> str:
    """Four digits that count, with the decimals of `like`.

    >>> number(12.3456), number(0.01234), number(None), number(1.5, 12.3456), number(math.inf)
    ('12.35', '0.01234', '–', '1.50', '∞')
    """
    if value is None:
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    size = abs(value if like is None else like)
    decimals = 3 if size == 0 else max(0, min(6, 3 - math.floor(math.log10(size))))
    return f"{value:.{decimals}f}"


def p_value(p: float | None) -> str:
    """A probability for a table.

    >>> p_value(0.0312), p_value(1e-9), p_value(None)
    ('0.031', '< 0.001', '–')
    """
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def cell_text(cell: Mapping[str, Any] | None, n: int | None = None) -> str:
    """`mean ± deviation`, a mark, and how many pictures where they are not `n`."""
    if cell is None:
        return "–"
    if "value" in cell:
        return number(cell["value"])
    if cell["mean"] is None:
        return "∞"
    spread = "" if cell["deviation"] is None else f" ± {number(cell['deviation'], cell['mean'])}"
    mark = MARKS.get(cell.get("against_original", {}).get("verdict"), "")
    few = "" if cell["n"] == n else f" (n = {cell['n']})"
    return f"{number(cell['mean'])}{spread}{few}{mark}"


def laid_out(report: Mapping[str, Any], layout: Layout) -> tuple[list[dict[str, Any]], list[str]]:
    """Columns and rows of one table."""
    columns = [c for name in layout.columns for c in report["columns"] if c["asked"] == name]
    wanted = layout.rows or list(report["figures"])
    return columns, [ORIGINAL, *(row for row in dict.fromkeys(wanted) if row != ORIGINAL)]


def layouts_of(report: Mapping[str, Any]) -> list[Layout]:
    """The tables asked for, and one with what none of them names, such as a judge's score; without any, all in one."""
    asked = [Layout(**table) for table in report["tables"]]
    named = {name for table in asked for name in table.columns}
    left = [name for name in dict.fromkeys(c["asked"] for c in report["columns"]) if name not in named]
    title = "Other columns" if asked else "All metrics"
    return [*asked, Layout(title=title, columns=left)] if left else asked


def heading(column: Mapping[str, Any]) -> str:
    """A column's label, direction and unit."""
    through = f", by {column['predictor']}" if column["predictor"] and column["metric"] != column["predictor"] else ""
    unit = f", {column['unit']}" if column["unit"] else ""
    return f"{column['label']}{unit}{through} {ARROWS[column['better']]}".strip()


def table_rows(report: Mapping[str, Any], layout: Layout) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of one table as text; columns that are unavailable are not among them."""
    columns, rows = laid_out(report, layout)
    columns = [column for column in columns if not column["unavailable"]]
    n = report["pictures"]
    cells = [[row, *(cell_text(report["figures"][row].get(column["id"]), n) for column in columns)] for row in rows]
    return ["enhancer", *map(heading, columns)], cells


def unavailable(report: Mapping[str, Any], layout: Layout) -> list[tuple[str, str]]:
    """(metric, why) of the columns that a table should have and cannot."""
    return [(c["id"], c["unavailable"]) for c in laid_out(report, layout)[0] if c["unavailable"]]


def comparisons(report: Mapping[str, Any], layout: Layout) -> Iterator[list[str]]:
    """Rows of: metric, enhancer, difference with its interval, effect, n, both corrected p-values, verdict."""
    columns, rows = laid_out(report, layout)
    for column in columns:
        for row in rows[1:]:
            cell = report["figures"][row].get(column["id"], {})
            one = cell.get("against_original")
            if one is None:
                continue
            low, high = (number(end, one["difference"]) for end in one["interval"])
            yield [
                column["id"], row, f"{number(one['difference'])} ({low} to {high})", number(one["effect"]),
                str(one["n"]), p_value(one["p_t_holm"]), p_value(one["p_wilcoxon_holm"]), one["verdict"],
            ]  # fmt: skip


COMPARISON_COLUMNS = (
    "metric", "enhancer", "difference to the original (95 %)", "effect", "n", "p, t-test", "p, Wilcoxon", "verdict",
)  # fmt: skip


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report as Markdown."""
    lines = [f"# {report['name']}", "", report["summary"], "", _about(report), ""]
    for layout in layouts_of(report):
        headings, rows = table_rows(report, layout)
        lines += [f"## {layout.title}", ""]
        lines += [*_markdown_table(headings, rows), ""] if len(headings) > 1 else []
        lines += [layout.note, ""]
        if reasons := unavailable(report, layout):
            lines += [*(f"- `{name}` is unavailable: {why}" for name, why in reasons), ""]
        if compared := _markdown_table(COMPARISON_COLUMNS, comparisons(report, layout)):
            lines += [*compared, ""]
    lines += [KEY, ""]
    lines += ["| enhancer | what ran |", "|---|---|"]
    lines += [f"| {e['id']} | {e['about'].replace('|', '/')} |" for e in report["enhancers"]]
    if report["failed"]:
        lines += ["", f"{len(report['failed'])} failed:", ""]
        lines += [f"- {one['name']} {one['enhancer']}: {one['reason']}" for one in report["failed"]]
    return "\n".join(lines) + "\n"


def _about(report: Mapping[str, Any]) -> str:
    kinds = {"ridge": " Masks are centre lines of bright ridges in the target, not tracings (mask source `ridge`)."}
    data = report["data"]
    words = f"{report['pictures']} pictures."
    if data["degradation"] != "none":
        words += f" Sources are degraded (`{data['degradation']}`, seed {data['seed']}); the pictures are the targets."
    return words + kinds.get(data["mask_source"], "")


def _markdown_table(columns: Sequence[str], rows: Any) -> list[str]:
    lines = ["| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in rows]
    return ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns), *lines] if lines else []
