"""What a verdict says in reports and in words: bounded, complete, and true of overruled and blended results."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import jsonschema
import numpy as np
import pytest

from medenhance_dicom.gate import Evidence, FrameScores, Limit, Poor, Region, Thresholds, verdict_of
from medenhance_dicom.provenance import VERDICT
from medenhance_dicom.verdicts import MOST_OBJECTIONS, Blending, confidence_of, excess_of, in_words, settled, values_of
from tests.test_report import SCHEMA

LIMITS = Thresholds(0.8, 0.9, {"local": Limit(1.0, 2.0), "displacement": Limit(0.5, 1.0)}, "tiny 0123456789ab")
GOOD = FrameScores(0.97, {"local": 0.5, "displacement": 0.25}, {"local": Region(2, 3, 6, 8)})
WARNED = FrameScores(0.95, {"local": 1.5, "displacement": 0.25}, {"local": Region(0, 0, 4, 4)})
FAILED = FrameScores(0.7, {"local": 3.0, "displacement": 0.6}, {"local": Region(10, 20, 30, 50)})


def told(frames, mode="withhold", blending=None, limits=LIMITS):
    gate_mode = "withhold" if mode == "blend" else mode
    verdict = settled(verdict_of(frames, limits, gate_mode), blending)
    values = values_of(verdict, frames, limits, mode=mode, blending=blending)
    schema = SCHEMA | SCHEMA["$defs"]["verdict"]
    jsonschema.validate(json.loads(json.dumps(values, allow_nan=False)) | {"max_change": 0, "mean_change": 0}, schema)
    return verdict, values, in_words(verdict, values)


def test_excess_is_the_largest_multiple_of_a_limit():
    assert excess_of(GOOD, LIMITS) == (pytest.approx(0.25), "local")  # LaSSIM: .03 / .2 = .15
    assert excess_of(FAILED, LIMITS) == (pytest.approx(1.5), "lassim")  # .3 / .2, as much as local: 3 / 2
    assert excess_of(FrameScores(0.9, {"displacement": 3.0}), LIMITS) == (3.0, "displacement")
    assert excess_of(FrameScores(0.9, {"unknown": 99.0}), LIMITS)[1] == "lassim"
    assert excess_of(FrameScores(math.nan), LIMITS)[0] == math.inf
    assert excess_of(FrameScores(None), LIMITS) == (0.0, "")


def test_objections_name_frame_check_region_and_limit_the_worst_first():
    _, values, _ = told([GOOD, WARNED, FAILED])
    found = [(o["frame"], o["check"], o["severity"], o["limit"]) for o in values["objections"]]
    assert found == [
        (2, "lassim", "withhold", 0.8), (2, "local", "withhold", 2.0), (1, "local", "warn", 1.0),
        (2, "displacement", "warn", 0.5),
    ]  # fmt: skip
    assert values["objections"][1]["region"] == {"top": 10, "left": 20, "bottom": 30, "right": 50}
    assert values["objections"][1]["where"] == "rows 11-30, columns 21-50"
    assert values["checks"]["local"]["frame"] == 2
    assert values["worst"]["frame"] == 2
    assert not values["passed"]


def test_a_long_instance_lists_a_bounded_number_and_counts_the_rest():
    _, values, _ = told([WARNED] * 500 + [FAILED])
    assert len(values["objections"]) == MOST_OBJECTIONS
    assert values["objections_total"] == 503
    assert values["objections"][0]["frame"] == 500
    assert len(json.dumps(values)) < 20_000


def test_nothing_objects_and_nothing_is_listed():
    verdict, values, words = told([GOOD])
    assert (verdict.outcome, values["objections"], values["blended"]) == ("enhanced", [], None)
    assert words == (
        "Structure check passed: LaSSIM 0.970 of at least 0.8; worst check local 0.5 of at most 2 at rows 3-6, "
        "columns 4-8. Limits: calibration tiny 0123456789ab."
    )


def test_non_finite_values_leave_the_report_valid():
    verdict, values, _ = told([GOOD, FrameScores(math.nan)])
    assert verdict.outcome == "withheld"
    assert values["worst"] == {"check": "lassim", "frame": 1, "excess": None}
    assert values["objections"][0]["value"] is None


def test_words_do_not_call_an_overruled_failure_preserved():
    for mode in ("warn", "off"):
        words = told([FAILED], mode)[2]
        assert words.startswith(f"Structure check failed and was overruled ({mode})")
        assert VERDICT.search(words)[1] == "failed"
    assert VERDICT.search(told([WARNED])[2])[0] == "Structure check passed with a warning"
    assert VERDICT.search(told([FrameScores(None)], "off")[2])[1] == "not possible"
    assert "not calibrated" in told([FrameScores(0.97)], limits=Thresholds(0.8, 0.9))[2]


def test_words_tell_that_limits_were_not_enough():
    _, _, words = told([FrameScores(0.9)], limits=Thresholds(0.5, 0.6, doubt="set by hand"))
    assert words.startswith("Structure check passed with a warning: LaSSIM 0.900")
    assert words.endswith("Limits: not calibrated.")


def test_a_verdict_is_the_surer_the_farther_from_its_limit():
    honest, altered = tuple(np.linspace(0.1, 1.1, 41)), tuple(np.linspace(0.9, 8, 41))
    limits = replace(LIMITS, evidence=Evidence(honest, altered))
    sure = [confidence_of(excess, excess <= 1, limits) for excess in (0, 0.5, 0.99, 1.01, 3, 99, math.inf)]
    assert sure[:3] == sorted(sure[:3], reverse=True)
    assert sure[3:] == sorted(sure[3:])
    assert min(sure[0], sure[-1]) > 0.99
    assert max(sure[2], sure[3]) < 0.95
    assert confidence_of(0.5, True, LIMITS) is None
    _, values, words = told([GOOD], limits=limits)
    assert values["confidence"] == confidence_of(0.25, True, limits)
    assert f"columns 4-8; confidence {values['confidence']:.2f}. Limits" in words
    assert told([FrameScores(None)], "off", limits=limits)[1]["confidence"] is None
    assert told([GOOD, FAILED], limits=limits)[1]["confidence"] == confidence_of(1.5, False, limits)


def test_each_frame_is_held_against_the_limits_of_its_source():
    limits = replace(LIMITS, poor=Poor(0.02, {"local": Limit(4.0, 8.0)}))
    loud = FrameScores(0.95, {"local": 3.0, "displacement": 0.25}, {}, 0.03)
    poor = replace(loud, detail=0.01)
    assert excess_of(loud, limits) == (pytest.approx(1.5), "local")
    assert excess_of(poor, limits) == (pytest.approx(0.375), "local")
    assert verdict_of([poor], limits).outcome == "enhanced"
    verdict, values, _ = told([poor, loud, poor], limits=limits)
    assert verdict.outcome == "withheld"
    assert (values["checks"]["local"]["frame"], values["checks"]["local"]["withhold"]) == (1, 2.0)
    assert values["poor_frames"] == 2
    assert [o["frame"] for o in values["objections"]] == [1]


def test_a_displacement_is_told_in_its_frame():
    shifted = FrameScores(0.99, {"displacement": 0.75}, {"displacement": Region(0, 0, 9, 9)})
    assert "worst check displacement 0.75 of at most 1 at rows 1-9, columns 1-9 in frame 2" in told([GOOD, shifted])[2]


def test_a_blended_instance_is_warned_and_says_how_much():
    verdict, values, words = told([GOOD, WARNED], "blend", Blending(0.0132, 1, 0.0264))
    assert (verdict.outcome, values["mode"], values["blended"]["frames"]) == ("warned", "blend", 1)
    assert verdict.reason.startswith("BLENDED: the source's pixels came back in 1.3 % of the picture in 1 frame; LOCAL")
    assert "Blended: the source's pixels came back in 1.3 % of the picture" in words
    assert "less than 0.1 %" in told([GOOD], "blend", Blending(0.0004, 1, 0.0004))[2]


def test_what_still_fails_after_blending_stays_withheld():
    assert told([FAILED], "blend", Blending(0.5, 1, 0.5))[0].outcome == "withheld"


def test_words_fit_beside_the_rest_of_a_description():
    limits = Thresholds(0.8, 0.9, {"x" * 40: Limit(1e-9, 2e-9)}, "y" * 60)
    scores = FrameScores(0.97, {"x" * 40: 1.23456e-8}, {"x" * 40: Region(40000, 40000, 65535, 65535)})
    assert len(told([scores] * 999, "warn", Blending(0.1, 1, 0.1), limits)[2]) < 500
