"""Every lossless transfer syntax gives back exactly what went in, whatever bits, sign, colour and frames."""

from __future__ import annotations

import numpy as np
import pytest

from medenhance_dicom.frames import stored_frame
from medenhance_dicom.part10 import read_instance
from medenhance_dicom.transfer_syntaxes import STORED, coding_of
from tests.lossless import COMBINATIONS, ENCODERS, make, pixels
from tests.streams import SYNTAX


def found(decoder, path, combination):
    header = read_instance(path)
    frames = range(combination.frames)
    stored = np.stack([stored_frame(header, decoder.frame(path, index), index).stored for index in frames])
    return stored[..., 0] if combination.samples == 1 else stored


def check(decoder, path, syntax, combination):
    make(path, syntax, combination)
    np.testing.assert_array_equal(found(decoder, path, combination), pixels(combination), err_msg=combination.name)


@pytest.mark.parametrize("syntax", ENCODERS)
def test_a_few_combinations_are_exact(decoder, tmp_path, syntax):
    gray, colour = COMBINATIONS[:26], COMBINATIONS[26:]
    rng = np.random.default_rng(len(syntax) + sum(map(ord, syntax)))
    for combination in (*(gray[n] for n in rng.choice(26, 3, False)), colour[rng.integers(8)]):
        check(decoder, tmp_path / "x.dcm", syntax, combination)


@pytest.mark.slow
@pytest.mark.parametrize("syntax", ENCODERS)
def test_all_combinations_are_exact(decoder, tmp_path, syntax):
    assert len(COMBINATIONS) >= 25
    for combination in COMBINATIONS:
        check(decoder, tmp_path / "x.dcm", syntax, combination)


def test_every_lossless_syntax_that_we_decode_is_among_them():
    lossless = {
        syntax.uid for syntax in STORED if syntax.kind in ("lossless", "uncompressed") and coding_of(syntax.uid)
    }
    assert lossless <= {SYNTAX + end for end in ENCODERS}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CT1", "MR1", "MR3", "NM1", "US1", "XA1", "VL1", "VL2"])
def test_htj2k_of_another_encoder_equals_the_uncompressed_pictures(decoder, data_folder, name):
    coded = data_folder / "dicom" / "htj2k_chafey" / f"{name}_JPH.dcm"
    plain = next((data_folder / "dicom").rglob(f"{name}_UNC*"))
    headers = read_instance(coded), read_instance(plain)
    for index in range(int(headers[0].get("NumberOfFrames") or 1)):
        one, two = (
            stored_frame(h, decoder.frame(p, index), index).stored for h, p in zip(headers, (coded, plain), strict=True)
        )
        np.testing.assert_array_equal(one, two)
