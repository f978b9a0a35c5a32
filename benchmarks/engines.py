"""Engines side by side: seconds per frame and distance from eager float32 PyTorch, in one run.

    python benchmarks/engines.py [--repeats 5] [--threads 2] [--presets compact,paper] [--weights KEY] [--json FILE]

Every engine sees the same network and the same picture. Repeats go round the engines, so that a busy machine slows all
of them alike; each turn is one call that is not timed and one that is; medians are reported. The baseline is the plain way to run a generator: eager float32, NCHW, denormals
kept. Random weights unless `--weights` names some of the manifest: their speed is that of trained ones, their parity is
not (a random tanh head magnifies rounding), so quote parity from `--weights`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from skimage import data, transform

from medenhance_dicom.enhancer import EnhancerSpec
from medenhance_dicom.errors import ModelError
from medenhance_dicom.inference import NetworkEnhancer, choose_precision
from medenhance_dicom.manifest import load_manifest, load_network
from medenhance_dicom.networks import build_network

BASELINE = "torch fp32 eager"


@dataclass(frozen=True)
class Case:
    name: str
    network: str
    config: dict
    channels: int
    side: int
    weights: str | None = None

    @torch.no_grad()
    def build(self):
        if self.weights is not None:
            return load_network(self.weights)
        torch.manual_seed(0)
        network = build_network(self.network, **self.config)
        network.last.weight.normal_(0, 0.02)  # a gain head starts as the identity, which no engine could get wrong
        return network


PRESETS = {
    "compact": [
        Case("compact 256", "stillgan", {"channels": 1, "width": 16, "head": "gain"}, 1, 256),
        Case("compact 384", "stillgan", {"channels": 1, "width": 16, "head": "gain"}, 1, 384),
    ],
    "paper": [Case("paper 384", "stillgan", {"channels": 3, "width": 64}, 3, 384)],
}


@dataclass(frozen=True)
class Row:
    case: str
    engine: str
    seconds: float
    """Median per frame."""
    spread: float
    """Slowest minus fastest."""
    speedup: float
    """Against the baseline of the same case."""
    maximum: float
    mean: float
    """Distance from the baseline's picture, in the unit range."""


def picture(channels: int, side: int) -> np.ndarray:
    """(1, side, side, C) in [0, 1], from scikit-image's bundled pictures."""
    source = data.retina()[200:1200, 200:1200] / 255 if channels == 3 else data.camera()[..., None] / 255
    return transform.resize(source, (side, side), anti_aliasing=True).astype(np.float32)[None]


class Eager:
    """The baseline: what a generator's own test script does."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network.eval()

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        torch.set_flush_denormal(False)
        with torch.no_grad():
            x = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous() * 2 - 1
            return ((self.network(x) + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def engines(case: Case) -> dict:
    """The engines that this machine has; each with a network of its own, since an enhancer takes it over."""
    network = case.build()
    spec = EnhancerSpec(channels=case.channels, multiple=network.multiple)
    cpu = torch.device("cpu")
    ways = {BASELINE: Eager(network)}
    wanted = [("torch", "fp32"), ("torch", "bf16")]
    if importlib.util.find_spec("openvino") is not None:
        wanted += [("openvino", "fp32"), ("openvino", "bf16")]
    for engine, precision in wanted:
        try:
            choose_precision(precision, cpu, engine)
        except ModelError:
            continue
        ways[f"{engine} {precision}"] = NetworkEnhancer(case.build(), spec, cpu, engine, precision)
    return ways


def measure(case: Case, repeats: int) -> list[Row]:
    frames = picture(case.channels, case.side)
    ways = engines(case)
    answers = {name: run(frames) for name, run in ways.items()}  # also warms up and compiles
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            run(frames)  # not timed: the engine before has its threads still spinning and its data in the caches
            start = time.perf_counter()
            run(frames)
            seconds[name].append(time.perf_counter() - start)
    baseline = statistics.median(seconds[BASELINE])
    rows = []
    for name, taken in seconds.items():
        off = np.abs(answers[name] - answers[BASELINE])
        median = statistics.median(taken)
        rows.append(
            Row(
                case.name, name, median, max(taken) - min(taken), baseline / median, float(off.max()), float(off.mean())
            )
        )
    return rows


def processor() -> str:
    """Model name and the instructions that matter here."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    values = {key.strip(): value.strip() for key, value in lines.items()}
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in values.get("flags", "").split()]
    return f"{values.get('model name', platform.processor())} ({', '.join(flags)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--presets", default="compact,paper", help="comma-separated: compact, paper, or none")
    parser.add_argument("--weights", action="append", default=[], help="a key of models/manifest.toml; may be repeated")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    cases = [case for name in options.presets.split(",") if name in PRESETS for case in PRESETS[name]]
    for key in options.weights:
        entry = load_manifest().entry(key)
        side = entry.input.working_size or 384
        cases.append(Case(f"{key} {side}", entry.network, entry.config, entry.input.channels, side, key))

    machine = {
        "processor": processor(),
        "threads": options.threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "repeats": options.repeats,
    }
    if importlib.util.find_spec("openvino") is not None:
        machine["openvino"] = importlib.metadata.version("openvino")
    print(", ".join(f"{key} {value}" for key, value in machine.items()), end="\n\n")
    print("| case | engine | s/frame | spread | times baseline | max abs | mean abs |")
    print("|---|---|--:|--:|--:|--:|--:|", flush=True)
    rows = []
    for case in cases:
        for row in measure(case, options.repeats):
            rows.append(row)
            print(
                f"| {row.case} | {row.engine} | {row.seconds:.4f} | {row.spread:.4f} | {row.speedup:.2f} "
                f"| {row.maximum:.1e} | {row.mean:.1e} |",
                flush=True,
            )
    if options.json is not None:
        report = {"machine": machine, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
