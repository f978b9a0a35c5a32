"""What tells one received instance from another: its UIDs and the digest of its data set.

Reads no further than (0020,000E) and converts nothing else, so that a file of any size and any odd value costs the
same. Standard library only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from medenhance_dicom.errors import UnreadableInstanceError
from medenhance_dicom.headers import TRANSFER_SYNTAX, Blocks, Fact, read_facts, read_meta

_WANTED = {
    0x00080016: Fact("sop_class"),
    0x00080018: Fact("sop_instance"),
    0x00080060: Fact("modality"),
    0x0020000D: Fact("study"),
    0x0020000E: Fact("series"),
}
_LAST = 0x0020000E
_READ = 1 << 20


@dataclass(frozen=True)
class Identity:
    """Of one instance, as its data set says; `digest` is the SHA-256 of the encoded data set, in hex."""

    sop_class: str
    sop_instance: str
    study: str
    series: str
    modality: str
    transfer_syntax: str
    digest: str


def read_identity(path: Path, *, digest: str | None = None) -> Identity:
    """Read the identity of a Part 10 file.

    Args:
        path: With preamble and file meta information.
        digest: SHA-256 of the data set where it is known already; else the file is read to its end.

    Raises:
        UnreadableInstanceError: Not a Part 10 file, cut off, or without the UIDs that make it one instance.
        OSError: It cannot be read at all.
    """
    with Blocks.of_file(path) as blocks:
        found = read_facts(blocks, _WANTED, _LAST)
    for name in ("sop_class", "sop_instance", "study", "series"):
        if not found.get(name) or len(found[name]) > 64:
            raise UnreadableInstanceError(f"no {name.replace('_', ' ')} UID")
    return Identity(
        sop_class=found["sop_class"],
        sop_instance=found["sop_instance"],
        study=found["study"],
        series=found["series"],
        modality=found.get("modality", "")[:16],
        transfer_syntax=found[TRANSFER_SYNTAX],
        digest=data_set_digest(path) if digest is None else digest,
    )


def data_set_digest(path: Path) -> str:
    """SHA-256 of the encoded data set of a Part 10 file, in hex.

    Raises:
        UnreadableInstanceError: Not a Part 10 file.
        OSError: It cannot be read at all.
    """
    with Blocks.of_file(path) as blocks:
        _, start = read_meta(blocks)
    with path.open("rb") as file:
        file.seek(start)
        sha = hashlib.sha256()
        while block := file.read(_READ):
            sha.update(block)
        return sha.hexdigest()
