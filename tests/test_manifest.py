"""The manifest: what loads, what is refused, and that looking at it costs no torch."""

import hashlib
import subprocess
import sys
import tomllib

import pytest
import torch
from safetensors.torch import save

from medenhance_dicom import manifest as module
from medenhance_dicom.errors import ModelError
from medenhance_dicom.manifest import load_guide_encoder, load_manifest, load_network, verify_all
from medenhance_dicom.networks import build_network

CONFIG = {"channels": 1, "width": 2}


def tiny_network():
    torch.manual_seed(0)
    return build_network("stillgan", **CONFIG).eval()


def write_models(folder, *, tensors=None, content=None, **changes):
    """A models folder with one entry, `tiny`; `changes` replace lines of the entry by raw TOML, None drops them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights").mkdir(exist_ok=True)
    if content is None:
        tensors = tiny_network().state_dict() if tensors is None else tensors
        content = save({name: t.half().contiguous() for name, t in tensors.items()})
    (folder / "weights" / "tiny.safetensors").write_bytes(content)
    lines = {
        "file": '"weights/tiny.safetensors"',
        "sha256": f'"{hashlib.sha256(content).hexdigest()}"',
        "network": '"stillgan"',
        "config": "{ channels = 1, width = 2 }",
        "input": "{ channels = 1, range = [-1.0, 1.0], multiple_of = 128, working_size = 384 }",
        "match": '{ Modality = ["OP"], SOPClassUID = ["1.2.3"], PhotometricInterpretation = ["RGB"] }',
        "gate": "{ minimum = 0.85, warn_below = 0.9 }",
        "device_uid": '"2.25.1234"',
        "trained": '{ recipe = "train/tiny", seed = 1 }',
        "licence": '"CC0-1.0"',
        "research_only": "true",
    } | changes
    text = '[weights."tiny"]\n' + "".join(f"{k} = {v}\n" for k, v in lines.items() if v is not None)
    (folder / "manifest.toml").write_text(text, encoding="utf-8")
    return folder


def test_an_entry_is_read_with_its_contract(tmp_path):
    entry = load_manifest(write_models(tmp_path)).entry("tiny")
    assert (entry.input.channels, entry.input.multiple_of, entry.input.working_size) == (1, 128, 384)
    assert (entry.gate.minimum, entry.gate.warn_below) == (0.85, 0.9)
    assert entry.research_only
    assert entry.match == {"Modality": ("OP",), "SOPClassUID": ("1.2.3",), "PhotometricInterpretation": ("RGB",)}
    assert entry.trained == {"recipe": "train/tiny", "seed": 1}


def test_half_precision_weights_come_back_as_float32_in_eval_mode(tmp_path):
    network = load_network("tiny", load_manifest(write_models(tmp_path)))
    assert not network.training
    for (name, loaded), original in zip(
        network.state_dict().items(), tiny_network().state_dict().values(), strict=True
    ):
        assert loaded.dtype == torch.float32, name
        assert torch.equal(loaded, original.half().float())
    assert not any(p.requires_grad for p in network.parameters())


def test_the_folder_can_be_named_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDENHANCE_MODELS", str(write_models(tmp_path)))
    assert load_manifest().root == tmp_path
    assert load_network("tiny").channels == 1
    monkeypatch.setenv("MEDENHANCE_MODELS", str(tmp_path / "elsewhere"))
    with pytest.raises(ModelError, match=r"no manifest\.toml"):
        load_manifest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gate": "{ minimum = 0.85, warn_bellow = 0.9 }"}, r"weights\.tiny\.gate\.warn_"),
        ({"gate": "{ minimum = 0.95, warn_below = 0.9 }"}, "warn_below is below minimum"),
        ({"input": "{ channels = 2 }"}, r"weights\.tiny\.input\.channels"),
        ({"input": "{ channels = 1, range = [0.0, 1.0] }"}, r"\[-1, 1\]"),
        ({"match": None}, r"weights\.tiny\.match: Field required"),
        ({"match": '{ Modality = ["OP"] }'}, r"weights\.tiny\.match: .*wanted Modality, SOPClassUID, Photometric"),
        ({"match": '{ Modality = [], SOPClassUID = ["1.2"], PhotometricInterpretation = ["RGB"] }'}, "no value"),
        ({"sha256": '"abc"'}, r"weights\.tiny\.sha256"),
        ({"device_uid": '"2.25.x"'}, r"weights\.tiny\.device_uid"),
        ({"licence": None}, r"weights\.tiny\.licence: Field required"),
        ({"colour": '"red"'}, r"weights\.tiny\.colour: Extra inputs"),
        ({"network": "stillgan"}, "not TOML"),
        ({"guide_encoder": f'{{ file = "e", sha256 = "{"0" * 64}", size = 64 }}'}, "is for network hqgnet"),
        ({"network": '"hqgnet"', "guide_encoder": '{ file = "e", size = 64 }'}, r"tiny\.guide_encoder\.sha256"),
        ({"network": '"hqgnet"', "guide_encoder": f'{{ file = "e", sha256 = "{"0" * 64}", size = 9 }}'}, "size"),
    ],
)
def test_a_wrong_entry_is_named_with_file_and_key(tmp_path, changes, message):
    write_models(tmp_path, **changes)
    with pytest.raises(ModelError, match=message) as caught:
        load_manifest(tmp_path)
    assert "manifest.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": '"resnet"'}, "no network 'resnet'"),
        ({"config": "{ channels = 1, widht = 2 }"}, "config does not fit"),
        ({"config": "{ channels = 1, width = 4 }"}, "does not fit 'stillgan'"),
        ({"file": '"weights/none.safetensors"'}, "No such file"),
        ({"file": '"../tiny.safetensors"'}, "outside the models folder"),
        ({"file": '"/etc/hostname"'}, "outside the models folder"),
        ({"sha256": f'"{"0" * 64}"'}, "was altered"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, changes, message):
    manifest = load_manifest(write_models(tmp_path, **changes))
    with pytest.raises(ModelError, match=message):
        load_network("tiny", manifest)


def test_missing_extra_and_non_finite_tensors_are_refused(tmp_path):
    whole = tiny_network().state_dict()
    first = next(iter(whole))
    for tensors, message in (
        ({k: v for k, v in whole.items() if k != first}, "Missing key"),
        (whole | {"more": torch.zeros(1)}, "Unexpected key"),
        (whole | {first: torch.full_like(whole[first], torch.nan)}, "non-finite"),
    ):
        with pytest.raises(ModelError, match=message):
            load_network("tiny", load_manifest(write_models(tmp_path, tensors=tensors)))


def test_a_pickle_is_refused(tmp_path):
    with pytest.raises(ModelError, match="not a safetensors file"):
        load_network("tiny", load_manifest(write_models(tmp_path, content=b"\x80\x04}q\x00." * 9)))


def test_unknown_keys_are_answered_with_the_known_ones(tmp_path):
    with pytest.raises(ModelError, match="it has tiny"):
        load_network("tinny", load_manifest(write_models(tmp_path)))


def test_one_flipped_bit_is_found(tmp_path):
    manifest = load_manifest(write_models(tmp_path))
    assert verify_all(manifest) == {"tiny": None}
    file = tmp_path / "weights" / "tiny.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "was altered" in verify_all(manifest)["tiny"]


def write_guided(folder, **changes):
    """As `write_models`, of an HQG-Net; its guide encoder's file is `weights/encoder.safetensors`."""
    torch.manual_seed(0)
    config = {"channels": 1, "width": 2, "norm": "instance"}
    tensors = build_network("hqgnet", **config).state_dict()
    encoder = {k: t.contiguous() for k, t in build_network("guide_encoder", channels=1, width=2).state_dict().items()}
    content = save(encoder)
    said = {
        "network": '"hqgnet"',
        "config": '{ channels = 1, width = 2, norm = "instance" }',
        "input": "{ channels = 1, multiple_of = 16 }",
        "guide_encoder": '{ file = "weights/encoder.safetensors", size = 64, config = { channels = 1, width = 2 }, '
        f'sha256 = "{hashlib.sha256(content).hexdigest()}" }}',
    }
    write_models(folder, tensors=tensors, **(said | changes))
    (folder / "weights" / "encoder.safetensors").write_bytes(content)
    return folder


def test_a_guide_encoder_loads_beside_its_generator(tmp_path):
    manifest = load_manifest(write_guided(tmp_path))
    entry = manifest.entry("tiny")
    assert (entry.takes_guide, entry.method, entry.guide_encoder.size) == (True, "hqgnet", 64)
    with torch.no_grad():
        v_z = load_guide_encoder("tiny", manifest)(torch.rand(2, 1, 64, 64))
        assert load_network("tiny", manifest)(torch.rand(2, 1, 32, 48), v_z).shape == (2, 1, 32, 48)
    assert v_z.shape == (2, 64)
    assert verify_all(manifest) == {"tiny": None, "tiny guide encoder": None}


def test_a_missing_or_altered_guide_encoder_stops_only_itself(tmp_path):
    manifest = load_manifest(write_guided(tmp_path))
    file = tmp_path / "weights" / "encoder.safetensors"
    file.write_bytes(file.read_bytes() + b"\0")
    for message in ("was altered", "No such file"):
        with pytest.raises(ModelError, match=message):
            load_guide_encoder("tiny", manifest)
        assert message in verify_all(manifest)["tiny guide encoder"]
        assert verify_all(manifest)["tiny"] is None
        assert load_network("tiny", manifest).channels == 1
        file.unlink(missing_ok=True)


def test_other_weights_have_no_guide_encoder(tmp_path):
    manifest = load_manifest(write_models(tmp_path))
    assert not manifest.entry("tiny").takes_guide
    with pytest.raises(ModelError, match="no guide encoder"):
        load_guide_encoder("tiny", manifest)


@pytest.mark.parametrize("guidance", ["none", "learned"])
def test_an_unguided_generator_takes_no_guide_and_says_so(tmp_path, guidance):
    config = f'{{ channels = 1, width = 2, guidance = "{guidance}" }}'
    entry = load_manifest(write_guided(tmp_path, config=config, guide_encoder=None)).entry("tiny")
    assert (entry.takes_guide, entry.method) == (False, f"hqgnet-{guidance}")


def test_reading_and_verifying_imports_no_torch(tmp_path):
    write_models(tmp_path)
    code = (
        "import sys; from pathlib import Path; from medenhance_dicom.manifest import load_manifest, verify_all;"
        f"verify_all(load_manifest(Path({str(tmp_path)!r})));"
        "sys.exit(any(m in sys.modules for m in ('torch', 'safetensors', 'openvino')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_shipped_manifest_loads_and_its_weights_are_whole():
    try:
        folder = module.models_folder()
    except ModelError:
        pytest.skip("no weights are shipped yet")
    manifest = load_manifest(folder)
    assert tomllib.loads((folder / "manifest.toml").read_text())["weights"].keys() == manifest.weights.keys()
    assert set(verify_all(manifest).values()) <= {None}
    for key in manifest.weights:
        assert load_network(key, manifest).multiple == manifest.entry(key).input.multiple_of
