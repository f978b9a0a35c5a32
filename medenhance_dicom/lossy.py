"""Lossy Image Compression (PS3.3 C.7.6.1.1.5): what a file's own codestreams prove is entered; nothing is taken away.

A transfer syntax that may be lossy proves nothing (PS3.5 A.4.4): `00` stays where the codestream does not contradict
it, and where the attribute is absent the codestream decides. A DCT, NEAR above 0, a point transform or the 9/7 wavelet
is proof against `00` too.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydicom import Dataset
from pydicom.multival import MultiValue

_METHODS = {
    "JPEG": "ISO_10918_1",
    "JPEG-LS": "ISO_14495_1",
    "JPEG 2000": "ISO_15444_1",
    "JPEG XL": "ISO_18181_1",
}
_METHODS_OF_SYNTAX = {
    "1.2.840.10008.1.2.4.93": "ISO_15444_2",
    "1.2.840.10008.1.2.4.111": "ISO_10918_1",  # JPEG XL recompresses, without loss, what JPEG had lost
    "1.2.840.10008.1.2.4.201": "ISO_15444_15",
    "1.2.840.10008.1.2.4.202": "ISO_15444_15",
    "1.2.840.10008.1.2.4.203": "ISO_15444_15",
}


@dataclass(frozen=True)
class Encoding:
    """How the Pixel Data of an instance are encoded."""

    bytes: int
    """Of all frames as encoded, without what contains them."""
    kind: str | None = None
    """Of their codestreams, see `codestream.Kind`; None where they are none."""
    reversible: bool | None = None
    """Of all of them, see `codestream.Codestream`: False where one loses something, None where that is not told."""
    precision: int | None = None
    """Of the first codestream, as the next two."""
    signed: bool = False
    colour: str | None = None


def enter_loss(history: Dataset, encoding: Encoding, transfer_syntax: str, cell_bytes: int) -> None:
    """Enter a loss that the codestreams prove and the attributes do not tell: method and ratio are added.

    Args:
        history: Lossy Image Compression and its method and ratio so far; is changed.
        encoding: Of the file.
        transfer_syntax: Of the file.
        cell_bytes: Length of all frames as they were before compression.
    """
    methods, ratios = (_values(history.get(f"LossyImageCompression{part}")) for part in ("Method", "Ratio"))
    method = _METHODS_OF_SYNTAX.get(transfer_syntax) or _METHODS[encoding.kind or "JPEG"]
    told = history.get("LossyImageCompression") == "01" and any(_standard(m) == _standard(method) for m in methods)
    if encoding.reversible is not False or told:
        return
    history.LossyImageCompression = "01"
    history.LossyImageCompressionMethod = [*methods, method]
    if len(ratios) == len(methods):
        history.LossyImageCompressionRatio = [*ratios, f"{max(1.0, cell_bytes / encoding.bytes):.2f}"]


def _standard(method: str) -> str:
    """`ISO_15444` of `ISO_15444_1` and `ISO_15444_15`: parts are mixed up."""
    return method.rpartition("_")[0]


def _values(value: object) -> list[str]:
    if value is None or value == "":
        return []
    return [str(v) for v in value] if isinstance(value, MultiValue) else [str(value)]
