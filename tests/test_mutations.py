"""Derived objects of every class that we write, with one attribute changed: `verify --source` sees it, or says why not.

A plain edit leaves the digests that the object records; a forgery computes all of them anew, and the UID.
"""

from __future__ import annotations

import copy
import hashlib
import random
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from functools import cache

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from medenhance_dicom.attributes import attributes_of
from medenhance_dicom.derive import PixelSummary, derive_instance
from medenhance_dicom.frames import pixel_format, stored_frame
from medenhance_dicom.identity import (
    derived_instance_uid,
    header_digest,
    name_replaced,
    object_digest,
    own_item,
    recorded_digests,
    seal,
)
from medenhance_dicom.overlays import packed
from medenhance_dicom.part10 import read_instance, write_instance
from medenhance_dicom.provenance import steps_of
from medenhance_dicom.recipe import load_recipes
from medenhance_dicom.rederivation import MAY_DIFFER, differences
from medenhance_dicom.released import released
from medenhance_dicom.report import WITHHELD
from medenhance_dicom.site_keys import create_key, load_public_keys
from medenhance_dicom.sop_classes import WRITABLE
from medenhance_dicom.uids import derived_uid
from medenhance_dicom.verify import NOT_SIGNED, assert_derived, check_file, source_uid
from tests import synthetic
from tests.test_verify import PROVENANCE

EDITS = 200
TEXTS = {"PN": "Test^Other", "DA": "20240301", "TM": "121314", "DT": "20240301121314", "AS": "055Y", "UI": "1.2.3.4.5"}
PIXELS = hashlib.sha256(b"the new pixels").hexdigest()
UNKNOWN = replace(
    PROVENANCE,
    verdict="Structure check passed: LaSSIM 0.973.",
    weights="tiny-1",
    weights_digest="cd" * 32,
    engine="torch",
    precision="fp32",
    parameters="strength 0.5",
    not_quantitative=True,
)
"""Of a recipe that is not among the shipped ones."""


def shipped(name):
    recipe = next(recipe for recipe in load_recipes() if recipe.name == name)
    return replace(
        UNKNOWN,
        recipe=recipe.name,
        recipe_digest=recipe.digest,
        method="stillgan" if recipe.enhancer.weights else recipe.enhancer.method,
        weights=recipe.enhancer.weights,
        weights_digest="cd" * 32 if recipe.enhancer.weights else None,
        steps=steps_of(recipe.derived.steps),
        parameters=recipe.parameters_in_words(),
        series_description=recipe.derived.series_description,
        series_number_offset=recipe.derived.series_number_offset,
    )


FULL = shipped("op-fundus-stillgan")


@cache
def made(folder, name, provenance=FULL):
    """File of a source, its header as it is read, and what is derived from it."""
    path = folder / f"{name}.dcm"
    if not path.exists():
        more = {
            "LossyImageCompression": "01",
            "LossyImageCompressionRatio": "7",
            "LossyImageCompressionMethod": "ISO_10918_1",
        }
        synthetic.make_file(path, name, **(more if name.startswith("VL") else {}))
    source = read_instance(path)
    pixels = pixel_format(source)
    taken = hashlib.sha256(b"the source's").hexdigest()
    return (
        path,
        source,
        derive_instance(source, PixelSummary(PIXELS, pixels, pixels.number_of_frames, taken), provenance),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sources")


def problems(derived, source, path):
    return [*assert_derived(derived, source, pixel_digest=PIXELS), *differences(derived, source, path, path)]


def forge(derived):
    """Compute anew all that the object records, and its UID."""
    recorded, item = recorded_digests(derived), own_item(derived)
    if item is None or "header" not in recorded:
        return
    said = str(item.ContributionDescription).replace(recorded["header"], header_digest(derived))
    item.ContributionDescription = said
    derived.SOPInstanceUID = derived_instance_uid(source_uid(derived), recorded_digests(derived))
    seal(derived)


# ------------------------------------------------------------------------------------------------ edits


def edit(derived: Dataset, rng: random.Random, iod: str) -> str:
    """Change, take out or add one attribute at any depth; what was done, in words."""
    before = object_digest(derived)
    while True:
        dataset, where = derived, ""
        while True:
            element = rng.choice([element for element in dataset])  # noqa: C416
            if element.VR != "SQ" or not element.value or rng.random() < 0.15:
                break
            where += f"{element.keyword} > "
            dataset = rng.choice(list(element.value))
        done = rng.choices([change, delete, add], [6, 2, 2])[0](dataset, element, rng, iod)
        if done and object_digest(derived) != before:
            return f"{done} {where}{element.keyword}"


def change(dataset, element, rng, iod):
    if element.VR == "SQ":
        items = list(element.value)
        items = (
            items[:-1] if items and rng.random() < 0.5 else [*items, copy.deepcopy(items[0]) if items else Dataset()]
        )
        element.value = Sequence(items)
        return "items of"
    if isinstance(element.value, MultiValue) and len(element.value):
        at = rng.randrange(len(element.value))
        values = list(element.value)
        values[at] = other(element.VR, values[at])
        element.value = values
    else:
        element.value = other(element.VR, element.value)
    return "change"


def other(vr, value):
    if isinstance(value, bytes):
        return bytes([value[0] ^ 1, *value[1:]]) if value else b"\1\0"
    if vr in ("DS", "IS", "FD", "FL", "US", "SS", "UL", "SL", "AT"):
        return str(float(value or 0) + 1) if vr == "DS" else (value or 0) + 1
    if vr in TEXTS:
        return TEXTS[vr]
    return "L" if value == "R" else "OTHER" if vr == "CS" else f"{value or ''}x"


def delete(dataset, element, rng, iod):
    del dataset[element.tag]
    return "delete"


def add(dataset, element, rng, iod):
    keyword = rng.choice(sorted((attributes_of(iod) | {"IconImageSequence", "PatientComments"}) - {"PixelData"}))
    tag = tag_for_keyword(keyword)
    if tag in dataset or tag > 0x7FE00000:
        return ""
    vr = dictionary_VR(tag).split(" or ")[0]
    value = Sequence([]) if vr == "SQ" else b"\1\0" if vr in ("OB", "OW", "UN", "OV", "OF", "OD") else other(vr, None)
    dataset[tag] = DataElement(tag, vr, value)
    return f"add {keyword} to"


def uncaught(edits, folder, *, forged):
    """Edits that nothing sees, and how many there were of each kind."""
    rng = random.Random(20261201)
    kinds, missed = Counter(), []
    names = sorted(synthetic.CLASSES)
    for number in range(edits):
        name = names[number * 2 % len(names)] if edits < len(names) else names[number % len(names)]
        path, source, derived = made(folder, name)
        while True:
            mutant = copy.deepcopy(derived)
            done = edit(mutant, rng, WRITABLE[derived.SOPClassUID].iod)
            if forged:
                forge(mutant)
            if object_digest(mutant) != object_digest(derived):  # the UID, which a forgery computes anew
                break
        kinds[done.split()[0]] += 1
        if not problems(mutant, source, path):
            missed.append(f"{name}: {done}")
    return missed, kinds


@pytest.mark.parametrize("forged", [False, True])
def test_an_edit_is_caught(forged, folder):
    assert uncaught(16, folder, forged=forged)[0] == []


@pytest.mark.slow
@pytest.mark.parametrize("forged", [False, True])
def test_each_of_two_hundred_edits_is_caught(forged, folder):
    missed, kinds = uncaught(EDITS, folder, forged=forged)
    assert missed == []
    assert set(kinds) == {"change", "delete", "add", "items"}


def test_what_is_derived_here_is_good(folder):
    names = sorted(synthetic.CLASSES)
    assert {synthetic.UIDS + synthetic.CLASSES[name] for name in names} <= WRITABLE.keys()
    for name in names:
        path, source, derived = made(folder, name)
        assert problems(derived, source, path) == []


NAMED = [
    ("ImageLaterality", "L"), ("PatientOrientation", ["R", "F"]), ("PhotometricInterpretation", "YBR_FULL"),
    ("PlanarConfiguration", 1), ("BitsStored", 7), ("HighBit", 6), ("AcquisitionDateTime", "20240203101113"),
    ("SeriesInstanceUID", "1.2.3"), ("PatientName", "Test^Other"), ("PatientID", "P-2"), ("StudyInstanceUID", "1.2.3"),
]  # fmt: skip


@pytest.mark.parametrize(("keyword", "value"), NAMED)
def test_what_was_once_passed(keyword, value, folder):
    path, source, derived = made(folder, "OP8")
    plain, forged = copy.deepcopy(derived), copy.deepcopy(derived)
    for mutant in (plain, forged):
        setattr(mutant, keyword, value)
    forge(forged)
    assert assert_derived(plain, pixel_digest=PIXELS)  # without the source
    assert any(keyword in problem for problem in problems(forged, source, path))


# ------------------------------------------------------------------------------------------------ what may differ


def texts(dataset, before, after):
    """Replace a text wherever it stands."""
    for element in dataset.iterall():
        if isinstance(element.value, str) and before in element.value:
            element.value = element.value.replace(before, after)
        elif isinstance(element.value, MultiValue) and any(before in str(value) for value in element.value):
            element.value = [str(value).replace(before, after) for value in element.value]


def all_times(derived):
    later = PROVENANCE.made + timedelta(days=1)
    texts(derived, PROVENANCE.made.strftime("%Y%m%d"), later.strftime("%Y%m%d"))


DIFFERENT = {
    "InstanceCreationDate, InstanceCreationTime, SeriesDate, SeriesTime, ContentDate, ContentTime, "
    "ContributionDateTime": ("OP8", all_times),
    "SoftwareVersions": ("OP8", lambda derived: texts(derived, "engine torch fp32", "engine openvino bf16")),
    "DerivationDescription": ("EnhancedMR", lambda derived: texts(derived, "LaSSIM 0.973", "LaSSIM 0.999")),
    "ContributionDescription": ("OP8", lambda derived: texts(derived, "strength 0.5", "strength 0.6"), UNKNOWN),
    "OriginalAttributesSequence": ("OP8", lambda derived: name_replaced(derived, "2.25.1", "2.25.2")),
    "OperatorsName": ("OP8", lambda derived: None),  # test_a_released_object
    "PixelData": ("OP8", lambda derived: None),  # test_new_pixels_are_the_signature_s_business
}


def test_the_list_says_all():
    assert DIFFERENT.keys() == MAY_DIFFER.keys()


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_may_differ_is_covered_by_the_digest(name, folder):
    kind, apply, *provenance = DIFFERENT[name]
    path, source, derived = made(folder, kind, *provenance)
    mutant = copy.deepcopy(derived)
    apply(mutant)
    if mutant != derived:
        if name != "OriginalAttributesSequence":  # which seals
            assert problems(mutant, source, path)
        forge(mutant)
    assert problems(mutant, source, path) == []


def test_the_series_number_of_an_unknown_recipe(folder):
    path, source, derived = made(folder, "OP8", UNKNOWN)
    for number, good in ((302, True), (402, False)):
        mutant = copy.deepcopy(derived)
        mutant.SeriesNumber = number
        forge(mutant)
        assert (problems(mutant, source, path) == []) is good


@pytest.mark.parametrize("keyword", ["ContentTime", "SeriesDate", "InstanceCreationDate"])
def test_one_time_alone_does_not_differ(keyword, folder):
    path, source, derived = made(folder, "OP8")
    mutant = copy.deepcopy(derived)
    setattr(mutant, keyword, "20300101" if "Date" in keyword else "111111")
    forge(mutant)
    assert any(keyword in problem for problem in problems(mutant, source, path))


@pytest.mark.parametrize(
    ("before", "after"),
    [("Structure check passed: LaSSIM 0.973.", "All is well."), ("Not for quantitative measurement.", "For all."),
     ("Rows, columns and geometry are the source image's.", ""), ("medenhance-dicom 0.1.0", "medenhance-dicom 9")],
)  # fmt: skip
def test_the_description_is_held_to_its_form(before, after, folder):
    path, source, derived = made(folder, "OP8")
    mutant = copy.deepcopy(derived)
    mutant.DerivationDescription = str(mutant.DerivationDescription).replace(before, after)
    forge(mutant)
    assert mutant.DerivationDescription != derived.DerivationDescription
    assert problems(mutant, source, path)


def test_a_shipped_recipe_says_what_it_is(folder):
    said = shipped("us-clahe")
    path, source, good = made(folder, "US", said)
    assert problems(good, source, path) == []
    for change in (
        {"recipe": "us-other"}, {"parameters": "strength 9"}, {"series_description": "better"},
        {"series_number_offset": 98}, {"steps": steps_of(["sharpen"])}, {"not_quantitative": False},
    ):  # fmt: skip
        path, source, other = made(folder, "US", replace(said, **change))
        assert problems(other, source, path), change


@pytest.mark.parametrize("name", ["US", "CT", "EnhancedMR"])
def test_a_released_object_is_what_its_source_gives(name, folder):
    said = replace(FULL, verdict=f"Structure check failed and {WITHHELD}, LaSSIM 0.300.")
    path, source, derived = made(folder, name, said)
    name_replaced(derived := copy.deepcopy(derived), "2.25.1", "2.25.2")
    given = released(derived, by="Test^One", reason="seen and good", now=PROVENANCE.made + timedelta(hours=3))
    assert problems(given, source, path) == []
    for keyword, value in (("PatientID", "P-9"), ("SeriesInstanceUID", "1.2.3"), ("SeriesDescription", "x [enhanced]")):
        mutant = copy.deepcopy(given)
        setattr(mutant, keyword, value)
        forge(mutant)
        assert any(keyword in problem for problem in problems(mutant, source, path)), keyword


# ------------------------------------------------------------------------------------------------ pixels, files


def written(folder, provenance=FULL, **attributes):
    """Source, derived file with every byte one higher but for padding, and its pixels' file."""
    source = synthetic.make_instance("CT", **attributes)
    source.save_as(folder / "source.dcm", enforce_file_format=True)
    pixels = pixel_format(source)
    stored = np.frombuffer(source.PixelData, "<u2")
    data = np.where(stored == attributes.get("PixelPaddingValue", -1), stored, stored ^ 1).astype("<u2").tobytes()
    (folder / "pixels").write_bytes(data)
    summary = PixelSummary(hashlib.sha256(data).hexdigest(), pixels, 1, hashlib.sha256(source.PixelData).hexdigest())
    derived = derive_instance(source, summary, provenance)
    write_instance(derived, folder / "pixels", folder / "derived.dcm")
    return source, derived


def rewrite(folder, derived, data):
    """Other pixels, with every digest anew."""
    item, recorded = own_item(derived), recorded_digests(derived)["pixels"]
    digest = hashlib.sha256(data).hexdigest()
    item.ContributionDescription = item.ContributionDescription.replace(recorded, digest)
    item.SoftwareVersions = [text.replace(recorded[:32], digest[:32]) for text in item.SoftwareVersions]
    seal(derived)
    (folder / "pixels").write_bytes(data)
    write_instance(derived, folder / "pixels", folder / "derived.dcm")


def checked(folder, decoder):
    source = folder / "source.dcm"
    return check_file(folder / "derived.dcm", {str(read_instance(source).SOPInstanceUID): [source]}, decoder=decoder)


def test_an_object_made_of_other_pixels_than_its_source_has(tmp_path, decoder):
    written(tmp_path)
    assert checked(tmp_path, decoder) == []
    other = dcmread(tmp_path / "source.dcm")
    other.PixelData = bytes([other.PixelData[0] ^ 1, *other.PixelData[1:]])
    other.save_as(tmp_path / "source.dcm", enforce_file_format=True)
    assert any("ContributionDescription" in problem for problem in checked(tmp_path, decoder))
    assert checked(tmp_path, None) == []  # header against header


def test_the_identity_recipe_changes_no_pixel(tmp_path, decoder):
    written(tmp_path, shipped("identity"))
    assert checked(tmp_path, decoder) == ["PixelData: not the source's, and the identity recipe changes none"]


def test_padding_is_the_source_s(tmp_path, decoder):
    _, derived = written(tmp_path, PixelPaddingValue=0)
    assert checked(tmp_path, decoder) == []
    data = bytearray((tmp_path / "pixels").read_bytes())
    data[0] = 9  # the source's first pixel is padding
    rewrite(tmp_path, derived, bytes(data))
    assert checked(tmp_path, decoder) == ["PixelData: padding is not the source's"]


def test_new_pixels_are_the_signature_s_business(tmp_path, decoder):
    _, derived = written(tmp_path)
    data = bytearray((tmp_path / "pixels").read_bytes())
    data[40] ^= 2
    (tmp_path / "pixels").write_bytes(data)
    write_instance(derived, tmp_path / "pixels", tmp_path / "derived.dcm")
    assert checked(tmp_path, decoder) == ["PixelData: not the pixels whose digest was recorded"]
    rewrite(tmp_path, derived, bytes(data))
    assert checked(tmp_path, decoder) == []
    create_key(tmp_path / "key")
    assert check_file(tmp_path / "derived.dcm", keys=load_public_keys(tmp_path / "key")) == [NOT_SIGNED]


def test_overlays_in_the_pixel_cells_are_the_source_s(tmp_path, decoder):
    source = synthetic.make_instance("CT", BitsStored=12, HighBit=11)
    source.add_new(0x60000010, "US", 16)
    source.add_new(0x60000011, "US", 12)
    source.add_new(0x60000040, "CS", "G")
    source.add_new(0x60000050, "SS", [1, 1])
    source.add_new(0x60000100, "US", 16)
    source.add_new(0x60000102, "US", 15)
    cells = np.frombuffer(source.PixelData, "<u2") | np.uint16(0x8000) * (np.arange(192) % 3 == 0).astype(np.uint16)
    source.PixelData = cells.astype("<u2").tobytes()
    source.save_as(tmp_path / "source.dcm", enforce_file_format=True)
    header, data = read_instance(tmp_path / "source.dcm"), bytes(384)
    frame = stored_frame(header, cells.reshape(16, 12), 0)
    (tmp_path / "pixels").write_bytes(data)
    summary = PixelSummary(
        hashlib.sha256(data).hexdigest(), pixel_format(header), 1, hashlib.sha256(frame.stored.tobytes()).hexdigest(),
        overlays={group: packed([plane]) for group, plane in frame.overlays.items()},
    )  # fmt: skip
    derived = derive_instance(header, summary, FULL)
    assert (0x6000, 0x3000) in derived
    write_instance(derived, tmp_path / "pixels", tmp_path / "derived.dcm")
    assert checked(tmp_path, decoder) == checked(tmp_path, None) == []
    derived[0x6000, 0x3000].value = bytes(len(derived[0x6000, 0x3000].value))
    forge(derived)
    write_instance(derived, tmp_path / "pixels", tmp_path / "derived.dcm")
    assert any("(6000,3000)" in problem for problem in checked(tmp_path, decoder))


# ------------------------------------------------------------------------------------------------ older objects


def of_rule_1(derived, source):
    """As commit by commit they were written before UIDs covered the header."""
    item, recorded = own_item(derived), recorded_digests(derived)
    kept = [f"{name} sha256:{recorded[name]}" for name in ("recipe", "weights", "guide", "pixels") if name in recorded]
    item.ContributionDescription = "; ".join(["strength 0.5", *kept])
    method = [recorded.get(name, "") for name in ("recipe", "weights", "guide")]
    derived.SOPInstanceUID = derived_uid(str(source.SOPInstanceUID), *method, recorded["pixels"])
    derived.SeriesInstanceUID = derived_uid("series", str(source.SeriesInstanceUID), *method)


@pytest.mark.parametrize("name", ["OP8", "CT", "EnhancedMR", "ByteSC", "US"])
def test_objects_of_rule_1_are_held_to_what_both_rules_say(name, folder):
    path, source, derived = made(folder, name)
    old, source = copy.deepcopy(derived), copy.deepcopy(source)
    of_rule_1(old, source)
    if "RescaleSlope" in old and name != "CT":
        del old.RescaleSlope  # left behind then
    if name == "CT":
        old.WindowCenter = source.WindowCenter = ["7", ""]  # copied as it was
    assert problems(old, source, path) == []
    for keyword, value in (("PatientID", "P-9"), ("SeriesInstanceUID", "1.2.3"), ("BitsStored", 5), ("StudyTime", "1")):
        mutant = copy.deepcopy(old)
        setattr(mutant, keyword, value)
        assert any(keyword in problem for problem in problems(mutant, source, path)), keyword


def test_objects_of_another_version_are_held_to_what_both_say(folder):
    path, source, derived = made(folder, "OP8", replace(FULL, version="9.9"))
    mutant = copy.deepcopy(derived)
    del mutant.PatientOrientation  # perhaps it does not copy that
    forge(mutant)
    assert problems(mutant, source, path) == []
    mutant.ImageLaterality = "L"
    forge(mutant)
    assert problems(mutant, source, path) == ["ImageLaterality: differs from the source"]
