"""What recipes and weights are for: they never run on anything else, whoever names them."""

from __future__ import annotations

import pytest

from medenhance_dicom.cli import _problem
from medenhance_dicom.errors import ModelError, RecipeError
from medenhance_dicom.manifest import load_manifest
from medenhance_dicom.recipe import load_recipes
from medenhance_dicom.selection import Settings, plan, recipes_of, weights_wrong_kind, wrong_kind
from tests import synthetic

FUNDUS = {
    "Modality": "OP",
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.5.1",
    "PhotometricInterpretation": "YBR_FULL_422",
}
RECIPES = {recipe.name: recipe for recipe in load_recipes()}


def planned(paths, **options):
    """(result, code of the reason, recipe, weights) of each series."""
    found = plan(paths, Settings(**options))
    return [(s["result"], (s["reason"] or "").split(":")[0], s["recipe"], s["weights"]) for s in found]


@pytest.fixture
def eye(tmp_path):
    return synthetic.make_file(tmp_path / "eye.dcm", "OP8")


@pytest.fixture
def grey_eye(tmp_path):
    return synthetic.make_file(
        tmp_path / "grey.dcm", "OP8", SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2",
        SOPInstanceUID="1.2.826.0.1.9999.77", SeriesInstanceUID="1.2.826.0.1.9999.78",
    )  # fmt: skip


@pytest.fixture
def ultrasound(tmp_path):
    return synthetic.make_file(tmp_path / "us.dcm", "US")


def test_a_network_of_another_kind_never_runs_whoever_names_it(eye, grey_eye):
    wrong = [("skipped", "WRONG_KIND", "cfm-cornea-stillgan", "stillgan-fundus-2")]
    assert planned([grey_eye], weights="stillgan-fundus-2") == wrong
    assert planned([eye], weights="hqgnet-fundus-1") == [("enhanced", "", "op-fundus-hqgnet", "hqgnet-fundus-1")]
    (series,) = plan([grey_eye], Settings(weights="stillgan-fundus-2"))
    assert series["reason"] == (
        "WRONG_KIND: weights stillgan-fundus-2 are not for Photometric Interpretation MONOCHROME2"
    )


def test_the_weights_of_one_series_leave_others_to_their_recipes(eye, grey_eye, ultrasound):
    assert sorted(planned([eye, grey_eye, ultrasound], weights="stillgan-fundus-2"), key=lambda s: s[2]) == [
        ("skipped", "WRONG_KIND", "cfm-cornea-stillgan", "stillgan-fundus-2"),
        ("enhanced", "", "op-fundus-stillgan", "stillgan-fundus-2"),
        ("enhanced", "", "us-clahe", None),
    ]


@pytest.mark.parametrize("recipe", ["op-fundus-stillgan", "op-filtered-clahe", "vl-clahe"])
def test_a_named_recipe_never_runs_on_what_it_is_not_for(ultrasound, recipe):
    assert [s[:3] for s in planned([ultrasound], recipe=recipe)] == [("skipped", "WRONG_KIND", recipe)]


def test_what_does_not_fit_is_named_and_only_values_that_name_nobody(eye):
    fundus = RECIPES["op-fundus-stillgan"]
    assert wrong_kind(fundus, FUNDUS, load_manifest()) is None
    facts = {"Modality": "US", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1"}
    assert wrong_kind(fundus, facts, load_manifest()) == (
        "WRONG_KIND: recipe op-fundus-stillgan is not for SOP Class UID Ultrasound Image Storage, Modality US, "
        "a missing Photometric Interpretation"
    )
    odd = FUNDUS | {"Modality": "Test^One"}
    assert wrong_kind(fundus, odd, load_manifest()) == "WRONG_KIND: recipe op-fundus-stillgan is not for this Modality"


def test_identity_may_be_named_for_everything(ultrasound):
    assert planned([ultrasound], recipe="identity") == [("enhanced", "", "identity", None)]


@pytest.mark.parametrize("recipe", ["auto", "us-clahe", "op-fundus-stillgan"])
def test_unknown_weights_are_an_error_whatever_the_recipe(recipe):
    with pytest.raises(ModelError, match="no weights 'nope'"):
        recipes_of(Settings(recipe=recipe, weights="nope"))


def test_weights_that_nothing_takes_are_an_error(ultrasound):
    with pytest.raises(RecipeError, match="recipe us-clahe takes no weights"):
        recipes_of(Settings(recipe="us-clahe", weights="stillgan-fundus-2"))
    with pytest.raises(RecipeError, match=r"no recipe chosen here takes weights \(us-clahe\)"):
        planned([ultrasound], weights="stillgan-fundus-2")


def test_recipes_verify_names_a_recipe_that_its_weights_are_not_for():
    manifest, fundus = load_manifest(), RECIPES["op-fundus-stillgan"]
    assert _problem(fundus, manifest) is None
    wider = fundus.model_copy(update={"match": fundus.match | {"Modality": ("OP", "XC")}})
    assert _problem(wider, manifest) == "weights stillgan-fundus-2 are not for all of its Modality"
    looser = fundus.model_copy(update={"match": {"Modality": ("OP",)}})
    assert _problem(looser, manifest) == (
        "weights stillgan-fundus-2 are not for all of its SOPClassUID, PhotometricInterpretation"
    )


def test_every_shipped_network_is_for_all_that_its_recipes_are_for():
    manifest = load_manifest()
    for recipe in RECIPES.values():
        if key := recipe.enhancer.weights:
            for keyword, values in recipe.match.items():
                for value in values:
                    facts = {k: v[0] for k, v in manifest.entry(key).match.items()} | {keyword: value}
                    assert weights_wrong_kind(key, facts, manifest) is None, (recipe.name, keyword, value)
