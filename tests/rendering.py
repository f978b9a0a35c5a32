"""What a viewer shows: DCMTK renders a source and its identity-derived object, and the two are compared.

A frame is shown without a window and, if it is grey, with the first stored window and the first VOI LUT, where it has
one. Eight frames of an object are looked at.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.data import get_testdata_files
from pydicom.uid import UID

from medenhance_dicom.decoding import Decoder
from medenhance_dicom.enhance import Enhancement
from medenhance_dicom.report import Outcome
from medenhance_dicom.selection import Settings

RENDERER = shutil.which("dcmj2pnm")
DECODER = shutil.which("gdcmconv")
"""For codecs that DCMTK lacks."""

FRAMES = 8
_LOSSY = {f"1.2.840.10008.1.2.4.{last}" for last in (50, 51, 81, 91, 93, 112, 203)}
_MOST, _MOST_OF_LOSSY = 3, 1.5  # grey levels, of the worst value and of the mean

Mode = tuple[str, ...]
Shown = dict[tuple[Mode, int], NDArray[np.int16]]
Found = Literal["alike", "differs", "told", "refused", "unseen"]


@dataclass(frozen=True)
class Comparison:
    """How one file fared."""

    file: Path
    found: Found
    """"told": it differs, and the outcome names what was left behind; "unseen": DCMTK cannot show the source."""
    why: str = ""
    outcome: Outcome | None = None

    def __str__(self) -> str:
        return f"{self.found}: {self.file}: {self.why}"


def dicom_files(folders: Iterable[Path]) -> list[Path]:
    """Files below folders that may be DICOM by their names."""
    names = (file for folder in folders for file in folder.rglob("*"))
    return sorted(file for file in names if file.is_file() and file.suffix.lower() in (".dcm", ""))


def pydicom_files() -> list[Path]:
    """Those that pydicom ships, and those of pydicom-data where it is installed."""
    files = sorted({Path(name) for name in get_testdata_files("**/*")})
    return [file for file in files if file.is_file() and file.suffix.lower() in (".dcm", "")]


def derived(files: Iterable[Path], scratch: Path) -> Iterator[tuple[Path, Outcome]]:
    """Each file and what the recipe `identity` made of it, which is there until the next one is asked for.

    Args:
        files: DICOM files, each an instance of its own.
        scratch: A folder of the caller's; emptied as it goes.
    """
    settings = Settings(output=scratch / "out", recipe="identity", gate="off", allow=frozenset({"CT", "MG"}))
    run = Enhancement(settings, now=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    with Decoder(limits=settings.limits) as decoder:
        for file in files:
            nothing = Outcome(str(file), "skipped", "nothing was found in it")
            yield file, next(run.outcomes([file], decoder=decoder), nothing)
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()


def compare(files: Iterable[Path], scratch: Path) -> Iterator[Comparison]:
    """Derive each file by the recipe `identity`, and see whether it looks as before; arguments as of `derived`."""
    for file, outcome in derived(files, scratch):
        yield _compared(file, outcome, scratch)


def _compared(file: Path, outcome: Outcome, scratch: Path) -> Comparison:
    if outcome.derived is None:
        return Comparison(file, "refused", outcome.reason or "", outcome)
    before = render(file, scratch / "before")
    if not before:
        return Comparison(file, "unseen", "", outcome)
    why = difference(before, render(Path(outcome.derived), scratch / "after"), lossy=_syntax(file) in _LOSSY)
    if not why:
        return Comparison(file, "alike", "", outcome)
    left_behind = getattr(outcome, "left_behind", [])
    if left_behind:
        return Comparison(file, "told", f"{why}; {left_behind}", outcome)
    return Comparison(file, "differs", why, outcome)


def difference(before: Shown, after: Shown, *, lossy: bool = False) -> str:
    """The first difference in words; empty where there is none.

    Args:
        before: Pictures of the source, as `render` gives them.
        after: Pictures of the derived object.
        lossy: Two decoders need not agree to the grey level: then the mean counts.
    """
    for (mode, frame), picture in before.items():
        where = f"{' '.join(mode) or 'no window'}, frame {frame + 1}"
        other = after.get((mode, frame))
        if other is None or other.shape != picture.shape:
            return f"{where}: cannot be shown so, or has another size"
        gap = np.abs(picture - other)
        if gap.mean() > _MOST_OF_LOSSY if lossy else gap.max() > _MOST:
            return f"{where}: mean {picture.mean():.1f} -> {other.mean():.1f}, largest difference {gap.max()}"
    return ""


def render(file: Path, folder: Path) -> Shown:
    """Pictures of the first frames, (H, W, 3) in 0..255, by mode and frame; empty where DCMTK cannot show it."""
    folder.mkdir(parents=True)
    header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    try:
        frames = min(int(header.get("NumberOfFrames") or 1), FRAMES)
    except (TypeError, ValueError):
        frames = 1
    plain = _pictures(file, folder / "plain", (), frames)
    if not plain and DECODER:
        native = folder / "native.dcm"
        subprocess.run([DECODER, "--raw", file, native], capture_output=True, timeout=120, check=False)
        if native.exists():
            file = native
            plain = _pictures(file, folder / "plain", (), frames)
    shown = {((), frame): picture for frame, picture in plain.items()}
    for mode in _modes(header):
        pictures = _pictures(file, folder / mode[0], mode, frames)
        shown |= {(mode, frame): picture for frame, picture in pictures.items()}
    return shown


def _modes(header: pydicom.Dataset) -> Iterator[Mode]:
    if str(header.get("PhotometricInterpretation", "")).startswith(("RGB", "YBR", "PAL")):
        return
    if header.get("WindowCenter") not in (None, ""):
        yield "+Wi", "1"
    if header.get("VOILUTSequence"):
        yield "+Wl", "1"


def _pictures(file: Path, target: Path, mode: Mode, frames: int) -> dict[int, NDArray[np.int16]]:
    assert RENDERER is not None
    command = [RENDERER, *mode, "+Fr", "1", str(frames), file, target]
    try:
        subprocess.run(command, capture_output=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return {}
    found = {}
    for frame in range(frames):
        for picture in target.parent.glob(f"{target.name}.{frame}.p?m"):
            found[frame] = np.asarray(Image.open(picture).convert("RGB"), np.int16)
    return found


def _syntax(file: Path) -> UID | str:
    meta = pydicom.dcmread(file, stop_before_pixels=True, force=True).file_meta
    return str(meta.get("TransferSyntaxUID") or "")
