"""Every transfer syntax of PS3.6 table A-1, by name: which of them stored objects have, and what each does to pixels.

pydicom 3.0.2 lacks the newest ones. Storing needs no decoder: `coding_of` says which of them can be decoded.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

_ROOT = "1.2.840.10008.1.2"

Kind = Literal["uncompressed", "lossless", "lossy", "video"]
"""`uncompressed`: pixels are native; `lossy`: compressed, and it may have lost something."""

Coding = Literal["cells", "deflate", "rle", "codestream"]
"""How a frame is coded (PS3.5 sections 8.2 and A.4). `cells`: as the header lays them out; `deflate`: the same under
RFC 1951; `rle`: their bytes in planes, PackBits; `codestream`: JPEG, JPEG-LS, JPEG 2000 or JPEG XL, which says itself
what it holds."""


class TransferSyntax(NamedTuple):
    """One that stored objects have."""

    uid: str
    name: str
    """PS3.6's, without what it says in brackets about default and retirement."""
    kind: Kind


_EXPLICIT = {".1": "Explicit VR Little Endian"}
_UNCOMPRESSED = {
    "": "Implicit VR Little Endian",  # private VRs are lost
    ".1.99": "Deflated Explicit VR Little Endian",
    ".2": "Explicit VR Big Endian",  # retired
}
_LOSSLESS = {
    ".4.90": "JPEG 2000 Image Compression (Lossless Only)",
    ".4.80": "JPEG-LS Lossless Image Compression",
    ".4.70": "JPEG Lossless, Non-Hierarchical, First-Order Prediction",
    ".4.57": "JPEG Lossless, Non-Hierarchical (Process 14)",
    ".5": "RLE Lossless",
    ".4.201": "High-Throughput JPEG 2000 Image Compression (Lossless Only)",
    ".4.202": "High-Throughput JPEG 2000 with RPCL Options Image Compression (Lossless Only)",
    ".4.110": "JPEG XL Lossless",
    ".8.1": "Deflated Image Frame Compression",
    ".1.98": "Encapsulated Uncompressed Explicit VR Little Endian",
    ".4.92": "JPEG 2000 Part 2 Multi-component Image Compression (Lossless Only)",
    ".4.58": "JPEG Lossless, Non-Hierarchical (Process 15)",  # the following are retired
    ".4.65": "JPEG Lossless, Hierarchical (Process 28)",
    ".4.66": "JPEG Lossless, Hierarchical (Process 29)",
}
_LOSSY = {
    ".4.81": "JPEG-LS Lossy (Near-Lossless) Image Compression",
    ".4.91": "JPEG 2000 Image Compression",
    ".4.93": "JPEG 2000 Part 2 Multi-component Image Compression",
    ".4.203": "High-Throughput JPEG 2000 Image Compression",
    ".4.111": "JPEG XL JPEG Recompression",
    ".4.112": "JPEG XL",
    ".4.50": "JPEG Baseline (Process 1)",
    ".4.51": "JPEG Extended (Process 2 & 4)",
    ".4.52": "JPEG Extended (Process 3 & 5)",  # this and the following are retired
    ".4.53": "JPEG Spectral Selection, Non-Hierarchical (Process 6 & 8)",
    ".4.54": "JPEG Spectral Selection, Non-Hierarchical (Process 7 & 9)",
    ".4.55": "JPEG Full Progression, Non-Hierarchical (Process 10 & 12)",
    ".4.56": "JPEG Full Progression, Non-Hierarchical (Process 11 & 13)",
    ".4.59": "JPEG Extended, Hierarchical (Process 16 & 18)",
    ".4.60": "JPEG Extended, Hierarchical (Process 17 & 19)",
    ".4.61": "JPEG Spectral Selection, Hierarchical (Process 20 & 22)",
    ".4.62": "JPEG Spectral Selection, Hierarchical (Process 21 & 23)",
    ".4.63": "JPEG Full Progression, Hierarchical (Process 24 & 26)",
    ".4.64": "JPEG Full Progression, Hierarchical (Process 25 & 27)",
}
_VIDEO = {
    ".4.100": "MPEG2 Main Profile / Main Level",
    ".4.100.1": "Fragmentable MPEG2 Main Profile / Main Level",
    ".4.101": "MPEG2 Main Profile / High Level",
    ".4.101.1": "Fragmentable MPEG2 Main Profile / High Level",
    ".4.102": "MPEG-4 AVC/H.264 High Profile / Level 4.1",
    ".4.102.1": "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.1",
    ".4.103": "MPEG-4 AVC/H.264 BD-compatible High Profile / Level 4.1",
    ".4.103.1": "Fragmentable MPEG-4 AVC/H.264 BD-compatible High Profile / Level 4.1",
    ".4.104": "MPEG-4 AVC/H.264 High Profile / Level 4.2 For 2D Video",
    ".4.104.1": "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.2 For 2D Video",
    ".4.105": "MPEG-4 AVC/H.264 High Profile / Level 4.2 For 3D Video",
    ".4.105.1": "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.2 For 3D Video",
    ".4.106": "MPEG-4 AVC/H.264 Stereo High Profile / Level 4.2",
    ".4.106.1": "Fragmentable MPEG-4 AVC/H.264 Stereo High Profile / Level 4.2",
    ".4.107": "HEVC/H.265 Main Profile / Level 5.1",
    ".4.108": "HEVC/H.265 Main 10 Profile / Level 5.1",
}

_ROWS: tuple[tuple[Kind, dict[str, str]], ...] = (
    ("uncompressed", _EXPLICIT),
    ("lossless", _LOSSLESS),
    ("uncompressed", _UNCOMPRESSED),
    ("lossy", _LOSSY),
    ("video", _VIDEO),
)
STORED = tuple(TransferSyntax(_ROOT + end, name, kind) for kind, names in _ROWS for end, name in names.items())
"""Those of stored objects, retired ones too, best first: a listener takes the first one that a peer offers. Explicit VR
keeps every VR; what may be lossy comes last, or a modality that offers both would compress with loss for us."""

_SELDOM = (52, 53, 54, 55, 56, 58, 59, 60, 61, 62, 63, 64, 65, 66, 92, 93)  # retired, or of several components
COMMON = tuple(
    syntax.uid
    for syntax in STORED
    if syntax.uid not in {f"{_ROOT}.4.{number}" for number in _SELDOM} and not syntax.name.startswith("Fragmentable")
)
"""Those that a request with many SOP classes has room for: DCMTK takes no A-ASSOCIATE-RQ of more than 128 KiB."""

_NOT_STORED = {
    ".4.94": "JPIP Referenced",  # its pixels lie elsewhere, and may be gone when they are wanted
    ".4.95": "JPIP Referenced Deflate",
    ".4.204": "JPIP HTJ2K Referenced",
    ".4.205": "JPIP HTJ2K Referenced Deflate",
    ".6.1": "RFC 2557 MIME encapsulation",  # retired, of no object
    ".6.2": "XML Encoding",
    ".7.1": "SMPTE ST 2110-20 Uncompressed Progressive Active Video",  # real-time video, PS3.22
    ".7.2": "SMPTE ST 2110-20 Uncompressed Interlaced Active Video",
    ".7.3": "SMPTE ST 2110-30 PCM Digital Audio",
    "0": "Papyrus 3 Implicit VR Little Endian",  # 1.2.840.10008.1.20, retired
}

_NAMES = {syntax.uid: syntax.name for syntax in STORED} | {_ROOT + end: name for end, name in _NOT_STORED.items()}
_KINDS = {syntax.uid: syntax.kind for syntax in STORED}
_DECODED = (50, 51, 53, 55, 57, 70, 80, 81, 90, 91, 110, 111, 112, 201, 202, 203)
_CODINGS: dict[str, Coding] = {
    **{syntax.uid: "cells" for syntax in STORED if syntax.kind == "uncompressed"},
    f"{_ROOT}.1.98": "cells",
    f"{_ROOT}.8.1": "deflate",
    f"{_ROOT}.5": "rle",
    **{f"{_ROOT}.4.{number}": "codestream" for number in _DECODED},
}


def name_of(uid: str) -> str:
    """Its name in PS3.6; the UID itself where it has none there."""
    return _NAMES.get(uid) or (uid if uid and not uid.strip("0123456789.") else "no UID")


def kind_of(uid: str) -> Kind | None:
    """What it does to pixels; None for one that no stored object has."""
    return _KINDS.get(uid)


def coding_of(uid: str) -> Coding | None:
    """How its frames are coded; None where there is no decoder for them."""
    return _CODINGS.get(uid)


def has_cells(uid: str) -> bool:
    """Whether a decoded sample still is a pixel cell, with High Bit and bits beside the stored ones (PS3.5 8.1.1).

    A codestream's samples begin at bit 0 whatever High Bit says (PS3.5 8.2).
    """
    return coding_of(uid) != "codestream"
