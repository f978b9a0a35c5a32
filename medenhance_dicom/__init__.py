"""Enhance low-quality DICOM images and write derived objects that say how they were made."""

__version__ = "0.1.0"

__all__ = ["__version__"]
