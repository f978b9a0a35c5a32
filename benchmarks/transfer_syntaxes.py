"""Every transfer syntax: is what we decode what was coded? This checkout, and another one beside it.

    python benchmarks/transfer_syntaxes.py --data DATA/dicom --data CASES --before CHECKOUT --write docs

1. Made files: `tests.lossless` has 34 combinations of bits, sign, colour and frames for each lossless syntax, coded by
   other programs than ours; DCMTK and GDCM code them again where they are installed. Each pixel has to be the same.
2. Real files, those below --data and pydicom's own: held against what DCMTK (JPEG, JPEG-LS, RLE), GDCM (JPEG 2000) or
   pydicom (not compressed) make of them, and HTJ2K against the uncompressed file of the same name (*_UNC). Up to three
   frames of each; files of more than 64 MB and malicious ones (folders named fuzz*) are left out.
3. Speed: median processor milliseconds of the decoding child for a frame of 2048 x 2048 (Linux), so that other load on the
   machine does not count; this checkout and the other one take turns.

Without --before there is one column. Writes transfer-syntaxes.md and results/transfer_syntaxes.json below --write.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
FRAMES = 3
MOST_BYTES = 64 << 20


# ---------------------------------------------------------------- with the package of either checkout


def decode(wanted: Path, results: Path) -> None:
    """Decode files named in a JSON list into numbered .npy files, or .txt with the reason; time those to be repeated."""
    from medenhance_dicom.decoding import Decoder
    from medenhance_dicom.frames import pixel_format, stored_frame
    from medenhance_dicom.part10 import read_instance

    seconds = {}
    with Decoder() as decoder:
        for number, (path, repeats) in enumerate(json.loads(wanted.read_text())):
            try:
                header = read_instance(Path(path))
                frames = []
                for index in range(min(pixel_format(header).number_of_frames, FRAMES)):
                    frame = decoder.frame(Path(path), index)
                    if header.PhotometricInterpretation != "PALETTE COLOR":
                        frame = stored_frame(header, frame, index).stored
                    frames.append(frame)
                np.save(results / f"{number}.npy", np.stack(frames))
            except Exception as error:  # whatever a file makes of a decoder is a result
                (results / f"{number}.txt").write_text(f"{type(error).__name__}: {error}")
                continue
            times = []
            for _ in range(repeats):
                started = spent_by(decoder)
                decoder.frame(Path(path), 0)
                times.append(spent_by(decoder) - started)
            if times:
                seconds[number] = statistics.median(times)
    (results / "seconds.json").write_text(json.dumps(seconds))


def spent_by(decoder) -> float:
    """Processor seconds of the child, which has one thread."""
    return int(Path(f"/proc/{decoder._child.pid}/schedstat").read_text().split()[0]) / 1e9


def decoded_by(checkout: Path, files: list[Path], scratch: Path, *, repeats: int = 0):
    """What a checkout makes of each file: (frames, rows, columns[, 3]) or a text; and the seconds of a frame of each."""
    results = Path(tempfile.mkdtemp(dir=scratch))
    wanted = results / "wanted.json"
    wanted.write_text(json.dumps([(str(path), repeats) for path in files]))
    command = [sys.executable, __file__, "--decode", str(wanted), str(results)]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=checkout, env=environment, check=True)
    found = []
    for number in range(len(files)):
        path = results / f"{number}.npy"
        found.append(np.load(path) if path.exists() else (results / f"{number}.txt").read_text())
    return found, {int(key): value for key, value in json.loads((results / "seconds.json").read_text()).items()}


# ---------------------------------------------------------------- made files


def recoded(syntax: str, native: Path, target: Path) -> Path | None:
    """The same picture, coded by DCMTK or GDCM; None where neither can."""
    commands = {
        ".4.57": ["dcmcjpeg", "+el", "+sv", "4", native, target],
        ".4.70": ["dcmcjpeg", "+e1", native, target],
        ".4.80": ["dcmcjpls", native, target],
        ".5": ["dcmcrle", native, target],
        ".4.90": ["gdcmconv", "--j2k", native, target],
    }
    command = commands.get(syntax)
    if command is None or not shutil.which(command[0]):
        return None
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    return target if done.returncode == 0 and target.exists() else None


def made_files(scratch: Path):
    """(syntax, combination, who coded it, path), and what each holds."""
    from pydicom import dcmread

    from tests.lossless import COMBINATIONS, ENCODERS, make, pixels
    from tests.streams import SYNTAX

    for combination in COMBINATIONS:
        native = make(scratch / f"native-{combination.name}.dcm", ".1", combination)
        for syntax, (encoder, _) in ENCODERS.items():
            name = f"{syntax.replace('.', '_')}-{combination.name}"
            yield syntax, combination, encoder, make(scratch / f"{name}.dcm", syntax, combination), pixels(combination)
            again = recoded(syntax, native, scratch / f"{name}-again.dcm")
            if again and dcmread(again, stop_before_pixels=True).file_meta.TransferSyntaxUID == SYNTAX + syntax:
                yield syntax, combination, "GDCM" if syntax == ".4.90" else "DCMTK", again, pixels(combination)


# ---------------------------------------------------------------- real files


def real_files(folders: list[Path]) -> list[Path]:
    """Every readable file with pixels, each content once."""
    import pydicom
    import pydicom.data

    roots = [*folders, Path(pydicom.data.__file__).parent / "test_files"]
    try:
        import data_store
    except ImportError:
        pass
    else:
        roots.append(Path(data_store.__file__).parent / "data")
    seen, found = set(), []
    for path in (path for root in roots for path in sorted(root.rglob("*"))):
        if not path.is_file() or any(part.startswith("fuzz") for part in path.parts):
            continue
        if not 0 < path.stat().st_size <= MOST_BYTES:
            continue
        try:
            header = pydicom.dcmread(path)
            if "PixelData" not in header or not header.file_meta.TransferSyntaxUID:
                continue
        except Exception:  # not DICOM, or broken on purpose
            continue
        digest = hashlib.sha256(path.read_bytes()).digest()
        if digest not in seen:
            seen.add(digest)
            found.append(path)
    return found


def reference(path: Path, scratch: Path, uncompressed: dict[str, Path]):
    """(what another program makes of a file, whose), or None: the frames as we decode them, palette indices unmapped."""
    import pydicom
    from pydicom.pixels import pixel_array

    header = pydicom.dcmread(path, stop_before_pixels=True)
    syntax = header.file_meta.TransferSyntaxUID
    end = syntax.removeprefix("1.2.840.10008.1.2")
    target = scratch / "reference.dcm"
    target.unlink(missing_ok=True)
    if end in ("", ".1", ".2", ".1.99"):
        source, who = path, "pydicom"
    elif end.startswith(".4.20"):
        source, who = uncompressed.get(path.name.split("_")[0]), "*_UNC"
    else:
        tools = {"5": "dcmdjpeg", "7": "dcmdjpeg", "8": "dcmdjpls", "9": "gdcmconv"}
        tool = "dcmdrle" if end == ".5" else tools.get(end[3:4]) if end.startswith(".4.") and len(end) == 5 else None
        if tool is None or not shutil.which(tool):
            return None
        options = ["--raw"] if tool == "gdcmconv" else []
        subprocess.run([tool, *options, path, target], capture_output=True, check=False, timeout=60)
        source, who = target, "GDCM" if tool == "gdcmconv" else "DCMTK"
    if source is None or not source.exists():
        return None
    try:
        dataset = pydicom.dcmread(source)
        if not dataset.file_meta.TransferSyntaxUID.is_compressed or who == "pydicom":
            values = pixel_array(dataset)
            frames = int(dataset.get("NumberOfFrames") or 1)
            return values.reshape(frames, dataset.Rows, dataset.Columns, -1)[:FRAMES], who
    except Exception:  # another program's limits are no result
        pass
    return None


# ---------------------------------------------------------------- the run


def distance(found, expected) -> float:
    """The largest difference; infinite where nothing was decoded or the shapes differ."""
    if isinstance(found, str):
        return float("inf")
    found = found.reshape(*found.shape[:3], -1)
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found.astype(np.int64) - expected.astype(np.int64)).max())


def run(arguments: argparse.Namespace, scratch: Path) -> dict:
    checkouts = {"after": ROOT} | ({"before": arguments.before.resolve()} if arguments.before else {})
    rows: dict = defaultdict(lambda: {"coders": set(), "made": defaultdict(list), "real": defaultdict(list)})

    made = list(made_files(scratch))
    for when, checkout in checkouts.items():
        found, _ = decoded_by(checkout, [path for *_, path, _ in made], scratch)
        for (syntax, combination, coder, _, expected), values in zip(made, found, strict=True):
            rows[syntax]["coders"].add(coder)
            far = distance(values, expected.reshape(*expected.shape[:3], -1))
            text = values if isinstance(values, str) else ""
            rows[syntax]["made"][when].append({"what": combination.name, "coder": coder, "far": far, "error": text})

    files = real_files(arguments.data)
    uncompressed = {path.name.split("_")[0]: path for path in files if path.stem.endswith("_UNC")}
    references = [reference(path, scratch, uncompressed) for path in files]
    syntaxes = [syntax_of(path) for path in files]
    kept: dict = {}
    for when, checkout in checkouts.items():
        kept[when], _ = decoded_by(checkout, files, scratch)
        for path, syntax, theirs, values in zip(files, syntaxes, references, kept[when], strict=True):
            text = values if isinstance(values, str) else ""
            far = None if theirs is None or text else distance(values, theirs[0])
            who = theirs[1] if theirs else ""
            rows[syntax]["real"][when].append({"file": path.name, "error": text, "by": who, "far": far})
    changes = changed(files, syntaxes, kept) if "before" in kept else []
    return {"syntaxes": rows, "changed": changes, "speed": speed(checkouts, scratch, arguments.repeats)}


def syntax_of(path: Path) -> str:
    from pydicom import dcmread

    return dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID.removeprefix("1.2.840.10008.1.2")


def changed(files, syntaxes, kept) -> list[dict]:
    """Real files whose pixels are others than before, and how many others."""
    found = []
    for path, syntax, old, new in zip(files, syntaxes, kept["before"], kept["after"], strict=True):
        if isinstance(old, str) or isinstance(new, str) or np.array_equal(old, new):
            continue
        away = np.abs(old.astype(np.int64) - new.astype(np.int64)) if old.shape == new.shape else np.array([np.inf])
        figures = {"far": float(away.max()), "mean": float(away.mean()), "share": float((away > 0).mean())}
        found.append({"file": path.name, "syntax": syntax, **figures})
    return found


def speed(checkouts: dict[str, Path], scratch: Path, repeats: int) -> list[dict]:
    """Median processor milliseconds of the child for one frame of 2048 x 2048."""
    import imagecodecs

    from tests.lossless import ENCODERS
    from tests.streams import lossless_jpeg, picture, write

    gray, colour = (picture(bits, samples=n, rows=2048, columns=2048) for bits, n in ((12, 1), (8, 3)))
    options = {"level": 0, "reversible": True, "codecformat": "j2k"}
    pictures = [
        (".4.50", "RGB 8 bits, 4:2:0", colour, imagecodecs.jpeg8_encode(colour, level=90)),
        (".4.70", "gray 12 bits", gray, lossless_jpeg(gray, 12)),
        (".4.80", "gray 12 bits", gray, imagecodecs.jpegls_encode(gray)),
        (".4.90", "gray 12 bits", gray, imagecodecs.jpeg2k_encode(gray, bitspersample=12, **options)),
        (".4.90", "RGB 8 bits", colour, imagecodecs.jpeg2k_encode(colour, **options)),
        (".4.201", "gray 12 bits", gray, imagecodecs.htj2k_encode(gray, reversible=True)),
        (".5", "gray 12 bits", gray, ENCODERS[".5"][1](gray, 12)),
    ]
    files = []
    for number, (syntax, _, values, stream) in enumerate(pictures):
        bits = 12 if values is gray else 8
        label = {"PhotometricInterpretation": "YBR_FULL_422"} if syntax == ".4.50" else {}
        files.append(write(scratch / f"speed-{number}.dcm", [bytes(stream)], syntax, values, bits=bits, **label))
    times: dict = defaultdict(lambda: defaultdict(list))
    for _ in range(3):
        for when, checkout in checkouts.items():
            for number, seconds in decoded_by(checkout, files, scratch, repeats=repeats)[1].items():
                times[number][when].append(1000 * seconds)
    return [
        {"syntax": syntax, "picture": text}
        | {when: round(statistics.median(ms), 1) for when, ms in times[number].items()}
        for number, (syntax, text, _, _) in enumerate(pictures)
    ]


# ---------------------------------------------------------------- the page


DECODERS = {
    **dict.fromkeys(("", ".1", ".2", ".1.98"), "NumPy"),
    **dict.fromkeys((".1.99", ".8.1"), "zlib"),
    ".5": "imagecodecs: its own PackBits",
    **dict.fromkeys((".4.50", ".4.51", ".4.53", ".4.55", ".4.57", ".4.70"), "imagecodecs: libjpeg-turbo"),
    **dict.fromkeys((".4.80", ".4.81"), "imagecodecs: CharLS"),
    **dict.fromkeys((".4.90", ".4.91", ".4.201", ".4.202", ".4.203"), "imagecodecs: OpenJPEG"),
    **dict.fromkeys((".4.110", ".4.111", ".4.112"), "imagecodecs: libjxl"),
}


def both(before: str | None, after: str) -> str:
    return after if before is None else f"{before} → {after}"


def page(results: dict) -> str:
    """The tables, in Markdown."""
    from medenhance_dicom.transfer_syntaxes import name_of

    lines = [
        "| Transfer syntax | decoded by | made files exact / tried | real files read / there | exact / compared | farthest |",
        "|---|---|---|---|---|---|",
    ]

    def cell(row: dict, part: str, text) -> str:
        there = row[part].get("before")
        return both(text(there) if there else None, text(row[part]["after"])) if row[part].get("after") else "-"

    def farthest(entries: list[dict]) -> str:
        far = [entry["far"] for entry in entries if entry["far"] is not None]
        return f"{max(far):.0f}" if far else "-"

    def matched(entries: list[dict]) -> str:
        far = [entry["far"] for entry in entries if entry["far"] is not None]
        return f"{sum(value == 0 for value in far)} / {len(far)}"

    order = list(DECODERS)
    for syntax in sorted(results["syntaxes"], key=lambda end: order.index(end) if end in order else 99):
        row = results["syntaxes"][syntax]
        made = cell(row, "made", lambda e: f"{sum(not x['far'] for x in e)} / {len(e)}")
        read = cell(row, "real", lambda e: f"{sum(not x['error'] for x in e)} / {len(e)}")
        name = name_of("1.2.840.10008.1.2" + syntax)
        cells = [made, read, cell(row, "real", matched), cell(row, "real", farthest)]
        lines.append(f"| {name} `{syntax or '(none)'}` | {DECODERS.get(syntax, '-')} | {' | '.join(cells)} |")
    lines += ["", "| Transfer syntax | picture, 2048 x 2048 | median processor ms for a frame |", "|---|---|---|"]
    for entry in results["speed"]:
        before = f"{entry['before']:.0f}" if "before" in entry else None
        lines.append(f"| `{entry['syntax']}` | {entry['picture']} | {both(before, format(entry['after'], '.0f'))} |")
    return "\n".join(lines) + "\n"


def summary(results: dict) -> dict:
    """Every file by name, those that differ or are refused with how far or why."""

    def made(entries: list[dict]) -> dict:
        wrong = {f"{e['what']} by {e['coder']}": e["error"] or e["far"] for e in entries if e["far"]}
        return {"tried": len(entries), "exact": len(entries) - len(wrong), "others": wrong}

    def real(entries: list[dict]) -> dict:
        parts: dict = {"exact": {}, "differ": {}, "refused": {}, "nothing to compare with": []}
        for e in entries:
            if e["error"]:
                parts["refused"][e["file"]] = e["error"]
            elif e["far"] is None:
                parts["nothing to compare with"].append(e["file"])
            elif e["far"]:
                parts["differ"][e["file"]] = f"{e['far']:.0f} from {e['by']}"
            else:
                parts["exact"].setdefault(e["by"], []).append(e["file"])
        return parts

    syntaxes = {
        f"1.2.840.10008.1.2{syntax}": {
            "coders": sorted(row["coders"]),
            "made": {when: made(entries) for when, entries in row["made"].items()},
            "real": {when: real(entries) for when, entries in row["real"].items()},
        }
        for syntax, row in results["syntaxes"].items()
    }
    return {"syntaxes": syntaxes, "changed": results["changed"], "speed": results["speed"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decode", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, action="append", default=[])
    parser.add_argument("--before", type=Path, help="another checkout")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", type=Path, help="the docs folder")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.decode:
        decode(*arguments.decode)
        return
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory(prefix="transfer-syntaxes-") as folder:
        results = run(arguments, Path(folder))
    tables = page(results)
    print(tables)
    for entry in results["changed"]:
        print(entry)
    if arguments.write:
        values = json.dumps(summary(results), indent=1)
        (arguments.write / "results" / "transfer_syntaxes.json").write_text(values + "\n")
        target = arguments.write / "transfer-syntaxes.md"
        head, marker, tail = target.read_text().partition("<!-- tables -->\n")
        rest = tail.partition("<!-- end of tables -->\n")
        target.write_text(head + marker + tables + rest[1] + rest[2])


if __name__ == "__main__":
    main()
