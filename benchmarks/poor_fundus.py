"""What recipes do to really poor photographs of the eye, beside formulas that need no learning. Measures only.

    python benchmarks/poor_fundus.py DATA --recipe NAME ... [--set srahim_dr|heimed] [--part test|all] [--guide KEY]
                                     [--n N] [--json FILE] [--sheet FILE.jpg] [--only PART ...]

DATA holds `fundus/<set>` with a `labels.csv`, and for disc, macula and lesions `fundus/idrid_codras` and `fundus/heimed`.
`--part test` takes patients whom no recipe of `pipelines/train` sees. Beside the recipes stand the source, `plain`
(`conventional.FieldNormalisation` on statistics of the set's own good pictures) and `control` (one flat colour and
twice the green detail, which learned nothing): what a recipe does not win against `control` is worth nothing.

Every picture is brought to 512 x 512, goes through the recipe as `enhance` runs it (mask, working size, guide, gate) and
is stored in 8 bits. Measures look at `bright_field`, which knows nothing of our masks; metrics/fundus.py defines them.
Intervals: 95 %, bootstrap of patients.

poor        low tier: the measures, how many are withheld, and the rim (fine change within 12 pixels of the field's edge
            over that inside)
good        high tier to itself: PSNR (inside the field, and of the frame), share of 32 dB and more, withheld
places      disc boxes of IDRiD, and the darkest place where the macula is to be: Weber contrast to the surround, after
            over before
lesions     masks of HEI-MED, boxes of IDRiD: contrast to the surround, after over before
nothing     haze with noise and no structure: mean change of the worst channel, in grey levels
truth       good pictures of IDRiD and LES-AV, degraded by the models fundus-clinical and fundus-other: PSNR gained, and
            PSNR and SSIM gained after `plain` of both sides
"""

from __future__ import annotations

import argparse
import csv
import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import (
    binary_dilation,
    binary_fill_holes,
    binary_opening,
    distance_transform_edt,
    gaussian_filter,
    label,
)

from medenhance_dicom.baselines import build_baseline
from medenhance_dicom.conventional import FieldNormalisation, field_statistics
from medenhance_dicom.gate import examine, verdict_of
from medenhance_dicom.guides import choose_guide
from medenhance_dicom.manifest import load_manifest
from medenhance_dicom.metrics import FundusField, bootstrap_interval, fit_colours, psnr, ssim
from medenhance_dicom.prepare import PreparedRecipe, prepare_recipe
from medenhance_dicom.recipe import Recipe, load_recipe, load_recipes
from medenhance_dicom.training.choosing import list_pictures
from medenhance_dicom.training.degradation import DEGRADATIONS
from medenhance_dicom.training.recipe import Pictures

SIZE = 512
PARTS = ("poor", "good", "places", "lesions", "nothing", "truth")
Method = Callable[[np.ndarray], tuple[np.ndarray, float]]
"""(H, W, 3) in [0, 1] -> the result in steps of 1/255, and 1 where the gate withholds it; NaN where there is no gate."""


@dataclass(frozen=True)
class Eye:
    name: str
    patient: str
    picture: np.ndarray
    field: FundusField


# ---------------------------------------------------------------- pictures


def load(path: Path, mode: str = "RGB") -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened.convert(mode).resize((SIZE, SIZE)), np.float32) / 255


def bright_field(picture: np.ndarray) -> np.ndarray:
    light = picture.max(axis=2)
    bright = binary_opening(light > max(0.04, 0.1 * np.percentile(light, 97)), iterations=3)
    labels, count = label(bright)
    if count:
        bright = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    return binary_fill_holes(bright)


def eyes(data: Path, chosen: Pictures, patients: dict[str, str], limit: int | None) -> Iterator[Eye]:
    paths = list_pictures(data, chosen)
    for path in paths if limit is None else paths[:: max(1, len(paths) // limit)][:limit]:
        picture = load(path)
        yield Eye(path.name, patients.get(path.name, path.name), picture, FundusField(picture, bright_field(picture)))


def sets(name: str, part: str) -> tuple[Pictures, Pictures]:
    """The poor and the good ones of a set."""
    folder = f"fundus/{name}"
    common = {
        "folder": folder,
        "pattern": "*.jpg",
        "table": f"{folder}/labels.csv",
        "part": None if part == "all" else part,
    }
    if name == "srahim_dr":
        common |= {"group": "patient", "split": "srahim"}
        return tuple(Pictures(**common, where={"tier": tier}) for tier in ("low", "high"))
    common |= {"group": "file", "split": name}
    return (
        Pictures(**common, column="elvd_quality", at_most=0.85),
        Pictures(**common, column="elvd_quality", at_least=0.98),
    )


def patients_of(data: Path, name: str) -> dict[str, str]:
    with (data / "fundus" / name / "labels.csv").open() as file:
        return {row["file"]: row.get("patient") or row["file"] for row in csv.DictReader(file)}


# ---------------------------------------------------------------- methods


def stored(picture: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.float32) / 255


def ready(name: str, guide_key: str) -> PreparedRecipe:
    recipe: Recipe = load_recipe(Path(name)) if name.endswith(".toml") else {r.name: r for r in load_recipes()}[name]
    guide = None
    if recipe.enhancer.weights:
        entry = load_manifest().entry(recipe.enhancer.weights)
        if entry.takes_guide:
            asked = recipe.enhancer.guide if guide_key == "auto" else guide_key
            guide = choose_guide(recipe.enhancer.weights, entry, asked, {"Modality": "OP"})
    return prepare_recipe(recipe, device="cpu", engine="auto", precision="auto", guide=guide)


def of_recipe(prepared: PreparedRecipe) -> Method:
    level = prepared.recipe.gate.level

    def run(picture: np.ndarray) -> tuple[np.ndarray, float]:
        region = prepared.region(picture, None)
        after = stored(prepared.enhance_picture(picture, region))
        scores = examine(picture, after, level=level, inside=region)
        outcome = verdict_of([scores], prepared.thresholds, "withhold", level=level).outcome
        return after, float(outcome == "withheld")

    return run


def of_formula(enhance_within: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Method:
    """Within the measured part of the field, as the measures see it."""

    def run(picture: np.ndarray) -> tuple[np.ndarray, float]:
        inside = FundusField(picture, bright_field(picture)).inside
        return stored(enhance_within(picture[None], inside[None])[0]), np.nan

    return run


# ---------------------------------------------------------------- measures


def summary(values: list[float], patients: list[str]) -> dict[str, float | list[float] | int]:
    """Mean of the finite values, and its interval over patients."""
    by: dict[str, list[float]] = defaultdict(list)
    for value, patient in zip(values, patients, strict=True):
        if np.isfinite(value):
            by[patient].append(value)
    if not by:
        return {"n": 0, "patients": 0}
    sums, counts = (np.array([f(v) for v in by.values()], float) for f in (sum, len))

    def mean(drawn: np.ndarray) -> np.ndarray:
        index = drawn.astype(int)
        return sums[index].sum(axis=1) / counts[index].sum(axis=1)

    low, high = bootstrap_interval(np.arange(len(by)), statistic=mean)
    return {
        "n": int(counts.sum()),
        "patients": len(by),
        "mean": float(sums.sum() / counts.sum()),
        "interval": [low, high],
    }


def structure(field: FundusField, before: np.ndarray, after: np.ndarray) -> float:
    def band(picture: np.ndarray) -> np.ndarray:
        weight = field.inside.astype(np.float32)
        green = picture[..., 1] * weight
        fine, coarse = (gaussian_filter(green, s) / np.maximum(gaussian_filter(weight, s), 1e-4) for s in (1.5, 8))
        return (fine - coarse)[field.inside]

    return float(np.corrcoef(band(before), band(after))[0, 1])


def rim(eye: Eye, after: np.ndarray) -> float:
    change = (after - eye.picture).mean(axis=2)
    fine = np.abs(change - gaussian_filter(change, 2))
    field = bright_field(eye.picture)
    edge = binary_dilation(field, iterations=3) & ~eye.field.inside
    inside = float(fine[eye.field.inside].mean())
    return float(fine[edge].mean()) / inside if inside > 1e-6 else np.nan


def weber(picture: np.ndarray, part: np.ndarray, around: np.ndarray) -> float:
    """Contrast of a part to its surround, in green."""
    ground = float(picture[..., 1][around].mean())
    return (float(picture[..., 1][part].mean()) - ground) / max(ground, 1e-3)


def disk_at(row: float, column: float, radius: float) -> np.ndarray:
    y, x = np.mgrid[:SIZE, :SIZE]
    return (y - row) ** 2 + (x - column) ** 2 <= radius**2


def boxes(data: Path) -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    """IDRiD: file -> (class, x1, y1, x2, y2 as shares of the frame)."""
    found: dict[str, list[tuple[str, tuple[float, ...]]]] = defaultdict(list)
    folder = data / "fundus" / "idrid_codras"
    with (folder / "boxes.csv").open() as file:
        for row in csv.DictReader(file):
            with Image.open(folder / "images" / row["file"]) as opened:
                width, height = opened.size
            corners = [int(row[k]) / (width if k[0] == "x" else height) for k in ("x1", "y1", "x2", "y2")]
            found[row["file"]].append((row["class"], tuple(corners)))
    return found


def disc_and_macula(eye: Eye, box: tuple[float, ...]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Where they are, and their surround; the macula is the darkest place two and a half discs towards the middle."""
    x1, y1, x2, y2 = (SIZE * v for v in box)
    row, column, radius = (y1 + y2) / 2, (x1 + x2) / 2, (x2 - x1 + y2 - y1) / 4
    inside = eye.field.inside
    ring = disk_at(row, column, 2 * radius) & ~disk_at(row, column, 1.3 * radius) & inside
    found = {"disc": (disk_at(row, column, radius) & inside, ring)}
    side = 1 if column < SIZE / 2 else -1
    near = disk_at(row + 0.6 * radius, column + side * 5 * radius, 1.5 * radius) & inside
    if near.sum() > 2 * radius**2:
        dark = np.where(near, gaussian_filter(eye.picture[..., 1], radius / 2), np.inf)
        at = np.unravel_index(np.argmin(dark), dark.shape)
        around = disk_at(*at, 2 * radius) & ~disk_at(*at, 1.3 * radius) & inside
        found["macula"] = disk_at(*at, 0.6 * radius) & inside, around
    return found


def lesions(eye: Eye, mask: np.ndarray, kind: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Each kind's pixels, and those up to 8 pixels about them that are no lesion's."""
    near = (distance_transform_edt(~mask) <= 10) & ~binary_dilation(mask, iterations=2) & eye.field.inside
    part = mask & eye.field.inside
    if part.sum() >= 12 and near.sum() >= 12:
        yield kind, part, near


def lesions_in_boxes(
    eye: Eye, found: list[tuple[str, tuple[float, ...]]]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Of a box, the darkest or the brightest quarter of the source's green is the lesion."""
    green = gaussian_filter(eye.picture[..., 1], 1)
    for kind in ("haemorrhage", "hard_exudates"):
        mask = np.zeros(green.shape, bool)
        for name, (x1, y1, x2, y2) in found:
            if name == kind:
                place = slice(int(SIZE * y1), int(SIZE * y2) + 1), slice(int(SIZE * x1), int(SIZE * x2) + 1)
                values = green[place]
                if not values.size:  # beyond the picture
                    continue
                low, high = np.percentile(values, [25, 75])
                mask[place] |= values <= low if kind == "haemorrhage" else values >= high
        if mask.any():
            yield from lesions(eye, mask, kind)


def haze(seed: int) -> np.ndarray:
    """A round field in which nothing is seen: smooth light, a veil's colour, and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE - 0.5
    light = 1 + rng.uniform(-0.3, 0.3) * x + rng.uniform(-0.3, 0.3) * y
    colour = np.array([0.55, 0.42, 0.25]) * rng.uniform(0.8, 1.2, 3)
    picture = light[..., None] * colour + rng.normal(0, 0.008, (SIZE, SIZE, 3))
    return stored(np.where((x**2 + y**2 < 0.47**2)[..., None], picture, 0))


# ---------------------------------------------------------------- the parts


def poor(found: list[Eye], method: Method, colours, sheet: dict[str, list[np.ndarray]], name: str) -> dict:
    rows, rims, withheld = [], [], []
    for eye in found:
        after, kept = method(eye.picture)
        sheet[name].append(after)
        f = eye.field
        rows.append({
            "unevenness": f.unevenness(after), "vessel-depth": f.vessel_depth(after),
            "contrast-to-noise": f.contrast_to_noise(after), "structure": structure(f, eye.picture, after),
            "colour-distance": f.colour_distance(after, colours), "chroma-spread": f.chroma_spread(after),
            "chroma-added": f.chroma_added(after), "colour-shift": f.colour_shift(after),
        })  # fmt: skip
        rims.append(rim(eye, after))
        withheld.append(kept)
    patients = [eye.patient for eye in found]
    table = {key: summary([row[key] for row in rows], patients) for key in rows[0]} if rows else {}
    return table | {"withheld": summary(withheld, patients), "rim": summary(rims, patients)}


def good(found: list[Eye], method: Method) -> dict:
    inside, frame, withheld = [], [], []
    for eye in found:
        after, kept = method(eye.picture)
        inside.append(psnr(after, eye.picture, bright_field(eye.picture)))
        frame.append(psnr(after, eye.picture))
        withheld.append(kept)
    patients = [eye.patient for eye in found]
    return {
        "psnr": summary(np.minimum(inside, 60).tolist(), patients), "psnr-frame": summary(np.minimum(frame, 60).tolist(), patients),
        "at-least-32": summary([float(v >= 32) for v in inside], patients),
        "at-least-32-frame": summary([float(v >= 32) for v in frame], patients),
        "withheld": summary(withheld, patients),
    }  # fmt: skip


def contrasts(places: Iterator[tuple[Eye, str, np.ndarray, np.ndarray]], method: Method) -> dict:
    """Contrast after over before, by kind; a part that had next to none is left out."""
    ratios: dict[str, list[tuple[float, str]]] = defaultdict(list)
    last: tuple[str, np.ndarray] | None = None
    for eye, kind, part, around in places:
        if last is None or last[0] != eye.name:
            last = eye.name, method(eye.picture)[0]
        before = weber(eye.picture, part, around)
        if abs(before) >= 0.02:
            ratios[kind].append((weber(last[1], part, around) / before, eye.patient))
    return {
        kind: summary([r for r, _ in found], [p for _, p in found]) | {
            "median": float(np.median([r for r, _ in found])),
            "within-20%": float(np.mean([0.8 <= r <= 1.2 for r, _ in found])),
            "at-least-1": float(np.mean([r >= 1 for r, _ in found])),
        }
        for kind, found in ratios.items()
    }  # fmt: skip


def truth(found: list[Eye], method: Method, plain: FieldNormalisation) -> dict:
    """Each degradation model for fundus photographs, and each picture's own seed."""
    told = {}
    for model in ("fundus-clinical", "fundus-other"):
        gain, even_psnr, even_ssim, start = [], [], [], []
        for eye in found:
            rng = np.random.default_rng((11, zlib.crc32(eye.name.encode())))
            low = stored(DEGRADATIONS[model](eye.picture, rng))
            after, _ = method(low)
            here = eye.field.inside
            start.append(psnr(low, eye.picture, here))
            gain.append(min(psnr(after, eye.picture, here), 60) - min(start[-1], 60))
            even = [plain.enhance_within(p[None], here[None])[0] for p in (eye.picture, low, after)]
            even_psnr.append(psnr(even[2], even[0], here) - psnr(even[1], even[0], here))
            even_ssim.append(ssim(even[2], even[0], here) - ssim(even[1], even[0], here))
        patients = [eye.patient for eye in found]
        told[model] = {
            "psnr-before": summary(start, patients), "psnr-gained": summary(gain, patients),
            "worse": summary([float(g < 0) for g in gain], patients),
            "psnr-gained-even": summary(even_psnr, patients), "ssim-gained-even": summary(even_ssim, patients),
        }  # fmt: skip
    return told


# ---------------------------------------------------------------- all of it


def judged(figures: dict[str, dict], top: float) -> dict[str, dict[str, bool]]:
    """Both looks' demands on poor pictures, by what recipes' means are against the others'."""

    def of(name: str, key: str) -> float:
        return figures[name]["poor"][key].get("mean", np.nan)

    told = {}
    for name in figures:
        if name in ("source", "plain", "control"):
            continue
        depth, withheld = of(name, "vessel-depth"), of(name, "withheld")
        told[name] = {
            look: {
                "vessel-depth": least * of("plain", "vessel-depth") <= depth <= 1.1 * top,
                "contrast-to-noise": of(name, "contrast-to-noise") >= noise * of("source", "contrast-to-noise"),
                "colour-distance": of(name, "colour-distance") <= colour,
                "chroma-spread": of(name, "chroma-spread") <= chroma * of("source", "chroma-spread"),
                "structure": of(name, "structure") >= kept,
                "withheld": withheld <= 0.05,
            } | ({"unevenness": of(name, "unevenness") <= 0.6 * of("plain", "unevenness")} if look == "even" else {})
            for look, least, noise, colour, chroma, kept in (
                ("natural", 1.0, 1.1, 0.8, 1.0, 0.94), ("even", 1.2, 1.2, 1.0, 0.3, 0.92)
            )
        }  # fmt: skip
    return told


def show(part: str, name: str, told: dict, indent: str = "") -> None:
    for key, value in told.items():
        if "n" not in value:
            print(f"{indent}{name}: {part}: {key}")
            show(part, name, value, indent + "  ")
        elif value["n"]:
            low, high = value["interval"]
            more = " ".join(f"{k} {v:.2f}" for k, v in value.items() if isinstance(v, float) and k != "mean")
            print(f"{indent}{part:8s} {name:24s} {key:20s} {value['mean']:8.3f} [{low:.3f}, {high:.3f}] n {value['n']} "
                  f"({value['patients']}) {more}")  # fmt: skip


def write_sheet(path: Path, found: list[Eye], sheet: dict[str, list[np.ndarray]], seed: int, count: int = 40) -> None:
    """Random poor pictures, one row each: source, then every method; four rows side by side."""
    chosen = np.random.default_rng(seed).permutation(len(found))[:count]
    tile = 160

    def small(picture: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray((picture * 255 + 0.5).astype(np.uint8)).resize((tile, tile), Image.LANCZOS))

    rows = [np.hstack([small(found[i].picture), *(small(made[i]) for made in sheet.values())]) for i in chosen]
    rows += [np.zeros_like(rows[0])] * (-len(rows) % 4)
    gap = np.full((tile, 8, 3), 255, np.uint8)
    lines = [np.hstack([part for row in rows[k : k + 4] for part in (row, gap)]) for k in range(0, len(rows), 4)]
    Image.fromarray(np.vstack(lines)).save(path, quality=88)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--recipe", action="append", default=[], help="a recipe's name, or a TOML file")
    parser.add_argument("--set", default="srahim_dr", choices=["srahim_dr", "heimed"], dest="name")
    parser.add_argument("--part", default="test", choices=["train", "validate", "test", "all"])
    parser.add_argument("--guide", default="auto")
    parser.add_argument("--n", type=int, help="at most so many pictures of each kind")
    parser.add_argument("--only", action="append", choices=PARTS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the sheet")
    arguments = parser.parse_args()
    data, parts = arguments.data, set(arguments.only or PARTS)
    torch.set_num_threads(1)
    patients = patients_of(data, arguments.name)
    low, high = sets(arguments.name, arguments.part)
    # What good pictures look like is known of all of the set, as whoever holds it knows it.
    reference = list(eyes(data, sets(arguments.name, "all")[1], patients, None))
    colours = fit_colours((eye.picture, bright_field(eye.picture)) for eye in reference)
    mean, spread = field_statistics((eye.picture, eye.field.inside) for eye in reference)
    top = float(np.mean([eye.field.vessel_depth(eye.picture) for eye in reference]))
    plain = FieldNormalisation(mean, spread)
    methods: dict[str, Method] = {name: of_recipe(ready(name, arguments.guide)) for name in arguments.recipe}
    methods["plain"] = of_formula(plain.enhance_within)
    methods["control"] = of_formula(build_baseline("control", {"colour": list(mean)}).enhance_within)
    figures: dict[str, dict] = {name: {} for name in ("source", *methods)}
    sheet: dict[str, list[np.ndarray]] = defaultdict(list)

    def tell(part: str, name: str, told: dict) -> None:
        figures[name][part] = told
        show(part, name, told)

    worst = list(eyes(data, low, patients, arguments.n)) if "poor" in parts else []
    best = list(eyes(data, high, patients, arguments.n)) if "good" in parts else []
    les_av = {"folder": "fundus/les_av", "group": "file", "split": "les"}
    idrid_test = Pictures(folder="fundus/idrid_codras/images", group="file", split="idrid", part="test")
    truths = (
        [
            eye
            for chosen in (idrid_test, *(Pictures(**les_av, part=part) for part in ("validate", "test")))
            for eye in eyes(data, chosen, {}, arguments.n)
        ]
        if "truth" in parts
        else []
    )
    marked = boxes(data) if parts & {"places", "lesions"} else {}
    if "poor" in parts:
        tell("poor", "source", poor(worst, lambda x: (x, np.nan), colours, defaultdict(list), "source"))
    for name, method in methods.items():
        if "poor" in parts:
            tell("poor", name, poor(worst, method, colours, sheet, name))
        if "good" in parts:
            tell("good", name, good(best, method))
        if "places" in parts:
            idrid = eyes(data, idrid_test, {}, arguments.n)
            tell("places", name, contrasts(_places(idrid, marked), method))
        if "lesions" in parts:
            tell("lesions", name, contrasts(_lesions(data, marked, idrid_test, arguments.n), method))
        if "nothing" in parts:
            seen = [haze(seed) for seed in range(10)]
            moved = [255 * np.abs((method(x)[0] - x)[bright_field(x)].mean(axis=0)).max() for x in seen]
            tell("nothing", name, {"grey-levels": summary(moved, list(map(str, range(10))))})
        if "truth" in parts:
            tell("truth", name, truth(truths, method, plain))
    found = {"set": arguments.name, "part": arguments.part, "good-vessel-depth": top, "colours": colours.__dict__,
             "plain": {"mean": mean, "spread": spread}, "figures": figures}  # fmt: skip
    if "poor" in parts:
        found["holds"] = judged(figures, top)
        for name, looks in found["holds"].items():
            for look, demands in looks.items():
                print(name, look, " ".join(f"{key} {'yes' if met else 'NO'}" for key, met in demands.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1, default=float) + "\n")
    if arguments.sheet and "poor" in parts:
        write_sheet(arguments.sheet, worst, {name: sheet[name] for name in arguments.recipe}, arguments.seed)


def _places(found: Iterator[Eye], marked: dict) -> Iterator[tuple[Eye, str, np.ndarray, np.ndarray]]:
    for eye in found:
        for kind, box in marked.get(eye.name, ()):
            if kind == "optic_disc":
                for name, (part, around) in disc_and_macula(eye, box).items():
                    yield eye, name, part, around


def _lesions(
    data: Path, marked: dict, idrid: Pictures, limit: int | None
) -> Iterator[tuple[Eye, str, np.ndarray, np.ndarray]]:
    for eye in eyes(data, idrid, {}, limit):
        for kind, part, around in lesions_in_boxes(eye, marked.get(eye.name, [])):
            yield eye, f"idrid {kind}", part, around
    folder = data / "fundus" / "heimed"
    for eye in eyes(data, Pictures(folder="fundus/heimed", group="file", split="heimed", part="test"), {}, limit):
        path = folder / "lesions" / f"{Path(eye.name).stem}.png"
        if path.is_file():
            with Image.open(path) as opened:
                classes = np.asarray(opened.resize((SIZE, SIZE), Image.NEAREST))
            for number, kind in ((1, "exudate"), (2, "microaneurysm or haemorrhage"), (3, "other")):
                for _, part, around in lesions(eye, classes == number, kind):
                    yield eye, f"heimed {kind}", part, around


if __name__ == "__main__":
    main()
