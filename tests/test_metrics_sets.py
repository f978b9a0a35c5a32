"""FID, KID, grading, location and significance against closed forms, published integers and scipy."""

from __future__ import annotations

import hashlib
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from medenhance_dicom.errors import ModelError
from medenhance_dicom.guides import encode_guide
from medenhance_dicom.manifest import load_manifest
from medenhance_dicom.metrics import (
    bootstrap_interval,
    compare_paired,
    fid,
    field_radius,
    frechet_distance,
    grading_scores,
    holm,
    kid,
    location_distance,
    location_scores,
    scores_of_counts,
)  # fmt: skip
from medenhance_dicom.metrics.distribution import load_encoder
from tests.conftest import ROOT

# ---------------------------------------------------------------- FID, KID


def test_frechet_distance_of_gaussians():
    zero, one, unit = np.zeros(4), np.ones(4), np.eye(4)
    assert frechet_distance(zero, unit, one, 4 * unit) == pytest.approx(8)
    a, b = np.diag([1.0, 4.0]), np.diag([9.0, 16.0])
    assert frechet_distance(zero[:2], a, zero[:2], b) == pytest.approx((3 - 1) ** 2 + (4 - 2) ** 2)


def test_frechet_distance_of_covariances_that_do_not_commute():
    rng = np.random.default_rng(0)
    a, b = (m @ m.T for m in rng.normal(size=(2, 5, 5)))
    values = np.linalg.eigvals(a @ b)
    expected = np.trace(a) + np.trace(b) - 2 * np.sqrt(values.real).sum()
    assert frechet_distance(np.zeros(5), a, np.zeros(5), b) == pytest.approx(expected, rel=1e-9)


def test_fid_of_sets():
    x = np.random.default_rng(0).normal(size=(300, 6))
    assert fid(x, x) == pytest.approx(0, abs=1e-6)
    assert fid(x, x + 2) == pytest.approx(6 * 4, rel=1e-6)
    few = x[:3]  # fewer than dimensions: a singular covariance
    assert fid(few, few) == pytest.approx(0, abs=1e-6)


def test_kid_is_the_sum_written_out():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 3)), rng.normal(1, 1, size=(4, 3))

    def kernel(a, b):
        return (a @ b / 3 + 1) ** 3

    within = [np.mean([kernel(a, b) for a, b in itertools.permutations(s, 2)]) for s in (x, y)]
    across = np.mean([kernel(a, b) for a in x for b in y])
    assert kid(x, y) == pytest.approx(sum(within) - 2 * across)


def test_kid_of_one_distribution_is_about_nothing_and_of_two_is_not():
    rng = np.random.default_rng(0)
    scores = [kid(*rng.normal(size=(2, 500, 8))) for _ in range(5)]
    assert abs(np.mean(scores)) < 0.01
    assert min(scores) < 0 < max(scores)  # unbiased
    assert kid(rng.normal(size=(500, 8)), rng.normal(0.5, 1, size=(500, 8))) > 0.1


def test_kid_of_large_sets_takes_subsets_of_a_seed():
    x, y = np.random.default_rng(0).normal(size=(2, 300, 4))

    def of_subsets(seed):
        return kid(x, y, seed=seed, subsets=200, largest=100)

    assert of_subsets(3) == of_subsets(3) != of_subsets(4)
    assert of_subsets(3) == pytest.approx(kid(x, y), abs=0.02)


def test_sets_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(3, 4\)"):
        fid(np.zeros((3, 2)), np.zeros((3, 4)))
    with pytest.raises(ValueError, match="at least two"):
        kid(np.zeros((1, 2)), np.zeros((3, 2)))


def test_features_are_what_the_guide_encoder_gives():
    path = ROOT / "models" / "weights" / "hqgnet-fundus-1-guide-encoder.safetensors"
    id_, features = load_encoder(path)
    assert id_ == f"encoder:{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    picture = np.random.default_rng(0).random((192, 256, 3)).astype(np.float32)
    guide = encode_guide(
        [picture], "any", field="op", device_class="any", weights_key="hqgnet-fundus-1", manifest=load_manifest(),
        created="2024-01-01",
    )  # fmt: skip
    np.testing.assert_allclose(features(picture), guide.v_z, rtol=1e-4, atol=1e-5)
    assert features(picture[..., :1]).shape == (64,)


def test_a_file_that_is_no_encoder_is_named(tmp_path):
    with pytest.raises(ModelError, match="gone: No such file"):
        load_encoder(tmp_path / "gone")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ModelError, match="text: not a safetensors file"):
        load_encoder(tmp_path / "text")
    with pytest.raises(ModelError, match="not a guide encoder"):
        load_encoder(ROOT / "models" / "weights" / "stillgan-fundus-2.safetensors")


# ---------------------------------------------------------------- grading

TABLE_V = {  # StillGAN, four levels of 300 pictures: TP, FP, FN, then per cent
    "with": (
        (31, 67, 50, 108), (2, 10, 15, 17), (12, 18, 12, 2),
        (95.33, 90.67, 91.00, 93.67), (93.94, 87.01, 76.92, 86.40), (81.58, 82.72, 78.74, 91.91),
        (92.50, 85.70, 85.10),
    ),
    "without": (
        (33, 47, 40, 86), (21, 29, 29, 15), (10, 38, 22, 24),
        (89.67, 77.67, 83.00, 87.00), (61.11, 61.84, 57.97, 85.15), (68.04, 58.39, 61.07, 81.52),
        (83.91, 69.48, 68.81),
    ),
}  # fmt: skip


@pytest.mark.parametrize("column", TABLE_V)
def test_a_published_table_comes_out_of_its_integers(column):
    tp, fp, fn, accuracy, precision, f1, averages = TABLE_V[column]
    scores = scores_of_counts(tp, fp, fn, 300)
    assert scores.support.tolist() == [43, 85, 62, 110]
    for found, published in ((scores.accuracy, accuracy), (scores.precision, precision), (scores.f1, f1)):
        np.testing.assert_allclose(100 * found, published, atol=0.00501)
    weighted = [100 * scores.weighted(s) for s in (scores.accuracy, scores.precision, scores.f1)]
    np.testing.assert_allclose(weighted, averages, atol=0.00501)


@pytest.mark.parametrize(
    ("counts", "published"),
    [((82, 32, 18), (75.00, 71.93, 82, 76.64)), ((84, 21, 16), (81.50, 80.00, 84, 81.95))],
)
def test_a_published_table_of_two_classes(counts, published):
    scores = scores_of_counts(*([c] for c in counts), 200)
    found = [scores.accuracy, scores.precision, scores.sensitivity, scores.f1]
    np.testing.assert_allclose(100 * np.ravel(found), published, atol=0.00501)


def test_predictions_give_the_counts_of_their_table():
    tp, fp, fn, *_ = TABLE_V["with"]
    true = [k for k in range(4) for _ in range(tp[k] + fn[k])]
    misses = [k for k in range(4) for _ in range(fn[k])]
    wrong = [k for k in range(4) for _ in range(fp[k])]
    arranged = next(  # each miss of level k is found as another level
        p
        for p in (wrong[s:] + wrong[:s] for s in range(len(wrong)))
        if all(a != b for a, b in zip(misses, p, strict=True))
    )
    missed = iter(arranged)
    predicted = [k if i < tp[k] else next(missed) for k in range(4) for i in range(tp[k] + fn[k])]
    scores, expected = grading_scores(true, predicted), scores_of_counts(tp, fp, fn, 300)
    for name in ("accuracy", "precision", "sensitivity", "f1", "support"):
        np.testing.assert_array_equal(getattr(scores, name), getattr(expected, name))


def test_a_level_that_is_never_found_scores_nothing():
    scores = grading_scores([0, 0, 2], [0, 0, 0])
    assert scores.precision.tolist() == [2 / 3, 0]
    assert scores.f1.tolist() == [0.8, 0]
    assert scores.weighted(scores.f1) == pytest.approx(1.6 / 3)
    with pytest.raises(ValueError, match="one length"):
        grading_scores([1, 2], [1])


# ---------------------------------------------------------------- location


def test_distances_and_misses():
    true = [(0.0, 0.0), (10.0, 10.0), (5.0, 5.0), (1.0, 1.0)]
    found = [(3.0, 4.0), (10.0, 11.0), None, (1.0, 1.0)]
    scores = location_scores(true, found, [100, 100, 50, 100])
    assert scores.mean == 2
    assert scores.deviation == pytest.approx(np.std([5, 1, 0]))
    assert scores.rate == 0.75
    assert scores.mean_with_misses == (5 + 1 + 50 + 0) / 4
    assert location_distance((0, 0), (3, 4)) == 5
    nothing = location_scores(true[:1], [None], [7])
    assert (nothing.rate, nothing.mean_with_misses) == (0, 7)
    assert math.isnan(nothing.mean)
    with pytest.raises(ValueError, match="as many points"):
        location_scores(true, found, [1])


def test_the_radius_of_a_disc():
    y, x = np.mgrid[:100, :120]
    assert field_radius(np.hypot(y - 50, x - 60) <= 30) == 30.5
    assert field_radius(np.ones((100, 120), bool)) == 60


# ---------------------------------------------------------------- significance

BEFORE = [0.70, 0.72, 0.68, 0.75, 0.71, 0.69]
AFTER = [0.74, 0.73, 0.71, 0.78, 0.72, 0.74]


def test_a_paired_t_test():
    found = compare_paired(AFTER, BEFORE)
    assert found.t == pytest.approx(4.3320, abs=1e-4)
    assert found.p_t == pytest.approx(0.007485, abs=1e-6)
    assert (found.n, found.freedom) == (6, 5)
    assert found.p_wilcoxon == pytest.approx(2 / 2**6)
    assert found.effect == pytest.approx(found.t / math.sqrt(6))
    back = compare_paired(BEFORE, AFTER)
    assert (back.t, back.p_t, back.difference) == pytest.approx((-found.t, found.p_t, -found.difference))


def test_the_tests_are_scipys():
    a, b = np.random.default_rng(0).normal([[0.3], [0]], 1, size=(2, 40))
    found, t, w = compare_paired(a, b), stats.ttest_rel(a, b), stats.wilcoxon(a, b)
    assert (found.t, found.p_t) == pytest.approx((t.statistic, t.pvalue))
    assert (found.w, found.p_wilcoxon) == pytest.approx((w.statistic, w.pvalue))


def test_pairs_without_a_difference_or_without_a_number():
    same = compare_paired(AFTER, AFTER)
    assert (same.t, same.p_t, same.p_wilcoxon, same.effect) == (0, 1, 1, 0)
    gap = compare_paired([*AFTER, math.nan, 1.0], [*BEFORE, 1.0, math.inf])
    assert gap == compare_paired(AFTER, BEFORE)
    steady = compare_paired([1.5, 2.5, 3.5], [1.0, 2.0, 3.0])
    assert (steady.t, steady.p_t, steady.effect) == (math.inf, 0, math.inf)
    with pytest.raises(ValueError, match="1 finite pairs"):
        compare_paired([1.0, math.nan], [1.0, 2.0])
    with pytest.raises(ValueError, match="one length"):
        compare_paired([1.0, 2.0], [1.0])


def test_holms_correction():
    assert holm([0.01, 0.02, 0.03, 0.005]) == pytest.approx([0.03, 0.04, 0.04, 0.02])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def test_a_bootstrap_interval():
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert bootstrap_interval(values) == (low, high) != bootstrap_interval(values, seed=1)
    assert bootstrap_interval([3.0, 3.0]) == (3, 3)
    narrow = bootstrap_interval(values, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    median = bootstrap_interval(values, statistic=lambda drawn: np.median(drawn, axis=1))
    assert median[0] < np.median(values) < median[1]
    with pytest.raises(ValueError, match="finite"):
        bootstrap_interval([1.0, math.inf])
