"""The exceptions that a caller may want to catch.

MedenhanceError
├── InputError                 a file cannot be read or must not be decoded (exit code 6)
│   ├── UnreadableInstanceError    not DICOM, truncated, or its pixels do not decode
│   └── LimitExceededError         it declares more than we are willing to decode
├── UnsupportedInstanceError   readable, but refused: carries a reason code (outcome `skipped`)
├── FrameError                 a frame cannot be enhanced, here or now: carries a reason code (outcome `failed`)
├── RecipeError                a recipe file is wrong, or no such recipe (exit code 2)
├── ConfigurationError         the node's configuration is wrong (exit code 2)
├── PeerError                  a DICOM peer or server refuses, fails or is not there (exit code 11)
├── ModelError                 weights or guide missing or altered (exit code 8)
├── OutputError                the output folder cannot be written (exit code 7)
├── TargetTakenError           another object is where a derived one is to be (outcome `failed`)
└── DerivationError            a derived object broke one of our own rules; nothing is written
"""

from __future__ import annotations


class MedenhanceError(Exception):
    """Base of every error this package raises on purpose. Its text never holds values of patient attributes."""


class InputError(MedenhanceError):
    """A file that cannot be taken in. Names the attribute where one is to blame."""

    def __init__(self, message: str, *, keyword: str | None = None) -> None:
        super().__init__(f"{keyword}: {message}" if keyword else message)
        self.keyword = keyword


class UnreadableInstanceError(InputError):
    """Not DICOM, truncated, or its pixel data does not decode."""


class LimitExceededError(InputError):
    """The header declares more pixels, frames or nesting than the limits allow."""


class UnsupportedInstanceError(MedenhanceError):
    """A readable instance that is refused on purpose; `reason` is a stable upper-case code."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class FrameError(MedenhanceError):
    """A frame that cannot be enhanced, which fails its instance alone; `reason` is a stable upper-case code."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class RecipeError(MedenhanceError):
    """A recipe that does not load, or that no file provides."""


class ConfigurationError(MedenhanceError):
    """The node's configuration does not load, or contradicts itself."""


class PeerError(MedenhanceError):
    """Another application entity or DICOMweb server that refuses, breaks off or cannot be reached.

    `permanent`: asking again will not help, such as an unknown AE title.
    """

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


class ModelError(MedenhanceError):
    """Weights or a guide that are missing, altered or do not fit."""


class OutputError(MedenhanceError):
    """The output folder is not writable or has too little room."""


class TargetTakenError(MedenhanceError):
    """Another object stands where a derived one is to be; it stays."""


class DerivationError(MedenhanceError):
    """A derived object that breaks one of our own rules."""


OUT_OF_MEMORY = "OUT_OF_MEMORY"
"""Reason of what may succeed another time."""

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "could not allocate")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory, of the host or of a device, did not suffice: NumPy and PyTorch say so in several ways."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)
