"""Pairs are found by reference and by name, judged on what is stored, and shown on a page that tells no names."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from skimage.color import rgb2lab

from medenhance_dicom.comparison.judging import judge_pairs
from medenhance_dicom.comparison.maps import ObjectionMap, local_lassim, shown_map
from medenhance_dicom.comparison.page import write_page
from medenhance_dicom.comparison.pairs import open_pairs
from medenhance_dicom.comparison.panels import LONGEST, colours, difference_picture, map_picture, panels, picture
from medenhance_dicom.errors import InputError, RecipeError
from medenhance_dicom.gate import Region, Thresholds
from medenhance_dicom.lassim import lassim_map
from tests import synthetic

PICTURE = (data.camera()[100:228, 100:260] / 255).astype(np.float32)[..., None]  # (128, 160, 1)


def save(folder, name, pixels):
    folder.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / name)


def judged(source, derived, **options):
    with open_pairs(source, derived, **options) as pairs:
        return list(judge_pairs(pairs))


@pytest.fixture
def pictures(tmp_path):
    grey = data.camera()[::4, ::4]
    for name in ("a.png", "b.png"):
        save(tmp_path / "before", name, grey)
    save(tmp_path / "after", "a.png", grey)
    save(tmp_path / "after", "b.tif", np.ascontiguousarray(grey[::-1]))
    save(tmp_path / "after", "c.png", grey)
    return tmp_path / "before", tmp_path / "after"


def test_pictures_pair_by_name_and_what_has_no_source_says_so(pictures):
    found = {j.pair.derived.rpartition("/")[2]: j for j in judged(*pictures)}
    assert {name: j.result for name, j in found.items()} == {
        "a.png": "enhanced", "b.tif": "withheld", "c.png": "skipped"
    }  # fmt: skip
    assert found["a.png"].lassim == pytest.approx(1)
    assert found["b.tif"].reason.startswith("LASSIM")
    assert found["c.png"].reason.startswith("NO_SOURCE")


def test_two_single_pictures_are_a_pair_whatever_their_names(pictures):
    before, after = pictures
    assert [j.result for j in judged(before / "a.png", after / "c.png")] == ["enhanced"]


def test_a_picture_of_another_size_is_no_pair(pictures):
    before, after = pictures
    save(after, "a.png", data.camera()[::8, ::8])
    assert judged(before / "a.png", after / "a.png")[0].result == "failed"


def test_a_path_and_a_recipe_that_are_not_there(pictures, tmp_path):
    with pytest.raises(InputError), open_pairs(tmp_path / "nothing", pictures[1]):
        pass
    with pytest.raises(RecipeError), open_pairs(*pictures, recipe="none-such"):
        pass


def others_result(source, change):
    """An enhanced instance of another maker: its own UIDs, and a reference to its source."""
    derived = synthetic.make_instance("OP8", rows=64, columns=64)
    derived.SOPInstanceUID, derived.SeriesInstanceUID = "2.25.77", "2.25.78"
    reference = synthetic.dataset(
        ReferencedSOPClassUID=source.SOPClassUID, ReferencedSOPInstanceUID=source.SOPInstanceUID
    )
    derived.SourceImageSequence = [reference]
    derived.PixelData = np.ascontiguousarray(change(source.pixel_array)).tobytes()
    return derived


@pytest.fixture
def study(tmp_path):
    """A source, an honest result and one that stands on its head, of a patient whose name must not leak."""
    source = synthetic.make_instance("OP8", rows=64, columns=64, PatientName="Secret^Person")
    source.PixelData = np.ascontiguousarray(data.astronaut()[:256:4, 160:416:4]).tobytes()
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    source.save_as(tmp_path / "in" / "Secret.dcm", enforce_file_format=True)
    for name, change in (("one", lambda x: np.minimum(x, 250)), ("two", lambda x: x[::-1])):
        derived = others_result(source, change)
        derived.PatientName = "Secret^Person"
        derived.SOPInstanceUID += {"one": "1", "two": "2"}[name]
        derived.save_as(tmp_path / "out" / f"Secret-{name}.dcm", enforce_file_format=True)
    return tmp_path / "in", tmp_path / "out"


def test_dicom_pairs_by_the_source_image_sequence(study):
    one, two = judged(*study)
    assert (one.result, two.result) == ("enhanced", "withheld")
    assert one.lassim > 0.99
    assert one.pair.says == "OP, 64 x 64, op-fundus-fields"
    assert "lassim" in {objection["check"] for objection in two.verdict["objections"]}
    value = two.to_json()
    assert [f["frame"] for f in value["per_frame"]] == [0]
    assert "Secret" not in str(value["verdict"])


def test_dicom_that_names_no_source_pairs_by_file_name(study):
    import pydicom

    source, out = study
    derived = pydicom.dcmread(out / "Secret-one.dcm")
    del derived.SourceImageSequence
    shutil.rmtree(out)
    out.mkdir()
    derived.save_as(out / "Secret.dcm")
    derived.save_as(out / "other.dcm")
    assert sorted((j.pair.derived.rpartition("/")[2], j.result) for j in judged(source, out)) == [
        ("Secret.dcm", "enhanced"), ("other.dcm", "skipped")
    ]  # fmt: skip


def test_other_rows_than_the_sources_are_told(study):
    source, out = study
    small = synthetic.make_instance("OP8", rows=32, columns=32)
    small.SOPInstanceUID = "2.25.99"
    small.SourceImageSequence = [
        synthetic.dataset(ReferencedSOPInstanceUID=synthetic.make_instance("OP8").SOPInstanceUID)
    ]
    shutil.rmtree(out)
    small.save_as(out.parent / "small.dcm", enforce_file_format=True)
    found = judged(source, out.parent / "small.dcm")
    assert found[0].result == "failed"
    assert "differ from the source's" in found[0].reason


# ------------------------------------------------------------------------------------------------------------ page


def test_a_page_needs_nothing_from_elsewhere_and_names_nobody(study, tmp_path):
    with open_pairs(*study) as pairs:
        found = write_page(pairs, tmp_path / "p" / "page.html")
    text = (tmp_path / "p" / "page.html").read_text()
    assert [j.result for j in found] == ["enhanced", "withheld"]
    assert "Secret" not in text
    assert not re.search(r"(src|href)\s*=\s*['\"]?(?!data:)[a-z]+:", text)
    assert "://" not in text
    assert text.count("type=range") == 2
    assert text.count("<img") == 2 * 4
    assert "1 passed, 1 withheld" in text
    assert [p.name for p in (tmp_path / "p").iterdir()] == ["page.html"]


def test_a_page_identifies_when_asked_and_escapes(study, tmp_path):
    source, out = study
    (out / "Secret-one.dcm").rename(out / "Secret<script>.dcm")
    with open_pairs(source, out) as pairs:
        write_page(pairs, tmp_path / "page.html", identify=True)
    text = (tmp_path / "page.html").read_text()
    assert "Secret^Person" in text
    assert "Secret&lt;script&gt;.dcm" in text
    assert "Secret<script>" not in text


def test_pictures_of_a_page_are_bounded_and_the_scores_are_not(study, tmp_path):
    with open_pairs(*study) as pairs:
        write_page(pairs, tmp_path / "page.html", most=1)
    text = (tmp_path / "page.html").read_text()
    assert (text.count("type=range"), text.count("<section>")) == (1, 2)
    assert "Pictures of the first 1." in text


# ---------------------------------------------------------------------------------------------------------- panels


def test_colours_grow_evenly_lighter():
    lightness = rgb2lab(colours()[None] / 255.0)[0, :, 0]
    assert np.diff(lightness).min() > 0
    assert np.abs(lightness - np.linspace(lightness[0], lightness[-1], 256)).max() < 2


def test_the_map_is_where_structure_changed_and_zero_elsewhere():
    after = PICTURE.copy()
    after[60:76, 40:56] = 1 - after[60:76, 40:56]
    found = shown_map(PICTURE, after, Thresholds(0.5, 0.6))
    assert not found.calibrated
    assert found.values.shape == PICTURE.shape[:2]
    assert found.values[60:76, 40:56].mean() > 5 * found.values[:, 100:].mean()
    assert not shown_map(PICTURE[:5], after[:5], Thresholds(0.5, 0.6)).values.any()


def test_lassim_of_a_window_is_shown_in_its_middle():
    after = PICTURE.copy()
    after[60:76, 40:56] = 1 - after[60:76, 40:56]
    x, y = (torch.from_numpy(u).permute(2, 0, 1)[None] for u in (PICTURE, after))
    windows = lassim_map(x, y)[0, 0].numpy()  # 7 x 7 pixels of level 3, so 8 pixels apart
    shown = local_lassim(PICTURE, after)
    # A window's middle lies between two pixels, 3 and 4; the map is linear from pixel 4 on to the next window's middle.
    middles = 1.5 * shown[4::8] - 0.5 * shown[5::8]
    middles = 1.5 * middles[:, 4::8] - 0.5 * middles[:, 5::8]
    np.testing.assert_allclose(middles[3:-3, 3:-3], windows, atol=1e-5)


def test_panels_stand_side_by_side_with_the_region_boxed():
    values = np.zeros((128, 160), np.float32)
    drawn = panels(PICTURE, PICTURE, ObjectionMap(values, True), Region(40, 50, 60, 90))
    assert drawn.shape[0] == 128
    assert drawn.shape[1] > 3 * 160
    for left in (0, 168, 336):
        assert tuple(drawn[39, left + 70]) == (0, 255, 255)
        assert tuple(drawn[50, left + 70]) != (0, 255, 255)
    assert np.array_equal(drawn[:30, :160], picture(PICTURE)[:30])


def test_scales_have_their_ends():
    ramp = np.linspace(0, 3, 160, dtype=np.float32)[None].repeat(8, axis=0)
    drawn = map_picture(ObjectionMap(ramp, True))
    assert tuple(drawn[0, 0]) == tuple(colours()[0])
    assert tuple(drawn[0, -1]) == tuple(colours()[255])
    same = difference_picture(PICTURE, PICTURE)
    assert np.ptp(same.astype(int), axis=2).max() < 8  # grey: unchanged
    brighter = difference_picture(PICTURE, PICTURE + 0.2)
    assert (brighter[..., 0].astype(int) > brighter[..., 2]).all()


def test_large_frames_are_shrunk():
    assert max(picture(np.zeros((3000, 1500, 3), np.float32)).shape) == LONGEST
