"""Small pictures of every kind as DICOM files, and runs over them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
from skimage import data

from medenhance_dicom.enhance import Enhancement
from medenhance_dicom.selection import Settings
from tests import synthetic

NOON = datetime(2025, 1, 2, 12, tzinfo=UTC)
CAMERA = data.camera()[100:164, 100:164].astype(np.float64)  # (64, 64)
CAMERA = (CAMERA - CAMERA.min()) / np.ptp(CAMERA)
ALLOW = frozenset({"CT", "MG"})


def write(folder, number, name, stored, **attributes):
    """An instance `number` of a series, of stored values (H, W), (N, H, W), (H, W, 3) or (N, H, W, 3)."""
    stored = np.asarray(stored)
    multi = stored.ndim == 4 or (stored.ndim == 3 and stored.shape[2] != 3)
    rows, columns = stored.shape[1:3] if multi else stored.shape[:2]
    uid = f"1.2.826.0.1.9999.40.{number}"
    instance = synthetic.make_instance(
        name,
        rows=rows,
        columns=columns,
        frames=len(stored) if multi else 1,
        SOPInstanceUID=uid,
        InstanceNumber=number,
        **attributes,
    )
    instance.file_meta.MediaStorageSOPInstanceUID = uid
    kind = f"<{'i' if instance.PixelRepresentation else 'u'}{instance.BitsAllocated // 8}"
    instance.PixelData = np.rint(stored).astype(kind).tobytes()
    folder.mkdir(exist_ok=True)
    path = folder / f"{number}.dcm"
    instance.save_as(path, enforce_file_format=True)
    return path


def enhance(paths, output, **options):
    """Outcomes of a run on the CPU, in plain PyTorch where there is a network."""
    settings = Settings(output=output, device="cpu", engine="torch", precision="fp32", allow=ALLOW, **options)
    return list(Enhancement(settings, now=NOON).outcomes(paths))


def run_by(enhancer, recipe, output, **options):
    """A run in which `enhancer` stands for that of a recipe."""
    run = Enhancement(Settings(output=output, device="cpu", recipe=recipe, **options), now=NOON)
    (chosen,) = run.recipes
    run._prepared[chosen.name, ""] = replace(run._prepare(chosen, None), enhancer=enhancer)
    return run
