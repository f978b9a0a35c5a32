"""The DICOM node: receives, waits for complete series, sends on and has the archive commit."""
