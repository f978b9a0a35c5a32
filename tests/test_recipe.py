from __future__ import annotations

import hashlib
import itertools
import json

import pytest
from pydantic import ValidationError

from medenhance_dicom.conventional import build_conventional
from medenhance_dicom.errors import RecipeError
from medenhance_dicom.recipe import Recipe, load_recipe, load_recipes, match_recipe, pipelines_folder

STORAGE = "1.2.840.10008.5.1.4.1.1."
MINIMAL = """
name = "dx-test"
summary = "A test."
[match]
Modality = ["DX"]
[enhancer]
method = "clahe"
"""


def write(folder, text, name="dx-test.toml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def recipe(name="a", match=None, **more):
    return Recipe(name=name, summary="", match=match or {"Modality": ("DX",)}, enhancer={"method": "identity"}, **more)


def test_every_shipped_recipe_loads_and_its_conventional_method_is_built():
    recipes = load_recipes()
    assert len(recipes) >= 15
    assert [r.name for r in recipes] == sorted(r.name for r in recipes)
    for shipped in recipes:
        if shipped.enhancer.method != "network":
            assert build_conventional(shipped.enhancer.method, shipped.enhancer.parameters).spec.multiple == 1


def test_no_two_shipped_recipes_share_a_series_number_offset():
    recipes = load_recipes()
    assert len({r.derived.series_number_offset for r in recipes}) == len(recipes)


def test_defaults_are_filled_in_from_the_file(tmp_path):
    loaded = load_recipe(write(tmp_path, MINIMAL))
    assert loaded.intensity.method == "range"
    assert (loaded.intensity.low, loaded.intensity.high) == (0.5, 99.5)
    assert loaded.resolution.way == "whole"
    assert loaded.gate.level == 3
    assert loaded.gate.minimum is None
    assert loaded.match == {"Modality": ("DX",)}


@pytest.mark.parametrize(
    ("addition", "named"),
    [
        ("[gate]\nminumum = 0.8", "gate.minumum"),
        ("[intensity]\nmethod = 'windows'", "intensity.method"),
        ("[intensity]\nlow = 60\nhigh = 40", "low must be below high"),
        ("[resolution]\nway = 'pyramid'", "needs working_size"),
        ("[derived]\nsteps = ['magic']", "derived.steps.0"),
        ("[derived]\nseries_number_offset = 100", "derived.series_number_offset"),
        ("[mask]\nfield_of_view = 'square'", "mask.field_of_view"),
        ("[gate\n", "dx-test.toml"),
    ],
)
def test_a_wrong_key_or_value_names_the_file_and_the_key(tmp_path, addition, named):
    with pytest.raises(RecipeError, match=r"dx-test\.toml") as caught:
        load_recipe(write(tmp_path, MINIMAL + addition))
    assert named in str(caught.value)


def test_a_network_needs_weights_and_the_others_take_none(tmp_path):
    with pytest.raises(RecipeError, match="network needs weights"):
        load_recipe(write(tmp_path, MINIMAL.replace('"clahe"', '"network"')))
    with pytest.raises(RecipeError, match="takes no weights"):
        load_recipe(write(tmp_path, MINIMAL + 'weights = "x"'))
    with pytest.raises(RecipeError, match="no guide"):
        load_recipe(write(tmp_path, MINIMAL + 'guide = "x"'))


def test_a_guide_is_chosen_unless_named(tmp_path):
    assert load_recipe(write(tmp_path, MINIMAL)).enhancer.guide == "auto"
    led = MINIMAL.replace('"clahe"', '"network"\nweights = "w"\nguide = "clear-eye"')
    assert load_recipe(write(tmp_path, led)).enhancer.guide == "clear-eye"


def test_a_recipe_is_named_like_its_file(tmp_path):
    write(tmp_path, MINIMAL, "other.toml")
    with pytest.raises(RecipeError, match="not the file's name"):
        load_recipes(tmp_path)


def test_a_missing_folder_or_file_is_a_recipe_error(tmp_path):
    with pytest.raises(RecipeError):
        load_recipes(tmp_path / "none")
    with pytest.raises(RecipeError):
        load_recipe(tmp_path / "none.toml")


def test_training_recipes_are_not_looked_at():
    assert all(r.name not in {p.stem for p in (pipelines_folder() / "train").glob("*")} for r in load_recipes())


def test_the_digest_is_sha256_of_canonical_json():
    one = recipe()
    value = one.model_dump(mode="json")
    del value["intensity"]["scope"], value["enhancer"]["look"]  # later keys
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    assert one.digest == hashlib.sha256(text.encode()).hexdigest()
    assert one.digest == recipe().digest
    assert one.digest != recipe(version=2).digest
    assert one.digest != recipe(gate={"minimum": 0.5}).digest
    assert one.digest != recipe(intensity={"scope": "image"}).digest


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValidationError):
        recipe().name = "b"


def test_every_keyword_has_to_fit():
    one = recipe(match={"Modality": ("OP",), "SamplesPerPixel": (3,)})
    assert one.fits({"Modality": "OP", "SamplesPerPixel": 3, "Rows": 5})
    assert not one.fits({"Modality": "OP", "SamplesPerPixel": 1})
    assert not one.fits({"Modality": "OP"})
    assert not one.fits({"Modality": "OP", "SamplesPerPixel": None})


def test_a_multi_valued_fact_fits_by_any_of_its_values():
    one = recipe(match={"ImageType": ("FA", "ICG")})
    assert one.fits({"ImageType": ["ORIGINAL", "PRIMARY", "", "FA"]})
    assert not one.fits({"ImageType": ["ORIGINAL", "PRIMARY", "", "COLOR"]})


def test_priority_then_specificity_then_name_decide_in_any_order():
    broad = recipe("broad", {"Modality": ("OP",)})
    narrow = recipe("narrow", {"Modality": ("OP",), "SamplesPerPixel": (3,)})
    twin = recipe("another", {"Modality": ("OP",), "Rows": (9,)})
    forced = recipe("zz", {"Modality": ("OP",)}, priority=1)
    facts = {"Modality": "OP", "SamplesPerPixel": 3, "Rows": 9}
    for order in itertools.permutations([broad, narrow, twin]):
        assert match_recipe(facts, order) is twin
    assert match_recipe(facts, [broad, narrow]) is narrow
    assert match_recipe(facts, [narrow, forced]) is forced


def test_nothing_that_fits_is_a_recipe_error_without_values():
    with pytest.raises(RecipeError) as caught:
        match_recipe({"Modality": "SEG", "PatientName": "SMITH"}, load_recipes())
    assert "SMITH" not in str(caught.value)


@pytest.mark.parametrize(
    ("sop_class", "modality", "photometric", "image_type", "expected"),
    [
        ("77.1.5.1", "OP", "RGB", ["ORIGINAL", "PRIMARY", "", "COLOR"], "op-fundus-fields"),
        ("77.1.5.2", "OP", "YBR_FULL_422", None, "op-fundus-fields"),
        ("77.1.5.5", "OP", "PALETTE COLOR", None, "op-fundus-fields"),
        ("77.1.5.1", "OP", "MONOCHROME2", ["ORIGINAL", "PRIMARY"], "cfm-cornea-stillgan"),
        ("77.1.5.1", "OP", "MONOCHROME2", ["ORIGINAL", "PRIMARY", "", "FA"], "op-filtered-clahe"),
        ("77.1.8", "CFM", "MONOCHROME2", None, "cfm-cornea-stillgan"),
        ("1", "CR", "MONOCHROME1", None, "cr-dx-clahe"),
        ("1.1", "DX", "MONOCHROME2", None, "cr-dx-clahe"),
        ("1.3", "IO", "MONOCHROME2", None, "io-clahe"),
        ("1.2", "MG", "MONOCHROME2", None, "mg-clahe"),
        ("1", "MG", "MONOCHROME1", None, "mg-clahe"),
        ("2", "CT", "MONOCHROME2", None, "ct-clahe"),
        ("4", "MR", "MONOCHROME2", None, "mr-n4-clahe"),
        ("6.1", "US", "RGB", None, "us-clahe"),
        ("7", "US", "MONOCHROME2", None, "us-clahe"),
        ("12.1", "XA", "MONOCHROME2", None, "xa-clahe"),
        ("77.1.1", "ES", "YBR_FULL_422", None, "es-endoscopy-hqgnet"),
        ("7", "ES", "RGB", None, "es-endoscopy-hqgnet"),
        ("77.1.4", "XC", "RGB", None, "vl-clahe"),
        ("77.1.2", "GM", "RGB", None, "vl-clahe"),
        ("77.1.5.4", "OPT", "MONOCHROME2", None, "opt-clahe"),
        ("7", "OT", "MONOCHROME2", None, "sc-gray-clahe"),
        ("7.3", "DX", "MONOCHROME2", None, "sc-gray-clahe"),
        ("7", "OT", "RGB", None, "sc-colour-clahe"),
        ("7.4", "XC", "YBR_ICT", None, "sc-colour-clahe"),
    ],
)
def test_shipped_recipes_fit_what_they_are_for(sop_class, modality, photometric, image_type, expected):
    facts = {
        "SOPClassUID": STORAGE + sop_class,
        "Modality": modality,
        "PhotometricInterpretation": photometric,
        "ImageType": image_type,
    }
    assert match_recipe(facts, load_recipes()).name == expected


def test_field_normalisation_is_never_chosen_on_its_own():
    recipes = {r.name: r for r in load_recipes()}
    plain = recipes["op-field-normalisation"]
    for sop_class in plain.match["SOPClassUID"]:
        for photometric in plain.match["PhotometricInterpretation"]:
            facts = {"SOPClassUID": sop_class, "Modality": "OP", "PhotometricInterpretation": photometric}
            assert plain.fits(facts)
            assert match_recipe(facts, recipes.values()).enhancer.method == "network"


def test_the_look_is_part_of_the_digest_where_it_is_not_the_natural_one():
    shipped = load_recipe(pipelines_folder() / "op-fundus-stillgan.toml")
    assert "look" not in shipped.parameters_in_words()
    even = shipped.model_copy(update={"enhancer": shipped.enhancer.model_copy(update={"look": "even"})})
    assert even.digest != shipped.digest
    assert "look even" in even.parameters_in_words()
