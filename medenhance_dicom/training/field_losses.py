"""What the network of fields is asked for: the measures by which poor and good pictures differ, differentiable.

Planes are float32 (B, C, S, S) in [0, 1], masks (B, 1, S, S). A term is 0 where its aim is reached, see `FieldAims`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medenhance_dicom.metrics.fundus import WHITE, XYZ
from medenhance_dicom.networks.fields import CELLS, Fields, pyramid
from medenhance_dicom.training.recipe import FieldAims, FieldTerms

LOW_PASS = 32  # cells of low-pass colour
LIGHT = 16  # cells of low-pass light
VESSEL_LEVELS = slice(1, 3)  # octaves in which vessels lie, of a picture of some 384 pixels
CALIBRE = 384 / 5  # the closing's half side is S over this: a square of about the disc's area
SAME = 4.0  # how much more a good picture's own pixels count
EVEN_COLOUR = 2.5  # how much more low-pass colour counts in the even look, or the disc would go with the light


def mean_within(planes: Tensor, mask: Tensor) -> Tensor:
    """(B, C), the mean over a mask."""
    return (planes * mask).sum(dim=(2, 3)) / mask.sum(dim=(2, 3)).clamp_min(1)


def low_pass_lab(rgb: Tensor, inside: Tensor, cells: int = LOW_PASS) -> tuple[Tensor, Tensor]:
    """CIE L*, a*, b* (D65) of means of cells, (B, 3, cells, cells), and which lie inside, (B, 1, cells, cells)."""
    share = F.adaptive_avg_pool2d(inside, cells)
    mean = (F.adaptive_avg_pool2d(rgb * inside, cells) / share.clamp_min(1e-3)).clamp(1e-4, 1)
    linear = torch.where(mean <= 0.04045, mean / 12.92, ((mean.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)
    xyz = torch.einsum("ij,bjhw->bihw", rgb.new_tensor(XYZ), linear) / rgb.new_tensor(WHITE).view(1, 3, 1, 1)
    f = torch.where(xyz > 216 / 24389, xyz.clamp_min(1e-4) ** (1 / 3), (24389 / 27 * xyz + 16) / 116)
    lab = torch.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], dim=1)
    return lab, (share > 0.9).float()


def vessel_depth(picture: Tensor, vessels: Tensor) -> Tensor:
    """(B,), mean of (closing - green) / closing over the source's vessels, closing by a square."""
    green, radius = picture[:, 1:2], round(picture.shape[-1] / CALIBRE)

    def highest(plane: Tensor) -> Tensor:
        # One side after the other: a square of n costs 2 n, not n^2.
        plane = F.max_pool2d(plane, (1, 2 * radius + 1), 1, (0, radius))
        return F.max_pool2d(plane, (2 * radius + 1, 1), 1, (radius, 0))

    closed = -highest(-highest(green))
    return mean_within((closed - green) / closed.clamp_min(1e-3), vessels)[:, 0]


def field_terms(batch: dict[str, Tensor], out: Tensor, fields: Fields, aims: FieldAims) -> dict[str, Tensor]:
    """Every loss term of one batch, unweighted.

    Args:
        batch: Of `FieldPictures.batch`.
        out: (B, 3, S, S), the network's answer, not clipped.
        fields: What it predicted.
        aims: Per look.
    """
    y, target, inside, look = batch["y"], batch["target"], batch["inside"], batch["look"][:, 0]
    x = out.clamp(0, 1) + 0.01 * (out - out.clamp(0, 1))  # what is clipped still learns a little
    even, poor = look > 0, batch["poor"]
    asked = torch.maximum(poor, look)  # of whom the measures are asked, besides the truth
    known = 1 - poor
    own = torch.where((batch["same"] > 0) & ~even, SAME, 1.0) * known

    def by_look(name: str) -> Tensor:
        return torch.where(even, float(getattr(aims.even, name)), float(getattr(aims.natural, name)))

    def pixels(value: Tensor, weight: Tensor) -> Tensor:
        return (value.mean(dim=(1, 2, 3)) * weight).sum() / known.sum().clamp_min(1)

    terms = {"paired": pixels((x - target).abs() * inside, own)}
    lab, cells = low_pass_lab(x, inside)
    wanted, _ = low_pass_lab(target, inside)
    terms["colour"] = pixels((lab - wanted).abs() * cells, own * torch.where(even, EVEN_COLOUR, 1.0))
    levels, truth, source = (pyramid(p)[0] for p in (x, target, y))
    shares = [F.interpolate(inside, size=level.shape[-2:], mode="area") for level in levels[VESSEL_LEVELS]]
    octaves = list(zip(levels[VESSEL_LEVELS], truth[VESSEL_LEVELS], source[VESSEL_LEVELS], shares, strict=True))
    terms["detail"] = torch.stack([pixels((a - b).abs() * share, own) for a, b, _, share in octaves]).sum()

    with torch.no_grad():
        depth_before = vessel_depth(y, batch["vessels"])
    depth = vessel_depth(x, batch["vessels"])
    missing = by_look("vessel_depth") - depth
    off = missing.clamp_min(0) + 0.5 * (-missing - 0.04).clamp_min(0)
    terms["vessel_depth"] = (torch.maximum(poor, 0.7 * look) * off).mean()

    mean = mean_within(lab, cells)
    off = ((mean - batch["colour"]) / batch["deviation"]).abs()
    terms["colour_distance"] = (asked[:, None] * (off - by_look("colour_distance")[:, None]).clamp_min(0)).mean()

    alike = torch.stack([_correlation(a[:, 1:2] * share, c[:, 1:2] * share) for a, _, c, share in octaves])
    terms["structure"] = (by_look("structure") - alike.mean(dim=0)).clamp_min(0).mean()

    before, _ = low_pass_lab(y, inside)
    spread, spread_before = _spread(lab, cells)[:, 1:].mean(dim=1), _spread(before, cells)[:, 1:].mean(dim=1)
    terms["chroma_spread"] = (asked * (spread - by_look("chroma_spread") * spread_before).clamp_min(0)).mean()

    share = F.adaptive_avg_pool2d(inside, LIGHT)
    light = F.adaptive_avg_pool2d(x[:, :2].mean(dim=1, keepdim=True) * inside, LIGHT) / share.clamp_min(1e-3)
    where = (share > 0.9).float()
    unevenness = _spread(light, where)[:, 0] / mean_within(light, where)[:, 0].clamp_min(1e-2)
    terms["unevenness"] = (look * (unevenness - aims.even.unevenness).clamp_min(0)).mean()

    grain, grain_before = (
        mean_within(p[0][:, 1:2].abs(), batch["quiet"])[:, 0] / mean_within(of[:, 1:2], inside)[:, 0].clamp_min(1e-2)
        for p, of in ((levels, x), (source, y))
    )
    clearer = (depth / (grain + 1e-4)) / (depth_before / (grain_before + 1e-4) + 1e-4)
    terms["contrast_to_noise"] = (poor * (by_look("contrast_to_noise") - clearer).clamp_min(0)).mean()

    sure = F.adaptive_avg_pool2d(batch["sure"], CELLS).clamp(0.02, 0.98)
    terms["seen"] = pixels((F.adaptive_avg_pool2d(fields.seen, CELLS) - sure).square(), known)
    detail = F.adaptive_avg_pool2d(fields.log_detail, CELLS)
    terms["smooth"] = (detail - detail.mean(dim=(2, 3), keepdim=True)).abs().mean()
    return terms


def weighted(terms: dict[str, Tensor], weights: FieldTerms) -> Tensor:
    """Their sum by the recipe's weights."""
    return torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()


def _spread(planes: Tensor, mask: Tensor) -> Tensor:
    """(B, C), population deviation over a mask."""
    mean = mean_within(planes, mask)[:, :, None, None]
    return (mean_within((planes - mean).square(), mask) + 1e-8).sqrt()


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """(B,), of two planes whose mean is about zero."""
    product = (a * b).sum(dim=(1, 2, 3))
    return product / (a.square().sum(dim=(1, 2, 3)) * b.square().sum(dim=(1, 2, 3)) + 1e-10).sqrt()
