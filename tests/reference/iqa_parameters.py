"""Fetch the parameter files of NIQE and BRISQUE from PyPI: python iqa_parameters.py FOLDER [--calibration].

The tests of published figures take that folder from MEDENHANCE_METRIC_MODELS. Wheels are checked against their SHA-256
and only opened as archives: nothing of them is installed, imported or unpickled.
"""

from __future__ import annotations

import argparse
import hashlib
import pickletools
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

NIQE = "mmagic==1.2.0", "efa91041097c40e452dd2037b596a5633a6a512447c28a71c970c24aca04039c"
BRISQUE = "brisque==0.2.0", "56f1839e5179a294d0598d63b2ee488fcbedeac7cee3e32c7c8d06c30a6269e1"
PICTURES = "pyiqa==0.1.16", "42bbcf1c274a8b53f040a3ec5ec304a15b7725afb5a85b81050e9cc7e6d09ed4"
CALIBRATION = "ResultsCalibra/dist_dir/"


def wheel(requirement: str, sha256: str, folder: Path) -> zipfile.ZipFile:
    """Download one wheel without what it depends on."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", folder]
    subprocess.run([*command, requirement], check=True)
    (path,) = folder.glob(f"{requirement.partition('==')[0]}-*.whl")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != sha256:
        raise SystemExit(f"{path.name}: sha256 {digest}, {sha256} wanted")
    return zipfile.ZipFile(path)


def ranges_text(pickled: bytes) -> str:
    """The numbers of `normalize.pickle`, 36 smallest and 36 largest, as svm-scale writes ranges."""
    numbers = [argument for code, argument, _ in pickletools.genops(pickled) if code.name in ("BINFLOAT", "BININT1")]
    if len(numbers) != 72:
        raise SystemExit(f"normalize.pickle: {len(numbers)} numbers, 72 wanted")
    rows = [f"{k} {low!r} {high!r}\n" for k, (low, high) in enumerate(zip(numbers[:36], numbers[36:], strict=True), 1)]
    return "x\n-1 1\n" + "".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--calibration", action="store_true", help="and five pictures of a non-commercial package")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with wheel(*NIQE, folder) as files:
            (asked.folder / "niqe_pris_params.npz").write_bytes(
                files.read("mmagic/evaluation/metrics/niqe_pris_params.npz")
            )
        with wheel(*BRISQUE, folder) as files:
            (asked.folder / "svm.txt").write_bytes(files.read("brisque/models/svm.txt"))
            ranges = ranges_text(files.read("brisque/models/normalize.pickle"))
            (asked.folder / "svm.ranges").write_text(ranges, encoding="ascii", newline="\n")
        if asked.calibration:
            with wheel(*PICTURES, folder) as files:
                for name in files.namelist():
                    if name.startswith(CALIBRATION) and name.endswith(".bmp"):
                        (asked.folder / Path(name).name).write_bytes(files.read(name))


if __name__ == "__main__":
    main()
