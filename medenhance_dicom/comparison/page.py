"""Pairs on one HTML page that needs no network: a slider between before and after, difference, map, scores.

It says nothing about the patient unless asked to; what is burned into the pictures is still in them.
"""

from __future__ import annotations

import base64
import contextlib
import html
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from medenhance_dicom.comparison.judging import Judgement, judge_pairs
from medenhance_dicom.comparison.maps import shown_map
from medenhance_dicom.comparison.pairs import FramePair, Pair
from medenhance_dicom.comparison.panels import Picture, colours, difference_picture, map_picture, picture
from medenhance_dicom.errors import OutputError
from medenhance_dicom.gate import FrameScores, Region
from medenhance_dicom.verdicts import excess_of

__all__ = ["MOST_PAIRS", "write_page"]

MOST_PAIRS = 24
"""Pairs with pictures; further ones are in the table."""


@dataclass(frozen=True)
class _Shown:
    """One frame as it stands on the page."""

    frame: int
    size: tuple[int, int]
    """Rows, columns of the frame."""
    before: Picture
    after: Picture
    difference: Picture
    map: Picture
    calibrated: bool
    """The map is in multiples of its limit."""
    scores: FrameScores
    region: Region | None


class _Gallery:
    """Pictures of the first and the worst frame of each pair, while they are judged."""

    def __init__(self, most: int) -> None:
        self.left = most
        self._frames: dict[str, _Shown] = {}
        self._worst = -1.0

    def see(self, pair: Pair, frame: FramePair, scores: FrameScores) -> None:
        """Keep what is to be shown of a frame."""
        excess, check = excess_of(scores, pair.thresholds)
        if self.left <= 0 or (frame.index and excess <= self._worst):
            return
        self._worst = excess
        objection = shown_map(frame.before, frame.after, pair.thresholds, level=pair.level, inside=frame.inside)
        self._frames["worst" if frame.index else "first"] = _Shown(
            frame.index, frame.before.shape[:2], picture(frame.before), picture(frame.after),
            difference_picture(frame.before, frame.after), map_picture(objection), objection.calibrated,
            scores, scores.regions.get(check),
        )  # fmt: skip

    def taken(self) -> list[_Shown]:
        """The frames of the pair that was judged last."""
        found = list(self._frames.values())
        self._frames, self._worst, self.left = {}, -1.0, self.left - bool(found)
        return found


def write_page(
    pairs: Iterable[tuple[Pair, Iterator[FramePair]]], path: Path, *, identify: bool = False, most: int = MOST_PAIRS
) -> list[Judgement]:
    """Judge pairs and write them as one page, for its owner alone; pictures go to disk as they come.

    Args:
        pairs: As `pairs.Pairs` gives them.
        path: The page to be.
        identify: Show patients' names and identifiers, and files' names.
        most: Pairs with pictures.

    Raises:
        OutputError: It cannot be written.
    """
    part, gallery, judgements = path.with_name(f".{path.name}.part"), _Gallery(most), []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch(mode=0o600)
        with part.open("w", encoding="utf-8", errors="replace") as out:
            out.write(_HEAD)
            for number, judgement in enumerate(judge_pairs(pairs, gallery.see), 1):
                judgements.append(judgement)
                out.write(_section(number, judgement, gallery.taken(), identify=identify))
            out.write(_summary(judgements, most))
            out.write(f"<script>{_SCRIPT}</script></body></html>\n")
        part.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return judgements


def _section(number: int, judgement: Judgement, frames: list[_Shown], *, identify: bool) -> str:
    pair, verdict = judgement.pair, judgement.verdict
    lines = [
        f"<section><h2><span class='tag {judgement.result}'>{_SAID[judgement.result]}</span> "
        f"{number}. {_text(pair.says)}</h2>"
    ]
    if identify:
        names = " &nbsp; ".join(_text(name) for name in (pair.patient, pair.source, pair.derived) if name)
        lines.append(f"<p class=quiet>{names}</p>")
    if judgement.reason:
        lines.append(f"<p>{_text(_nameless(judgement.reason, identify=identify))}</p>")
    if verdict:
        lines.append(_scores(judgement))
    lines += [_frame(shown, several=verdict.get("frames", 1) > 1) for shown in frames]
    return "\n".join([*lines, "</section>\n"])


def _nameless(reason: str, *, identify: bool) -> str:
    """A file that cannot be read is named in its reason, and the name may be a patient's."""
    return reason if identify or not reason.startswith("UNREADABLE") else "UNREADABLE: the file cannot be read"


def _scores(judgement: Judgement) -> str:
    verdict = judgement.verdict
    frame = f", frame {verdict['worst_frame'] + 1}" if verdict["frames"] > 1 else ""
    lassim = "none" if judgement.lassim is None else f"{judgement.lassim:.4f}"
    rows = [("LaSSIM", lassim, f"at least {verdict['minimum']:.4g}", f"whole frame{frame}")]
    for name, found in verdict["checks"].items():
        frame = f", frame {found['frame'] + 1}" if verdict["frames"] > 1 else ""
        value = "not finite" if found["value"] is None else f"{found['value']:.4g}"
        limit = "does not decide" if found["withhold"] is None else f"at most {found['withhold']:.4g}"
        rows.append((name, value, limit, f"{found['where'] or 'whole frame'}{frame}"))
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}" for cell in row) for row in rows)
    calibration = f"calibration {verdict['calibration']}" if verdict["calibration"] else "limits set by hand"
    return (
        "<div class=scroll><table><thead><tr><th>check<th>value<th>limit<th>worst at</thead>"
        f"<tbody>{body}</tbody></table></div><p class=quiet>{_text(calibration)}</p>"
    )


def _frame(shown: _Shown, *, several: bool) -> str:
    title = f"<h3>Frame {shown.frame + 1}</h3>" if several else ""
    box = _box(shown)
    height, width = shown.before.shape[:2]
    return (
        f"{title}<div class=four><figure><div class=pair style='aspect-ratio:{width}/{height}'>"
        f"<img src='{_uri(shown.after)}' alt=enhanced><img class=over src='{_uri(shown.before)}' alt=source>{box}"
        "<div class=line></div><input type=range min=0 max=100 step=0.2 value=50 aria-label='Source or enhanced'></div>"
        "<figcaption><span>source</span><span>enhanced</span></figcaption></figure>"
        f"<figure><div class=one><img src='{_uri(shown.difference)}' alt=difference>{box}</div>"
        "<figcaption>difference: <span class=lower>darker</span>, <span class=higher>brighter</span>; "
        "full colour at a quarter of the range</figcaption></figure>"
        f"<figure><div class=one><img src='{_uri(shown.map)}' alt='structure map'>{box}</div>"
        f"<figcaption>where structure changed{_text(_where(shown))}: {_scale(shown)}</figcaption></figure></div>"
    )


def _scale(shown: _Shown) -> str:
    """The map's colours, from unchanged to twice the limit, or from LaSSIM 1 to 0."""
    stops = ",".join(f"rgb({r},{g},{b})" for r, g, b in colours()[::15].tolist())
    bar = f"<span class=scale style='background:linear-gradient(to right,{stops})'>"
    if shown.calibrated:
        return f"0 {bar}<i></i></span> twice the limit, the line is the limit"
    return f"LaSSIM 1 {bar}</span> 0"


def _where(shown: _Shown) -> str:
    return "" if shown.region is None else f"; boxed: {shown.region}"


def _box(shown: _Shown) -> str:
    if shown.region is None:
        return ""
    rows, columns = shown.size
    r = shown.region
    top, left = 100 * r.top / rows, 100 * r.left / columns
    height, width = 100 * (r.bottom - r.top) / rows, 100 * (r.right - r.left) / columns
    return f"<div class=box style='top:{top:.2f}%;left:{left:.2f}%;height:{height:.2f}%;width:{width:.2f}%'></div>"


def _summary(judgements: list[Judgement], most: int) -> str:
    counts = {result: sum(j.result == result for j in judgements) for result in _SAID}
    said = ", ".join(f"{n} {_SAID[result]}" for result, n in counts.items() if n) or "no pairs"
    drawn = sum(bool(j.verdict) for j in judgements)
    left = f" Pictures of the first {most}." if drawn > most else ""
    return f"<footer class=quiet>{said}.{left} Judged on the stored values.</footer>"


def _uri(pixels: Picture) -> str:
    buffer = io.BytesIO()
    grey = pixels.ndim == 3 and bool((pixels == pixels[..., :1]).all())
    Image.fromarray(pixels[..., 0] if grey else pixels).save(buffer, format="png", optimize=False)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _text(value: Any) -> str:
    return html.escape("" if value is None else str(value))


_SAID = {
    "enhanced": "passed",
    "warned": "warning",
    "withheld": "withheld",
    "skipped": "not compared",
    "failed": "unreadable",
}

_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 100rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin: 2.5rem 0 .4rem } h3 { font-size: 1rem; margin: 1rem 0 .3rem }
table { border-collapse: collapse; font-size: .93em }
th, td { text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #8884; vertical-align: top }
td { font-variant-numeric: tabular-nums }
.scroll { overflow-x: auto } .quiet { color: #777; margin: .3rem 0 }
.tag { font-size: .8em; font-weight: 600; color: #fff; border-radius: 4px; padding: .1rem .5rem; margin-right: .4rem }
.enhanced { background: #2e7d4f } .warned { background: #8a6d00 } .withheld { background: #b3481a }
.skipped { background: #6a6f78 } .failed { background: #b3261e }
.four { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1rem }
figure { margin: 0; min-width: 0 }
figcaption { font-size: .87em; color: #777 }
.pair + figcaption { display: flex; justify-content: space-between }
img { display: block; width: 100%; background: #000 }
.pair, .one { position: relative; overflow: hidden }
.pair img { position: absolute; inset: 0; height: 100% }
.over { clip-path: inset(0 calc(100% - var(--at, 50%)) 0 0) }
.line { position: absolute; top: 0; bottom: 0; left: var(--at, 50%); width: 2px; margin-left: -1px;
  background: #fff; box-shadow: 0 0 3px #000; pointer-events: none }
.pair input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0;
  cursor: ew-resize; touch-action: pan-y }
.pair:focus-within { outline: 3px solid #4a90d9; outline-offset: 2px }
.box { position: absolute; box-sizing: border-box; border: 2px solid #0ff; pointer-events: none }
.scale { display: inline-block; width: 8rem; height: .9em; align-self: center; position: relative }
.scale i { position: absolute; left: 50%; top: 0; bottom: 0; border-left: 2px solid #fff }
.lower { color: #3b78c9 } .higher { color: #c8494f }
footer { margin-top: 3rem }
""".strip()

_SCRIPT = """
for (const pair of document.querySelectorAll(".pair")) {
  const slider = pair.querySelector("input");
  const show = () => pair.style.setProperty("--at", slider.value + "%");
  slider.addEventListener("input", show);
  show();
}
""".strip()

_HEAD = (
    "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
    "<meta name=viewport content='width=device-width, initial-scale=1'>"
    "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; img-src data:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
    f"<title>Source and enhanced</title><style>{_STYLE}</style></head>\n<body><h1>Source and enhanced</h1>\n"
)
