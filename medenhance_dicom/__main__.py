"""`python -m medenhance_dicom`."""

from medenhance_dicom.cli import main

main()
