"""See what the degradation models of `docs/degradation.md` do, and hold them against real poor pictures.

    python benchmarks/degradations.py --write docs/results
    python benchmarks/degradations.py --crosscheck DATA/fundus/srahim_dr/labels.csv --pictures 40 --write docs/results

The first makes a sheet for fundus photographs of `skimage.data.retina()` (CC0) and one for endoscopy of the drawn frame of
`sample_data/`: the picture itself, each part alone at rising strength, draws of the whole, and of the other model, what
can be seen below. `--frame FILE` takes another frame; keep such a sheet to yourself if the picture's licence says so.

The second takes the good pictures of a table (its folder holds the files), degrades each once, and prints medians and
quartiles of the measures of `metrics/fundus.py` beside those of the poor ones.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from skimage.data import retina

from medenhance_dicom.metrics.fundus import FundusField, fit_colours
from medenhance_dicom.training.degradation import DEGRADATIONS, MODELS, ordinary_eye
from medenhance_dicom.training.degradation.scene import fundus_field
from medenhance_dicom.training.degradation.simple import endoscope_field

ROOT = Path(__file__).parent.parent
TILE, WIDTH, COLUMNS = 112, 512, 8
FINE = ("defocus", "motion", "noise", "jpeg", "interlacing")  # shown as a part of the picture, pixel for pixel


def read(path: Path, width: int, height: int | None = None) -> np.ndarray:
    """float32 (height, width, 3) in [0, 1]."""
    if path.suffix == ".dcm":
        import pydicom

        pixels = pydicom.dcmread(path).pixel_array
        picture = Image.fromarray(pixels[0] if pixels.ndim == 4 else pixels)
    else:
        picture = Image.open(path).convert("RGB")
    return np.asarray(picture.resize((width, height or width), Image.Resampling.LANCZOS), np.float32) / 255


def sheet(rows: list[tuple[str, list[np.ndarray]]]) -> Image.Image:
    """Rows of pictures (256, 256[, 3]) under their names, eight a row."""
    lines = [
        (name if not at else "", tiles[at : at + COLUMNS])
        for name, tiles in rows
        for at in range(0, len(tiles), COLUMNS)
    ]
    page = Image.new("RGB", (COLUMNS * TILE, sum(TILE + 14 * bool(name) for name, _ in lines)), "white")
    pen, top = ImageDraw.Draw(page), 0
    for name, tiles in lines:
        if name:
            pen.text((4, top + 1), name, fill="black")
            top += 14
        for i, tile in enumerate(tiles):
            page.paste(
                Image.fromarray((tile * 255 + 0.5).astype(np.uint8)).convert("RGB").resize((TILE, TILE)),
                (i * TILE, top),
            )
        top += TILE
    return page


def rows_of(kind: str, picture: np.ndarray, field: np.ndarray) -> list[tuple[str, list[np.ndarray]]]:
    """Each part alone at strengths from 0.25 to 1, then draws of the mixes."""
    rows = [("the picture itself" + ", and as ordinary eyes" * (kind == "fundus"), [picture])]
    if kind == "fundus":
        rows[0][1].extend(ordinary_eye(picture, np.random.default_rng(i), field) for i in range(COLUMNS - 1))
    clinical, other = f"{kind}-clinical", f"{kind}-other"
    strengths = (0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0, 1.0)
    for number, name in enumerate(n for n in MODELS if n.startswith(kind) and n not in (clinical, other)):
        drawn = [
            MODELS[name].degrade(picture, np.random.default_rng((1, number, i)), field, s).picture
            for i, s in enumerate(strengths)
        ]
        fine = name.endswith(FINE)
        if fine:
            drawn = [whole[72 : 72 + TILE, 20 : 20 + TILE] for whole in drawn]
        rows.append((f"{name}, strength 0.25 to 1{', a part' * fine}", drawn))
    draws = [MODELS[clinical].degrade(picture, np.random.default_rng((2, i)), field) for i in range(2 * COLUMNS)]
    rows.append((clinical, [d.picture for d in draws]))
    rows.append(
        (f"{clinical}: what can be seen, of the first row", [np.where(field, d.seen, 0) for d in draws[:COLUMNS]])
    )
    rows.append((other, [MODELS[other](picture, np.random.default_rng((3, i))) for i in range(COLUMNS)]))
    return rows


MEASURES: dict[str, Callable[[FundusField, np.ndarray], float]] = {
    "unevenness": lambda f, x: f.unevenness(x),
    "vessel-depth": lambda f, x: f.vessel_depth(x),
    "contrast-to-noise": lambda f, x: f.contrast_to_noise(x) if f.ground.any() else np.nan,
    "chroma-spread": lambda f, x: f.chroma_spread(x),
    "L*": lambda f, x: f.colours(x)[0],
    "a*": lambda f, x: f.colours(x)[1],
    "b*": lambda f, x: f.colours(x)[2],
}


def crosscheck(table: Path, column: str, good: str, poor: str, count: int) -> str:
    """Markdown: a row for each measure, a column for each kind of picture."""
    rows = list(csv.DictReader(table.open()))
    chosen = {word: [r["file"] for r in rows if r[column] == word] for word in (good, poor)}
    spread = {
        word: [files[i] for i in np.unique(np.linspace(0, len(files) - 1, count).round().astype(int))]
        for word, files in chosen.items()
    }
    pictures = {word: [read(table.parent / file, WIDTH) for file in files] for word, files in spread.items()}
    fields = {word: [fundus_field(picture) for picture in all_] for word, all_ in pictures.items()}
    colours = fit_colours(zip(pictures[good], fields[good], strict=True))
    sets = {f"good ({good})": (pictures[good], fields[good]), f"poor ({poor})": (pictures[poor], fields[poor])}
    for name in ("fundus-clinical", "fundus-other", "fundus"):
        worse = [DEGRADATIONS[name](p, np.random.default_rng((5, i))) for i, p in enumerate(pictures[good])]
        sets[f"`{name}`"] = (worse, fields[good])
    lines = [
        f"| | {' | '.join(f'{name}, n {len(held)}' for name, (held, _) in sets.items())} |",
        "|---" * (1 + len(sets)) + "|",
    ]
    measured: dict[str, dict[str, list[float]]] = {}
    for name, (held, inside) in sets.items():
        found = measured[name] = {m: [] for m in (*MEASURES, "colour-distance")}
        for picture, mask in zip(held, inside, strict=True):
            field = FundusField(picture, mask)
            for measure, of in MEASURES.items():
                found[measure].append(of(field, picture))
            found["colour-distance"].append(field.colour_distance(picture, colours))
    for measure in next(iter(measured.values())):
        cells = []
        for found in measured.values():
            low, middle, high = np.nanpercentile(found[measure], [25, 50, 75])
            digits = 3 if middle < 1 else 2 if middle < 10 else 1
            cells.append(f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]")
        lines.append(f"| {measure} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--frame", type=Path, default=ROOT / "sample_data/study/es-colon.dcm", help="for the endoscopic sheet"
    )
    parser.add_argument("--crosscheck", type=Path, metavar="CSV", help="table of real fundus photographs")
    parser.add_argument("--column", default="tier")
    parser.add_argument("--good", default="high")
    parser.add_argument("--poor", default="low")
    parser.add_argument("--pictures", type=int, default=40, help="of each at most, spread over the table")
    arguments = parser.parse_args()
    arguments.write.mkdir(parents=True, exist_ok=True)
    if arguments.crosscheck:
        of = arguments.crosscheck, arguments.column, arguments.good, arguments.poor, arguments.pictures
        text = crosscheck(*of)
        print(text)
        (arguments.write / "degradations-crosscheck.md").write_text(text)
        return
    eye = np.asarray(Image.fromarray(retina()).resize((256, 256), Image.Resampling.LANCZOS), np.float32) / 255
    frame = read(arguments.frame, 256)
    for kind, picture, field in (("fundus", eye, fundus_field(eye)), ("endoscopy", frame, endoscope_field(frame))):
        sheet(rows_of(kind, picture, field)).save(arguments.write / f"degradations-{kind}.jpg", quality=72)


if __name__ == "__main__":
    main()
