"""Engines against eager float32 PyTorch, and what happens when one of them fails."""

import hashlib
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save
from skimage import data
from torch import nn

from medenhance_dicom import inference
from medenhance_dicom.enhancer import EnhancerSpec
from medenhance_dicom.errors import FrameError, ModelError
from medenhance_dicom.inference import (
    PARITY,
    NetworkEnhancer,
    Parity,
    choose_device,
    choose_engine,
    choose_precision,
    load_enhancer,
    measure_parity,
)
from medenhance_dicom.manifest import load_manifest
from medenhance_dicom.networks import build_network

HAS_OPENVINO = importlib.util.find_spec("openvino") is not None
needs_openvino = pytest.mark.skipif(not HAS_OPENVINO, reason="openvino is not installed")
CPU = torch.device("cpu")
GREY = (data.camera()[:256, :384] / 255).astype(np.float32)[None, :, :, None]  # (1, 256, 384, 1)
COLOUR = (data.astronaut()[:256, 100:484] / 255).astype(np.float32)[None]  # (1, 256, 384, 3)


def network(channels=1, width=4, head="tanh", seed=0):
    """Random weights whose last layer is scaled to make a visible change, as a trained one does."""
    torch.manual_seed(seed)
    built = build_network("stillgan", channels=channels, width=width, head=head)
    with torch.no_grad():
        built.last.weight.normal_(0, 0.2 if head == "tanh" else 0.02)
    return built


def spec(channels=1):
    return EnhancerSpec(channels=channels, multiple=128)


class PerPixel(nn.Module):
    """Works on any size: x -> gain x + offset."""

    def __init__(self, gain=1.0, offset=0.0):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.offset = offset
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        return x * self.gain + self.offset


def test_values_are_mapped_to_the_networks_range_and_back():
    enhance = NetworkEnhancer(PerPixel(0.5, 0.25), EnhancerSpec(channels=None))
    frames = np.linspace(0, 1, 2 * 5 * 7 * 3, dtype=np.float32).reshape(2, 5, 7, 3)
    np.testing.assert_allclose(enhance(frames), (0.5 * (2 * frames - 1) + 0.25 + 1) / 2, atol=1e-6)


def test_the_answer_is_kept_in_the_unit_range():
    frames = np.array([0, 0.2, 0.8, 1], dtype=np.float32).reshape(1, 2, 2, 1)
    answer = NetworkEnhancer(PerPixel(3.0), EnhancerSpec(channels=1))(frames)
    assert answer.dtype == np.float32
    assert answer.ravel().tolist() == [0, 0, 1, 1]


def test_frames_are_taken_one_by_one_whatever_the_batch():
    frames = np.concatenate([GREY, 1 - GREY, GREY**2])
    one, two = (NetworkEnhancer(network(), spec(), batch=n)(frames) for n in (1, 2))
    np.testing.assert_allclose(one, two, atol=1e-5)
    alone = NetworkEnhancer(network(), spec())(frames[1:2])
    np.testing.assert_allclose(two[1:2], alone, atol=1e-5)


def test_rows_are_not_taken_for_columns():
    """A network that cares for position: the same frame turned must give another answer than the answer turned."""

    class Ramp(nn.Module):
        def forward(self, x):
            return x * torch.linspace(0, 1, x.shape[3])

    frames = np.ones((1, 4, 6, 1), dtype=np.float32)
    answer = NetworkEnhancer(Ramp(), EnhancerSpec(channels=1))(frames)
    np.testing.assert_allclose(answer[0, :, :, 0], np.tile((np.linspace(0, 1, 6) + 1) / 2, (4, 1)), atol=1e-6)


def test_grey_frames_feed_a_colour_network():
    answer = NetworkEnhancer(network(3), spec(3))(GREY)
    assert answer.shape == GREY.shape
    as_colour = NetworkEnhancer(network(3), spec(3))(np.repeat(GREY, 3, axis=3))
    np.testing.assert_allclose(answer, as_colour.mean(axis=3, keepdims=True), atol=1e-6)


def test_what_does_not_fit_is_refused():
    enhance = NetworkEnhancer(network(), spec())
    with pytest.raises(ValueError, match="channels"):
        enhance(COLOUR)
    with pytest.raises(ValueError, match="multiples of 128"):
        enhance(GREY[:, :255])


def test_no_frames_give_no_frames():
    assert NetworkEnhancer(network(), spec())(GREY[:0]).shape == (0, 256, 384, 1)


def test_the_smallest_frame_has_statistics_too():
    """One tile of 128 x 128 leaves one value at the coarsest level, which instance normalisation refuses."""
    answer = NetworkEnhancer(network(), spec())(GREY[:, :128, :128])
    assert answer.shape == (1, 128, 128, 1)
    assert np.isfinite(answer).all()


def test_running_out_of_memory_halves_the_batch_for_good():
    class Narrow(PerPixel):
        def forward(self, x):
            if len(x) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(x)

    narrow = Narrow(1.0)
    enhance = NetworkEnhancer(narrow, EnhancerSpec(channels=1), batch=8)
    frames = np.random.default_rng(0).random((5, 4, 4, 1), dtype=np.float32)
    np.testing.assert_allclose(enhance(frames), frames, atol=1e-6)
    assert narrow.sizes == [2, 2, 1]
    assert enhance.batch == 2


def test_too_little_memory_for_one_frame_is_said():
    class Hungry(nn.Module):
        def forward(self, x):
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )

    with pytest.raises(FrameError, match="OUT_OF_MEMORY: too little memory"):
        NetworkEnhancer(Hungry(), EnhancerSpec(channels=1))(GREY)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        NetworkEnhancer(Broken(), EnhancerSpec(channels=1))(GREY)


def test_non_finite_values_are_computed_again_in_float32():
    class Overflowing(nn.Module):
        def forward(self, x):
            half = torch.is_autocast_enabled("cpu")
            return x * (torch.inf if half else 0.5)

    enhance = NetworkEnhancer(Overflowing(), EnhancerSpec(channels=1), "cpu", "torch", "bf16")
    np.testing.assert_allclose(enhance(GREY), GREY / 2 + 0.25, atol=1e-6)


def test_non_finite_values_in_float32_are_an_error():
    with pytest.raises(FrameError, match="NOT_FINITE"):
        NetworkEnhancer(PerPixel(float("nan")), EnhancerSpec(channels=1))(GREY)


def test_denormals_are_flushed():
    NetworkEnhancer(PerPixel(), EnhancerSpec(channels=1))(GREY)
    assert (torch.tensor([1e-39]) * 1).item() == 0
    torch.set_flush_denormal(False)


# A tanh head of random weights magnifies rounding more than any trained network does.
RANDOM_TANH = {"fp32": Parity(2e-3, 2e-4), "bf16": Parity(0.2, 0.01)}


@pytest.mark.parametrize(
    "head", ["tanh", *(pytest.param(h, marks=pytest.mark.slow) for h in ("gain", "normalised_gain"))]
)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("engine", "precision"),
    [
        ("torch", "fp32"),
        ("torch", "bf16"),
        pytest.param("openvino", "fp32", marks=[needs_openvino, pytest.mark.slow]),
        pytest.param("openvino", "bf16", marks=needs_openvino),
    ],
)
def test_engines_agree_with_plain_float32_pytorch(engine, precision, channels, head):
    if engine == "openvino" and precision == "bf16" and choose_precision("auto", CPU, "openvino") != "bf16":
        pytest.skip("this CPU has no bf16")
    frames = GREY if channels == 1 else COLOUR
    plain = network(channels, head=head).eval()
    with torch.no_grad():
        x = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous() * 2 - 1
        expected = ((plain(x) + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(expected - frames).mean() > 0.01  # it does change the picture
    enhance = NetworkEnhancer(network(channels, head=head), spec(channels), CPU, engine, precision)
    difference = np.abs(enhance(frames) - expected)
    limit = (RANDOM_TANH if head == "tanh" else PARITY)[precision]
    assert Parity(float(difference.max()), float(difference.mean())).within(limit), (
        difference.max(),
        difference.mean(),
    )


def test_parity_is_measured_against_float32():
    enhance = NetworkEnhancer(network(head="gain"), spec(), CPU, "torch", "bf16")
    difference = np.abs(enhance(GREY) - NetworkEnhancer(network(head="gain"), spec())(GREY))
    assert measure_parity(enhance, GREY) == Parity(float(difference.max()), float(difference.mean()))
    assert measure_parity(NetworkEnhancer(network(), spec())) == Parity(0, 0)


@pytest.mark.slow
@needs_openvino
def test_openvino_takes_other_sizes_and_forgets_the_oldest():
    enhance = NetworkEnhancer(network(width=2, head="gain"), spec(), CPU, "openvino", "fp32")
    for width in (128, 256, 384, 512, 640, 256):
        frames = np.resize(GREY, (2, 256, width, 1))
        np.testing.assert_allclose(enhance(frames), enhance.reference(frames), atol=PARITY["fp32"].maximum)
    assert len(enhance._compiled._by_shape) == inference.COMPILED_SIZES


def run_alone(code, home):
    """In a fresh process with a home of its own, outside of what telemetry knows as CI."""
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "BUILD_ID", "TF_BUILD")} | {"HOME": str(home)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@needs_openvino
def test_openvino_never_calls_home(tmp_path):
    """Importing and converting opens no connection, starts no process and leaves no consent file."""
    code = """
import sys
seen = []
def watch(event, arguments):
    if event.startswith(("socket.", "urllib.", "subprocess.", "os.fork", "os.posix_spawn", "os.exec")):
        seen.append(event)
import torch
from torch import nn
from medenhance_dicom.enhancer import EnhancerSpec
from medenhance_dicom.inference import NetworkEnhancer, choose_precision
import numpy as np
sys.addaudithook(watch)
precision = choose_precision("auto", torch.device("cpu"), "openvino")
enhance = NetworkEnhancer(nn.Conv2d(1, 1, 3, padding=1), EnhancerSpec(channels=1), "cpu", "openvino", precision)
enhance(np.zeros((1, 8, 8, 1), np.float32))
print(seen)
sys.exit(bool(seen))
"""
    run = run_alone(code, tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@needs_openvino
def test_openvino_imported_before_us_is_silenced(tmp_path):
    code = """
import sys
from openvino_telemetry import Telemetry
sent = []
for name in ("send_event", "start_session", "end_session"):
    setattr(Telemetry, name, lambda *arguments, **named: sent.append(arguments))
import openvino
assert sent, "it would have reported the import"
sent.clear()
from torch import nn
from medenhance_dicom.enhancer import EnhancerSpec
from medenhance_dicom.inference import NetworkEnhancer
NetworkEnhancer(nn.Conv2d(1, 1, 3, padding=1), EnhancerSpec(channels=1), "cpu", "openvino", "fp32")
sys.exit(len(sent))
"""
    run = run_alone(code, tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr


def test_devices():
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    for wrong in ("cuda:99", "gpu", "cuda:x", "meta"):
        with pytest.raises(ModelError, match=wrong):
            choose_device(wrong)


def test_engines(monkeypatch):
    assert choose_engine("torch", CPU) == "torch"
    assert choose_engine("auto", torch.device("cuda")) == "torch"
    assert choose_engine("auto", CPU) == ("openvino" if HAS_OPENVINO else "torch")
    with pytest.raises(ModelError, match="runs on the CPU"):
        choose_engine("openvino", torch.device("cuda"))
    with pytest.raises(ModelError, match="no engine 'onnx'"):
        choose_engine("onnx", CPU)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert choose_engine("auto", CPU) == "torch"
    with pytest.raises(ModelError, match="not installed"):
        choose_engine("openvino", CPU)


def test_precisions():
    assert choose_precision("auto", CPU, "torch") == "fp32"
    assert choose_precision("bf16", CPU, "torch") == "bf16"
    with pytest.raises(ModelError, match="fp16 is not available"):
        choose_precision("fp16", CPU, "torch")
    with pytest.raises(ModelError, match="no precision 'int8'"):
        choose_precision("int8", CPU, "torch")


@pytest.fixture
def models(tmp_path):
    content = save({k: v.half().contiguous() for k, v in network(width=2, head="gain").state_dict().items()})
    (tmp_path / "tiny.safetensors").write_bytes(content)
    (tmp_path / "manifest.toml").write_text(f"""
[weights.tiny]
file = "tiny.safetensors"
sha256 = "{hashlib.sha256(content).hexdigest()}"
network = "stillgan"
config = {{ channels = 1, width = 2, head = "gain" }}
input = {{ channels = 1, multiple_of = 128, working_size = 256 }}
gate = {{ minimum = 0.8, warn_below = 0.9 }}
device_uid = "2.25.1"
match = {{ Modality = ["OP"], SOPClassUID = ["1.2.840.10008.5.1.4.1.1.77.1.5.1"], PhotometricInterpretation = ["RGB"] }}
licence = "none"
research_only = true
""")
    return load_manifest(tmp_path)


@pytest.mark.slow
def test_weights_of_the_manifest_run(models):
    enhance = load_enhancer("tiny", manifest=models, device="cpu")
    assert enhance.spec == EnhancerSpec(channels=1, multiple=128, whole=True, working_size=256)
    difference = np.abs(enhance(GREY) - enhance.reference(GREY))
    assert difference.mean() < PARITY[enhance.precision].mean


def test_a_reduced_precision_that_is_too_far_off_is_not_kept(models, monkeypatch):
    monkeypatch.setattr(inference, "choose_precision", lambda *_: "bf16")
    monkeypatch.setitem(PARITY, "bf16", Parity(0, 0))
    assert load_enhancer("tiny", manifest=models, device="cpu", engine="torch").precision == "fp32"
    wanted = load_enhancer("tiny", manifest=models, device="cpu", engine="torch", precision="bf16")
    assert wanted.precision == "bf16"


@pytest.fixture
def guided_models(tmp_path):
    torch.manual_seed(0)
    generator = build_network("hqgnet", channels=3, width=4, norm="instance", head="gain")
    with torch.no_grad():
        generator.last.weight.normal_(0, 0.1)
        for block in generator.vin:
            block.fc.weight.normal_(0, 0.1)
    content = save({k: t.contiguous() for k, t in generator.state_dict().items()})
    (tmp_path / "tiny.safetensors").write_bytes(content)
    (tmp_path / "manifest.toml").write_text(f"""
[weights.tiny]
file = "tiny.safetensors"
sha256 = "{hashlib.sha256(content).hexdigest()}"
network = "hqgnet"
config = {{ channels = 3, width = 4, norm = "instance", head = "gain" }}
input = {{ channels = 3, multiple_of = 16, working_size = 256 }}
gate = {{ minimum = 0.8, warn_below = 0.9 }}
device_uid = "2.25.1"
match = {{ Modality = ["OP"], SOPClassUID = ["1.2.840.10008.5.1.4.1.1.77.1.5.1"], PhotometricInterpretation = ["RGB"] }}
licence = "none"
research_only = true
""")
    return load_manifest(tmp_path), generator.eval()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", pytest.param("openvino", marks=needs_openvino)])
def test_a_guided_network_runs_with_its_guide_bound(guided_models, engine):
    manifest, generator = guided_models
    frames, v_z = COLOUR[:, :64, :96], np.linspace(-2, 2, 64, dtype=np.float32)
    with torch.no_grad():
        x = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
        expected = generator(x, torch.from_numpy(v_z)[None]).permute(0, 2, 3, 1).numpy()
    enhance = load_enhancer("tiny", manifest=manifest, device="cpu", engine=engine, precision="fp32", v_z=v_z)
    assert np.abs(expected - frames).mean() > 0.01
    assert np.abs(enhance(frames) - expected).max() < PARITY["fp32"].maximum
    other = load_enhancer("tiny", manifest=manifest, device="cpu", engine="torch", precision="fp32", v_z=-v_z)
    assert np.abs(other(frames) - expected).max() > 0.01


def test_a_guided_network_without_a_guide_is_refused(guided_models):
    with pytest.raises(ModelError, match="need a stored guide"):
        load_enhancer("tiny", manifest=guided_models[0], device="cpu", engine="torch")
