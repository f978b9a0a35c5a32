"""An instance's result is its own: its pixels, and its trouble."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest
import torch
from pydicom import dcmread
from skimage import data

from medenhance_dicom.enhancer import EnhancerSpec
from medenhance_dicom.errors import is_out_of_memory
from medenhance_dicom.inference import load_enhancer
from medenhance_dicom.node.enhancing import Enhancing
from medenhance_dicom.node.settings import NodeSettings, Work
from medenhance_dicom.report import exit_code
from tests.flow import CAMERA, enhance, run_by, write


class Choosy:
    """An enhancer that darkens, but for pictures brighter than a half on average, at which it raises."""

    spec = EnhancerSpec(channels=None)

    def __init__(self, error=None, *, times=99):
        self.error, self.times, self.seen = error, times, []

    def __call__(self, frames):
        if frames.mean() < 0.5:
            return frames * np.float32(0.9)
        held = frames.copy()
        self.seen.append(weakref.ref(held))
        if self.times:
            self.times -= 1
            if self.error is None:
                return held * np.float32(np.nan)
            raise self.error
        return held * np.float32(0.9)


@pytest.fixture
def three(tmp_path):
    """Ultrasound stills, the second one bright."""
    folder = tmp_path / "in"
    for n, level in enumerate((60, 200, 70), start=1):
        picture = np.clip(level + 40 * CAMERA, 0, 255)
        write(folder, n, "US", np.repeat(picture[..., None], 3, axis=2))
    return folder


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError("Unable to allocate 9 GiB"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_recognised_in_all_its_words(error, is_one):
    assert is_out_of_memory(error) == is_one


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "reason"), [(torch.OutOfMemoryError("CUDA out of memory"), "OUT_OF_MEMORY"), (None, "NOT_FINITE")]
)
def test_a_frame_out_of_memory_or_not_finite_fails_its_instance_alone(three, tmp_path, error, reason):
    enhancer = Choosy(error)
    outcomes = list(run_by(enhancer, "us-clahe", tmp_path / "out").outcomes([three]))
    assert [o.result for o in outcomes] == ["enhanced", "failed", "enhanced"]
    assert outcomes[1].reason.startswith(f"{reason}: ")
    assert outcomes[1].derived is None
    assert exit_code({"enhanced": 2, "failed": 1}) == 4
    if error is not None:
        error.__traceback__ = None  # this test holds the error; nothing else may hold the frame
    gc.collect()
    assert [ref() for ref in enhancer.seen] == [None]


def test_another_error_still_ends_the_run(three, tmp_path):
    run = run_by(Choosy(RuntimeError("shapes do not match")), "us-clahe", tmp_path / "out")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(run.outcomes([three]))


def test_rescaled_values_beyond_all_bounds_fail_their_instance_alone(tmp_path):
    folder = tmp_path / "in"
    write(folder, 1, "CT", 1000 * CAMERA, RescaleSlope="1", WindowCenter="0", WindowWidth="2000")
    write(folder, 2, "CT", 1000 * CAMERA, RescaleSlope="1e39", WindowCenter="0", WindowWidth="2000")
    outcomes = enhance([folder], tmp_path / "out", gate="off")
    assert sorted(o.result for o in outcomes) == ["enhanced", "failed"]
    assert next(o.reason for o in outcomes if o.reason).startswith("NOT_FINITE: ")


def job(folder, three):
    (folder / "job").mkdir()
    three.rename(folder / "job" / "source")
    return folder / "job"


@pytest.mark.slow
def test_in_the_node_memory_that_was_short_is_waited_for(three, tmp_path):
    settings = NodeSettings(store=tmp_path, work=Work(attempts=3))
    stage, folder = Enhancing(lambda: 1_700_000_000.0), job(tmp_path, three)
    run = run_by(Choosy(MemoryError(), times=1), "us-clahe", folder / "derived")
    stage._enhancements[settings.enhance] = run
    waits = stage.go(folder, 1.7e9, settings, threading.Event())
    assert waits.state == "waiting"
    assert waits.say == "OUT_OF_MEMORY: too little memory for 1 of 3 instances"
    assert waits.then[0].pause > 0
    done = stage.go(folder, 1.7e9, settings, threading.Event())
    assert done["counts"] == {"enhanced": 3}
    assert len(set(done["derived"])) == 3


@pytest.mark.slow
def test_in_the_node_the_last_attempt_delivers_what_there_was_memory_for(three, tmp_path):
    settings = NodeSettings(store=tmp_path, work=Work(attempts=2))
    stage, folder = Enhancing(lambda: 1_700_000_000.0), job(tmp_path, three)
    stage._enhancements[settings.enhance] = run_by(Choosy(MemoryError()), "us-clahe", folder / "derived")
    assert stage.go(folder, 1.7e9, settings, threading.Event()).state == "waiting"
    done = stage.go(folder, 1.7e9, settings, threading.Event())
    assert done["counts"] == {"enhanced": 2, "failed": 1}
    assert len(done["derived"]) == 2


# ------------------------------------------------------------------------------------------------------- unchanged


def test_what_an_enhancer_leaves_as_it_is_is_skipped_and_not_written(tmp_path):
    path = write(tmp_path, 1, "CR", np.full((64, 64), 700))
    (outcome,) = enhance([path], tmp_path / "out")
    assert outcome.result == "skipped"
    assert outcome.reason == "UNCHANGED: clahe changes no stored value"
    assert not list(tmp_path.rglob("out/**/*.dcm"))
    assert exit_code({"skipped": 1}) == 3
    (outcome,) = enhance([path], tmp_path / "out", recipe="identity")
    assert outcome.result == "enhanced"
    assert dcmread(outcome.derived).PixelData == dcmread(path).PixelData


# --------------------------------------------------------------------------------------------------- batch neighbours


@pytest.mark.parametrize("engine", ["torch", pytest.param("openvino", marks=pytest.mark.slow)])
def test_frames_together_and_one_by_one_are_the_same_to_the_last_bit(engine):
    """Small convolutions of one frame take another way in PyTorch than those of several."""
    if engine == "openvino":
        pytest.importorskip("openvino")
    picture = data.astronaut().astype(np.float32) / 255
    frames = np.stack([picture[16 * n : 16 * n + 256, 16 * n : 16 * n + 256] for n in range(2)])
    enhancer = load_enhancer("stillgan-fundus-2", device="cpu", engine=engine, precision="fp32")
    together = enhancer(frames)
    for n in range(2):
        np.testing.assert_array_equal(together[n : n + 1], enhancer(frames[n : n + 1]))


@pytest.mark.slow
def test_a_series_and_its_instances_one_by_one_get_the_same_pixels(tmp_path):
    picture = data.astronaut()
    paths = [write(tmp_path / "in", n, "OP8", picture[20 * n : 20 * n + 96, 150 : 150 + 96]) for n in range(1, 4)]
    options = {"recipe": "op-fundus-stillgan", "gate": "off"}
    together = {o.source: o for o in enhance([tmp_path / "in"], tmp_path / "a", **options)}
    for path in paths:
        (alone,) = enhance([path], tmp_path / "b", **options)
        assert dcmread(alone.derived).PixelData == dcmread(together[str(path)].derived).PixelData
        assert alone.derived_sop_instance_uid == together[str(path)].derived_sop_instance_uid
