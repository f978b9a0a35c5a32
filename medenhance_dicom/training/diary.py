"""What a run writes for people: `log.jsonl`, sample pictures, and both for TensorBoard where it is installed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image
from torch import Tensor

EARLY_SECONDS = 20.0
"""Loss terms are written this often, so that the first curve is there within a minute."""


class Diary:
    """Loss terms and scores of a run.

    Args:
        run: The run's folder. `log.jsonl` has a line for each validation; `samples/` the pictures of the latest;
            `tensorboard/` curves and pictures.
        first: False on all processes but one; they write nothing.
        resumed_at: Lines after this step, from before a crash, are taken out of the log.
    """

    def __init__(self, run: Path, *, first: bool, resumed_at: int) -> None:
        self.run, self.first = run, first
        self._writer: Any = None
        self._written = 0.0
        if not first:
            return
        log = run / "log.jsonl"
        kept = (
            [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= resumed_at]
            if log.is_file()
            else []
        )
        log.write_text("".join(f"{line}\n" for line in kept))
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError:
            return
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=resumed_at or None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def terms(self, step: int, stage: str, terms: dict[str, float]) -> None:
        """Loss terms of a step; the first ones at once, then every `EARLY_SECONDS`."""
        if self._writer is None or time.monotonic() - self._written < EARLY_SECONDS:
            return
        for name, value in terms.items():
            self._writer.add_scalar(f"{stage}/{name}", value, step)
        self._writer.flush()
        self._written = time.monotonic()

    def scores(self, step: int, scores: dict[str, float], samples: Tensor | None) -> None:
        """A validation: its line, and (3, H, W) of sample pictures in [0, 1]."""
        if not self.first:
            return
        with (self.run / "log.jsonl").open("a") as log:
            log.write(json.dumps({"step": step, **scores}) + "\n")
        if samples is not None:
            (self.run / "samples").mkdir(exist_ok=True)
            pixels = (samples.permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8)
            Image.fromarray(pixels).save(self.run / "samples" / f"step_{step:06d}.png")
        if self._writer is not None:
            for name, value in scores.items():
                self._writer.add_scalar(f"validation/{name}", value, step)
            if samples is not None:
                self._writer.add_image("low, enhanced, true", samples, step)
            self._writer.flush()
