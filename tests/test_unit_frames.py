"""Who shares an intensity map, and that what is judged is what is stored."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from skimage import data

from medenhance_dicom.comparison.judging import judge_pairs
from medenhance_dicom.comparison.pairs import open_pairs
from medenhance_dicom.decoding import Decoder
from medenhance_dicom.enhancer import EnhancerSpec
from medenhance_dicom.identity import range_in_words, range_of_words, recorded_digests
from medenhance_dicom.manifest import load_manifest
from medenhance_dicom.recipe import IntensityRecipe
from medenhance_dicom.selection import Settings, choose_recipes, read_members, recipes_of
from medenhance_dicom.unit_frames import SeriesIntensity, unit_frames
from medenhance_dicom.verify import check_file
from tests import synthetic
from tests.flow import ALLOW, CAMERA, enhance, run_by, write


@pytest.fixture(scope="module")
def maps_of():
    with Decoder() as decoder:
        yield lambda paths, **how: _maps_of(decoder, paths, **how)


def _maps_of(decoder, paths, **how):
    """File name -> (lo, hi) of each of its frames, by the recipe that fits, with `how` in its [intensity]."""
    settings, found = Settings(allow=ALLOW), {}
    recipes = [
        r.model_copy(update={"intensity": IntensityRecipe(**(r.intensity.model_dump() | how))})
        for r in recipes_of(settings)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        members = read_members(paths, Path(scratch), decoder, settings, recipes)
        for series, recipe in choose_recipes(members, recipes, settings, load_manifest()):
            maps = SeriesIntensity(series, recipe, decoder, settings.limits)
            for member in series.members:
                frames = unit_frames(member, maps, lambda unit, _: np.ones(unit.shape[:2], bool))
                found[member.located.path.name] = [(f.map.lo, f.map.hi) for f in frames]
    return found


# ------------------------------------------------------------------------------------------ who shares an intensity map


@pytest.mark.parametrize("name", ["CR", "DX", "MG", "IO", "WordSC"])
def test_a_picture_has_its_own_map_whatever_lies_beside_it(tmp_path, maps_of, name):
    bright = write(tmp_path, 1, name, 2500 + 1000 * CAMERA)
    dark = write(tmp_path, 2, name, 100 + 200 * CAMERA)
    together = maps_of([bright, dark], method="percentile")
    assert together["2.dcm"] == maps_of([dark], method="percentile")["2.dcm"]
    assert together["1.dcm"][0][0] > 2000 > together["2.dcm"][0][1]


def slices(folder, name="MR", count=3, **attributes):
    """Slices of which each is brighter than the one before; by default of one scale."""
    result = []
    for n in range(count):
        more = {keyword: value[n] for keyword, value in attributes.items()}
        position = {"ImagePositionPatient": ["0", "0", str(2 * n)]} | more
        result.append(write(folder, n + 1, name, 100 * (n + 1) + 500 * (n + 1) * CAMERA, **position))
    return result


def test_slices_of_a_volume_share_a_map_by_percentile(tmp_path, maps_of):
    found = maps_of(slices(tmp_path))
    assert len({tuple(maps) for maps in found.values()}) == 1
    assert found["1.dcm"][0][0] < 150
    assert found["1.dcm"][0][1] > 1500


@pytest.mark.parametrize("at", [0, 3, 6])
def test_a_slice_that_stands_out_has_no_part_in_the_map_of_the_others(tmp_path, maps_of, at):
    """Before, one bright slice of seven pressed the others into a quarter of the range."""
    paths = [write(tmp_path, n, "MR", 100 + 500 * CAMERA, ImagePositionPatient=["0", "0", str(n)]) for n in range(7)]
    alone = maps_of(paths)
    bright = write(tmp_path, at, "MR", 4000 * CAMERA, ImagePositionPatient=["0", "0", str(at)])
    found = maps_of(paths)
    own = found.pop(bright.name)
    assert set(map(tuple, found.values())) == {tuple(alone[bright.name])}
    assert own == maps_of([bright])[bright.name]
    assert own[0][1] > 3500


def test_a_recipe_may_narrow_or_widen_what_shares(tmp_path, maps_of):
    assert len({tuple(m) for m in maps_of(slices(tmp_path), scope="image").values()}) == 3
    pictures = [write(tmp_path / "cr", n, "CR", 1000 * n + 500 * CAMERA) for n in (1, 2)]
    assert len({tuple(m) for m in maps_of(pictures, scope="series").values()}) == 1


def test_without_positions_or_in_several_orientations_they_are_no_volume(tmp_path, maps_of):
    nowhere = slices(tmp_path / "a", ImagePositionPatient=[None] * 3)
    turned = slices(
        tmp_path / "b",
        ImageOrientationPatient=[["1", "0", "0", "0", "1", "0"], ["0", "1", "0", "0", "0", "-1"]] * 2,
    )
    for paths in (nowhere, turned):
        assert len({tuple(m) for m in maps_of(paths).values()}) == 3


def test_the_shared_map_is_in_modality_values(tmp_path, maps_of):
    """The same picture with slopes 1, 2 and 4, and one window for all: one scale."""
    paths = [
        write(
            tmp_path, n, "MR", (400 + 2000 * CAMERA) / slope, RescaleSlope=str(slope), RescaleIntercept="0",
            ImagePositionPatient=["0", "0", str(n)], WindowCenter="1600", WindowWidth="3000",
        )
        for n, slope in enumerate((1, 2, 4), start=1)
    ]  # fmt: skip
    ends = {tuple(m) for m in maps_of(paths).values()}
    assert len(ends) == 1
    assert ends.pop()[0] == pytest.approx((400, 2400), abs=80)


def transformed(slope, centre, width):
    value = synthetic.dataset(RescaleSlope=str(slope), RescaleIntercept="0", RescaleType="US")
    window = synthetic.dataset(WindowCenter=str(centre), WindowWidth=str(width))
    return synthetic.dataset(PixelValueTransformationSequence=[value], FrameVOILUTSequence=[window])


def frames_of_three_scales(folder, number=1):
    """Enhanced MR, three frames of one picture, each with its own slope and window (PS3.3 C.7.6.16.2.9, .10)."""
    stored = np.stack([400 + 2000 * CAMERA] * 3)
    path = write(folder, number, "EnhancedMR", stored)
    instance = dcmread(path)
    for group, slope in zip(instance.PerFrameFunctionalGroupsSequence, (1, 0.1, 10), strict=True):
        group.update(transformed(slope, 1600 * slope, 3000 * slope))
    for keyword in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
        del instance.SharedFunctionalGroupsSequence[0][keyword]
    instance.save_as(path)
    return path


def test_frames_that_were_scaled_each_for_itself_have_their_own_maps(tmp_path, maps_of):
    path = frames_of_three_scales(tmp_path)
    for method in ("percentile", "window"):
        (maps,) = maps_of([path], method=method).values()
        low, high = np.array(maps).T
        np.testing.assert_allclose(low / low[0], [1, 0.1, 10], rtol=0.01)
        np.testing.assert_allclose(high / high[0], [1, 0.1, 10], rtol=0.01)


def test_frames_of_one_scale_share_a_map(tmp_path, maps_of):
    path = write(tmp_path, 1, "XA", np.stack([20 + 50 * CAMERA, 100 + 100 * CAMERA]))
    (maps,) = maps_of([path]).values()
    assert maps[0] == maps[1]


def test_every_image_has_its_own_window(tmp_path, maps_of):
    paths = slices(
        tmp_path, "CT", RescaleIntercept=["0"] * 3, RescaleSlope=["1"] * 3, WindowCenter=["400", "600", "900"],
        WindowWidth=["500", "700", "1001"],
    )  # fmt: skip
    assert list(maps_of(paths).values()) == [[(150, 649)], [(250, 949)], [(399.5, 1399.5)]]


@pytest.mark.parametrize(
    ("centre", "width", "expected"),
    [
        (["-600", "40"], ["200", "401"], (-160.5, 239.5)),  # the first one holds no pixel
        (["nan", "40"], ["100", "401"], (-160.5, 239.5)),
        ("-600", "200", (-100, 200)),  # none does: the slices' percentiles
        (None, None, (-100, 200)),
    ],
)
def test_a_window_without_a_pixel_is_passed_over(tmp_path, maps_of, centre, width, expected):
    path = write(
        tmp_path, 1, "CT", 924 + 300 * CAMERA, RescaleIntercept="-1024", RescaleSlope="1", WindowCenter=centre,
        WindowWidth=width,
    )  # fmt: skip
    assert maps_of([path], low=0, high=100)["1.dcm"][0] == pytest.approx(expected, abs=40)


def test_a_window_narrower_than_one_is_taken_as_it_stands(tmp_path, maps_of):
    """LINEAR is for widths of 1 and more (PS3.3 C.11.2.1.2.1), yet with a tiny slope narrower ones are written."""
    path = write(
        tmp_path, 1, "CT", 60 + 1400 * CAMERA, RescaleIntercept="0", RescaleSlope="0.00025", WindowCenter="0.18",
        WindowWidth="0.35", PixelPaddingValue=None,
    )  # fmt: skip
    assert maps_of([path])["1.dcm"][0] == pytest.approx((0.005, 0.355))


def test_cases_of_others(cases_folder, maps_of):
    """CT with windows by slice, and with an empty one; two exposures; MR with slopes by slice, and by frame."""
    slices_of_ct = maps_of([cases_folder / f"ct_perslice_window_{n}.dcm" for n in (1, 2)])
    assert list(slices_of_ct.values()) == [[(-160, 239)], [(-1350, 149)]]
    assert maps_of([cases_folder / "ct_two_windows_first_empty.dcm"]).popitem()[1] == [(-160, 239)]
    assert maps_of([cases_folder / "ct_window_lt1.dcm"]).popitem()[1][0] == pytest.approx((0.005, 0.355))
    assert maps_of([cases_folder / "cr_pair"])["b.dcm"] == maps_of([cases_folder / "cr_alone"])["b.dcm"]
    assert len({tuple(maps) for maps in maps_of([cases_folder / "mr_slopes"]).values()}) == 1
    (frames,) = maps_of([cases_folder / "emr_perframe_slopes.dcm"]).values()
    np.testing.assert_allclose([high / frames[0][1] for _, high in frames], [1, 0.1, 10], rtol=0.1)


# --------------------------------------------------------------------------------------------------- what is judged


def sources(folder):
    """Pictures whose stored values differ from what an enhancer gives: rounded, clipped, masked, of coarse slopes."""
    rng = np.random.default_rng(5)
    noisy = CAMERA + rng.normal(0, 0.02, CAMERA.shape)
    padded = np.where(CAMERA < 0.2, -2000, 1000 * noisy)
    colour = np.clip(data.astronaut()[:64, 200:264] + rng.integers(-3, 4, (64, 64, 3)), 0, 255)
    return {
        "CR": write(folder, 1, "CR", 200 + 60 * noisy),
        "CT": write(folder, 2, "CT", padded, RescaleSlope="2", WindowCenter="0", WindowWidth="1500"),
        "MR": write(folder, 3, "MR", 300 * (1 + noisy * np.linspace(0.2, 1, 64))),
        "US": write(folder, 4, "US", np.repeat(180 * noisy.clip(0, 1)[..., None], 3, axis=2)),
        "VL": write(folder, 5, "VLPhotographic", colour),
        "XA": write(folder, 6, "XA", np.stack([100 * CAMERA, 180 * CAMERA])),
        "EnhancedMR": frames_of_three_scales(folder, 7),
    }


def judged_pairs(source, derived):
    with open_pairs(source, derived) as pairs:
        return {judged.pair.derived: judged for judged in judge_pairs(pairs)}


def assert_judged_alike(outcome, judged):
    assert outcome.verdict["max_change"] > 0
    assert judged.lassim == outcome.lassim
    for key in ("mean", "checks", "worst", "worst_frame", "objections", "minimum"):
        assert judged.verdict[key] == outcome.verdict[key], key


@pytest.mark.slow
def test_the_stored_file_is_judged_as_enhance_judged_it(tmp_path):
    count = len(sources(tmp_path / "in"))
    outcomes = [o for o in enhance([tmp_path / "in"], tmp_path / "out", gate="off") if o.derived]
    judged = judged_pairs(tmp_path / "in", tmp_path / "out")
    assert len(outcomes) == len(judged) == count
    for outcome in outcomes:
        assert_judged_alike(outcome, judged[outcome.derived])


@pytest.mark.slow
def test_a_slice_is_judged_by_the_map_that_it_shared_also_without_the_others(tmp_path):
    paths = slices(tmp_path / "in", count=2)
    outcomes = enhance(paths, tmp_path / "out", gate="off")
    recorded = {recorded_digests(dcmread(o.derived))["intensity"] for o in outcomes}
    low, high = range_of_words(recorded.pop())
    assert not recorded
    assert low < 150 < 1000 < high
    outcome = outcomes[0]
    derived = Path(outcome.derived)
    with Decoder() as decoder:
        assert check_file(derived, {outcome.sop_instance_uid: [Path(outcome.source)]}, decoder=decoder) == []
    judged = judged_pairs(Path(outcome.source), Path(outcome.derived))
    assert_judged_alike(outcome, judged[outcome.derived])


@pytest.mark.parametrize(
    ("words", "numbers"),
    [("-1024.5..3e-05", (-1024.5, 3e-05)), ("0.0..1.0", (0, 1)), ("2..1", None), ("1", None), ("1..2..3", None),
     ("", None), ("0..inf", None)],
)  # fmt: skip
def test_a_range_is_read_as_it_was_written_or_not_at_all(words, numbers):
    assert range_of_words(words) == numbers
    if numbers:
        assert range_of_words(range_in_words(numbers)) == numbers


@dataclass(frozen=True)
class Stamps:
    """An enhancer that invents a bright disk, and is a little off everywhere."""

    spec = EnhancerSpec(channels=None)

    def __call__(self, frames):
        y, x = np.mgrid[: frames.shape[1], : frames.shape[2]]
        disk = ((y - 100) ** 2 + (x - 60) ** 2 < 12**2)[None, :, :, None]
        return np.clip(frames * np.float32(0.97) + 0.4 * disk, 0, 1).astype(np.float32)


def test_a_blended_file_is_judged_as_enhance_judged_it(tmp_path):
    path = write(tmp_path, 1, "CR", 100 + 2 * data.camera()[:256, :256])
    (outcome,) = run_by(Stamps(), "cr-dx-clahe", tmp_path / "out", gate="blend").outcomes([path])
    assert outcome.result == "warned", outcome.reason
    assert outcome.verdict["blended"]["share"] > 0
    assert_judged_alike(outcome, judged_pairs(path, Path(outcome.derived))[outcome.derived])
