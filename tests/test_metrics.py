"""Segmentation scores against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest

from medenhance_dicom.metrics import segmentation_scores


def line(column, shape=(40, 40)):
    mask = np.zeros(shape, bool)
    mask[10:30, column] = True
    return mask


def test_a_table_of_ten_pixels_by_hand():
    truth = np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    found = np.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])  # TP 3, FN 2, FP 1, TN 4
    scores = segmentation_scores(found, truth)
    assert scores.accuracy == pytest.approx(0.7)
    assert scores.sensitivity == pytest.approx(0.6)
    assert scores.specificity == pytest.approx(0.8)
    assert scores.g_mean == pytest.approx(math.sqrt(0.48))
    assert scores.dice == pytest.approx(6 / 9)
    assert scores.kappa == pytest.approx(0.4)  # p_e = (4 * 5 + 6 * 5) / 100
    assert scores.auc == pytest.approx(0.7)  # (12 pairs won + 11 ties at half) / 25


def test_the_area_counts_pairs_and_halves_ties():
    truth = np.array([[0, 0, 1, 1]])
    assert segmentation_scores(np.array([[0.1, 0.4, 0.35, 0.8]]), truth).auc == pytest.approx(0.75)
    assert segmentation_scores(np.array([[0.2, 0.5, 0.5, 0.9]]), truth).auc == pytest.approx(3.5 / 4)
    assert segmentation_scores(np.array([[0.9, 0.8, 0.2, 0.1]]), truth).auc == 0


@pytest.mark.parametrize("shift", [0, 1, 2, 3])
def test_a_line_within_the_tolerance_is_perfect(shift):
    scores = segmentation_scores(line(20 + shift), line(20), tolerance=3)
    assert asdict(scores) == pytest.approx(dict.fromkeys(asdict(scores), 1.0))


def test_a_line_beyond_the_tolerance_is_worse_than_chance():
    for shift, tolerance in ((4, 3), (1, 0)):
        scores = segmentation_scores(line(20 + shift), line(20), tolerance=tolerance)
        assert scores.sensitivity == scores.dice == scores.g_mean == 0
        assert scores.kappa < 0
        assert scores.auc < 0.5


def test_the_tolerance_is_euclidean():
    truth, found = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    truth[5, 5] = found[8, 8] = True  # sqrt(18) = 4.24 away
    assert segmentation_scores(found, truth, tolerance=4).dice == 0
    assert segmentation_scores(found, truth, tolerance=4.3).dice == 1


def test_what_is_missed_and_what_is_invented_count_with_a_tolerance():
    truth, found = line(10) | line(30), line(12) | line(20)
    scores = segmentation_scores(found, truth, tolerance=3)  # TP 20, FP 20, FN 20
    assert scores.sensitivity == scores.dice == 0.5
    assert scores.specificity == pytest.approx(1540 / 1560)
    assert scores.accuracy == pytest.approx(1560 / 1600)


def test_the_area_takes_the_best_within_reach_and_leaves_the_ring_out():
    probability = np.full((1, 12), 0.1)
    probability[0, 3], probability[0, 10] = 0.9, 0.5
    truth = np.zeros((1, 12), bool)
    truth[0, 2] = True
    assert segmentation_scores(probability, truth).auc == pytest.approx((9 * 0.5) / 11)
    assert segmentation_scores(probability, truth, tolerance=1).auc == 1  # 0.9 is in the ring


def test_an_empty_prediction_has_scores():
    scores = segmentation_scores(np.zeros((40, 40)), line(20), tolerance=3)
    assert (scores.sensitivity, scores.specificity, scores.dice, scores.kappa) == (0, 1, 0, 0)
    assert scores.auc == 0.5


def test_an_empty_truth_has_scores_but_no_area():
    nothing = np.zeros((8, 8), bool)
    scores = segmentation_scores(nothing, nothing)
    assert (scores.accuracy, scores.sensitivity, scores.specificity, scores.dice, scores.kappa) == (1, 1, 1, 1, 1)
    assert math.isnan(scores.auc)
    assert segmentation_scores(line(3, (32, 8)), np.zeros((32, 8)), tolerance=3).dice == 0


def test_only_the_field_counts():
    rng = np.random.default_rng(0)
    probability, truth, inside = rng.random((30, 30)), rng.random((30, 30)) > 0.6, np.zeros((30, 30), bool)
    inside[5:20, 8:25] = True
    cut = segmentation_scores(probability[5:20, 8:25], truth[5:20, 8:25], tolerance=1)
    assert segmentation_scores(probability, truth, tolerance=1, inside=inside) == cut
    assert segmentation_scores(probability, truth, tolerance=1) != cut


def test_otsu_finds_the_threshold_of_a_shy_segmenter():
    probability = np.where(line(20), 0.3, 0.05) + np.random.default_rng(0).normal(0, 0.01, (40, 40))
    assert segmentation_scores(probability, line(20)).dice == 0
    assert segmentation_scores(probability, line(20), threshold="otsu").dice == 1


def test_what_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match=r"\(2, 3\), \(3, 2\)"):
        segmentation_scores(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="finite"):
        segmentation_scores(np.array([[np.nan, 0.0]]), np.array([[1, 0]]))
