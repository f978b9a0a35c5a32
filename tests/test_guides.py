"""Stored guides: made, found, chosen, refused, and what they leave behind in the derived objects."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from PIL import Image
from pydicom import dcmread
from safetensors.numpy import save as save_arrays
from safetensors.torch import save
from skimage import data

from medenhance_dicom import cli, guides, selection
from medenhance_dicom.enhance import Enhancement
from medenhance_dicom.errors import InputError, ModelError, OutputError, RecipeError
from medenhance_dicom.guides import (
    Guide,
    Source,
    average_gradient,
    choose_guide,
    encode_guide,
    entropy,
    find_guides,
    guide_folders,
    influence,
    load_guide,
    picture_quality,
    quality_warnings,
    read_picture,
    save_guide,
    unevenness,
    verify_guide,
)
from medenhance_dicom.guiding import guide_influence, make_guide
from medenhance_dicom.identity import recorded_digests
from medenhance_dicom.manifest import load_guide_encoder, load_manifest
from medenhance_dicom.networks import build_network
from medenhance_dicom.prepare import prepare_recipe
from medenhance_dicom.provenance import Provenance
from medenhance_dicom.recipe import Recipe
from medenhance_dicom.selection import Settings, plan
from medenhance_dicom.verification.files import verify_files
from medenhance_dicom.verify import assert_derived
from tests import synthetic

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
CAMERA = (data.camera() / 255).astype(np.float32)[..., None]
COLOUR = (data.astronaut() / 255).astype(np.float32)


def to_half(network):
    tensors = {k: t.half() if t.is_floating_point() else t for k, t in network.state_dict().items()}
    return save({k: t.contiguous() for k, t in tensors.items()})


def write_models(folder, seed=0, guidance="guided"):
    """A models folder whose weights `tiny` are a random HQG-Net with its guide encoder."""
    torch.manual_seed(seed)
    config = {"channels": 3, "width": 4, "stem": "full", "norm": "instance", "guidance": guidance, "head": "gain"}
    generator = build_network("hqgnet", **config)
    with torch.no_grad():
        generator.last.weight.normal_(0, 0.3)
        for block in generator.vin:
            if block.fc is not None:
                block.fc.weight.normal_(0, 0.3)
    encoder = build_network("guide_encoder", channels=3, width=4)
    with torch.no_grad():
        encoder.fc.weight.normal_(0, 2)
    folder.mkdir(parents=True, exist_ok=True)
    digests = {}
    for name, network in (("tiny", generator), ("encoder", encoder)):
        content = to_half(network)
        (folder / f"{name}.safetensors").write_bytes(content)
        digests[name] = hashlib.sha256(content).hexdigest()
    (folder / "manifest.toml").write_text(f"""
[weights.tiny]
file = "tiny.safetensors"
sha256 = "{digests["tiny"]}"
network = "hqgnet"
config = {{ {", ".join(f"{k} = {json.dumps(v)}" for k, v in config.items())} }}
input = {{ channels = 3, multiple_of = 16, working_size = 64 }}
gate = {{ minimum = 0.8, warn_below = 0.9 }}
device_uid = "2.25.1"
match = {{ Modality = ["OP"], SOPClassUID = ["1.2.840.10008.5.1.4.1.1.77.1.5.1"], PhotometricInterpretation = ["RGB"] }}
licence = "CC0-1.0"
research_only = true

[weights.tiny.guide_encoder]
file = "encoder.safetensors"
sha256 = "{digests["encoder"]}"
config = {{ channels = 3, width = 4 }}
size = 64
""")
    return folder


@pytest.fixture
def models(tmp_path, monkeypatch):
    folder = write_models(tmp_path / "models")
    monkeypatch.setenv("MEDENHANCE_MODELS", str(folder))
    monkeypatch.setenv("MEDENHANCE_GUIDES", str(tmp_path / "guides"))
    return folder


@pytest.fixture
def fundus(tmp_path):
    """An ophthalmic photograph of 64 x 48 pixels."""
    return synthetic.make_file(tmp_path / "op.dcm", "OP8", rows=48, columns=64)


def guide(key="a", *, value=1.0, **changes):
    v_z = np.linspace(-value, value, 64, dtype=np.float32)
    made = Guide(
        key, v_z, "tiny", "ab" * 32, "cd" * 32, "OP", "any", "2026-03-04T12:00:00+00:00", (Source("ef" * 32, {}),)
    )
    return replace(made, **changes)


def encode(key, seed, models, **changes):
    """A guide that fits `tiny`, of a random picture; saved where guides are looked for."""
    picture = np.random.default_rng(seed).random((48, 64, 3), dtype=np.float32)
    said = {"field": "OP", "device_class": "any", "weights_key": "tiny", "created": "2026-03-04"} | changes
    made = encode_guide([picture], key, manifest=load_manifest(models), **said)
    save_guide(made, guide_folders()[0])
    return made


def enhance(path, output, **options):
    settings = Settings(output=output, weights="tiny", device="cpu", engine="torch", gate="off", **options)
    return list(Enhancement(settings, now=NOON).outcomes([path]))


def run(monkeypatch, *words):
    """The command line in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["medenhance-dicom", *map(str, words)])
    with pytest.raises(SystemExit) as done:
        cli.main()
    return done.value.code or 0


# -------------------------------------------------------------------------------------------------------------- quality


def test_average_gradient_and_entropy_have_their_known_values():
    assert average_gradient(CAMERA) == pytest.approx(7.488, abs=1e-3)
    assert entropy(CAMERA) == pytest.approx(7.2317, abs=1e-4)
    v, u = np.mgrid[0:32, 0:32].astype(np.float32)
    assert average_gradient(((2 * u + 5 * v) / 255)[..., None]) == pytest.approx(np.sqrt(14.5), rel=1e-5)
    every_level = np.arange(256, dtype=np.float32).reshape(16, 16, 1) / 255
    assert entropy(every_level) == 8
    assert entropy(np.full((9, 9, 3), 0.5, np.float32)) == 0


def test_unevenness_is_of_the_light_and_not_of_texture_or_surround():
    flat = np.full((96, 128, 1), 0.6, np.float32)
    assert unevenness(flat) == pytest.approx(0, abs=1e-5)
    textured = flat + 0.2 * (np.indices((96, 128)).sum(0)[..., None] % 2 - 0.5).astype(np.float32)
    assert unevenness(textured) < 0.01
    v, u = np.mgrid[-1:1:96j, -1:1:128j].astype(np.float32)
    round_field = np.where((u**2 + v**2 < 0.9)[..., None], flat, 0).astype(np.float32)
    assert unevenness(round_field) < 0.05
    ramp = np.broadcast_to(np.linspace(0.1, 0.9, 256, dtype=np.float32)[None, :, None], (256, 256, 1))
    assert unevenness(ramp) == pytest.approx(0.8 / np.sqrt(12) / 0.5, rel=0.15)  # less the rims
    assert unevenness(np.zeros((32, 32, 3), np.float32)) == 0


def test_poor_pictures_are_warned_of_and_good_ones_not():
    good = guide(sources=(Source("", picture_quality(CAMERA[::2, ::2] * 0.4 + 0.4)),))
    dull = guide(sources=(Source("", picture_quality(np.full((64, 64, 1), 0.5, np.float32))),))
    lamp = guide(sources=(Source("", {"unevenness": 0.9, "average_gradient": 5.0, "entropy": 7.0}),))
    assert quality_warnings(good) == []
    assert [w.split(":")[1].split(" (")[0] for w in quality_warnings(dull)] == [" blurred or flat", " few grey levels"]
    assert "picture 1: uneven light (0.90" in quality_warnings(lamp)[0]


# ---------------------------------------------------------------------------------------------------------------- files


def test_a_guide_comes_back_and_its_digest_is_the_files(tmp_path):
    made = guide(device_class="Zürich Retina", sources=(Source("12" * 32, {"entropy": 6.5}), Source("34" * 32, {})))
    path = save_guide(made, tmp_path / "new" / "folder")
    assert path.name == "a.safetensors"
    loaded = load_guide(path)
    assert loaded.description() == made.description()
    assert np.array_equal(loaded.v_z, made.v_z)
    assert made.digest == loaded.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert save_guide(loaded, path.parent).read_bytes() == made.content
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]


def test_the_file_is_safetensors_to_others(tmp_path):
    path = save_guide(guide(), tmp_path)
    with safetensors.safe_open(path, "np") as file:
        assert list(file.keys()) == ["v_z"]
        assert np.array_equal(file.get_tensor("v_z"), guide().v_z)
        texts = file.metadata()
    assert (texts["format"], texts["key"], texts["weights_sha256"]) == ("medenhance-dicom/guide/1", "a", "ab" * 32)
    assert json.loads(texts["sources"]) == [{"quality": {}, "sha256": "ef" * 32}]


def test_no_altered_byte_goes_unseen(tmp_path):
    content = guide().content
    path = tmp_path / "a.safetensors"
    for place in [*range(8, len(content), 13), len(content) - 256, len(content) - 1]:
        altered = bytearray(content)
        altered[place] ^= 1
        path.write_bytes(altered)
        with pytest.raises(ModelError, match=r"guide a\.safetensors|guide a:|guide's key"):
            load_guide(path)
    for cut in (0, 7, 100, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(ModelError, match="not a safetensors file"):
            load_guide(path)


def test_a_vector_exchanged_between_guides_is_seen(tmp_path):
    one, other = guide().content, guide(value=2.0).content
    path = tmp_path / "a.safetensors"
    path.write_bytes(one[:-256] + other[-256:])
    with pytest.raises(ModelError, match="was altered"):
        load_guide(path)


def test_other_safetensors_and_renamed_guides_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(save_arrays({"v_z": guide().v_z}))
    with pytest.raises(ModelError, match="not a guide of format"):
        load_guide(path)
    path.write_bytes(guide("b").content)
    with pytest.raises(ModelError, match="its key is b"):
        load_guide(path)
    with pytest.raises(ModelError, match="No such file"):
        load_guide(tmp_path / "none.safetensors")


def test_vectors_and_keys_that_cannot_be_are_refused():
    bad = np.zeros(64, np.float32)
    bad[3] = np.nan
    for v_z, message in ((bad, "non-finite"), (np.zeros(63, np.float32), r"\(64,\)"), (np.zeros(64), "float32")):
        with pytest.raises(ModelError, match=message):
            guide(v_z=v_z)
    for key in ("", "A", "../a", "a b", "a" * 49, ".a", "müller"):
        with pytest.raises(ModelError, match="key"):
            guide(key)


def test_a_key_is_not_taken_twice_in_one_folder(tmp_path):
    save_guide(guide(), tmp_path)
    with pytest.raises(OutputError, match="take another key"):
        save_guide(guide(value=2.0), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        save_guide(guide(), tmp_path / "file")


def test_ones_own_guides_hide_shipped_ones(models, tmp_path, monkeypatch):
    shipped = models / "guides"
    for key in ("a", "b"):
        save_guide(guide(key), shipped)
    own = save_guide(guide(value=2.0), tmp_path / "guides")
    assert find_guides() == {"a": own, "b": shipped / "b.safetensors"}
    monkeypatch.delenv("MEDENHANCE_GUIDES")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert guide_folders() == [tmp_path / "data" / "medenhance-dicom" / "guides", shipped]
    assert find_guides()["a"] == shipped / "a.safetensors"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert guide_folders()[0] == Path.home() / ".local/share/medenhance-dicom/guides"


# ------------------------------------------------------------------------------------------------------------- choosing


def chosen(tmp_path, models, name, facts, *made):
    entry = load_manifest(models).entry("tiny")
    found = {
        g.key: save_guide(replace(g, weights_sha256=g.weights_sha256.replace("ab" * 32, entry.sha256)), tmp_path)
        for g in made
    }
    return choose_guide("tiny", entry, name, facts, found).key


OP = {"Modality": "OP", "Manufacturer": "Scanners Ltd", "ManufacturerModelName": "Retina 300"}


def test_auto_takes_modality_then_camera_then_any_then_the_first_key(tmp_path, models):
    everyone = (
        guide("z"), guide("y"), guide("retina", device_class="RETINA"), guide("retina-3", device_class="retina 3"),
        guide("maker", device_class="scanners"), guide("other", device_class="Topcon"), guide("cornea", field="CFM"),
        guide("a-stranger", weights_sha256="99" * 32),
    )  # fmt: skip
    assert chosen(tmp_path, models, "auto", OP, *everyone) == "maker"
    assert chosen(tmp_path, models, "auto", OP | {"Manufacturer": None}, *everyone) == "retina-3"
    assert chosen(tmp_path, models, "auto", {"Modality": "OP"}, *everyone) == "y"
    assert chosen(tmp_path, models, "auto", {"Modality": "CFM"}, *everyone) == "cornea"
    assert chosen(tmp_path, models, "auto", {"Modality": "CFM"}, guide("both", field="OP,CFM")) == "both"
    assert chosen(tmp_path, models, "other", OP, *everyone) == "other"  # by name nothing but the weights has to fit


def test_what_does_not_fit_is_refused_and_named(tmp_path, models):
    entry = load_manifest(models).entry("tiny")
    stranger = guide("old", weights="tiny-0", weights_sha256="99" * 32)
    with pytest.raises(
        ModelError, match=f"old was encoded with other weights: tiny-0 {'99' * 6}, not tiny {entry.sha256[:12]}"
    ):
        chosen(tmp_path, models, "old", OP, stranger)
    with pytest.raises(ModelError, match=r"no guide 'none'; there are a"):
        chosen(tmp_path, models, "none", OP, guide())
    with pytest.raises(ModelError, match=r"no guide fits tiny, modality ES .* there are a \(OP, any\)"):
        chosen(tmp_path, models, "auto", {"Modality": "ES"}, guide(), stranger)
    with pytest.raises(ModelError, match="there are none"):
        choose_guide("tiny", entry, "auto", {}, {})


def test_auto_does_not_pass_over_an_altered_guide(tmp_path, models):
    encode("good", 0, models)
    bad = encode("bad", 1, models)
    (tmp_path / "guides" / "bad.safetensors").write_bytes(bad.content[:-1] + b"\x7f")
    with pytest.raises(ModelError, match=r"bad\.safetensors: was altered"):
        choose_guide("tiny", load_manifest(models).entry("tiny"), "auto", OP)


# ------------------------------------------------------------------------------------------------------------- encoding


def test_the_vector_is_the_mean_of_what_the_encoder_says(models):
    manifest = load_manifest(models)
    encoder = load_guide_encoder("tiny", manifest)
    wide = np.random.default_rng(0).random((64, 128, 3), dtype=np.float32)
    square = np.zeros((64, 64, 3), np.float32)
    square[16:48] = wide.reshape(32, 2, 64, 2, 3).mean(axis=(1, 3))  # longer side to 64 by areas, on black
    grey = np.random.default_rng(1).random((64, 64, 1), dtype=np.float32)
    with torch.no_grad():
        batch = torch.from_numpy(np.stack([square, np.repeat(grey, 3, axis=2)])).permute(0, 3, 1, 2)
        expected = torch.cat([encoder(x[None]) for x in batch]).mean(0).numpy()
    said = {"field": "OP", "device_class": "any", "weights_key": "tiny", "manifest": manifest, "created": "now"}
    made = encode_guide([wide, grey], "two", **said)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(made.v_z, expected, atol=1e-5)
    assert made.fits(manifest.entry("tiny"))
    assert made.encoder_sha256 == hashlib.sha256((models / "encoder.safetensors").read_bytes()).hexdigest()
    assert made.sources[1] == Source(hashlib.sha256(grey.tobytes()).hexdigest(), picture_quality(grey))
    assert made.digest == encode_guide([wide, grey], "two", **said).digest


def test_colour_pictures_do_not_lead_grey_weights():
    colour = np.random.default_rng(0).random((8, 8, 3), dtype=np.float32)
    grey = np.repeat(colour[..., :1], 3, axis=2)
    assert np.array_equal(guides._with_channels(grey, 1), grey[..., :1])
    with pytest.raises(ModelError, match="colour picture"):
        guides._with_channels(colour, 1)


def test_pictures_are_read_in_every_depth(tmp_path):
    deep = (np.arange(64).reshape(8, 8) * 1024).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "16.png")
    np.testing.assert_allclose(read_picture(tmp_path / "16.png")[..., 0], deep / 65535, atol=1e-6)
    Image.fromarray((COLOUR[:8, :8] * 255).astype(np.uint8)).convert("P").save(tmp_path / "palette.png")
    assert read_picture(tmp_path / "palette.png").shape == (8, 8, 3)
    Image.fromarray(np.full((8, 8), 51, np.uint8)).save(tmp_path / "8.png")
    assert read_picture(tmp_path / "8.png").tolist() == np.full((8, 8, 1), np.float32(0.2)).tolist()
    (tmp_path / "no.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(InputError, match=r"no\.png: no picture"):
        read_picture(tmp_path / "no.png")


def test_dicom_pictures_go_the_way_of_enhance(models, tmp_path):
    """MONOCHROME1 is inverted and only the first frame counts, so another second frame gives the same guide."""
    one = synthetic.make_instance("OP8", rows=48, columns=64, frames=2)
    other = synthetic.make_instance("OP8", rows=48, columns=64, frames=2)
    half = len(other.PixelData) // 2
    other.PixelData = other.PixelData[:half] + bytes(half)
    made = []
    for name, instance in (("one", one), ("other", other)):
        instance.save_as(tmp_path / name, enforce_file_format=True)
        made.append(make_guide([tmp_path / name], "k", weights="tiny", created=NOON))
    assert made[0].digest == made[1].digest
    unit = one.pixel_array[0].astype(np.float32) / 255
    direct = encode_guide([unit], "k", field="OP", device_class="any", weights_key="tiny",
                          manifest=load_manifest(models), created=NOON.isoformat(timespec="seconds"))  # fmt: skip
    np.testing.assert_allclose(made[0].v_z, direct.v_z, atol=1e-5)


def test_what_lies_outside_the_field_of_view_does_not_count(models, tmp_path):
    v, u = np.mgrid[-1:1:128j, -1.2:1.2:160j]
    round_field = (u**2 + v**2 < 0.9)[..., None]
    picture = np.where(round_field, 60 + 100 * np.random.default_rng(0).random((128, 160, 3)), 0).astype(np.uint8)
    written = picture.copy()
    written[2:14:2, 2:40] = 250  # a date in the corner
    made, raw = [], []
    for name, pixels in (("plain", picture), ("written", written)):
        instance = synthetic.make_instance("OP8", rows=128, columns=160)
        instance.PixelData = pixels.tobytes()
        instance.save_as(tmp_path / name, enforce_file_format=True)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        made.append(make_guide([tmp_path / name], "k", weights="tiny", created=NOON).v_z)
        raw.append(make_guide([tmp_path / f"{name}.png"], "k", weights="tiny", field="OP", created=NOON).v_z)
    assert np.abs(made[0] - made[1]).max() < 0.1 * np.abs(raw[0] - raw[1]).max()


def test_folders_of_mixed_files_make_one_guide(models, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    synthetic.make_file(folder / "op", "OP8", rows=48, columns=64)
    Image.fromarray((COLOUR * 255).astype(np.uint8)).save(folder / "eye.png")
    (folder / "README").write_text("not a picture")
    assert len(make_guide([folder], "k", weights="tiny", field="OP", created=NOON).sources) == 2
    with pytest.raises(RecipeError, match="--field"):
        make_guide([folder], "k", weights="tiny", created=NOON)
    (folder / "broken.png").write_bytes(b"no")
    with pytest.raises(InputError, match=r"broken\.png"):
        make_guide([folder], "k", weights="tiny", field="OP", created=NOON)


# -------------------------------------------------------------------------------------------------------- the whole way


@pytest.mark.slow
def test_from_a_picture_to_the_tags(models, tmp_path, fundus, monkeypatch, capsys):
    source = dcmread(fundus)
    assert run(monkeypatch, "guides", "add", fundus, "--weights", "tiny", "--key", "clear-eye", "--json") == 0
    added = json.loads(capsys.readouterr().out)
    file = tmp_path / "guides" / "clear-eye.safetensors"
    assert added["file"] == str(file)
    assert added["digest"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (added["field"], added["device_class"], len(added["sources"])) == ("OP", "any", 1)

    content = file.read_bytes()
    assert len(content) < 2000
    for private in (
        str(source.PatientName),
        "Müller",
        source.PatientID,
        source.SOPInstanceUID,
        "op.dcm",
        str(tmp_path),
    ):
        assert private.encode() not in content
        assert private.encode("latin-1") not in content
    assert source.PixelData[:64] not in content

    assert run(monkeypatch, "guides", "list") == 0
    assert capsys.readouterr().out.split() == ["clear-eye", "tiny", "OP", "any"]
    assert run(monkeypatch, "guides", "show", "clear-eye", "--json") == 0
    assert json.loads(capsys.readouterr().out)["digest"] == added["digest"]
    assert run(monkeypatch, "guides", "verify") == 0
    assert capsys.readouterr().out.split() == ["clear-eye", "ok"]

    (models / "encoder.safetensors").unlink()  # inference needs no encoder
    words = ["enhance", fundus, "-o", tmp_path / "out", "--weights", "tiny", "--device", "cpu", "--gate", "off"]
    assert run(monkeypatch, *words, "--dry-run", "--json") == 0
    planned = json.loads(capsys.readouterr().out)["series"][0]
    assert (planned["weights"], planned["guide"]) == ("tiny", "clear-eye")
    assert run(monkeypatch, *words, "--engine", "torch", "--json") == 0
    outcome = json.loads(capsys.readouterr().out)["outcomes"][0]
    assert (outcome["weights"], outcome["guide"]) == ("tiny", "clear-eye")
    derived = dcmread(outcome["derived"])
    assert "hqgnet with weights tiny, guide clear-eye." in derived.DerivationDescription
    ours = derived.ContributingEquipmentSequence[-1]
    assert "guide clear-eye" in list(ours.SoftwareVersions)
    assert f"guide sha256:{added['digest'][:32]}" in list(ours.SoftwareVersions)
    assert f"guide sha256:{added['digest']}" in ours.ContributionDescription
    assert recorded_digests(derived)["guide"] == added["digest"]
    assert [r.problems for r in verify_files(tmp_path / "out", fundus)] == [[]]


@pytest.mark.slow
def test_the_guide_is_part_of_the_uids(models, tmp_path, fundus):
    encode("a", 0, models)
    encode("b", 1, models)
    by_auto, again, other = (enhance(fundus, tmp_path / f"{n}", guide=key)[0] for n, key in enumerate((None, "a", "b")))
    assert [o.guide for o in (by_auto, again, other)] == ["a", "a", "b"]
    assert by_auto.derived_sop_instance_uid == again.derived_sop_instance_uid
    assert by_auto.derived_sop_instance_uid != other.derived_sop_instance_uid
    first, second, third = (dcmread(o.derived) for o in (by_auto, again, other))
    assert first.PixelData == second.PixelData != third.PixelData
    assert first.SeriesInstanceUID == second.SeriesInstanceUID != third.SeriesInstanceUID


def test_the_same_pixels_by_another_guide_are_another_object(models, tmp_path, fundus, monkeypatch):
    """The digest is in the UID itself, not only by way of the pixels."""
    vector = encode("a", 0, models).v_z
    save_guide(replace(load_guide(find_guides()["a"]), key="twin", v_z=vector.copy()), tmp_path / "guides")
    one, twin = (enhance(fundus, tmp_path / key, guide=key)[0] for key in ("a", "twin"))
    assert dcmread(one.derived).PixelData == dcmread(twin.derived).PixelData
    assert one.derived_sop_instance_uid != twin.derived_sop_instance_uid


@pytest.mark.slow
def test_each_series_of_a_run_has_its_own_guide(models, tmp_path):
    encode("any-eye", 0, models)
    encode("model-7", 1, models, device_class="Seven")
    folder = tmp_path / "in"
    folder.mkdir()
    synthetic.make_file(folder / "1", "OP8", rows=48, columns=64)
    synthetic.make_file(
        folder / "2", "OP8", rows=48, columns=64, ManufacturerModelName="Camera SEVEN", SOPInstanceUID="1.2.3.4",
        SeriesInstanceUID="1.2.3.5",
    )  # fmt: skip
    found = {Path(o.source).name: o.guide for o in enhance(folder, tmp_path / "out")}
    assert found == {"1": "any-eye", "2": "model-7"}


@pytest.mark.slow
def test_missing_altered_and_foreign_guides_are_exit_8(models, tmp_path, fundus, monkeypatch, capsys):
    words = ["enhance", fundus, "-o", tmp_path / "out", "--weights", "tiny", "--device", "cpu", "--gate", "off"]
    assert run(monkeypatch, *words) == 8
    assert "no guide fits tiny, modality OP" in capsys.readouterr().err
    assert run(monkeypatch, *words, "--guide", "nobody") == 8

    content = encode("a", 0, models).content
    file = tmp_path / "guides" / "a.safetensors"
    file.write_bytes(content[:-4] + b"\0\0\0\0")
    assert run(monkeypatch, *words, "--guide", "a") == 8
    assert run(monkeypatch, "guides", "verify", "a") == 8
    assert "was altered" in capsys.readouterr().err + capsys.readouterr().out
    assert run(monkeypatch, "guides", "show", "a") == 8
    assert run(monkeypatch, "guides", "list") == 0
    assert "was altered" in capsys.readouterr().out

    file.write_bytes(content)
    old = load_manifest().entry("tiny").sha256
    write_models(models, seed=5)
    new = load_manifest().entry("tiny").sha256
    assert run(monkeypatch, *words, "--guide", "a") == 8
    said = capsys.readouterr().err
    assert "other weights" in said
    assert old[:12] in said
    assert new[:12] in said
    assert run(monkeypatch, "guides", "verify", "--json") == 8
    assert "other weights" in json.loads(capsys.readouterr().out)["a"]
    assert not list((tmp_path / "out").rglob("*.dcm"))


@pytest.mark.slow
def test_a_named_guide_that_nothing_can_use_is_a_usage_error(models, tmp_path, fundus):
    encode("a", 0, models)
    ultrasound = synthetic.make_file(tmp_path / "us.dcm", "US", rows=48, columns=64)
    with pytest.raises(RecipeError, match=r"--guide a: no recipe chosen here takes a guide \(us-clahe\)"):
        list(plan([ultrasound], Settings(guide="a")))
    with pytest.raises(RecipeError, match=r"--weights tiny: no recipe chosen here takes weights \(us-clahe\)"):
        enhance(ultrasound, tmp_path / "out", guide="a")
    both = list(Enhancement(
        Settings(output=tmp_path / "out", weights="tiny", guide="a", device="cpu", engine="torch", gate="off"), now=NOON
    ).outcomes([ultrasound, fundus]))  # fmt: skip
    assert {Path(o.source).name: o.guide for o in both} == {"us.dcm": None, "op.dcm": "a"}


def test_a_recipe_may_name_its_guide(models, tmp_path, fundus, monkeypatch):
    encode("a", 0, models)
    encode("b", 1, models)
    named = Recipe(
        name="led", summary="", match={"Modality": ("OP",)},
        enhancer={"method": "network", "weights": "tiny", "guide": "b"},
    )  # fmt: skip
    monkeypatch.setattr(selection, "load_recipes", lambda: [named])
    assert enhance(fundus, tmp_path / "out")[0].guide == "b"
    assert enhance(fundus, tmp_path / "out", guide="a")[0].guide == "a"


@pytest.mark.slow
@pytest.mark.parametrize("guidance", ["none", "learned"])
def test_networks_without_guidance_need_no_guide(models, tmp_path, fundus, guidance):
    write_models(models, guidance=guidance)
    outcome = enhance(fundus, tmp_path / "out")[0]
    assert outcome.guide is None
    derived = dcmread(outcome.derived)
    assert f", hqgnet-{guidance} with weights tiny." in derived.DerivationDescription
    assert [r.problems for r in verify_files(tmp_path / "out", fundus)] == [[]]
    with pytest.raises(ModelError, match="take no guide"):
        make_guide([fundus], "k", weights="tiny", created=NOON)


def test_weights_that_need_a_guide_do_not_run_without(models):
    recipe = Recipe(
        name="led", summary="", match={"Modality": ("OP",)}, enhancer={"method": "network", "weights": "tiny"}
    )
    with pytest.raises(ModelError, match="need a stored guide"):
        prepare_recipe(recipe, device="cpu", engine="torch", precision="fp32")


@pytest.mark.parametrize("name", ["OP8", "EnhancedMR"])
def test_an_object_led_by_a_guide_must_name_it(name):
    from medenhance_dicom.derive import PixelSummary, derive_instance
    from medenhance_dicom.frames import pixel_format

    source = synthetic.make_instance(name)
    pixels = pixel_format(source)
    summary = PixelSummary("ab" * 32, pixels, pixels.number_of_frames, "5e" * 32)
    said = {"recipe": "r", "recipe_digest": "cd" * 32, "made": NOON, "weights": "w", "weights_digest": "ef" * 32}
    for method, guide_digest, problems in (
        ("hqgnet", "12" * 32, 0), ("hqgnet", None, 1), ("hqgnet-none", None, 0), ("stillgan", None, 0),
    ):  # fmt: skip
        provenance = Provenance(method=method, guide="a" if guide_digest else None, guide_digest=guide_digest, **said)
        found = assert_derived(derive_instance(source, summary, provenance))
        assert [p for p in found if "guide's digest" in p] == found
        assert len(found) == problems, method


# ------------------------------------------------------------------------------------------------------------ influence


def test_influence_is_measured_in_grey_levels():
    inside = np.ones((4, 4), bool)
    inside[0] = False
    base = np.full((4, 4, 3), 0.5, np.float32)
    outputs = {"a": base - np.float32(2 / 255), "b": base + np.float32(2 / 255), "c": base.copy()}
    for output in outputs.values():
        output[0] = np.random.default_rng(0).random(3)  # outside
    found = influence(outputs, inside)
    assert found.to_mean == pytest.approx({"a": 2, "b": 2, "c": 0}, abs=1e-3)
    assert found.largest == pytest.approx(4, abs=1e-3)
    assert found.pair == ("a", "b")
    assert found.verdict.startswith("one grey level or more")
    near = influence({"a": base, "b": base + np.float32(0.9 / 255)}, inside)
    assert near.verdict.startswith("below one grey level")
    assert influence({"a": base}, inside).pair is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["op.dcm", "eye.png"])
def test_influence_of_the_guides_that_fit(models, tmp_path, fundus, monkeypatch, capsys, name):
    Image.fromarray((COLOUR[::8, ::8] * 255).astype(np.uint8)).save(tmp_path / "eye.png")
    assert run(monkeypatch, "guides", "influence", tmp_path / name) == 8
    for seed, key in enumerate("abc"):
        encode(key, seed, models)
    save_guide(guide("stranger"), tmp_path / "guides")
    capsys.readouterr()
    assert run(monkeypatch, "guides", "influence", tmp_path / name, "--device", "cpu", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["weights"] == "tiny"
    assert set(value["rms_to_mean"]) == {"a", "b", "c"}
    assert 0 < max(value["rms_to_mean"].values()) <= value["largest_pairwise_rms"]
    assert set(value["pair"]) < {"a", "b", "c"}


def test_influence_wants_weights_that_take_a_guide(fundus, monkeypatch):
    monkeypatch.delenv("MEDENHANCE_MODELS", raising=False)
    with pytest.raises(RecipeError, match="--weights"):
        guide_influence(fundus, "stillgan-fundus-2")


def test_dicom_that_the_weights_are_not_for_makes_no_guide_and_shows_no_influence(models, tmp_path):
    encode("a", 0, models)
    ultrasound = synthetic.make_file(tmp_path / "us.dcm", "US", rows=48, columns=64)
    for use in (
        lambda: make_guide([ultrasound], "k", weights="tiny", created=NOON),
        lambda: guide_influence(ultrasound),
    ):
        with pytest.raises(RecipeError, match="WRONG_KIND: weights tiny are not for Modality US"):
            use()


# --------------------------------------------------------------------------------------------------------- command line


def test_models_verify_looks_at_encoders_and_shipped_guides(models, monkeypatch, capsys):
    save_guide(encode("a", 0, models), models / "guides")
    assert run(monkeypatch, "models", "verify", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"tiny": None, "tiny guide encoder": None, "guide a": None}
    content = (models / "encoder.safetensors").read_bytes()
    (models / "encoder.safetensors").write_bytes(content + b"\0")
    (models / "guides" / "a.safetensors").write_bytes(b"no guide")
    assert run(monkeypatch, "models", "verify", "--json") == 8
    problems = json.loads(capsys.readouterr().out)
    assert problems["tiny"] is None
    assert "was altered" in problems["tiny guide encoder"]
    assert "not a safetensors file" in problems["guide a"]


def test_verify_knows_guides_of_weights_that_are_not_here(models, tmp_path):
    path = save_guide(guide("a", weights="gone"), tmp_path)
    assert verify_guide(path, load_manifest(models)).startswith("no weights 'gone'")


def test_adding_says_what_is_missing(models, tmp_path, fundus, monkeypatch, capsys):
    picture = io.BytesIO()
    Image.fromarray(np.full((64, 64, 3), 128, np.uint8)).save(picture, "png")
    (tmp_path / "dull.png").write_bytes(picture.getvalue())
    words = ["guides", "add", "--weights", "tiny", "--key", "k"]
    assert run(monkeypatch, *words, tmp_path / "dull.png") == 2  # no --field
    assert run(monkeypatch, *words, tmp_path / "none.dcm") == 6
    assert run(monkeypatch, *words, tmp_path / "none.png", "--field", "OP") == 6
    assert run(monkeypatch, "guides", "add", "--weights", "tiny", "--key", "Bad Key", fundus) == 2
    assert run(monkeypatch, "guides", "add", "--weights", "none", "--key", "k", fundus) == 8
    (tmp_path / "empty").mkdir()
    assert run(monkeypatch, *words, tmp_path / "empty") == 3
    capsys.readouterr()
    assert (
        run(
            monkeypatch,
            *words,
            tmp_path / "dull.png",
            "--field",
            "op, cfm",
            "--device-class",
            "Any",
            "--output",
            tmp_path / "here",
        )
        == 0
    )
    said = capsys.readouterr()
    assert "warning: picture 1: blurred or flat" in said.err  # a warning, not an error
    made = load_guide(tmp_path / "here" / "k.safetensors")
    assert (made.field, made.device_class) == ("OP,CFM", "any")
    assert run(monkeypatch, *words, fundus, "--output", tmp_path / "here") == 7


@pytest.mark.slow
def test_guides_need_no_torch_but_to_encode(models, tmp_path):
    save_guide(guide(), tmp_path / "guides")
    for words in (["guides", "--help"], ["guides", "add", "--help"], ["guides", "list"], ["guides", "show", "a"]):
        script = (
            "import sys\nfrom medenhance_dicom.cli import app\n"
            f"try:\n    app({words!r})\nexcept SystemExit as done: assert not done.code\n"
            "assert 'torch' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
