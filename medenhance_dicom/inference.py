"""Run a network on frames: which device, engine and precision, and what to do when one of them fails.

Whatever runs, the answer is held against the same network in eager float32 PyTorch on the same frames; `PARITY` states
how far it may be off, in the unit range, and the tests and `benchmarks/engines.py` measure it.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medenhance_dicom.enhancer import LOOKS, EnhancerSpec, Look
from medenhance_dicom.errors import OUT_OF_MEMORY, FrameError, ModelError, is_out_of_memory
from medenhance_dicom.manifest import Manifest, load_manifest, load_network
from medenhance_dicom.networks.fields import GUIDE, FieldsGenerator
from medenhance_dicom.networks.hqgnet import GuidedNetwork, HQGNetGenerator

__all__ = [
    "PARITY",
    "Engine",
    "NetworkEnhancer",
    "Parity",
    "Precision",
    "choose_device",
    "choose_engine",
    "choose_precision",
    "load_enhancer",
    "measure_parity",
]

Frames = NDArray[np.float32]
Engine = Literal["torch", "openvino"]
Precision = Literal["fp32", "bf16", "fp16"]

COMPILED_SIZES = 4
PROBE_SIDE = 256

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parity:
    """A difference in the unit range; 1/255 = 0.0039 is one grey level of 8 bits."""

    maximum: float
    mean: float

    def within(self, limit: Parity) -> bool:
        """Whether neither figure exceeds `limit`'s."""
        return self.maximum <= limit.maximum and self.mean <= limit.mean


PARITY: dict[Precision, Parity] = {
    "fp32": Parity(maximum=2e-4, mean=2e-5),
    "bf16": Parity(maximum=0.02, mean=0.002),
    "fp16": Parity(maximum=0.02, mean=0.002),
}
"""How far an engine may be from eager float32 PyTorch, by the precision it works in; half a grey level on average."""


def choose_device(wanted: str = "auto") -> torch.device:
    """The device to run on: "auto" takes CUDA, else MPS, else the CPU.

    Args:
        wanted: "auto", "cpu", "mps", "cuda" or "cuda:N".

    Raises:
        ModelError: No such device here.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ModelError(f"no device '{wanted}': wanted auto, cpu, mps or cuda[:N]") from error
    count = {"cpu": 1, "mps": int(torch.backends.mps.is_available()), "cuda": torch.cuda.device_count()}
    if (device.index or 0) >= count.get(device.type, 0):
        raise ModelError(f"device '{wanted}' is not available here")
    return device


def choose_engine(wanted: str, device: torch.device) -> Engine:
    """The engine: "auto" takes OpenVINO on the CPU where it is installed, else PyTorch.

    Raises:
        ModelError: OpenVINO is wanted but missing, or on another device; or the name is unknown.
    """
    if wanted == "torch":
        return "torch"
    if wanted not in ("auto", "openvino"):
        raise ModelError(f"no engine '{wanted}': wanted auto, torch or openvino")
    installed = importlib.util.find_spec("openvino") is not None
    if wanted == "auto":
        return "openvino" if installed and device.type == "cpu" else "torch"
    if device.type != "cpu":
        raise ModelError(f"the openvino engine runs on the CPU, not on {device}")
    if not installed:
        raise ModelError("openvino is not installed: pip install 'medenhance-dicom[openvino]'")
    return "openvino"


def choose_precision(wanted: str, device: torch.device, engine: Engine) -> Precision:
    """The precision: "auto" takes bf16 where the hardware has it and the engine gains by it, else fp32.

    Raises:
        ModelError: The hardware lacks the one wanted, or the name is unknown.
    """
    if wanted not in ("auto", "fp32", "bf16", "fp16"):
        raise ModelError(f"no precision '{wanted}': wanted auto, fp32, bf16 or fp16")
    if wanted == "fp32":
        return "fp32"
    if engine == "openvino":
        has_bf16 = "BF16" in _openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        gains = has_bf16
    else:
        has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported()
        gains = device.type == "cuda" and has_bf16  # on the CPU PyTorch stays the float32 reference unless asked
    if wanted == "auto":
        return "bf16" if gains else "fp32"
    if wanted == "bf16" and has_bf16:
        return "bf16"
    if wanted == "fp16" and device.type != "cpu":
        return "fp16"
    raise ModelError(f"{wanted} is not available with {engine} on this {device.type}")


class NetworkEnhancer:
    """A network behind the `Enhancer` protocol: unit frames in, unit frames out.

    The network is taken over: moved to the device and laid out for it. Not for several threads at once.

    Args:
        network: (B, C, H, W) in [-1, 1] to the same, each picture by itself (no batch statistics).
        spec: Its channels and size multiple.
        device: Where PyTorch runs.
        engine: "torch" or "openvino".
        precision: What convolutions are computed in; grey levels and statistics stay float32 where the network asks.
        batch: Frames at once in PyTorch; halved for good when memory runs out. On a CPU more than one gains nothing,
            and small convolutions then give other bits than frame by frame (oneDNN is skipped for one of them).

    Raises:
        ModelError: OpenVINO cannot convert the network.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: EnhancerSpec,
        device: torch.device | str = "cpu",
        engine: Engine = "torch",
        precision: Precision = "fp32",
        *,
        batch: int = 1,
    ) -> None:
        self.spec, self.device, self.engine, self.precision = spec, torch.device(device), engine, precision
        self.batch = max(1, batch)
        _flush_denormals()
        self.network = network.eval().requires_grad_(False).to(self.device)
        if self.device.type == "cuda":
            self.network = self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._compiled = _CompiledModels(network, spec, precision) if engine == "openvino" else None

    def __call__(self, frames: Frames) -> Frames:
        """Enhance frames.

        Args:
            frames: float32 (N, H, W, C) in [0, 1]; H and W multiples of `spec.multiple`. Grey frames also feed a
                network of three channels, whose answer is then averaged.

        Returns:
            The same shape and range, finite.

        Raises:
            ValueError: The size or the number of channels does not fit.
            FrameError: NOT_FINITE, even in float32; OUT_OF_MEMORY, for one frame alone.
        """
        _, height, width, channels = frames.shape
        if channels != self.spec.channels and (channels, self.spec.channels) not in ((1, None), (1, 3), (3, None)):
            raise ValueError(f"frames of {channels} channels for a network of {self.spec.channels}")
        if height % self.spec.multiple or width % self.spec.multiple:
            raise ValueError(f"frames of {height} x {width} are no multiples of {self.spec.multiple}")
        _flush_denormals()
        result = np.empty_like(frames, dtype=np.float32)
        start = 0
        while start < len(frames):
            part = slice(start, start + self.batch)
            try:
                result[part] = self._finite(frames[part])
                start += self.batch
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self._halve_batch()  # here, for the error's traceback would hold on to the tensors
        return result

    def reference(self, frames: Frames) -> Frames:
        """What eager float32 PyTorch makes of the frames; arguments as `__call__`, but nothing is caught."""
        return np.clip(self._unit(frames, lambda x: self._torch(x, "fp32")), 0, 1)

    def _finite(self, frames: Frames) -> Frames:
        run = self._compiled or (lambda x: self._torch(x, self.precision))
        result = self._unit(frames, run)
        if np.isfinite(result).all():
            return np.clip(result, 0, 1)
        if (self.engine, self.precision) != ("torch", "fp32"):
            _log.warning("non-finite values from %s in %s; once more in float32", self.engine, self.precision)
            result = self._unit(frames, lambda x: self._torch(x, "fp32"))
        if not np.isfinite(result).all():
            raise FrameError("NOT_FINITE", "the network gives values that are no numbers for this picture")
        return np.clip(result, 0, 1)

    def _unit(self, frames: Frames, run: Callable[[Frames], Frames]) -> Frames:
        """(N, H, W, C) in [0, 1] -> (N, C', H, W) in [-1, 1], run, and back; not yet clipped.

        In NumPy: PyTorch's threads would still be spinning when OpenVINO's start.
        """
        _, height, width, channels = frames.shape
        x = np.ascontiguousarray(frames.transpose(0, 3, 1, 2), dtype=np.float32) * np.float32(2) - np.float32(1)
        if self.spec.channels == 3 and channels == 1:
            x = np.repeat(x, 3, axis=1)
        single = height == width == self.spec.multiple > 1  # the coarsest level is one value: no statistics
        if single:
            x = np.concatenate([x, x[..., ::-1]], axis=3)
        y = (run(x)[..., :width] + np.float32(1)) / np.float32(2)
        if y.shape[1] != channels:
            y = y.mean(axis=1, keepdims=True)
        return np.ascontiguousarray(y.transpose(0, 2, 3, 1))

    def _torch(self, x: Frames, precision: Precision) -> Frames:
        # Measured on CPUs: channels last costs instance-normalised networks 10 to 40 %, so it is for CUDA alone.
        layout = torch.channels_last if self.device.type == "cuda" else torch.contiguous_format
        half = torch.autocast(self.device.type, _AUTOCAST[precision]) if precision in _AUTOCAST else nullcontext()
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False), half:
            return self.network(torch.from_numpy(x).to(self.device, memory_format=layout)).float().cpu().numpy()

    def _halve_batch(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.batch == 1:
            raise FrameError(OUT_OF_MEMORY, f"too little memory on {self.device.type} for one frame of this size")
        self.batch //= 2
        _log.warning("out of memory on %s; going on with %d frames at once", self.device.type, self.batch)


class _CompiledModels:
    """A network in OpenVINO on the CPU, one compiled model and request per frame size; the last few are kept."""

    def __init__(self, network: nn.Module, spec: EnhancerSpec, precision: Precision) -> None:
        openvino = _openvino()
        channels = spec.channels or 3
        side = max(2 * spec.multiple, 32)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch.jit.trace, which OpenVINO calls
                self._model = openvino.convert_model(
                    network, example_input=torch.zeros(1, channels, side, side), input=[-1, channels, -1, -1]
                )
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot convert {type(network).__name__}") from error
        self._core = openvino.Core()
        self._settings = {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}[precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "CPU_DENORMALS_OPTIMIZATION": True,
        }
        self._by_shape: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def __call__(self, x: Frames) -> Frames:
        """(B, C, H, W) -> the same; frame by frame, which on a CPU costs nothing and compiles once per size."""
        request = self._for_shape((1, *x.shape[1:]))
        out = np.empty((len(x), *request.model_outputs[0].shape[1:]), np.float32)
        for i, frame in enumerate(x):
            out[i] = request.infer([frame[None]], share_inputs=True, share_outputs=True)[0]
        return out

    def _for_shape(self, shape: tuple[int, ...]) -> Any:
        if shape not in self._by_shape:
            model = self._model.clone()
            model.reshape(list(shape))
            compiled = self._core.compile_model(model, "CPU", self._settings)
            self._by_shape[shape] = compiled.create_infer_request()
            if len(self._by_shape) > COMPILED_SIZES:
                self._by_shape.popitem(last=False)
        self._by_shape.move_to_end(shape)
        return self._by_shape[shape]


def load_enhancer(
    key: str,
    *,
    manifest: Manifest | None = None,
    device: str = "auto",
    engine: str = "auto",
    precision: str = "auto",
    batch: int = 1,
    v_z: NDArray[np.float32] | None = None,
    look: Look = "natural",
) -> NetworkEnhancer:
    """Weights of the manifest, ready to run.

    With precision "auto" a reduced precision is kept only if, on a fixed probe picture, it stays within `PARITY` of
    float32; so the choice depends on weights and machine, never on the pictures.

    Args:
        key: A [weights.<key>] of the manifest.
        manifest: By default `load_manifest()`.
        device: See `choose_device`.
        engine: See `choose_engine`.
        precision: See `choose_precision`.
        batch: See `NetworkEnhancer`.
        v_z: The guide's vector (64,), for weights that take a guide; the others ignore it.
        look: Of "fields"; the others have but one.

    Raises:
        ModelError: The weights do not load or lack their guide, or device, engine or precision is not to be had.
    """
    manifest = load_manifest() if manifest is None else manifest
    entry = manifest.entry(key)
    contract = entry.input
    if entry.takes_guide and v_z is None:
        raise ModelError(f"{key}: these weights need a stored guide")
    spec = EnhancerSpec(contract.channels, contract.multiple_of, whole=True, working_size=contract.working_size)
    place = choose_device(device)
    chosen_engine = choose_engine(engine, place)
    chosen = choose_precision(precision, place, chosen_engine)
    network = load_network(key, manifest)
    if isinstance(network, HQGNetGenerator | FieldsGenerator):
        guide = torch.zeros(GUIDE) if v_z is None else torch.from_numpy(v_z.copy())
        network = GuidedNetwork(network, guide, LOOKS.index(look))
    enhancer = NetworkEnhancer(network, spec, place, chosen_engine, chosen, batch=batch)
    if precision == "auto" and chosen != "fp32" and not measure_parity(enhancer).within(PARITY[chosen]):
        _log.warning("%s: %s is too far from float32 on this machine; float32 it is", key, chosen)
        enhancer = NetworkEnhancer(network, spec, place, chosen_engine, "fp32", batch=batch)
    return enhancer


def measure_parity(enhancer: NetworkEnhancer, frames: Frames | None = None) -> Parity:
    """How far an enhancer is from the same network in eager float32 PyTorch.

    Args:
        enhancer: What to measure.
        frames: As `NetworkEnhancer.__call__` takes them; by default one fixed probe picture.
    """
    if frames is None:
        side = -(-PROBE_SIDE // enhancer.spec.multiple) * enhancer.spec.multiple
        frames = _probe(side, enhancer.spec.channels or 3)
    difference = np.abs(enhancer(frames) - enhancer.reference(frames))
    return Parity(float(difference.max()), float(difference.mean()))


def _probe(side: int, channels: int) -> Frames:
    """A fixed picture with shading, textures of several scales, thin lines and flat parts: (1, side, side, C)."""
    v, u = np.mgrid[0:side, 0:side] / side
    picture = 0.35 + 0.25 * u + 0.1 * np.sin(40 * u + 9 * v) * np.cos(23 * v) + 0.05 * np.sin(300 * u * v)
    picture += 0.3 * (np.abs(np.sin(15 * (u + 0.3 * np.sin(4 * v)))) < 0.04)
    picture *= (u - 0.5) ** 2 + (v - 0.5) ** 2 < 0.24
    gains = np.array([1.0, 0.8, 0.6])[:channels]
    return np.clip(picture[None, :, :, None] * gains, 0, 1).astype(np.float32)


def _flush_denormals() -> None:
    """Denormals slow small networks down by an order of magnitude on x86; the flag belongs to the thread."""
    torch.set_flush_denormal(True)


def _openvino() -> Any:
    """Import OpenVINO without its telemetry, which by default reports each import and conversion to a web service."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] # its import fails; OpenVINO takes its stub
    import openvino
    from openvino.tools.ovc import telemetry_stub

    for name, module in list(sys.modules.items()):
        if name.startswith("openvino.tools.ovc.") and hasattr(module, "tm"):
            vars(module)["tm"] = telemetry_stub  # where someone imported OpenVINO before us
    return openvino
