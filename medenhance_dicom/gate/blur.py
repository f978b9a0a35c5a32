"""Lost sharpness: how much less of the fine band than of the coarse one the result keeps along strong edges."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from medenhance_dicom.gate.working import Pair, band, core_of, halved, quantile, smooth

__all__ = ["lost_sharpness"]

STRONG = 0.9  # quantile of the coarse band's size from which on it counts as an edge
FLOOR = 1e-7


def lost_sharpness(pair: Pair) -> float:
    """Gain of the coarse band (radius 4) over gain of the fine one (radius 2) along edges; 1 where both kept theirs.

    Gains are slopes of a regression through 0 over the strongest tenth of the source's edges, so that denoising of flat
    parts does not count. 1 where there is no field.
    """
    x, y, here = pair.before[:1], pair.after[:1], pair.inside
    core = core_of(here).float()
    coarse = band(halved(smooth(x))), band(halved(smooth(y)))
    seen = halved(core[None])[0] > 0.99
    if int(seen.sum()) < 49:
        return 1.0
    values = coarse[0][0].abs()[seen]
    limit = quantile(values, STRONG)
    edges = (coarse[0].abs() > limit) & seen[None]
    wide = functional.interpolate(edges.float()[None], size=x.shape[1:], mode="nearest")[0] > 0
    fine = _slope(band(x), band(y), wide)
    return _slope(*coarse, edges) / max(fine, 1e-2)


def _slope(x: Tensor, y: Tensor, where: Tensor) -> float:
    x, y = x[where], y[where]
    return float((x * y).sum() / (x.square().sum() + FLOOR))
