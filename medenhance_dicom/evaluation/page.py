"""The report as one HTML page: no scripts, nothing from elsewhere; it names no patient, but shows pictures."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medenhance_dicom.evaluation.charts import box_plot
from medenhance_dicom.evaluation.previews import Previews, data_uri
from medenhance_dicom.evaluation.recipe import ORIGINAL, Layout
from medenhance_dicom.evaluation.scoring import Scored
from medenhance_dicom.evaluation.table import (
    COMPARISON_COLUMNS,
    KEY,
    comparisons,
    heading,
    layouts_of,
    number,
    table_rows,
    unavailable,
    values_of,
)

_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 84rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; font-size: .93em }
th, td { text-align: right; padding: .25rem .7rem; border-bottom: 1px solid #8884; white-space: nowrap }
th:first-child, td:first-child, table.words td, table.words th { text-align: left }
table.words td { white-space: normal }
td { font-variant-numeric: tabular-nums }
.scroll { overflow-x: auto }
.quiet { color: #777 }
.better { color: #1b7837 } .worse { color: #b3261e } .different { color: #a06a00 }
.charts { display: flex; flex-wrap: wrap; gap: 1rem }
.chart { flex: 1 1 26rem; max-width: 40rem; font-size: 11px; fill: currentColor }
.chart line { stroke: currentColor } .chart .grid { stroke: #8883 }
.chart rect { fill: #4a86c555; stroke: currentColor }
.chart .median { stroke-width: 2 } .chart .mean { fill: #c2622d } .chart .beyond { fill: none; stroke: currentColor }
.pictures { display: flex; gap: .6rem; overflow-x: auto; padding-bottom: .5rem }
figure { margin: 0; flex: 0 0 auto } figure img { display: block; width: 15rem; margin-bottom: .3rem; background: #000 }
figcaption { font-size: .86em; max-width: 15rem; overflow-wrap: anywhere }
""".strip()
_MARKED = {" ▲": "better", " ▼": "worse", " ◆": "different"}


def page(report: Mapping[str, Any], scored: Scored, previews: Previews, names: Sequence[str]) -> str:
    """The page.

    Args:
        report: See `make_report`.
        scored: The scores, for the distributions.
        previews: Where the small pictures lie.
        names: Of the pictures to show.
    """
    body = [
        f"<h1>Evaluation: {_text(report['name'])}</h1>",
        f"<p>{_text(report['summary'])}<br><span class=quiet>{_text(_about(report))}</span></p>",
        *(part for layout in layouts_of(report) for part in _section(report, layout)),
        f"<p class=quiet>{_text(KEY)}</p>",
        "<h2>Distributions</h2><p class=quiet>Box: quartiles and median; whiskers: Tukey; filled dot: mean.</p>",
        f"<div class=charts>{''.join(_charts(report, scored))}</div>",
        "<h2>Pictures</h2><p class=quiet>Under each result: the change (red brighter, blue darker, full colour "
        "at a quarter of the range), then the local LaSSIM (white 1, dark red 0).</p>",
        *(_pictures(report, scored, previews, name) for name in names),
        "<h2>Enhancers</h2>",
        _words(
            ("enhancer", "what ran", "seconds a picture"),
            ((e["id"], e["about"], number(e["seconds"])) for e in report["enhancers"]),
        ),
    ]
    for title, columns, rows in (
        ("Failed", ("picture", "enhancer", "why"), [(f["name"], f["enhancer"], f["reason"]) for f in report["failed"]]),
        ("Left out", ("what", "why"), [(one["name"], one["reason"]) for one in report["left_out"]]),
        (
            "No number",
            ("metric", "enhancer", "pictures", "why"),
            [(u["column"], u["enhancer"], str(u["pictures"]), u["reason"]) for u in report["undefined"]],
        ),
    ):
        if rows:
            body += [f"<h2>{title}</h2>", _words(columns, rows)]
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>Evaluation: {_text(report['name'])}</title><style>{_STYLE}</style></head>\n<body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


def _about(report: Mapping[str, Any]) -> str:
    data, parts = report["data"], [f"{report['pictures']} pictures"]
    if data["degradation"] != "none":
        parts.append(f"degraded ({data['degradation']}, seed {data['seed']}), the pictures themselves are the targets")
    if data["mask_source"] == "ridge":
        parts.append("masks are centre lines of bright ridges, not tracings (mask source ridge)")
    return "; ".join([*parts, f"medenhance-dicom {report['version']}"])


def _section(report: Mapping[str, Any], layout: Layout) -> Iterable[str]:
    headings, rows = table_rows(report, layout)
    yield f"<h2>{_text(layout.title)}</h2>"
    if len(headings) > 1:
        head = "".join(f"<th>{_text(name)}" for name in headings)
        lines = "".join("<tr>" + "".join(map(_cell, row)) for row in rows)
        yield f"<div class=scroll><table><thead><tr>{head}</thead><tbody>{lines}</tbody></table></div>"
    yield f"<p class=quiet>{_text(layout.note)}</p>"
    for name, why in unavailable(report, layout):
        yield f"<p><code>{_text(name)}</code> is unavailable: {_text(why)}</p>"
    if compared := list(comparisons(report, layout)):
        table = _words(COMPARISON_COLUMNS, compared)
        yield f"<details><summary>Against the original, with intervals and p-values</summary>{table}</details>"


def _cell(text: str) -> str:
    mark = next((kind for end, kind in _MARKED.items() if text.endswith(end)), "")
    return f"<td{f' class={mark}' if mark else ''}>{_text(text)}"


def _charts(report: Mapping[str, Any], scored: Scored) -> Iterable[str]:
    for column in report["columns"]:
        if column["of"] == "picture" and not column["unavailable"]:
            values = {
                enhancer: [v for v in values_of(scored, enhancer, column["id"]).values() if math.isfinite(v)]
                for enhancer in scored.rows
            }
            if any(values.values()):
                yield box_plot(values, heading(column))


def _pictures(report: Mapping[str, Any], scored: Scored, previews: Previews, name: str) -> str:
    shown = []
    columns = [c for c in report["columns"] if c["of"] == "picture" and not c["unavailable"]]
    for enhancer, rows in scored.rows.items():
        row = next((row for row in rows if row.name == name), None)
        if row is None:
            continue
        files = previews.of(row.key, row.digest)
        images = [data_uri(path) for path in (files.result, files.difference, files.structure)]
        scores = [(c["label"], row.scores.get(c["id"])) for c in columns[:6]]
        figures = "<br>".join(f"{_text(label)} {number(value)}" for label, value in scores if value is not None)
        shown.append(_figure(enhancer, images, figures))
        if enhancer == ORIGINAL and (target := data_uri(previews.target(row.key))):
            shown.append(_figure("target", [target], ""))
    return f"<h3>{_text(name)}</h3><div class=pictures>{''.join(shown)}</div>"


def _figure(title: str, images: Sequence[str | None], figures: str) -> str:
    tags = "".join(f"<img src='{uri}' alt='{_text(title)}' loading=lazy>" for uri in images if uri)
    return f"<figure>{tags}<figcaption><b>{_text(title)}</b><br>{figures}</figcaption></figure>"


def _words(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{_text(name)}" for name in columns)
    lines = "".join("<tr>" + "".join(f"<td>{_text(value)}" for value in row) for row in rows)
    return f"<div class=scroll><table class=words><thead><tr>{head}</thead><tbody>{lines}</tbody></table></div>"


def _text(value: Any) -> str:
    return html.escape(str(value))
