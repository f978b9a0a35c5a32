"""What recipes do to pictures that no shipped weights were trained on. The figures of the model cards.

    python benchmarks/quality.py DATA [--json FILE] [--sheet FOLDER] [--only DOMAIN] [--recipe NAME ...]

DATA holds `ccm/`, `fundus/` and `endoscopy/` as the training recipes name them. Each domain is measured with its networks'
recipes, and with CLAHE and Retinex in their place; everything goes through the recipes as `enhance` runs them: working
size, pyramid, masks, guide. `--recipe` measures only those. Definitions:

PSNR      10 log10(1 / mean squared error), pictures in [0, 1], whole frame.
SSIM      11 x 11 Gaussian window, sigma 1.5, population covariance.
uneven    `metrics/fundus.py`, unevenness: deviation over mean of the low-pass (sigma width / 12) of green and red.
vessels   the same, vessel_depth: (closing - green) / closing over the 5 % deepest pixels of the source, disk of width / 60.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage.metrics import structural_similarity

from medenhance_dicom.gate import examine
from medenhance_dicom.guides import choose_guide
from medenhance_dicom.manifest import load_manifest
from medenhance_dicom.masks import field_of_view
from medenhance_dicom.metrics import FundusField
from medenhance_dicom.prepare import PreparedRecipe, prepare_recipe
from medenhance_dicom.recipe import Recipe, load_recipes
from medenhance_dicom.training.choosing import list_pictures
from medenhance_dicom.training.degradation import degrade_endoscopy, degrade_fundus
from medenhance_dicom.training.recipe import Pictures


def picture(path: Path, mode: str) -> np.ndarray:
    with Image.open(path) as opened:
        pixels = np.asarray(opened.convert(mode), dtype=np.float32) / 255
    return pixels.reshape(*pixels.shape[:2], -1)


def enhance(prepared: PreparedRecipe, unit: np.ndarray) -> np.ndarray:
    return prepared.enhance_picture(unit)


def psnr(x: np.ndarray, y: np.ndarray) -> float:
    return float(min(-10 * np.log10(np.mean((x - y) ** 2) + 1e-12), 60))


def ssim(x: np.ndarray, y: np.ndarray) -> float:
    return float(structural_similarity(
        x[..., 0], y[..., 0], data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    ))  # fmt: skip


def lassim(x: np.ndarray, y: np.ndarray) -> float:
    return float(examine(x, y).lassim)


def cornea(prepared: PreparedRecipe, root: Path, sheet: list[np.ndarray]) -> dict:
    folder = "ccm/nervestitcher2"
    raw = list_pictures(root, Pictures(folder=f"{folder}/raw", first=0.84))
    flat = list_pictures(root, Pictures(folder=f"{folder}/vignette_corrected", first=0.84))
    rows = []
    for low_path, high_path in zip(raw, flat, strict=True):
        low, high = picture(low_path, "L"), picture(high_path, "L")
        out = enhance(prepared, low)
        rows.append((psnr(low, high), psnr(out, high), ssim(low, high), ssim(out, high), lassim(low, out),
                     psnr(enhance(prepared, high), high)))  # fmt: skip
        if len(rows) % 9 == 1:
            sheet.append(np.hstack([low, out, high]))
    other = [picture(p, "L") for p in list_pictures(root, Pictures(folder="ccm/nervestitcher/raw", pattern="seq3_*"))]
    others = [(x, enhance(prepared, x)) for x in other[::4]]
    sheet += [np.hstack([x, y, y]) for x, y in others[::4]]
    names = ("psnr_before", "psnr_after", "ssim_before", "ssim_after", "lassim_to_source", "psnr_of_flat_to_itself")
    return {"frames": len(rows), **dict(zip(names, np.mean(rows, axis=0).round(4).tolist(), strict=True)),
            "worst_lassim_to_source": round(min(r[4] for r in rows), 4),
            "another_person": {
                "frames": len(others),
                "lassim_to_source": round(float(np.mean([lassim(x, y) for x, y in others])), 4),
                "worst_lassim_to_source": round(min(lassim(x, y) for x, y in others), 4),
                "block_unevenness_before": round(float(np.mean([blocks(x) for x, _ in others])), 4),
                "block_unevenness_after": round(float(np.mean([blocks(y) for _, y in others])), 4),
            }}  # fmt: skip


def blocks(x: np.ndarray) -> float:
    means = (
        x[: x.shape[0] // 48 * 48, : x.shape[1] // 48 * 48, 0].reshape(x.shape[0] // 48, 48, -1, 48).mean(axis=(1, 3))
    )
    return float(means.std() / means.mean())


def fundus(prepared: PreparedRecipe, root: Path, sheet: list[np.ndarray]) -> dict:
    def side(x: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray((x * 255).round().astype(np.uint8)).resize((320, 320))) / np.float32(255)

    idrid = [picture(p, "RGB") for p in list_pictures(root, Pictures(folder="fundus/idrid_codras/images", first=0.85))]
    idrid = [x for x in idrid if x[x.max(axis=2) > 12 / 255].mean() >= 0.27]
    degraded = []
    for i, truth in enumerate(idrid):
        low = degrade_fundus(truth, np.random.default_rng((11, i)))
        out = enhance(prepared, low)
        degraded.append((psnr(low, truth), psnr(out, truth), lassim(low, out)))
        if i % 6 == 0:
            sheet.append(np.hstack([side(low), side(out), side(truth)]))
    scored = {"folder": "fundus/csdi/images", "table": "fundus/csdi/labels.csv", "column": "cataract_score_0_10"}
    veiled = []
    for i, path in enumerate(list_pictures(root, Pictures(**scored, at_least=4.0, first=0.75))):
        x = picture(path, "RGB")
        y = enhance(prepared, x)
        field = FundusField(x, field_of_view(x, "ellipse"))
        light, depth = ([f(x), f(y)] for f in (field.unevenness, field.vessel_depth))
        veiled.append((*light, *depth, lassim(x, y)))
        if i % 4 == 0:
            sheet.append(np.hstack([side(x), side(y), side(y)]))
    good = [picture(p, "RGB") for p in list_pictures(root, Pictures(**scored, at_most=2.0))]
    itself = [psnr(enhance(prepared, x), x) for x in good]
    unseen = [picture(p, "RGB") for p in list_pictures(root, Pictures(**scored, at_most=2.5, first=0.7))]
    v, d = np.array(veiled), np.array(degraded)
    hard = d[d[:, 0] < 25]
    return {
        "degraded": {"pictures": len(d), "psnr_before": d[:, 0].mean(), "psnr_after": d[:, 1].mean(),
                     "worse": int((d[:, 1] < d[:, 0]).sum()), "lassim": d[:, 2].mean()},
        "degraded_below_25_dB": {
            "pictures": len(hard),
            "psnr_before": hard[:, 0].mean(),
            "psnr_after": hard[:, 1].mean(),
        },
        "csdi_score_4_to_10_unseen": {
            "pictures": len(v), "uneven_before": v[:, 0].mean(), "uneven_after": v[:, 1].mean(),
            "uneven_ratio_of_means": v[:, 1].mean() / v[:, 0].mean(), "uneven_median_ratio": np.median(v[:, 1] / v[:, 0]),
            "vessels_before": v[:, 2].mean(), "vessels_after": v[:, 3].mean(),
            "vessels_weaker_in": int((v[:, 3] < v[:, 2]).sum()), "lassim": v[:, 4].mean(), "worst_lassim": v[:, 4].min(),
        },
        "csdi_score_0_to_2": {"pictures": len(good), "psnr_to_itself": np.mean(itself), "worst": min(itself),
                              "below_30_dB": sum(value < 30 for value in itself)},
        "csdi_score_0_to_2.5_unseen": {"pictures": len(unseen),
                                       "psnr_to_itself": np.mean([psnr(enhance(prepared, x), x) for x in unseen])},
        "idrid_unseen": {"pictures": len(idrid), "psnr_to_itself": np.mean([psnr(enhance(prepared, x), x) for x in idrid])},
    }  # fmt: skip


def endoscopy(prepared: PreparedRecipe, root: Path, sheet: list[np.ndarray]) -> dict:
    kvasir = list_pictures(root, Pictures(folder="endoscopy/kvasir_seg_256/images", first=0.92))
    degraded, itself = [], []
    for i, path in enumerate(kvasir):
        truth = picture(path, "RGB")
        low = degrade_endoscopy(truth, np.random.default_rng((11, i)))
        out = enhance(prepared, low)
        degraded.append((psnr(low, truth), psnr(out, truth), lassim(low, out)))
        itself.append(psnr(enhance(prepared, truth), truth))
        if i % 8 == 0:
            sheet.append(np.hstack([low, out, truth]))
    video = list_pictures(root, Pictures(folder="endoscopy/cvc_clinicdb_256/images", first=0.732))
    frames = []
    for i, path in enumerate(video):
        x = picture(path, "RGB")
        y = enhance(prepared, x)
        field = FundusField(x, field_of_view(x, "border"))
        frames.append((field.unevenness(x), field.unevenness(y), lassim(x, y)))
        if i % 10 == 0:
            sheet.append(np.hstack([x, y, y]))
    d, v = np.array(degraded), np.array(frames)
    return {
        "degraded": {"pictures": len(d), "psnr_before": d[:, 0].mean(), "psnr_after": d[:, 1].mean(),
                     "worse": int((d[:, 1] < d[:, 0]).sum()), "lassim": d[:, 2].mean(), "worst_lassim": d[:, 2].min()},
        "kvasir_unseen": {"pictures": len(itself), "psnr_to_itself": np.mean(itself), "worst": min(itself)},
        "cvc_unseen_sequences": {"pictures": len(v), "uneven_before": v[:, 0].mean(), "uneven_after": v[:, 1].mean(),
                                 "lassim": v[:, 2].mean(), "worst_lassim": v[:, 2].min()},
    }  # fmt: skip


DOMAINS = {"cornea": ("cfm-cornea", "CFM", cornea), "fundus": ("op-fundus", "OP", fundus),
           "endoscopy": ("es-endoscopy", "ES", endoscopy)}  # fmt: skip


def candidates(prefix: str) -> dict[str, Recipe]:
    """The domain's recipes by name, and CLAHE and Retinex with the same masks and intensities."""
    recipes = {recipe.name: recipe for recipe in load_recipes()}
    own = {name: recipe for name, recipe in recipes.items() if name.startswith(prefix)}
    base = min(own.values(), key=lambda recipe: recipe.enhancer.method != "network")
    whole = {"resolution": recipes["vl-clahe"].resolution}
    for name, source in (("clahe", "vl-clahe"), ("retinex", "es-endoscopy-retinex")):
        own[name] = base.model_copy(update={"enhancer": recipes[source].enhancer, **whole})
    return own


def ready(recipe: Recipe, modality: str) -> PreparedRecipe:
    guide = None
    if recipe.enhancer.weights:
        entry = load_manifest().entry(recipe.enhancer.weights)
        if entry.takes_guide:
            guide = choose_guide(recipe.enhancer.weights, entry, recipe.enhancer.guide, {"Modality": modality})
    return prepare_recipe(recipe, device="cpu", engine="auto", precision="auto", guide=guide)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--only", choices=sorted(DOMAINS))
    parser.add_argument("--recipe", action="append", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    figures: dict[str, dict] = {}
    for domain, (prefix, modality, measure) in DOMAINS.items():
        if arguments.only not in (None, domain):
            continue
        for name, recipe in candidates(prefix).items():
            if arguments.recipe and name not in arguments.recipe:
                continue
            sheet: list[np.ndarray] = []
            figures.setdefault(domain, {})[name] = measure(ready(recipe, modality), arguments.data, sheet)
            print(domain, name, json.dumps(figures[domain][name], default=float), flush=True)
            if arguments.sheet:
                arguments.sheet.mkdir(parents=True, exist_ok=True)
                rows = (np.vstack(sheet).clip(0, 1) * 255).round().astype(np.uint8).squeeze()
                Image.fromarray(rows).save(arguments.sheet / f"{domain}-{name}.png")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
