"""The gate's verdicts: which frame decides, what each mode makes of it, and frames that have no score."""

import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage import data

from medenhance_dicom.gate import FrameScores, Limit, Thresholds, examine, judge, verdict_of

LIMITS = Thresholds(minimum=0.85, warn_below=0.9)
PICTURE = (data.camera()[100:236, 100:340] / 255).astype(np.float32)[None, :, :, None]  # (1, 136, 240, 1)


def noisy(frames, amplitude):
    noise = gaussian_filter(np.random.default_rng(0).standard_normal(frames.shape), (0, 6, 6, 0))
    return (frames + amplitude * noise / noise.std()).astype(np.float32)


def test_an_unchanged_frame_passes_with_one():
    verdict = judge(PICTURE, PICTURE, LIMITS)
    assert (verdict.lassim, verdict.passed, verdict.outcome, verdict.reason) == (1.0, True, "enhanced", None)


def test_changed_structure_is_withheld_warned_or_let_through_as_the_mode_says():
    after = noisy(PICTURE, 0.2)
    outcomes = {mode: judge(PICTURE, after, LIMITS, mode) for mode in ("withhold", "warn", "off")}
    assert [v.outcome for v in outcomes.values()] == ["withheld", "warned", "enhanced"]
    assert all(v.lassim < 0.85 and not v.passed and v.reason.startswith("LASSIM: ") for v in outcomes.values())


def test_the_limits_themselves_pass():
    assert verdict_of([FrameScores(0.85)], LIMITS).outcome == "warned"
    assert verdict_of([FrameScores(0.85)], LIMITS).passed
    assert verdict_of([FrameScores(np.nextafter(0.85, 0))], LIMITS).outcome == "withheld"
    assert verdict_of([FrameScores(0.9)], LIMITS).outcome == "enhanced"
    assert verdict_of([FrameScores(0.89)], LIMITS, "off").reason is None


def test_the_worst_frame_decides():
    before = np.repeat(PICTURE, 3, axis=0)
    after = before.copy()
    after[1:2] = noisy(PICTURE, 0.2)
    verdict = judge(before, after, LIMITS)
    assert verdict.details["worst_frame"] == 1
    assert verdict.reason.endswith("in frame 2")
    assert verdict.lassim == examine(PICTURE[0], after[1]).lassim < verdict.details["mean"] < 1


def test_scores_of_batches_can_be_joined():
    before = np.repeat(PICTURE, 3, axis=0)
    after = np.concatenate([PICTURE, noisy(PICTURE, 0.01), noisy(PICTURE, 0.03)])
    joined = [examine(x, y) for x, y in zip(before, after, strict=True)]
    assert verdict_of(joined, LIMITS) == judge(before, after, LIMITS)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mode", ["withhold", "warn", "off"])
def test_non_finite_values_are_withheld_in_every_mode(bad, mode):
    after = np.repeat(PICTURE, 2, axis=0)
    after[1, 7, 9, 0] = bad
    verdict = judge(np.repeat(PICTURE, 2, axis=0), after, LIMITS, mode)
    assert (verdict.lassim, verdict.passed, verdict.outcome) == (None, False, "withheld")
    assert verdict.reason.startswith("NON_FINITE: ")
    assert verdict.details["worst_frame"] == 1


def test_constant_frames_pass_and_a_structure_out_of_nothing_does_not():
    flat = np.full((1, 64, 64, 1), 0.25, dtype=np.float32)
    assert judge(flat, flat + np.float32(0.1), LIMITS).lassim == 1
    assert judge(flat, noisy(flat, 0.1), LIMITS).outcome == "withheld"


def test_frames_without_a_window_cannot_be_vouched_for():
    tiny = np.zeros((1, 6, 300, 1), dtype=np.float32)
    verdict = judge(tiny, tiny, LIMITS)
    assert (verdict.lassim, verdict.outcome) == (None, "withheld")
    assert verdict.reason.startswith("TOO_SMALL: ")
    assert judge(tiny, tiny, LIMITS, "off").outcome == "enhanced"


def test_colour_frames_are_compared_in_grey():
    colour = (data.astronaut()[100:228, 164:292] / 255).astype(np.float32)[None]
    assert judge(colour, colour, LIMITS).lassim == 1
    assert judge(colour, noisy(colour, 0.2), LIMITS).lassim < 0.9


@pytest.mark.parametrize("mode", ["withhold", "warn", "off"])
def test_limits_in_doubt_let_nothing_be_better_than_warned(mode):
    limits = Thresholds(0.85, 0.9, doubt="set by hand")
    verdict = judge(PICTURE, PICTURE, limits, mode)
    assert (verdict.outcome, verdict.passed, verdict.reason) == ("warned", True, "NOT_CALIBRATED: set by hand")
    failed = judge(PICTURE, noisy(PICTURE, 0.2), limits, mode)
    assert failed.outcome == ("withheld" if mode == "withhold" else "warned")
    assert failed.reason.startswith("LASSIM")


def test_a_frame_too_small_for_a_wanted_check_is_at_most_warned():
    limits = Thresholds(0.85, 0.9, {"local": Limit(1.0, 2.0)}, "calibrated", wanted=("local",))
    seen, unseen = FrameScores(0.99, {"local": 0.1}), FrameScores(0.99)
    assert verdict_of([seen], limits).outcome == "enhanced"
    verdict = verdict_of([seen, unseen], limits)
    assert (verdict.outcome, verdict.passed) == ("warned", True)
    assert verdict.reason == "NOT_CHECKED: a frame is too small for local"
    assert verdict_of([FrameScores(0.5)], limits).outcome == "withheld"


def test_details_are_json():
    verdict = judge(PICTURE, noisy(PICTURE, 0.02), LIMITS, "warn", level=2)
    details = json.loads(json.dumps(verdict.details))
    assert details["level"] == 2
    assert details["mode"] == "warn"
    assert details["minimum"] == 0.85
    assert isinstance(verdict.lassim, float)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="one shape"):
        judge(PICTURE, PICTURE[:, :-1], LIMITS)
    with pytest.raises(ValueError, match="no frame"):
        judge(PICTURE[:0], PICTURE[:0], LIMITS)
    with pytest.raises(ValueError, match="minimum"):
        Thresholds(minimum=0.9, warn_below=0.8)
