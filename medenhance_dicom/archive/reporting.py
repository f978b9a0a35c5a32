"""What a plan comes to: where it stands (`status`), what became of every file (`report`), and the same as a page.

Reads the plan alone, so it works at any time, from any process and host that sees the plan's folder.
"""

from __future__ import annotations

import fcntl
import html
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medenhance_dicom.archive.plan import Plan
from medenhance_dicom.archive.shadow import shadow_report
from medenhance_dicom.errors import OutputError

SCHEMA = "medenhance-dicom/archive-report/1"
RESULTS = ("enhanced", "warned", "withheld", "skipped", "failed", "open")
"""What becomes of a file. `open`: it is still to be done. A file is one of these, and no file is missing."""
RATE_SECONDS = 3600.0
"""Over which the rate is taken."""
_MOST_REASONS = 200
_DEAD_LETTERS = 100

# One row for every file that is there: instances of every source, each copy of one, and what is no instance.
_FILES = """
WITH dead AS MATERIALIZED (
    SELECT series, MAX(why) AS why FROM job WHERE shadow = 0 AND state = 'failed' GROUP BY series
), file AS (
    SELECT o.name AS source, i.locator, i.size, s.modality, s.manufacturer, s.model, m.recipe, d.lassim, d.mean_change,
        d.seconds, d.derived_bytes, d.derived,
        CASE WHEN twin.id IS NOT NULL THEN 'skipped'
            WHEN d.result IS NOT NULL THEN d.result
            WHEN s.state = 'left out' THEN CASE WHEN s.reason LIKE 'UNREADABLE%' THEN 'failed' ELSE 'skipped' END
            WHEN dead.series IS NOT NULL THEN 'failed'
            ELSE 'open' END AS result,
        CASE WHEN {replaced} THEN 'REPLACED: another file has the same UIDs and another header, and was found later'
            WHEN twin.id IS NOT NULL THEN 'DUPLICATE: another file has the same UIDs, and that one is taken'
            WHEN d.result IS NOT NULL THEN d.reason
            WHEN s.state = 'left out' THEN s.reason
            WHEN dead.series IS NOT NULL THEN 'NOT_DONE: ' || dead.why
            WHEN s.state = 'new' THEN 'NOT_JUDGED: plan again'
            ELSE NULL END AS reason
    FROM instance i JOIN source o ON o.id = i.source JOIN series s ON s.id = i.series
    LEFT JOIN instance twin ON twin.id = (
        SELECT t.id FROM instance t JOIN source p ON p.id = t.source
        WHERE t.series = i.series AND t.key = i.key AND t.id > i.id AND t.scan >= p.ended
        ORDER BY t.id DESC LIMIT 1)
    LEFT JOIN done d ON twin.id IS NULL AND d.key = i.key AND d.method = s.method AND d.shadow = 0
    LEFT JOIN method m ON m.key = s.method
    LEFT JOIN dead ON dead.series = s.id
    WHERE i.scan >= o.ended
    UNION ALL
    SELECT o.name, l.locator, NULL, '', '', '', NULL, NULL, NULL, NULL, NULL, NULL,
        CASE WHEN l.reason LIKE 'UNREADABLE%' THEN 'failed' ELSE 'skipped' END, l.reason
    FROM left_out l JOIN source o ON o.id = l.source WHERE l.scan >= o.ended
)
"""


def _files_of(plan: Plan) -> str:
    return _FILES.format(replaced="twin.header <> i.header" if plan.has_headers else "0")


# ---------------------------------------------------------------- status


def status(plan: Plan, *, now: float) -> dict[str, Any]:
    """Where a plan stands.

    Args:
        plan: May be opened for reading alone.
        now: Seconds since the epoch.

    Returns:
        `state`, `running` (a coordinator is at it), `series` {open, done, left out, new}, `instances` {open, all},
        `results` and `earlier` (under other methods) in instances, `jobs` by state, `rate` (series per second of the
        last run, over an hour at most; None: nothing was done in it), `seconds_left` (None: cannot be told),
        `dead_letters` [{job, why}], `events` (the last ten).
    """
    counts = plan.counts()
    rate, instance_rate = _rates(plan, now)
    open_series, open_instances = counts["open_series"], counts["open_instances"]
    left = open_instances / instance_rate if instance_rate else None
    failed = [job for job in plan.jobs() if job.state == "failed"]
    if not open_series:
        left = 0.0
    return {
        "plan": str(plan.folder),
        "state": _state(plan, counts, len(failed)),
        "running": is_run(plan.folder),
        "series": {
            "open": open_series,
            "done": counts["series"].get("chosen", 0) - open_series,
            "left out": counts["series"].get("left out", 0),
            "new": counts["series"].get("new", 0),
        },
        "instances": {"open": open_instances, "all": counts["instances"]},
        "results": counts["results"],
        "earlier": counts["earlier"],
        "jobs": counts["jobs"],
        "rate": rate,
        "seconds_left": left,
        "dead_letters": [{"job": job.id, "why": job.why} for job in failed[:_DEAD_LETTERS]],
        "events": plan.events()[-10:],
    }


def _rates(plan: Plan, now: float) -> tuple[float | None, float | None]:
    """Series and instances per second of the last run, over an hour at most."""
    begun = max((event["at"] for event in plan.events() if event["event"] == "begun"), default=0.0)
    begun = max(begun, now - RATE_SECONDS)
    rows = plan.query(
        "SELECT COUNT(DISTINCT series), COUNT(*), MIN(at), MAX(at) FROM done WHERE at >= ? AND shadow = 0", begun
    )
    series, instances, first, last = next(iter(rows))
    if not series:
        return None, None
    took = last - (first if begun == now - RATE_SECONDS else begun)
    return (series / took, instances / took) if took > 0 else (None, None)


def is_run(folder: Path) -> bool:
    """Whether a coordinator works on a plan now, here or on another host: it holds the lock."""
    try:
        with (folder / "run.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _state(plan: Plan, counts: Mapping[str, Any], failed: int) -> str:
    if plan.meta("paused"):
        return "paused"
    if plan.meta("cancelled"):
        return "being cancelled"
    if any(not source.ended for source in plan.sources()) or counts["series"].get("new"):
        return "being planned"
    if counts["open_series"] > failed:
        return "open"
    return "done, with dead letters" if failed else "done"


def status_lines(found: Mapping[str, Any]) -> list[str]:
    """`status` for a person."""
    series, left = found["series"], found["seconds_left"]
    whole, state = series["open"] + series["done"], found["state"] + (", running" if found["running"] else "")
    lines = [
        f"{state}: {series['done']:,} of {whole:,} series done, {series['left out']:,} left out"
        + (f", {series['new']:,} not judged yet" if series["new"] else ""),
        ", ".join(f"{n:,} {result}" for result, n in sorted(found["results"].items())) or "no results yet",
    ]
    if found["rate"]:
        lines.append(f"{found['rate'] * 3600:,.0f} series an hour" + (f", {duration(left)} left" if left else ""))
    if found["jobs"]:
        lines.append("jobs: " + ", ".join(f"{n} {state}" for state, n in sorted(found["jobs"].items())))
    lines += [f"dead letter {letter['job'][:8]}: {letter['why']}" for letter in found["dead_letters"]]
    return lines


def duration(seconds: float | None) -> str:
    """A time for people, to two units.

    Example:
        >>> duration(90061), duration(75), duration(0.4)
        ('1 d 1 h', '1 min 15 s', '0.4 s')
    """
    if seconds is None:
        return "unknown"
    if seconds < 10:
        return f"{seconds:.1f} s"
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    rest = round(seconds)
    parts: list[tuple[int, str]] = []
    for size, name in units:
        if rest >= size or parts:
            parts.append((rest // size, name))
            rest %= size
    return " ".join(f"{n} {name}" for n, name in parts[:2] if n)


def size(count: float | None) -> str:
    """Bytes for people.

    Example:
        >>> size(1536), size(12)
        ('1.5 KiB', '12 B')
    """
    if count is None:
        return "unknown"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


# ---------------------------------------------------------------- report


def files(plan: Plan) -> Iterator[dict[str, Any]]:
    """Every file that is there, with `result` (one of `RESULTS`) and `reason`; streamed."""
    names = (
        "source", "file", "bytes", "modality", "manufacturer", "model", "recipe", "lassim", "mean_change", "seconds",
        "derived_bytes", "derived_sop_instance_uid", "result", "reason",
    )  # fmt: skip
    for row in plan.query(f"{_files_of(plan)} SELECT * FROM file"):  # noqa: S608 - constant
        yield dict(zip(names, row, strict=True))


def write_files(plan: Plan, path: Path) -> int:
    """Write `files` as JSON lines, for its owner alone. Returns how many.

    Raises:
        OutputError: It cannot be written.
    """
    part, count = path.with_name(f".{path.name}.part"), 0
    try:
        part.touch(mode=0o600)
        with part.open("w", encoding="utf-8", errors="surrogateescape") as out:
            for count, one in enumerate(files(plan), 1):  # noqa: B007 - told
                out.write(json.dumps(one) + "\n")
        part.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
    return count


def report(plan: Plan, *, now: datetime) -> dict[str, Any]:
    """What became of every file.

    Args:
        plan: May be opened for reading alone.
        now: Aware time.

    Returns:
        `files`, `results` (files by result; they add up to `files`), `reasons` [{result, reason, files}], `groups`
        [{modality, device, recipe, files by result, lassim, seconds, derived_bytes}], `earlier` (instances with a
        result under another method), `dead_letters`, `forecast` and `shadow`.
    """
    results: Counter[str] = Counter()
    reasons: Counter[tuple[str, str]] = Counter()
    grouped: dict[tuple[str, str, str], dict[str, Any]] = {}
    rows = plan.query(
        f"{_files_of(plan)} SELECT modality, manufacturer, model, COALESCE(recipe, ''), result, COALESCE(reason, ''), "  # noqa: S608
        "COUNT(*), SUM(lassim), COUNT(lassim), MIN(lassim), SUM(seconds), SUM(derived_bytes), SUM(size) "
        "FROM file GROUP BY 1, 2, 3, 4, 5, 6"
    )
    for modality, maker, model, recipe, result, reason, count, *amounts in rows:
        results[result] += count
        if reason:
            reasons[result, _kind(reason)] += count
        device = " ".join(f"{maker} {model}".split())
        group = grouped.setdefault((modality, device, recipe), _empty_group(modality, device, recipe))
        group[result] += count
        group["files"] += count
        for name, value in zip(
            ("_sum", "_count", "lassim_lowest", "seconds", "bytes_made", "bytes"), amounts, strict=True
        ):
            if value is not None:
                group[name] = min(group[name] or 2.0, value) if name == "lassim_lowest" else (group[name] or 0) + value
    groups = [_finished(group) for _, group in sorted(grouped.items())]
    counts = plan.counts()
    return {
        "schema": SCHEMA,
        "plan": str(plan.folder),
        "sources": [source.name for source in plan.sources()],
        "options": plan.options,
        "generated": now.isoformat(timespec="seconds"),
        "status": status(plan, now=now.timestamp()),
        "files": sum(results.values()),
        "results": {result: results.get(result, 0) for result in RESULTS},
        "reasons": _most(reasons),
        "groups": groups,
        "earlier": counts["earlier"],
        "forecast": plan.meta("forecast"),
        "shadow": shadow_report(plan),
    }


def _empty_group(modality: str, device: str, recipe: str) -> dict[str, Any]:
    return {
        "modality": modality, "device": device, "recipe": recipe or None, "files": 0, **dict.fromkeys(RESULTS, 0),
        "_sum": 0.0, "_count": 0, "lassim_lowest": None, "seconds": None, "bytes": 0, "bytes_made": None,
    }  # fmt: skip


def _finished(group: dict[str, Any]) -> dict[str, Any]:
    total, count = group.pop("_sum"), group.pop("_count")
    judged = group["enhanced"] + group["warned"] + group["withheld"]
    return group | {
        "lassim_mean": total / count if count else None,
        "withheld_share": group["withheld"] / judged if judged else None,
    }


def _kind(reason: str) -> str:
    """A reason without the numbers that make every one of its kind different."""
    return re.sub(r"(?<![\w.])\d+(\.\d+)?(?![\w.])", "…", reason)


def _most(reasons: Mapping[tuple[str, str], int]) -> list[dict[str, Any]]:
    """Reasons, the most frequent first; the rare ones summed up by code, so that they add up all the same."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    told = [{"result": result, "reason": reason, "files": n} for (result, reason), n in ordered[:_MOST_REASONS]]
    rest: Counter[tuple[str, str]] = Counter()
    for (result, reason), n in ordered[_MOST_REASONS:]:
        rest[result, reason.partition(":")[0]] += n
    return told + [
        {"result": result, "reason": f"{code}: of other kinds", "files": n}
        for (result, code), n in sorted(rest.items())
    ]


def report_lines(found: Mapping[str, Any]) -> list[str]:
    """`report` for a person."""
    results = ", ".join(f"{n:,} {result}" for result, n in found["results"].items() if n)
    lines = [f"{found['files']:,} files: {results or 'none'}"]
    lines += [f"{row['files']:>10,}  {row['result']:9} {row['reason']}" for row in found["reasons"]]
    if found["groups"]:
        lines += ["", *(_group_line(group) for group in found["groups"])]
    if found["forecast"]:
        lines += ["", *forecast_lines(found["forecast"])]
    for one in found["shadow"]:
        lines += ["", *shadow_lines(one)]
    return lines


def _group_line(group: Mapping[str, Any]) -> str:
    what = f"{group['modality']} {group['device']}".strip() or "not DICOM, or unreadable"
    counts = ", ".join(f"{group[result]:,} {result}" for result in RESULTS if group[result])
    lassim = "" if group["lassim_mean"] is None else f"; LaSSIM {group['lassim_mean']:.3f}"
    return f"{what}{' by ' + group['recipe'] if group['recipe'] else ''}: {counts}{lassim}"


def forecast_lines(found: Mapping[str, Any], workers: int = 1) -> list[str]:
    """A forecast for a person."""
    total = found["total"]
    lines = [
        f"forecast from {total['sampled']:,} of {total['series']:,} open series, 95 % intervals, "
        f"{workers} worker{'s' if workers > 1 else ''} on this machine ({found.get('engine', '?')})",
        f"time      {_between(total['seconds'], lambda s: duration(s / workers))}",
        f"fetching  {_between(total['fetch_seconds'], lambda s: duration(s / workers))}, while others are enhanced",
        f"disk      {_between(total['bytes'], size)}",
        f"withheld  {_between(total['withheld_share'], _percent)}",
    ]
    lines += [
        f"  {row['modality']} {row['device']}: {row['series']:,} series ({row['sampled']} sampled), "
        f"{_between(row['seconds'], lambda s: duration(s / workers))}, {_between(row['bytes'], size)}, "
        f"withheld {_between(row['withheld_share'], _percent)}"
        for row in found["strata"]
    ]
    lines += [
        f"  {row['modality']} {row['device']}: {row['series']:,} series, none could be measured: not in the figures"
        for row in found["unmeasured"]
    ]
    return lines


def shadow_lines(one: Mapping[str, Any]) -> list[str]:
    """A comparison for a person."""
    what = "all devices" if one["modality"] == "all" else f"{one['modality']} {one['device']}"
    first, other = one["first"], one["shadow"]
    lines = [f"shadow, {what}: {one['instances']:,} compared, in {one['series']:,} series; {one['says']}"]
    for side, name in ((first, "now"), (other, "shadow")):
        lassim = "" if side["lassim"] is None else f", LaSSIM {side['lassim']:.3f}"
        change = "" if side["mean_change"] is None else f", mean change {side['mean_change']:.2f}"
        share = _between(side["withheld_share"], _percent)
        lines.append(f"  {name:7}{side['recipe']}: withheld {share}{lassim}{change}")
    return lines


def _between(estimate: Mapping[str, float | None], words: Any) -> str:
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    if low is None or high is None:
        return f"{words(value)} (too few to tell how sure)"
    return words(value) if low == high else f"{words(value)} ({words(low)} to {words(high)})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


# ---------------------------------------------------------------- page

_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100%; font-size: .93em }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #8884; vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.scroll { overflow-x: auto }
.bar { display: flex; height: 1.1rem; border-radius: 3px; overflow: hidden; margin: .6rem 0 }
.enhanced { background: #2e7d4f } .warned { background: #c9a227 } .withheld { background: #c2622d }
.skipped { background: #8a8f98 } .failed { background: #b3261e } .open { background: #8a8f9855 }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .35em }
.quiet { color: #777 }
""".strip()


def page(found: Mapping[str, Any]) -> str:
    """A report as one HTML page: no scripts, nothing from elsewhere. It names no patient, but shows sources' paths."""
    status_, total = found["status"], max(found["files"], 1)
    body = [
        f"<h1>Archive: {_text(found['plan'])}</h1>",
        f"<p>{_text('; '.join(status_lines(status_)[:3]))}<br><span class=quiet>{_text(found['generated'])}, "
        f"from {_text(', '.join(found['sources']))}</span></p>",
        "<div class=bar role=img aria-label='Results'>"
        + "".join(f"<span class={r} style='width:{100 * found['results'][r] / total:.3f}%'></span>" for r in RESULTS)
        + "</div>",
        "<p>"
        + " &nbsp; ".join(f"<span class='key {r}'></span>{found['results'][r]:,} {r}" for r in RESULTS)
        + f" &nbsp; = {found['files']:,} files</p>",
        "<h2>Why</h2>",
        _table(
            ("files#", "result", "reason"), ((row["files"], row["result"], row["reason"]) for row in found["reasons"])
        ),
        "<h2>By modality and device</h2>",
        _table(
            (
                "modality", "device", "recipe", "files#", *(f"{r}#" for r in RESULTS), "withheld share#", "LaSSIM#",
                "made#",
            ),
            (
                (
                    g["modality"] or "none", g["device"], g["recipe"], g["files"], *(g[r] for r in RESULTS),
                    None if g["withheld_share"] is None else _percent(g["withheld_share"]),
                    None if g["lassim_mean"] is None else f"{g['lassim_mean']:.3f}",
                    None if g["bytes_made"] is None else size(g["bytes_made"]),
                )
                for g in found["groups"]
            ),
        ),
    ]  # fmt: skip
    if letters := status_["dead_letters"]:
        body += [
            "<h2>Dead letters</h2>",
            "<p>Mend what is named, then <code>medenhance-dicom jobs retry JOB</code>.</p>",
            _table(("job", "why"), ((letter["job"][:8], letter["why"]) for letter in letters)),
        ]
    if forecast := found["forecast"]:
        body += ["<h2>Forecast</h2>", f"<p>{_text(forecast_lines(forecast)[0])}</p>", _forecast_table(forecast)]
    if found["shadow"]:
        body += ["<h2>Shadow</h2>", _shadow_table(found["shadow"])]
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>Archive report</title><style>{_STYLE}</style></head>\n<body>" + "\n".join(body) + "</body></html>\n"
    )


def write_page(found: Mapping[str, Any], path: Path) -> None:
    """Write `page`, for its owner alone.

    Raises:
        OutputError: It cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.touch(mode=0o600)
        part.write_text(page(found), encoding="utf-8", errors="replace")
        part.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error


def _forecast_table(found: Mapping[str, Any]) -> str:
    def row(modality: str, device: str, one: Mapping[str, Any]) -> Sequence[Any]:
        return (
            modality, device, one["series"], one["sampled"], _between(one["seconds"], duration),
            _between(one["bytes"], size), _between(one["withheld_share"], _percent),
        )  # fmt: skip

    rows = [row("all", "", found["total"]), *(row(r["modality"], r["device"], r) for r in found["strata"])]
    rows += [(r["modality"], r["device"], r["series"], 0, "not measured", "", "") for r in found["unmeasured"]]
    return _table(("modality", "device", "series#", "sampled#", "time, one worker", "disk", "withheld"), rows)


def _shadow_table(found: Iterable[Mapping[str, Any]]) -> str:
    rows = []
    for one in found:
        for n, side in enumerate((one["first"], one["shadow"])):
            rows.append((
                one["modality"] if not n else "", one["device"] if not n else "", one["instances"] if not n else None,
                side["recipe"], _between(side["withheld_share"], _percent),
                None if side["lassim"] is None else f"{side['lassim']:.3f}",
                None if side["mean_change"] is None else f"{side['mean_change']:.2f}",
                one["says"] if n else "",
            ))  # fmt: skip
    columns = ("modality", "device", "instances#", "recipe", "withheld", "LaSSIM#", "mean change#", "shadow")
    return _table(columns, rows)


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A column whose name ends with # is numbers."""
    kinds = [" class=n" if name.endswith("#") else "" for name in columns]
    head = "".join(f"<th{k}>{_text(name.rstrip('#'))}" for k, name in zip(kinds, columns, strict=True))
    lines = ("<tr>" + "".join(f"<td{k}>{_text(value)}" for k, value in zip(kinds, row, strict=True)) for row in rows)
    return f"<div class=scroll><table><thead><tr>{head}</thead><tbody>{''.join(lines)}</tbody></table></div>"


def _text(value: Any) -> str:
    if value is None:
        return ""
    return html.escape(f"{value:,}" if isinstance(value, int) else str(value))


def iso(seconds: float) -> str:
    """A time of the plan for people."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
