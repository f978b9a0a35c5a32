"""Tortuosity against closed forms, and from drawn fibres."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from medenhance_dicom.training.tortuosity import FEATURES, fibre_features, fibres, tortuosity_features

EVERYWHERE = np.ones((3, 3), bool)


def drawn(rows, columns, shape=(128, 128)):
    mask = np.zeros(shape, bool)
    mask[np.rint(rows).astype(int), np.rint(columns).astype(int)] = True
    return binary_dilation(mask, EVERYWHERE)


def sine(half_waves, height=10.0, length=112.0):
    t = np.linspace(0, 1, 1200)
    return np.stack([64 + height * np.sin(half_waves * np.pi * t), 8 + length * t], axis=1)


@pytest.mark.parametrize("radius", [10.0, 40.0])
def test_a_semicircle(radius):
    t = np.linspace(0, np.pi, 2001)
    features = fibre_features(radius * np.stack([np.sin(t), np.cos(t)], axis=1))
    assert features == pytest.approx([np.pi / 2 - 1, 1 / radius, 1 / radius**2, 0], rel=1e-3, abs=1e-9)


def test_a_straight_line_and_two_points():
    line = np.stack([np.linspace(3, 50, 30), np.linspace(7, 80, 30)], axis=1)
    assert fibre_features(line) == pytest.approx([0, 0, 0, 0], abs=1e-9)
    assert fibre_features(line[:2]) == pytest.approx([0, 0, 0, 0], abs=1e-9)


def test_a_right_angle_turns_by_a_quarter():
    corner = np.array([[0.0, 0.0], [0.0, 4.0], [4.0, 4.0]])  # the corner stands for 4 pixels of length
    angle = np.pi / 2
    assert fibre_features(corner) == pytest.approx([8 / 32**0.5 - 1, angle / 8, angle**2 / 4 / 8, 0])


@pytest.mark.parametrize("half_waves", [2, 3, 6])
def test_a_sine_changes_its_bend_once_per_half_wave_but_the_first(half_waves):
    line = sine(half_waves)[::4]
    length = np.hypot(*np.diff(line, axis=0).T).sum()
    assert fibre_features(line)[3] * length == pytest.approx(half_waves - 1)


def test_a_closed_loop_stays_finite():
    t = np.linspace(0, 2 * np.pi, 400)
    features = fibre_features(20 * np.stack([np.sin(t), np.cos(t)], axis=1))
    assert features[0] == pytest.approx(40 * np.pi - 1, rel=1e-3)  # the chord counts as a pixel
    assert features[1] == pytest.approx(1 / 20, rel=5e-3)


@pytest.mark.parametrize("half_waves", [3, 4])
def test_what_is_drawn_is_found_again(half_waves):
    line = sine(half_waves)
    (found,) = fibres(drawn(*line.T))
    arc, kappa, kappa_2, inflections = fibre_features(found)
    expected = fibre_features(line[::4])
    assert (arc, kappa, kappa_2) == pytest.approx(expected[:3], rel=0.2)  # smoothing cuts bends
    assert inflections * np.hypot(*np.diff(found, axis=0).T).sum() == pytest.approx(half_waves - 1)
    distance = np.hypot(*(found[:, None] - line).T).min(axis=0)
    assert distance.max() < 1.5


@pytest.mark.parametrize("degrees", range(0, 180, 20))
def test_the_staircase_of_a_straight_line_is_taken_out(degrees):
    along = np.linspace(-55, 55, 400)[:, None] * [np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))]
    (found,) = fibres(drawn(*(along + 64).T))
    arc, kappa, _, inflections = fibre_features(found)
    assert arc < 3e-3
    assert kappa < 0.01
    assert inflections == 0


def test_fibres_are_cut_where_they_cross_and_the_short_ones_are_none():
    mask = np.zeros((128, 128), bool)
    mask[60:63, 10:110] = mask[10:110, 60:63] = True
    mask[100:102, 20:26] = True
    arms = fibres(mask)
    assert len(arms) == 4
    assert all(fibre_features(arm)[0] < 0.01 for arm in arms)
    assert fibres(np.zeros((30, 30), bool)) == []


def test_the_features_of_a_picture_are_mean_and_maximum_at_any_scale():
    straight = drawn(*np.stack([np.full(1200, 20.0), np.linspace(8, 120, 1200)]))
    both = straight | drawn(*sine(4).T)
    features = tortuosity_features(both)
    assert features.shape == (FEATURES,)
    one, other = tortuosity_features(straight), tortuosity_features(drawn(*sine(4).T))
    assert features[:4] == pytest.approx((one[:4] + other[:4]) / 2, abs=1e-5)
    assert features[4:] == pytest.approx(np.maximum(one, other)[4:], abs=1e-5)
    twice = tortuosity_features(drawn(*(2 * sine(4)).T, shape=(256, 256)))
    assert twice == pytest.approx(other, rel=0.2)
    assert not tortuosity_features(np.zeros((40, 40), bool)).any()


def test_a_turned_picture_has_the_same_features():
    mask = drawn(*sine(5).T)
    first = tortuosity_features(mask)
    for turned in (mask[::-1], mask[:, ::-1], mask.T):
        assert tortuosity_features(turned) == pytest.approx(first, rel=0.1, abs=0.02)
