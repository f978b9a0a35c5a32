"""What honest enhancement can make of a frame: the part of one picture that the other explains, locally.

Enhancement changes tone, light, contrast and sharpness, each smoothly over the frame. So near any place the one picture
is a linear function of a few features of the other: its value and square, its blurred copies, its colours. The
coefficients are fitted in overlapping windows far larger than a lesion, robustly, so that a lesion that only one of the
two pictures shows is not explained.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from medenhance_dicom.gate.working import enlarged, halved, quantile, smooth

__all__ = ["unexplained"]

BLOCK = 16
CELLS = 4
WINDOW = 1.5  # sigma in blocks
ROUNDS = 3
RIDGE = 1e-4  # towards the function of the whole frame
LEVEL = 0.003  # residuals of a grey level count in full


def unexplained(source: Tensor, target: Tensor, inside: Tensor) -> Tensor:
    """What of `target` no smooth local function of `source` gives.

    Args:
        source: (P, h, w), the planes of `working.Pair`.
        target: (P, h, w).
        inside: (h, w); outside nothing is fitted, and the answer is 0.

    Returns:
        (P, h, w), target less prediction; the prediction of luminance stays in [0, 1].
    """
    size = (source.shape[1], source.shape[2])
    features = _features(source)
    cells, wanted = _blocks(features), _blocks(target)  # (m, n, K, pixels), (m, n, P, pixels)
    counted = weight = _blocks(inside[None])
    coefficients = _fit(cells, wanted, weight)
    for _ in range(ROUNDS - 1):
        weight = counted * _trust(wanted - coefficients @ cells, counted)
        coefficients = _fit(cells, wanted, weight)
    m, n = coefficients.shape[:2]
    rows, columns = _between_centres(size[0], m), _between_centres(size[1], n)
    predicted = torch.zeros_like(target)
    for factor, feature in zip(coefficients.permute(3, 2, 0, 1), features, strict=True):
        predicted.addcmul_(rows @ factor @ columns.T, feature)
    predicted[0].clamp_(0, 1)
    return (target - predicted) * inside


def _features(source: Tensor) -> Tensor:
    """(K, h, w): one, the luminance, its square and its copies blurred at 1, 3 and 11 pixels, the colours."""
    light = source[0]
    size = (source.shape[1], source.shape[2])
    fine = smooth(light)
    half = smooth(halved(fine))
    coarse = smooth(halved(smooth(halved(half))))
    blurred = [fine, enlarged(half, size), enlarged(smooth(coarse), size)]
    return torch.stack([torch.ones_like(light), light, light * light, *blurred, *source[1:]])


def _blocks(planes: Tensor) -> Tensor:
    """(K, h, w) -> (m, n, K, pixels), every second column of the blocks, which is enough; beyond the frame is 0."""
    count, height, width = planes.shape
    padded = functional.pad(planes, (0, -width % BLOCK, 0, -height % BLOCK))[..., ::2]
    m, n = padded.shape[1] // BLOCK, padded.shape[2] // (BLOCK // 2)
    return padded.reshape(count, m, BLOCK, n, BLOCK // 2).permute(1, 3, 0, 2, 4).reshape(m, n, count, -1)


def _fit(cells: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """Ridge regression in each window; (m, n, P, K)."""
    weighted = cells * weight
    square = (weighted @ cells.mT).double()  # (m, n, K, K)
    product = (weighted @ wanted.mT).double()  # (m, n, K, P)
    whole, whole_product = square.sum((0, 1)), product.sum((0, 1))
    count = whole[0, 0].clamp_min(1)
    spread = torch.diag(torch.diagonal(whole) / count)
    tiny = 1e-9 * torch.eye(len(whole), dtype=whole.dtype)
    common = torch.linalg.solve(whole + 1e-5 * count * spread + tiny, whole_product)
    ridge = RIDGE * cells.shape[3] * spread + tiny
    square, product = (_windows(x) for x in (square, product))
    local: Tensor = torch.linalg.solve(square + ridge, product + ridge @ common)
    return local.mT.float()


def _between_centres(size: int, blocks: int) -> Tensor:
    """(size, blocks), the weights of linear interpolation between the blocks' centres."""
    place = ((torch.arange(size) + 0.5) / BLOCK - 0.5).clamp(0, blocks - 1)
    return (1 - (place[:, None] - torch.arange(blocks)).abs()).clamp_min(0)


def _windows(x: Tensor) -> Tensor:
    """Sums of (m, n, ...) over Gaussian windows."""
    reach = round(3 * WINDOW)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=x.dtype) / WINDOW) ** 2)
    for axis in (0, 1):
        offset = torch.arange(x.shape[axis])[:, None] - torch.arange(x.shape[axis]) + reach
        weights = torch.where((offset >= 0) & (offset <= 2 * reach), taps[offset.clamp(0, 2 * reach)], 0.0)
        x = torch.tensordot(weights, x, ([1], [axis])).movedim(0, axis)
    return x


def _trust(off: Tensor, counted: Tensor) -> Tensor:
    """(m, n, 1, pixels), falling from 1 to 0 where residuals are larger than usual, as means of 4 x 4 pixels."""
    m, n, planes, _ = off.shape
    shape = CELLS, BLOCK // CELLS, CELLS, BLOCK // CELLS // 2
    cells = off.view(m, n, planes, *shape)
    size = cells.mean((4, 6)).square().sum(2, keepdim=True).sqrt()  # (m, n, 1, CELLS, CELLS)
    seen = counted.view(m, n, 1, *shape).amin((4, 6)) > 0
    usual = quantile(size[seen], 0.5) * 1.5 + LEVEL if seen.any() else size.new_tensor(LEVEL)
    trust = 1 / (1 + (size / (2 * usual)) ** 2)
    return trust[:, :, :, :, None, :, None].expand(cells[:, :, :1].shape).reshape(m, n, 1, -1)
