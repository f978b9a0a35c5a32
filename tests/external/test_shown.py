"""DCMTK shows of an identity-derived object what it shows of the source, and dciodvfy finds nothing new in it."""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from medenhance_dicom.part10 import read_instance
from tests import rendering, synthetic

pytestmark = pytest.mark.skipif(rendering.RENDERER is None, reason="no dcmj2pnm")

_SAMPLE, _SEED = 60, 20261201
_UID = re.compile(r".*/ReferencedSOPInstanceUID.*(Value invalid for this VR|Illegal root for UID).*")
_ENUMERATED = "</FrameIncrementPointer(0028,0009)> - Unrecognized enumerated "


def real_files(cases: Path, data: Path) -> list[Path]:
    """All that there are, but DICOMDIRs, which are no instances."""
    files = rendering.dicom_files([cases, data / "dicom"]) + rendering.pydicom_files()
    return [file for file in files if not file.name.startswith("DICOMDIR")]


@pytest.fixture(scope="session")
def some_files(cases_folder, data_folder) -> list[Path]:
    files = [file for file in real_files(cases_folder, data_folder) if "fuzz" not in str(file)]
    return sorted(random.Random(_SEED).sample(files, _SAMPLE))


@pytest.mark.slow
def test_some_files_look_as_before(some_files, tmp_path):
    found = list(rendering.compare(some_files, tmp_path / "scratch"))
    assert not [str(one) for one in found if one.found == "differs"]
    assert Counter(one.found for one in found)["alike"] >= _SAMPLE // 2


@pytest.mark.long
def test_every_file_looks_as_before(cases_folder, data_folder, tmp_path):
    """MEDENHANCE_RESULTS: a file for what was found, as JSON."""
    found = list(rendering.compare(real_files(cases_folder, data_folder), tmp_path / "scratch"))
    counts = Counter(one.found for one in found)
    refused = Counter(one.why for one in found if one.found == "refused")
    told = {one.file.name: one.why for one in found if one.found == "told"}
    if result := os.environ.get("MEDENHANCE_RESULTS"):
        said = {"counts": counts, "told": told, "refused": dict(refused.most_common())}
        Path(result).write_text(json.dumps(said, indent=1, sort_keys=True) + "\n")
    assert not [str(one) for one in found if one.found == "differs"]
    assert sum(one.found == "alike" and one.file.is_relative_to(cases_folder) for one in found) >= 100
    assert counts["alike"] >= 250


def new_errors(file: Path, derived: Path) -> Counter[str]:
    """Error lines of dciodvfy that a source does not have.

    A source's illegal UID is one where it is referred to, and a Frame Increment Pointer that is wrong stays so.
    """
    before, after = synthetic.dciodvfy_errors(file), synthetic.dciodvfy_errors(derived)
    pointer = any(_ENUMERATED in line for line in before)
    return Counter(
        {
            line: number
            for line, number in (after - before).items()
            if not _UID.fullmatch(line) and not (pointer and _ENUMERATED in line)
        }
    )


@pytest.mark.slow
def test_some_files_get_no_new_error(some_files, tmp_path):
    found = {}
    for file, outcome in rendering.derived(some_files, tmp_path / "scratch"):
        if outcome.derived:
            found[file] = new_errors(file, Path(outcome.derived))
    assert len(found) >= _SAMPLE // 2
    assert not {file: errors for file, errors in found.items() if errors}


@pytest.mark.long
def test_no_file_gets_a_new_error(cases_folder, data_folder, tmp_path):
    found = {}
    for file, outcome in rendering.derived(real_files(cases_folder, data_folder), tmp_path / "scratch"):
        if outcome.derived:
            found[file] = new_errors(file, Path(outcome.derived))
    assert len(found) >= 250
    assert not {file: errors for file, errors in found.items() if errors}


def values(instance, *keywords):
    return [instance.get(keyword) for keyword in keywords]


@pytest.mark.slow
def test_right_values_of_real_cases(cases_folder, tmp_path):
    names = [
        *("dx_mono1_inverse", "vl_icc_deid_sign", "scmf_no_pointer", "us_frametimevector_split_fragments"),
        *("us_sf_with_frames", "usmf_ftv", "emr_perframe_slopes", "sc_word_rescale", "mr_window_nan"),
        *("cr_overlay_high_bits", "cr_slope0", "mr_signed_padding_range"),
    ]
    made = {}
    files = [cases_folder / f"{name}.dcm" for name in names]
    for file, outcome in rendering.derived(files, tmp_path / "scratch"):
        made[file.stem] = read_instance(file), read_instance(Path(outcome.derived)), outcome

    for name, keywords in {
        "dx_mono1_inverse": ("PhotometricInterpretation", "PresentationLUTShape", "PixelIntensityRelationshipSign"),
        "us_frametimevector_split_fragments": ("FrameIncrementPointer", "FrameTimeVector", "NumberOfFrames"),
        "us_sf_with_frames": ("FrameIncrementPointer", "FrameTimeVector", "NumberOfFrames"),
        "usmf_ftv": ("FrameIncrementPointer", "FrameTimeVector"),
        "sc_word_rescale": ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"),
        "cr_slope0": ("RescaleSlope", "RescaleIntercept", "WindowCenter"),
        "vl_icc_deid_sign": ("ICCProfile", "PatientIdentityRemoved", "DeidentificationMethod"),
        "mr_signed_padding_range": ("PixelPaddingValue", "PixelPaddingRangeLimit"),
    }.items():
        source, derived, _ = made[name]
        assert values(derived, *keywords) == values(source, *keywords), name

    _, derived, _ = made["dx_mono1_inverse"]
    assert values(derived, "IconImageSequence", "SmallestImagePixelValue", "LargestImagePixelValue") == [None] * 3
    _, derived, _ = made["vl_icc_deid_sign"]
    assert (
        values(derived, "DigitalSignaturesSequence", "MACParametersSequence", "OriginalAttributesSequence")
        == [None] * 3
    )
    assert not [element for element in derived if element.tag.is_private]
    _, derived, _ = made["scmf_no_pointer"]
    assert values(derived, "FrameTime", "FrameIncrementPointer") == [None, 0x00182002]
    _, derived, outcome = made["mr_window_nan"]
    assert values(derived, "WindowCenter", "WindowWidth") == [None, None]
    assert [line.split(":")[0] for line in outcome.left_behind] == ["WindowCenter", "WindowWidth"]
    source, derived, _ = made["emr_perframe_slopes"]
    for before, after in zip(
        source.PerFrameFunctionalGroupsSequence, derived.PerFrameFunctionalGroupsSequence, strict=True
    ):
        for keyword in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            assert after.get(keyword) == before.get(keyword)
    _, derived, outcome = made["cr_overlay_high_bits"]
    assert derived[0x6000, 0x3000].value.count(0) < len(derived[0x6000, 0x3000].value)
    assert outcome.left_behind == []
