"""Distributions as inline SVG: no script, no library, nothing from elsewhere."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

WIDTH, ROW, LABEL, MARGIN = 640, 26, 190, 14


def box_plot(values: Mapping[str, Sequence[float]], caption: str) -> str:
    """Box plots of several samples under one another, on one axis.

    The box spans the quartiles, its line is the median, the dot the mean, the whiskers reach the furthest value within
    1.5 times the box (Tukey), what lies beyond is drawn alone.

    Args:
        values: Name -> finite numbers; a name without any is left empty.
        caption: Read out, and the axis' name.

    Returns:
        An `<svg>` element; every name is escaped.
    """
    every = np.concatenate([np.asarray(v, float) for v in values.values()]) if values else np.empty(0)
    low, high = (float(every.min()), float(every.max())) if every.size else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    height = MARGIN + ROW * len(values) + 30

    def at(value: float) -> str:
        return f"{LABEL + (value - low) / (high - low) * (WIDTH - LABEL - MARGIN):.1f}"

    parts = [
        f"<svg viewBox='0 0 {WIDTH} {height}' role=img class=chart xmlns='http://www.w3.org/2000/svg'>",
        f"<title>{html.escape(caption)}</title>",
    ]
    bottom = MARGIN + ROW * len(values)
    for tick in ticks(low, high):
        parts.append(f"<line class=grid x1={at(tick)} x2={at(tick)} y1={MARGIN - 6} y2={bottom} />")
        parts.append(f"<text x={at(tick)} y={bottom + 14} text-anchor=middle>{tick:g}</text>")
    for number, (name, sample) in enumerate(values.items()):
        y = MARGIN + ROW * number + ROW / 2
        parts.append(f"<text x={LABEL - 8} y={y + 4} text-anchor=end>{html.escape(_short(name))}</text>")
        parts += _box(np.asarray(sample, float), y, at)
    parts.append(
        f"<text x={(LABEL + WIDTH) / 2} y={bottom + 28} text-anchor=middle>{html.escape(caption)}</text></svg>"
    )
    return "".join(parts)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within [low, high], 1, 2 or 5 times a power of ten apart.

    >>> ticks(0.03, 1.0)
    [0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def _box(sample: np.ndarray, y: float, at: object) -> list[str]:
    assert callable(at)
    if not sample.size:
        return []
    q1, median, q3 = np.percentile(sample, (25, 50, 75))
    reach = 1.5 * (q3 - q1)
    within = sample[(sample >= q1 - reach) & (sample <= q3 + reach)]
    low, high = (within.min(), within.max()) if within.size else (q1, q3)
    beyond = sample[(sample < low) | (sample > high)]
    parts = [
        f"<line x1={at(low)} x2={at(high)} y1={y} y2={y} />",
        f"<rect x={at(q1)} y={y - 7} width={max(float(at(q3)) - float(at(q1)), 1):.1f} height=14 />",
        f"<line class=median x1={at(median)} x2={at(median)} y1={y - 7} y2={y + 7} />",
        f"<circle class=mean cx={at(float(sample.mean()))} cy={y} r=3 />",
    ]
    return parts + [f"<circle class=beyond cx={at(float(v))} cy={y} r=2 />" for v in beyond]


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"
