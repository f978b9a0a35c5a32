"""What training reads and how it is split: 16 bits, DICOM, tables, and no patient on two sides."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from medenhance_dicom.calibration.pictures import find_pictures
from medenhance_dicom.dicom_pictures import DicomPictures
from medenhance_dicom.errors import InputError, RecipeError
from medenhance_dicom.evaluation.recipe import load_evaluation_recipe
from medenhance_dicom.guides import read_picture
from medenhance_dicom.guiding import read_pictures
from medenhance_dicom.manifest import load_manifest
from medenhance_dicom.recipe import pipelines_folder
from medenhance_dicom.selection import Settings
from medenhance_dicom.training.choosing import choose, list_pictures, part_of
from medenhance_dicom.training.data import TrainingPictures, load_picture, unit
from medenhance_dicom.training.recipe import Pictures, TrainingRecipe, load_training_recipe
from tests.synthetic import make_file

PARTS = ("train", "validate", "test")


def recipe_of(**data):
    sides = {"low": [], "high": [], "validation_high": []}
    return TrainingRecipe.model_validate({
        "name": "tiny", "summary": "", "data": {"channels": 1, "size": 16, **sides, **data},
        "schedule": {"steps": 1, "constant": 0},
    })  # fmt: skip


def grey(path, value=100, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (8, 8), value).save(path)


def table(path, *rows):
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows(rows)


# What is read.


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_read_as_evaluation_and_guides_read_them(tmp_path, suffix):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(ramp).save(tmp_path / f"ramp.{suffix}")
    loaded = load_picture(tmp_path / f"ramp.{suffix}", 1, 256)
    np.testing.assert_allclose(unit(loaded), read_picture(tmp_path / f"ramp.{suffix}"), atol=1e-6)
    assert len(np.unique(loaded)) == 65536


def test_eight_bits_stay_eight_bits_and_are_placed_in_the_middle(tmp_path):
    Image.fromarray(np.tile(np.arange(40, dtype=np.uint8), (20, 1))).save(tmp_path / "a.png")
    loaded = load_picture(tmp_path / "a.png", 3, 40)
    assert loaded.dtype == np.uint8
    assert loaded[10:30, :, 1].tolist() == np.tile(np.arange(40), (20, 1)).tolist()
    assert not loaded[:10].any()
    assert not loaded[30:].any()


def test_a_cut_picture_and_one_without_a_range_are_named(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64), np.uint8)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    Image.fromarray(rng.random((8, 8), np.float32)).save(tmp_path / "floats.tif")
    for name in ("cut.jpg", "floats.tif"):
        with pytest.raises(InputError, match=name):
            load_picture(tmp_path / name, 1, 16)


@pytest.mark.slow
def test_a_folder_of_dicom_is_learned_from_as_enhance_sees_it(tmp_path):
    for patient in range(3):
        folder = tmp_path / "archive" / f"study{patient}"
        folder.mkdir(parents=True)
        for number in range(2):
            make_file(
                folder / f"IM{number}", "DX", rows=16, columns=16, PatientID=f"P{patient}",
                SOPInstanceUID=f"1.2.3.{patient}.{number}", SeriesInstanceUID=f"1.2.4.{patient}",
                StudyInstanceUID=f"1.2.5.{patient}",
            )  # fmt: skip
    side, reader = [{"folder": "archive"}], DicomPictures()
    pictures = TrainingPictures(tmp_path, recipe_of(low=side, high=side), reader)
    seen = list(read_pictures([tmp_path / "archive"], Settings()))
    assert len(pictures.high) == len(seen) == 6
    for learned, shown in zip(pictures.high, seen, strict=True):
        np.testing.assert_allclose(unit(learned), shown.unit, atol=1e-5)
    assert len(np.unique(pictures.high[0])) > 200  # 12 bits, not 8
    whose = [one.group for one in choose(tmp_path, Pictures(folder="archive"), reader)]
    assert whose[0] == whose[1] != whose[2] == whose[3]
    assert not any("P0" in one for one in whose)
    with pytest.raises(RecipeError, match="DICOM files"):
        list_pictures(tmp_path, Pictures(folder="archive"))


def test_subfolders_are_looked_into_where_a_folder_holds_no_picture(tmp_path):
    for name in ("patient2_seq5/10.png", "patient2_seq5/9.png", "patient2_seq6/1.png"):
        grey(tmp_path / "video" / name)
    chosen = choose(tmp_path, Pictures(folder="video"))
    assert [(one.group, one.path.name) for one in chosen] == [
        ("patient2_seq5", "9.png"), ("patient2_seq5", "10.png"), ("patient2_seq6", "1.png"),
    ]  # fmt: skip
    grey(tmp_path / "video/own.png")
    assert [one.path.name for one in choose(tmp_path, Pictures(folder="video"))] == ["own.png"]


# What is chosen.


@pytest.fixture
def eyes(tmp_path):
    """40 pictures of 20 persons; every tenth is the double of the one before."""
    rows, persons = [["file", "tier", "score"]], [["file", "person", "same_picture_as"]]
    for i in range(40):
        grey(tmp_path / f"eyes/{i}.png", i)
        rows.append([f"{i}.png", ("low", "mid", "high")[i % 3], i / 4])
        persons.append([f"{i}.png", f"P{i % 20}", f"{i - 1}.png" if i % 10 == 9 else ""])
    table(tmp_path / "labels.csv", *rows)
    table(tmp_path / "groups.csv", *persons)
    return tmp_path


def names(root, **choice):
    return [int(path.stem) for path in list_pictures(root, Pictures(folder="eyes", **choice))]


def test_rows_are_chosen_by_text_and_number(eyes):
    assert names(eyes, table="labels.csv", where={"tier": "low"}) == list(range(0, 40, 3))
    assert names(eyes, table="labels.csv", where={"tier": ["low", "mid"]}) == [i for i in range(40) if i % 3 < 2]
    assert names(eyes, table="labels.csv", unless={"tier": ["low", "mid"]}) == list(range(2, 40, 3))
    both = {"where": {"tier": "high"}, "column": "score", "at_least": 5.0}
    assert names(eyes, table="labels.csv", **both) == list(range(20, 40, 3))


def test_columns_of_further_tables_are_joined_and_doubles_dropped(eyes):
    joined = {"table": ["labels.csv", "groups.csv"], "drop": "same_picture_as"}
    assert names(eyes, **joined) == [i for i in range(40) if i % 10 != 9]
    assert names(eyes, **joined, where={"tier": "low", "person": "P3"}) == [3]
    table(eyes / "faults.csv", ["file", "fault"], ["3.png", "haze"])
    assert names(eyes, table=["labels.csv", "faults.csv"], where={"fault": "haze"}) == [3]
    assert len(names(eyes, table=["labels.csv", "faults.csv"], unless={"fault": "haze"})) == 39


def test_parts_share_no_person_and_miss_no_picture(eyes):
    known = {"table": "groups.csv", "group": "person", "fractions": (0.5, 0.25, 0.25)}
    parts = [names(eyes, **known, part=part) for part in PARTS]
    assert sorted(i for part in parts for i in part) == list(range(40))
    persons = [{i % 20 for i in part} for part in parts]
    assert not persons[0] & persons[1]
    assert not persons[0] & persons[2]
    assert not persons[1] & persons[2]
    few = names(eyes, **known, part="train", where={"same_picture_as": ""})
    assert {i % 20 for i in few} <= persons[0]  # whatever else is chosen


def test_a_part_is_a_function_of_the_name_alone():
    fractions = (0.6, 0.15, 0.25)
    found = [part_of(f"person {i}", fractions) for i in range(2000)]
    for part, fraction in zip(PARTS, fractions, strict=True):
        assert found.count(part) / 2000 == pytest.approx(fraction, abs=0.03)
    told = {"P1": "test", "P2": "validate", "P5": "train"}
    assert {name: part_of(name, fractions) for name in told} == told


def test_a_cut_through_a_person_is_refused(eyes):
    with pytest.raises(RecipeError, match=r"cut through the person of \d+\.png"):
        names(eyes, table="groups.csv", group="person", last=0.5)
    lying_together = [["file", "person"], *([f"{i}.png", f"P{i // 2}"] for i in range(40))]
    table(eyes / "together.csv", *lying_together)
    assert names(eyes, table="together.csv", group="person", last=0.5) == list(range(20))


def test_frames_of_a_sequence_keep_together_without_a_table(tmp_path):
    for i in range(1, 613, 5):
        grey(tmp_path / f"cvc_clinicdb_256/{i}.png")
    parts = {part: choose(tmp_path, Pictures(folder="cvc_clinicdb_256", part=part)) for part in PARTS}
    sequences = [{one.group for one in chosen} for chosen in parts.values()]
    assert sum(map(len, sequences)) == len(set.union(*sequences)) == 29
    assert sum(map(len, parts.values())) == 123


def test_a_person_is_not_learned_from_and_validated_on(eyes):
    one = {"folder": "eyes", "table": "groups.csv", "group": "person"}
    with pytest.raises(RecipeError, match="its person is learned from and validated on"):
        TrainingPictures(eyes, recipe_of(high=[{**one, "part": "train"}], validation_high=[one]))
    apart = recipe_of(high=[{**one, "part": "train"}], validation_high=[{**one, "part": "validate"}])
    assert TrainingPictures(eyes, apart).validation_high


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"where": {"tier": "low"}}, "where: of which table"),
        ({"table": "labels.csv", "where": {"teir": "low"}}, r"labels\.csv: no column 'teir'"),
        ({"table": "labels.csv", "drop": "double"}, r"labels\.csv: no column 'double'"),
        ({"table": "labels.csv", "group": "person"}, r"labels\.csv: no column 'person'"),
        ({"table": "labels.csv", "column": "tier"}, r"labels\.csv: line 2: a value is no number"),
        ({"table": "labels.csv", "where": {"tier": "none"}}, "no pictures match .* and its table"),
        ({"table": ["labels.csv", "gone.csv"]}, r"gone\.csv: no such table"),
        ({"fractions": (0.5, 0.1, 0.1)}, "do not add up to 1"),
    ],
)
def test_a_choice_that_cannot_be_made_says_why(eyes, choice, words):
    with pytest.raises((RecipeError, ValueError), match=words):
        names(eyes, **choice)


def test_the_sets_at_hand_can_be_split(data_folder):
    labels, groups = "fundus/csdi/labels.csv", "fundus/csdi/groups.csv"
    csdi = {"folder": "fundus/csdi/images", "table": [labels, groups], "drop": "same_picture_as", "group": "person"}
    sets = {
        138: csdi,
        360: {"folder": "fundus/srahim_dr", "table": "fundus/srahim_dr/labels.csv", "group": "patient"},
        127: {"folder": "fundus/heimed", "table": "fundus/heimed/labels.csv"},
        204: {"folder": "fundus/idrid_codras/images"},
        28: {"folder": "fundus/chasedb1/images"},
        17: {"folder": "fundus/les_av"},
        153: {"folder": "endoscopy/cvc_clinicdb_256/images"},
        160: {"folder": "endoscopy/vocalfolds"},
    }
    for count, choice in sets.items():
        chosen = choose(data_folder, Pictures(**choice))
        assert len(chosen) == count
        parts = [{one.group for one in chosen if part_of(one.group, (0.6, 0.15, 0.25)) == part} for part in PARTS]
        assert sum(map(len, parts)) == len({one.group for one in chosen})


# What is shipped.

TRAINING = sorted((pipelines_folder() / "train").glob("*.toml"))
EVALUATION = sorted((pipelines_folder() / "evaluate").glob("*.toml"))
RESEARCH = ("csdi", "srahim_dr", "heimed", "les_av", "nervestitcher", "cvc_clinicdb")
"""Of whose folders class B is said."""
ONE_EYE = "ccm/nervestitcher2"
"""Split along the mosaic: there is nobody else."""


def sides_of(recipe):
    data, task = recipe.data, recipe.task
    learned = [*data.low, *data.high, *data.pairs_low, *data.pairs_high, *task.pictures, *task.masks]
    looked = [*data.validation_low, *data.validation_high, *data.validation_poor]
    return learned, looked + task.validation_pictures


def groups_of(root, choices):
    there = [choice for choice in choices if (root / choice.folder).is_dir() and not choice.folder.startswith(ONE_EYE)]
    return {(choice.folder, one.group) for choice in there for one in choose(root, choice)}


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_the_licence_class_is_that_of_the_sources(path):
    recipe = load_training_recipe(path)
    folders = [choice.folder for side in sides_of(recipe) for choice in side]
    if recipe.licence_class is None:
        assert not any(
            folder.startswith(("fundus/csdi", "fundus/srahim", "endoscopy", "ccm/nerve")) for folder in folders
        )
    else:
        assert (recipe.licence_class == "B") == any(name in folder for folder in folders for name in RESEARCH)


def test_weights_of_research_data_are_for_research():
    recipes = {f"train/{path.stem}": load_training_recipe(path) for path in TRAINING}
    for key, entry in load_manifest().weights.items():
        recipe = recipes.get(entry.trained.get("recipe"))
        if recipe is not None and recipe.licence_class == "B":
            assert entry.research_only, key
            assert entry.licence == "research-only", key


def test_no_shipped_recipe_looks_at_those_whom_it_learns_from(data_folder):
    learned = set()
    for path in TRAINING:
        recipe = load_training_recipe(path)
        if recipe.licence_class is None:
            continue
        own, looked = (groups_of(data_folder, side) for side in sides_of(recipe))
        assert not own & looked, path.stem
        learned |= own
    assert len(learned) > 300
    for path in EVALUATION:
        assert not learned & groups_of(data_folder, load_evaluation_recipe(path).data.pictures), path.stem


def test_every_choice_of_csdi_drops_doubles_and_keeps_persons_together():
    choices = [choice for path in TRAINING for side in sides_of(load_training_recipe(path)) for choice in side]
    choices += [choice for path in EVALUATION for choice in load_evaluation_recipe(path).data.pictures]
    csdi = [choice for choice in choices if choice.folder.startswith("fundus/csdi")]
    assert len(csdi) > 10
    assert all(choice.drop == "same_picture_as" and choice.group == "person" for choice in csdi)
    patients = [choice for choice in choices if choice.folder.startswith("fundus/srahim_dr")]
    assert all(choice.group == "patient" and choice.part for choice in patients)


def test_calibration_groups_by_the_table_beside_the_pictures(tmp_path):
    for name in ("a.png", "b.png", "c.png", "d.png"):
        grey(tmp_path / f"set/images/{name}")
    rows = (["a.png", "1", ""], ["b.png", "1", "a.png"], ["c.png", "1", ""])
    table(tmp_path / "set/groups.csv", ["file", "person", "same_picture_as"], *rows)
    found = {sample.path.name: sample.group.rsplit(":", 1)[1] for sample in find_pictures([tmp_path / "set/images"])}
    assert found == {"a.png": "1", "c.png": "1", "d.png": "d"}


@pytest.mark.parametrize("unchanged", [0.0, 1.0])
def test_both_halves_of_a_pair_are_another_ordinary_eye(tmp_path, unchanged):
    (tmp_path / "eyes").mkdir()
    y, x = np.mgrid[:64, :64]
    inside = ((y - 32) ** 2 + (x - 32) ** 2 < 28**2)[..., None]
    eye = np.where(inside, np.uint8([150, 80, 30]), np.uint8(0))
    Image.fromarray(eye).save(tmp_path / "eyes" / "a.png")
    side = [{"folder": "eyes"}]
    recipe = recipe_of(
        high=side, low=side, validation_high=side, channels=3, size=64, degradation="fundus-clinical",
        unchanged_fraction=unchanged,
    )  # fmt: skip
    pictures = TrainingPictures(tmp_path, recipe)
    highs = []
    for seed in range(8):
        batch = pictures.supervised(np.random.default_rng(seed))
        assert bool((batch["pair_low"] == batch["pair_high"]).all()) == bool(unchanged)
        highs.append(float((batch["pair_high"][0, 1, 20:44, 20:44] + 1).mean() / 2))
    assert np.ptp(highs) > 0.05  # the truth itself is darker at times
    assert min(highs) < 0.7 * 80 / 255
