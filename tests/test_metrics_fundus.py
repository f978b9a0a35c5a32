"""Measures of colour fundus photographs, against their definitions written out with other code."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_erosion, gaussian_filter
from skimage.color import rgb2lab
from skimage.morphology import closing, disk
from skimage.transform import resize

from medenhance_dicom.errors import ModelError
from medenhance_dicom.masks import field_of_view
from medenhance_dicom.metrics import (
    FundusField,
    Sample,
    build_metrics,
    fit_colours,
    load_colours,
    metric_ids,
    save_colours,
)
from medenhance_dicom.metrics.fundus import mean_changes, reduced_changes


def photograph(size=512, seed=0, height=None):
    """A round, unevenly lit, orange field with dark branching lines and noise; (H, W, 3), and its field of view."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: height or size, :size] / size - 0.5
    inside = x**2 + y**2 < 0.46**2
    light = 0.55 + 0.5 * rng.uniform(0.3, 1) * (x + 0.3 * y)
    for k in range(7):
        along = x * np.cos(k) + y * np.sin(k)
        light *= 1 - 0.3 * np.exp(-(((y * np.cos(k) - x * np.sin(k) - 0.1 * np.sin(7 * along)) / 0.006) ** 2))
    colour = np.stack([light, 0.5 * light * (1 + 0.3 * y), 0.25 * light * (1 - 0.4 * x)], axis=2)
    colour += rng.normal(0, 0.01, colour.shape)
    return np.where(inside[..., None], np.clip(colour, 0, 1), 0).astype(np.float32), inside


def worse(picture, inside):
    """Veiled, darker and tinted more on one side."""
    tint = np.linspace(0.7, 1, picture.shape[1])[None, :, None] * np.array([0.8, 0.9, 0.7])
    return np.where(inside[..., None], np.clip(0.1 + 0.8 * tint * picture, 0, 1), 0).astype(np.float32)


def defined(source, result, inside):
    """Every measure of `result` as its definition says, at any size."""
    width = source.shape[1]
    here = binary_erosion(inside, iterations=round(12 * width / 512))

    def low(plane, sigma):
        weight = gaussian_filter(here.astype(np.float64), sigma)
        return gaussian_filter(np.where(here, plane, 0).astype(np.float64), sigma) / np.maximum(weight, 1e-4)

    def colours(picture):
        return np.stack([low(plane, width / 24) for plane in np.moveaxis(rgb2lab(picture), 2, 0)], axis=2)

    def depth(picture):
        closed = closing(picture[..., 1], disk(width // 60))
        return (closed - picture[..., 1]) / np.maximum(closed, 1e-3)

    vessels = here & (depth(source) >= np.percentile(depth(source)[here], 95))
    ground = here & ~vessels & (depth(source) < 0.02)
    green = result[..., 1]
    fine = ((green - low(green, width / 512)) / np.maximum(low(green, width / 64), 1e-3))[ground]
    noise = 1.4826 * np.median(np.abs(fine - np.median(fine)))
    light = low(result[..., :2].mean(2), width / 12)[here]
    before, after = colours(source), colours(result)
    shift = rgb2lab(result)[here].mean(0) - rgb2lab(source)[here].mean(0)
    return {
        "unevenness": light.std() / light.mean(),
        "vessel-depth": depth(result)[vessels].mean(),
        "contrast-to-noise": depth(result)[vessels].mean() / max(noise, 1e-4),
        "chroma-spread": after[..., 1:][here].std(0).mean(),
        "chroma-added": (after - before)[..., 1:][here].std(0).mean(),
        "colour-shift": np.hypot(*shift[1:]),
    }, after[here].mean(0)


def scores(sample, **models):
    names = ["unevenness", "vessel-depth", "contrast-to-noise", "chroma-spread", "chroma-added", "colour-shift"]
    return {m.id: m.score(sample) for m in build_metrics([*names, *models.pop("more", ())], models)}


@pytest.mark.parametrize(("size", "height"), [(256, 256), (330, 247)])
def test_measures_are_as_they_are_defined(size, height):
    source, inside = photograph(size, height=height)
    result = worse(source, inside)
    wanted, colours = defined(source, result, inside)
    assert scores(Sample(source=source, result=result, inside=inside)) == pytest.approx(wanted, rel=2e-3)
    assert FundusField(source, inside).colours(result) == pytest.approx(colours, rel=1e-3)


def test_measures_of_real_photographs(data_folder):
    folder = data_folder / "fundus" / "srahim_dr"
    if not folder.is_dir():
        pytest.skip("no fundus/srahim_dr")
    with (folder / "labels.csv").open() as file:
        name = next(row["file"] for row in csv.DictReader(file) if row["tier"] == "low")
    with Image.open(folder / name) as opened:
        source = np.asarray(opened.convert("RGB").resize((256, 256)), np.float32) / 255
    inside = field_of_view(source, "ellipse")
    wanted, _ = defined(source, source**0.8, inside)
    assert scores(Sample(source=source, result=source**0.8, inside=inside)) == pytest.approx(wanted, rel=2e-3)


def test_figures_hardly_depend_on_the_size():
    large, inside = photograph(512)
    small = resize(large, (256, 256, 3), anti_aliasing=True).astype(np.float32)
    for name in ("unevenness", "chroma_spread"):
        figures = [
            getattr(FundusField(p, m), name)(p) for p, m in ((large, inside), (small, resize(inside, (256, 256))))
        ]
        assert figures[0] == pytest.approx(figures[1], rel=0.03)


def test_what_did_not_change_and_what_a_gain_does():
    source, inside = photograph(256)
    field = FundusField(source, inside)
    same = field.changes(source.copy())
    assert same.chroma_added == same.colour_shift == 0
    assert all(before == after for before, after in same[:4])
    brighter = field.changes(source * np.float32(0.8))
    assert brighter.contrast_to_noise[1] == pytest.approx(brighter.contrast_to_noise[0], rel=1e-3)
    assert brighter.vessel_depth[1] == pytest.approx(brighter.vessel_depth[0], rel=1e-3)
    assert brighter.colour_shift > 3
    tinted = source.copy()
    tinted[:, :128, 1] *= 0.7
    assert field.chroma_added(tinted) > 4 * field.chroma_added(source * np.float32(0.8))


def test_vessels_are_the_sources():
    source, inside = photograph(256)
    field = FundusField(source, inside)
    flat = np.where(inside[..., None], source.mean((0, 1)), 0).astype(np.float32)
    flat[100:110, 100:110] = 0  # a dark hole beside the vessels is none
    assert field.vessel_depth(flat) < 0.05 < field.vessel_depth(source)


def test_colour_distance_is_in_spreads_of_good_pictures(tmp_path):
    good = [photograph(128, seed) for seed in range(5)]
    statistics = fit_colours(good)
    colours = np.array([FundusField(p, m).colours(p) for p, m in good])
    assert statistics.mean == pytest.approx(colours.mean(0))
    assert statistics.spread == pytest.approx(colours.std(0))
    save_colours(tmp_path / "good.json", statistics)
    assert load_colours(tmp_path / "good.json") == statistics
    source, inside = good[0]
    sample = Sample(source=source, result=worse(source, inside), inside=inside)
    found = scores(sample, more=["colour-distance"], **{"good-colours": tmp_path / "good.json"})
    after = FundusField(source, inside).colours(sample.result)
    assert found[statistics.id] == pytest.approx(np.mean(np.abs(after - colours.mean(0)) / colours.std(0)))
    assert found[statistics.id] > 2
    near = np.mean([FundusField(p, m).colour_distance(p, statistics) for p, m in good])
    assert near == pytest.approx(0.8, abs=0.2)


@pytest.mark.parametrize("text", ["", "[]", '{"mean": [1, 2], "spread": [1, 1, 1], "pictures": 3}',
                                  '{"mean": [1, 2, 3], "spread": [1, 0, 1], "pictures": 3}'])  # fmt: skip
def test_wrong_colours_are_named(tmp_path, text):
    (tmp_path / "good.json").write_text(text)
    with pytest.raises(ModelError, match=r"good\.json: no colours of good photographs"):
        load_colours(tmp_path / "good.json")
    (metric,) = build_metrics(["colour-distance"], {"good-colours": tmp_path / "gone.json"})
    assert "gone.json: No such file" in metric.unavailable


def test_what_cannot_be_measured_says_so():
    source, inside = photograph(128)
    with pytest.raises(ValueError, match="empty within its margin"):
        FundusField(source, np.zeros_like(inside))
    with pytest.raises(ValueError, match=r"\(H, W, 3\) wanted"):
        FundusField(source[..., :1], inside)
    with pytest.raises(ValueError, match="a field of view of"):
        FundusField(source, inside[1:])
    with pytest.raises(ValueError, match="one shape"):
        FundusField(source, inside).unevenness(source[1:])
    with pytest.raises(ValueError, match="2 pictures that differ"):
        fit_colours([(source, inside), (worse(source, inside), inside)])
    (metric,) = build_metrics(["unevenness"])
    assert metric.needs == {"inside"}
    with pytest.raises(ValueError, match="lacks what the metric needs"):
        metric.score(replace(Sample(source=source, result=source), inside=None))


def test_changes_are_the_same_reduced_and_told_by_the_metrics_ids():
    source, inside = photograph(512)
    result = worse(source, inside)
    whole, half = FundusField(source, inside).changes(result), reduced_changes(source, result, inside, 256)
    assert half.unevenness == pytest.approx(whole.unevenness, rel=0.03)
    assert half.colour_shift == pytest.approx(whole.colour_shift, rel=0.03)
    assert reduced_changes(source, result, inside) == whole
    told = mean_changes([whole, half])
    assert set(told) <= set(metric_ids())
    assert told["vessel-depth"]["after"] == pytest.approx((whole.vessel_depth[1] + half.vessel_depth[1]) / 2, rel=1e-4)
    assert told["colour-shift"] == pytest.approx((whole.colour_shift + half.colour_shift) / 2, rel=1e-4)


def test_of_changes_what_does_not_exist_is_left_out():
    source, inside = photograph(128)
    field = FundusField(source, inside)
    black = field.changes(np.zeros_like(source))
    assert black.unevenness[1] == np.inf
    flat = np.where(inside[..., None], np.float32(0.5), 0) + np.zeros_like(source)
    assert FundusField(flat, inside).changes(source).contrast_to_noise is None
    assert set(mean_changes([black, black._replace(contrast_to_noise=None)])) == {
        "vessel-depth", "chroma-spread", "chroma-added", "colour-shift"
    }  # fmt: skip
    assert mean_changes([]) == {}
