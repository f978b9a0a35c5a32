"""Which pixels of a picture may be changed: the field of view, without writing and insets, which stay as they are."""

from medenhance_dicom.masks.dark_surround import DARK
from medenhance_dicom.masks.field import Kind, field_of_view
from medenhance_dicom.masks.insets import insets
from medenhance_dicom.masks.writing import burned_in_text

__all__ = ["DARK", "Kind", "burned_in_text", "field_of_view", "insets"]
