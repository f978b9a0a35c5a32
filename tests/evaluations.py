"""Small pictures and recipes that the tests of evaluation share."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from medenhance_dicom.evaluation.recipe import make_evaluation_recipe

SIDE = 64


def draw(seed, shade=1.0):
    """A grey texture (SIDE, SIDE) in 0..255, darker by `shade` to the right."""
    rng = np.random.default_rng(seed)
    texture = gaussian_filter(rng.normal(size=(SIDE, SIDE)), 2)
    texture = 0.5 + 0.35 * texture / np.abs(texture).max()
    return np.rint(255 * texture * np.linspace(1, shade, SIDE)).astype(np.uint8)


def write_pictures(folder, count=5, names="picture_{}.png"):
    """`low` with a shade and `high` without, below `folder`."""
    for side, shade in (("low", 0.4), ("high", 1.0)):
        (folder / side).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.fromarray(draw(i, shade)).save(folder / side / names.format(i))
    return folder


def recipe_of(data=None, **more):
    return make_evaluation_recipe(
        {
            "name": "tiny",
            "summary": "",
            "data": {"pictures": [{"folder": "low"}], "targets": [{"folder": "high"}]} if data is None else data,
            "enhancers": ["baseline:he", "baseline:clahe"],
            "metrics": ["psnr@8bit", "en@256", "lassim@l3"],
            **more,
        },
        "test",
    )
