"""What the gate catches and what it lets pass, on patients that its limits were not made from. The figures of docs/gate.md.

    python benchmarks/gate.py [--data DATA] [--json FILE] [--table FILE] [--seed N] [--limit N] [--only KEY ...] [--again]

For the conventional methods and for every network of the manifest the calibration that the manifest names is tabulated as
it was tested when it was made; `--again` measures anew on the pictures of `--data` with another seed, which splits the
patients anew and fits the limits anew. Besides: sanity cases, DICOM frames of other modalities under their conventional
recipes, and the time of one 512 x 512 frame on one core.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage import data

from medenhance_dicom.calibration.calibrate import LEAST, MUST, calibrate
from medenhance_dicom.calibration.enhancers import CONVENTIONAL, honest_of, prepared
from medenhance_dicom.conventional import Clahe
from medenhance_dicom.gate import examine, verdict_of
from medenhance_dicom.gate.alterations import SIZES
from medenhance_dicom.guiding import read_pictures
from medenhance_dicom.lassim import lassim
from medenhance_dicom.manifest import load_manifest
from medenhance_dicom.prepare import default_thresholds
from medenhance_dicom.report import Outcome
from medenhance_dicom.selection import Settings
from medenhance_dicom.sop_classes import OPT_INS
from medenhance_dicom.verdicts import excess_of

FOLDERS = {
    "cornea": ("ccm/nervestitcher/raw", "ccm/nervestitcher2/raw"),
    "fundus": (
        "fundus/csdi/images",
        "fundus/idrid_codras/images",
        "fundus/chasedb1/images",
        "fundus/srahim_dr",
        "fundus/heimed",
    ),
    "endoscopy": ("endoscopy/kvasir_seg_256/images", "endoscopy/cvc_clinicdb_256/images"),
}

SKIPPED = {"network", "identity"}


def folders_of(key: str, root: Path) -> list[Path]:
    """The domain's folders for weights, all for the conventional methods."""
    domains = FOLDERS if key == CONVENTIONAL else [name for name in FOLDERS if name in key]
    return [root / folder for domain in domains for folder in FOLDERS[domain]]


def documents(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Key -> calibration."""
    manifest = load_manifest()
    entries = {**manifest.gate, **{key: entry.gate for key, entry in manifest.weights.items()}}
    found = {}
    for key, entry in entries.items():
        if arguments.only and key not in arguments.only:
            continue
        if arguments.again:
            name, honest = honest_of(None if key == CONVENTIONAL else key, None)
            limit = arguments.limit * (2 if key == CONVENTIONAL else 1)
            found[key] = calibrate(
                name, honest, folders_of(key, arguments.data), limit=limit, seed=arguments.seed
            ).document
        elif entry.calibration:
            found[key] = json.loads((manifest.root / entry.calibration).read_text())
        print(key, "done", flush=True)
    return found


def best_time(run: Any, times: int = 30) -> float:
    """Milliseconds of one core, the best of some."""
    took = []
    for _ in range(times):
        start = time.process_time()
        run()
        took.append(1e3 * (time.process_time() - start))
    return round(min(took), 1)


def timing() -> dict[str, float]:
    """One 512 x 512 frame, one core."""
    figures = {}
    for channels, name in ((1, "grey"), (3, "colour")):
        before = (data.camera() / 255).astype(np.float32)[..., None].repeat(channels, 2)
        after = Clahe()(before[None])[0]
        a, b = (torch.from_numpy(x.astype(np.float64)).permute(2, 0, 1)[None].contiguous() for x in (before, after))
        figures[f"examine_{name}_ms"] = best_time(lambda x=before, y=after: examine(x, y))
        with torch.inference_mode():
            figures[f"lassim_{name}_ms"] = best_time(lambda x=a, y=b: lassim(x, y))
    return figures


def sanity() -> dict[str, dict[str, Any]]:
    """Single cases on scikit-image's retina, 480 x 480, against the limits for conventional methods."""
    limits = default_thresholds()
    before = (data.retina()[300:1260:2, 200:1160:2] / 255).astype(np.float32)
    after = Clahe()(before[None])[0]
    y, x = np.ogrid[:480, :480]
    lesion = after + 0.25 * np.clip(8.5 - np.hypot(y - 200, x - 150), 0, 1)[..., None]
    cases = {"identity": before, "clahe": after, "clahe, 8 px lesion": lesion, "clahe, inverted": 1 - after}
    figures = {}
    for name, result in cases.items():
        scores = examine(before, np.clip(result, 0, 1).astype(np.float32))
        verdict = verdict_of([scores], limits)
        figures[name] = {
            "outcome": verdict.outcome,
            "excess": round(excess_of(scores, limits)[0], 3),
            "lassim": round(scores.lassim or 0, 4),
        }
    return figures


def other_modalities(root: Path) -> dict[str, Any]:
    """First frames of the DICOM collections under their conventional recipes: modality -> outcomes, and what withheld."""
    ready: dict[str, Any] = {}
    outcomes: dict[str, Counter[str]] = {}
    reasons: list[str] = []
    folders = [folder for folder in sorted(root.iterdir()) if folder.is_dir() and "fuzz" not in folder.name]
    for picture in read_pictures(folders, Settings(allow=OPT_INS)):
        if isinstance(picture, Outcome) or picture.recipe is None or picture.recipe.enhancer.method in SKIPPED:
            continue
        if picture.recipe.name not in ready:
            ready[picture.recipe.name] = prepared(picture.recipe).recipe
        recipe = ready[picture.recipe.name]
        inside = picture.inside & recipe.region(picture.unit, None)
        after = np.where(inside[..., None], recipe.enhance_picture(picture.unit), picture.unit).astype(np.float32)
        verdict = verdict_of([examine(picture.unit, after, inside=inside)], recipe.thresholds)
        modality = picture.modality or "none"
        outcomes.setdefault(modality, Counter())[verdict.outcome] += 1
        if verdict.outcome == "withheld":
            reasons.append(f"{modality}, {picture.recipe.name}: {verdict.reason}")
    total = sum(outcomes.values(), Counter())
    return {"frames": total.total(), **total, "by_modality": {m: dict(c) for m, c in sorted(outcomes.items())},
            "withheld": sorted(reasons)}  # fmt: skip


def percent(share: dict[str, Any]) -> str:
    """As `1.2 (0.3-4.5; 0.0-3.1, n 80)`, the second interval where there is one."""
    if not share["n"]:
        return "-"
    low, high = (100 * x for x in share["interval"])
    drawn = "; {:.1f}-{:.1f}".format(*(100 * x for x in found)) if (found := share.get("bootstrap")) else ""
    return f"{100 * share['share']:.1f} ({low:.1f}-{high:.1f}{drawn}, n {share['n']})"


def area(found: dict[str, Any]) -> str:
    """As `0.998 (0.991-1.000)`."""
    drawn = " ({:.3f}-{:.3f})".format(*between) if (between := found["auroc_bootstrap"]) else ""
    return f"{found['auroc']:.3f}{drawn}"


def rows_of(heads: list[str], rows: Iterable[list[str]]) -> list[str]:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(line)} |" for line in lines] + [""]


def named(kind: str) -> str:
    """With the sizes that count."""
    return f"{kind} >= {LEAST[kind]:g}" if kind in LEAST else kind


def by_size(results: dict[str, Any], kind: str) -> list[str]:
    """Released of each size, in percent."""
    shares = results["kinds"].get(kind, {}).get("by_size", {})
    return [
        f"{100 * shares[s]['share']:.0f}" if s in shares and shares[s]["n"] else "-"
        for s in map("{:g}".format, SIZES[kind])
    ]


def table(figures: dict[str, Any], command: str) -> str:
    """Markdown."""
    found = {key: document["results"] for key, document in figures["calibrations"].items()}
    kinds = list(dict.fromkeys([*MUST, *SIZES]))
    lines = ["# What the gate catches and what it lets pass", "", f"Made by `{command}`; definitions in [gate](../gate.md).",
             "Limits are of one half of the patients and sequences, the figures of the other half; the detector was learned from neither. Shares in",
             "percent with Wilson's 95 % interval, then the bootstrap's over patients and sequences (not where one sequence is all there is to test",
             "on); areas with the bootstrap's. Sizes in pixels at 384.", ""]  # fmt: skip
    lines += ["## Honest results withheld, altered ones released", ""]
    lines += rows_of(["honest results by", "withheld", *map(named, MUST)], (
        [key, percent(r["falsely_withheld"]), *(percent(r["kinds"][k]["missed"]) for k in MUST)] for key, r in found.items()))  # fmt: skip
    lines += ["LaSSIM alone, its minimum set for the same share of honest results on the calibration side:", ""]
    lines += rows_of(["honest results by", "withheld", *map(named, MUST)], (
        [key, percent(r["falsely_withheld_by_lassim_alone"]), *(percent(r["kinds"][k]["lassim_alone"]["missed"]) for k in MUST)]
        for key, r in found.items()))  # fmt: skip
    lines += ["Other alterations released:", ""]
    others = [k for k in kinds if k not in MUST]
    lines += rows_of(["honest results by", *map(named, others)], (
        [key, *(percent(r["kinds"][k]["missed"]) if k in r["kinds"] else "-" for k in others)] for key, r in found.items()))  # fmt: skip
    classes = ("all", "ordinary", "poor")
    lines += [
        "By the quality of the source (really poor: see `poor.below` in the calibration), where a calibration tells:",
        "",
    ]
    lines += rows_of(["honest results by", *(f"withheld, {c}" for c in classes[1:]), *(f"structure released, {c}" for c in classes),
                      *(f"colour alone released, {c}" for c in classes)], (
        [key, *(percent(r["falsely_withheld_by_quality"][c]) if c in r["falsely_withheld_by_quality"] else "-" for c in classes[1:]),
         *(percent(side[c]) if c in side else "-" for side in r["released"].values() for c in classes)]
        for key, r in found.items() if "released" in r))  # fmt: skip
    lines += ["## AUROC of the verdict, and of LaSSIM alone", ""]
    lines += rows_of(["honest results by", *map(named, kinds)], (
        [key, *(f"{area(r['kinds'][k])}; {area(r['kinds'][k]['lassim_alone'])}" if r["kinds"].get(k, {}).get("auroc") is not None else "-"
                for k in kinds)] for key, r in found.items()))  # fmt: skip
    for kind in MUST:
        if len(SIZES[kind]) > 1:
            lines += [f"## Released by size: {kind}, percent", ""]
            lines += rows_of(["honest results by", *(f"{s:g}" for s in SIZES[kind])], ([key, *by_size(r, kind)] for key, r in found.items()))  # fmt: skip
    lines += ["## Released by contrast: lesions of 4 pixels and more", ""]
    contrasts = list(next(iter(found.values()))["kinds"]["invented lesion"]["by_contrast"])
    lines += rows_of(["honest results by", *(f"{kind.split()[0]} {c}" for kind in MUST[:2] for c in contrasts)], (
        [key, *(percent(share) for kind in MUST[:2] for share in r["kinds"][kind]["by_contrast"].values())] for key, r in found.items()))  # fmt: skip
    lines += ["## Honest results withheld, by method", ""]
    for key, results in found.items():
        shares = ", ".join(f"{name} {percent(share)}" for name, share in results["falsely_withheld_by_method"].items())
        lines.append(f"- {key}: {shares}")
    lines += ["", "## What may be said", ""]
    lines += [f"- {key}: {document['statement']}" for key, document in figures["calibrations"].items()] + [""]
    for name, about in (("sanity", "Single cases on scikit-image's retina, limits for conventional methods"),
                        ("timing", "One 512 x 512 frame on one core, best of 30, milliseconds"),
                        ("other_modalities", "First frames of DICOM collections under their conventional recipes")):  # fmt: skip
        if name in figures:
            lines += [f"## {about}", "", "```json", json.dumps(figures[name], indent=1), "```", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--again", action="store_true")
    arguments = parser.parse_args()
    asked = [] if arguments.data == parser.get_default("data") else ["--data DATA"]
    asked += ["--again"] if arguments.again else []
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    figures: dict[str, Any] = {"calibrations": documents(arguments), "sanity": sanity(), "timing": timing()}
    if (arguments.data / "dicom").is_dir():
        figures["other_modalities"] = other_modalities(arguments.data / "dicom")
    print(json.dumps({name: figures[name] for name in figures if name != "calibrations"}, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    if arguments.table:
        arguments.table.write_text(table(figures, "python " + " ".join(["benchmarks/gate.py", *asked])) + "\n")


if __name__ == "__main__":
    main()
