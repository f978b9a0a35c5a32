"""The decoding child: it is right, it is bounded, and it may die."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
from pydicom.encaps import encapsulate
from pydicom.pixels import pixel_array
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from medenhance_dicom.decoding import Decoder
from medenhance_dicom.errors import (
    InputError,
    LimitExceededError,
    UnreadableInstanceError,
    UnsupportedInstanceError,
)
from medenhance_dicom.frames import encode_residual, modality_line, pixel_format, stored_frame, voi_windows
from medenhance_dicom.part10 import Limits, find_instances, read_instance

DATA = Path(os.environ.get("MEDENHANCE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "dicom"


INDEPENDENT = {JPEGBaseline8Bit: "pillow"}
INDEPENDENT |= dict.fromkeys([RLELossless], "pydicom")
INDEPENDENT |= dict.fromkeys([JPEG2000Lossless, JPEG2000], "pylibjpeg")
INDEPENDENT |= dict.fromkeys([JPEGLSLossless, JPEGLSNearLossless], "pyjpegls")
"""Transfer syntax -> pydicom's plugin that decodes it by other code than ours."""


def shipped(name: str) -> Path:
    return Path(pydicom.data.get_testdata_file(name, download=False))


def resident_mib(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",  # explicit little endian
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "image_dfl.dcm",  # deflated
        "MR_small_RLE.dcm",
        "SC_rgb_rle_2frame.dcm",
        "SC_rgb_small_odd_jpeg.dcm",  # JPEG Baseline
        "JPEG2000.dcm",
        "J2K_pixelrep_mismatch.dcm",
        "JPEGLSNearLossless_16.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "SC_jpeg_no_color_transform.dcm",
        "SC_jpeg_no_color_transform_2.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
        "examples_ybr_color.dcm",
        "examples_palette.dcm",
        "color3d_jpeg_baseline.dcm",
    ],
)
def test_frames_equal_pydicoms(decoder, name):
    path = pydicom.data.get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"{name} is not shipped with this pydicom")
    instance = read_instance(Path(path))
    plugin = INDEPENDENT.get(instance.file_meta.TransferSyntaxUID, "")
    expected = pixel_array(pydicom.dcmread(path), decoding_plugin=plugin)
    frames = pixel_format(instance).number_of_frames
    expected = expected if frames > 1 else expected[None]
    for index in {0, frames - 1}:
        decoded = decoder.frame(Path(path), index)
        if instance.PhotometricInterpretation == "PALETTE COLOR":
            np.testing.assert_array_equal(decoded, expected[index])
        else:
            stored = stored_frame(instance, decoded, index).stored
            np.testing.assert_array_equal(stored, expected[index].reshape(stored.shape))


@pytest.mark.skipif(not shutil.which("dcmdjpeg"), reason="no DCMTK")
@pytest.mark.parametrize("name", ["JPGExtended.dcm", "examples_ybr_color.dcm", "SC_rgb_jpeg_dcmtk.dcm"])
def test_frames_equal_dcmtks(decoder, tmp_path, name):
    subprocess.run(["dcmdjpeg", shipped(name), tmp_path / "native.dcm"], check=True, capture_output=True)
    expected = pydicom.dcmread(tmp_path / "native.dcm").pixel_array
    found = decoder.frame(shipped(name), 0)
    np.testing.assert_array_equal(found, expected if expected.shape == found.shape else expected[0])


def test_a_12_bit_jpeg_with_the_wrong_spectral_selection_is_decoded(decoder):
    paths = sorted(DATA.rglob("RG3_JPLY"))
    exact = sorted(DATA.rglob("RG3_JLSL"))
    if not paths or not exact:
        pytest.skip("needs the WG-04 images of MEDENHANCE_DATA")
    lossy, lossless = (decoder.frame(p[0], 0).astype(int) for p in (paths, exact))
    assert np.abs(np.minimum(lossy, 1023) - lossless).mean() < 3


def test_pixels_that_do_not_fit_the_header_are_refused(decoder, tmp_path):
    instance = pydicom.dcmread(shipped("CT_small.dcm"))
    instance.NumberOfFrames = 2
    instance.save_as(tmp_path / "fewer.dcm")
    with pytest.raises(UnreadableInstanceError, match="fewer bytes"):
        decoder.frame(tmp_path / "fewer.dcm", 0)
    instance.NumberOfFrames = 1
    instance.PixelData += instance.PixelData
    instance.save_as(tmp_path / "more.dcm")
    with pytest.raises(UnreadableInstanceError, match="NumberOfFrames"):
        decoder.frame(tmp_path / "more.dcm", 0)


def test_fragments_become_frames_with_and_without_an_offset_table(decoder, tmp_path):
    instance = pydicom.dcmread(shipped("CT_small.dcm"))
    rng = np.random.default_rng(3)
    frames = [rng.integers(0, 4000, (64, 64)).astype("u2") for _ in range(3)]
    instance.Rows = instance.Columns = 64
    instance.PixelRepresentation, instance.BitsStored, instance.HighBit = 0, 12, 11
    instance.NumberOfFrames = 3
    instance.PixelData = b"".join(f.tobytes() for f in frames)
    instance.compress(JPEG2000Lossless, generate_instance_uid=False)
    streams = list(pydicom.encaps.generate_frames(instance.PixelData, number_of_frames=3))
    path = tmp_path / "x.dcm"
    for fragments in (1, 2):
        for table in (True, False):
            instance.PixelData = encapsulate(streams, fragments_per_frame=fragments, has_bot=table)
            instance.save_as(path)
            for index in (2, 0, 1):
                np.testing.assert_array_equal(decoder.frame(path, index), frames[index])
    for wrong in (2, 4):
        instance.NumberOfFrames = wrong
        instance.save_as(path)
        with pytest.raises(UnreadableInstanceError, match="NumberOfFrames"):
            decoder.frame(path, 0)


def test_float_one_bit_and_video_are_refused_with_a_reason(decoder, tmp_path):
    instance = pydicom.dcmread(shipped("CT_small.dcm"))
    instance.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"
    instance.PixelData = encapsulate([b"\0\0"])
    instance["PixelData"].VR = "OB"
    instance.save_as(tmp_path / "video.dcm")
    with pytest.raises(UnsupportedInstanceError) as caught:
        decoder.frame(tmp_path / "video.dcm", 0)
    assert caught.value.reason == "VIDEO"
    with pytest.raises(UnsupportedInstanceError) as caught:
        decoder.frame(shipped("liver_1frame.dcm"), 0)
    assert (caught.value.reason, str(caught.value).count("BITS")) == ("BITS", 1)


@pytest.mark.slow
def test_declared_sizes_are_checked_before_anything_is_decoded(tmp_path):
    instance = pydicom.dcmread(shipped("CT_small.dcm"))
    instance.Rows = instance.Columns = 65535
    instance.save_as(tmp_path / "huge.dcm")
    with Decoder() as decoder, pytest.raises(LimitExceededError, match="Rows"):
        decoder.probe(tmp_path / "huge.dcm")
    path = shipped("CT_small.dcm")  # 128 x 128 x 2 bytes
    with Decoder(Limits(max_pixel_bytes=32768)) as decoder:
        decoder.probe(path)
    with Decoder(Limits(max_pixel_bytes=32767)) as decoder, pytest.raises(LimitExceededError):
        decoder.probe(path)
    with Decoder(Limits(max_instance_bytes=32767)) as decoder, pytest.raises(LimitExceededError):
        decoder.probe(path)


def test_a_deflate_bomb_is_refused(tmp_path):
    instance = pydicom.dcmread(shipped("CT_small.dcm"))
    instance.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    instance.PixelData = bytes(64 << 20)
    instance.save_as(tmp_path / "bomb.dcm")
    assert (tmp_path / "bomb.dcm").stat().st_size < 1 << 20
    with Decoder(Limits(max_inflated_bytes=8 << 20)) as decoder, pytest.raises(LimitExceededError):
        decoder.probe(tmp_path / "bomb.dcm")


def test_the_child_is_replaced_after_death():
    path = shipped("CT_small.dcm")
    with Decoder() as decoder:
        first = decoder.frame(path, 0)
        assert decoder._child is not None
        pid = decoder._child.pid
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while decoder._child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        np.testing.assert_array_equal(decoder.frame(path, 0), first)
        assert decoder._child.pid != pid


@pytest.mark.slow
def test_a_child_that_hangs_is_killed_and_the_next_file_works(tmp_path):
    path = shipped("CT_small.dcm")
    with Decoder(Limits(seconds=1.0)) as decoder:
        decoder.probe(path)
        assert decoder._child is not None
        os.kill(decoder._child.pid, signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(UnreadableInstanceError, match="took too long"):
            decoder.probe(path)
        assert time.monotonic() - started < 5
        decoder.probe(path)


def test_a_child_that_crashes_over_a_file_is_one_of_our_errors():
    path = shipped("CT_small.dcm")
    with Decoder() as decoder:
        decoder.probe(path)
        assert decoder._child is not None
        child = decoder._child
        os.kill(child.pid, signal.SIGSTOP)
        os.kill(child.pid, signal.SIGSEGV)
        os.kill(child.pid, signal.SIGCONT)
        while child.poll() is None:
            time.sleep(0.01)
        decoder._child = type("Gone", (), {})()  # poll() says alive, as in the moment before it dies
        decoder._child.__dict__.update(
            poll=lambda: None, kill=child.kill, wait=child.wait, stdin=child.stdin, stdout=child.stdout
        )
        with pytest.raises(UnreadableInstanceError, match="SIGSEGV"):
            decoder.probe(path)
        decoder.probe(path)


def test_the_childs_memory_is_limited(tmp_path):
    instance = pydicom.dcmread(shipped("CT_small.dcm"))
    instance.Rows = instance.Columns = 6000
    instance.PixelData = bytes(6000 * 6000 * 2)
    instance.save_as(tmp_path / "large.dcm")
    with Decoder(Limits(memory_bytes=64 << 20)) as decoder:
        decoder.probe(tmp_path / "large.dcm")
        with pytest.raises(UnreadableInstanceError, match="MemoryError"):
            decoder.frame(tmp_path / "large.dcm", 0)
        decoder.frame(shipped("CT_small.dcm"), 0)


def test_a_file_that_changes_is_read_again(decoder, tmp_path):
    path = tmp_path / "x.dcm"
    instance = pydicom.dcmread(shipped("CT_small.dcm"))
    instance.save_as(path)
    before = decoder.frame(path, 0)
    instance.PixelData = bytes(len(instance.PixelData))
    other = tmp_path / "y.dcm"
    instance.save_as(other)
    other.replace(path)
    assert before.any()
    assert not decoder.frame(path, 0).any()


@pytest.mark.slow
def test_a_large_file_streams_with_flat_memory(tmp_path):
    instance = pydicom.dcmread(shipped("CT_small.dcm"))
    instance.Rows = instance.Columns = 1024
    instance.NumberOfFrames = 207
    instance.BitsAllocated = instance.BitsStored = 8
    instance.HighBit, instance.PixelRepresentation = 7, 0
    instance.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    instance.PixelData = bytes(1024 * 1024 * 207)
    instance["PixelData"].VR = "OB"
    instance.save_as(tmp_path / "207.dcm")
    del instance
    before = resident_mib(os.getpid())
    with Decoder() as decoder:
        decoder.probe(tmp_path / "207.dcm")
        header = read_instance(tmp_path / "207.dcm")
        for index in range(header.NumberOfFrames):
            decoder.frame(tmp_path / "207.dcm", index)
        assert decoder._child is not None
        assert resident_mib(decoder._child.pid) < 120
    assert resident_mib(os.getpid()) - before < 30


def corpus() -> list[Path]:
    roots = [DATA, Path(pydicom.data.__file__).parent]
    try:
        import data_store
    except ImportError:
        pass
    else:
        roots.append(Path(data_store.__file__).parent / "data")
    return [root for root in roots if root.is_dir()]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_file_of_the_corpora_is_decoded_or_refused_by_name(tmp_path):
    """374 files of MEDENHANCE_DATA (263 of them malicious), pydicom's own, and pydicom-data's."""
    decoded = refused = 0
    peak, before = 0.0, resident_mib(os.getpid())
    with Decoder() as decoder:
        for located in find_instances(corpus(), tmp_path):
            started = time.monotonic()
            try:
                decoder.probe(located.path)
                instance = read_instance(located.path)
                pixels = pixel_format(instance)
                for index in range(min(pixels.number_of_frames, 5)):
                    frame = stored_frame(instance, decoder.frame(located.path, index), index)
                    line = modality_line(instance, index)
                    voi_windows(instance, index)
                    assert frame.stored.shape == (pixels.rows, pixels.columns, pixels.samples)
                    assert pixels.minimum <= frame.stored.min()
                    assert frame.stored.max() <= pixels.maximum
                    same = encode_residual(frame, np.zeros(frame.stored.shape), line, pixels)
                    np.testing.assert_array_equal(same, frame.stored)
                decoded += 1
            except (InputError, UnsupportedInstanceError):
                refused += 1
            assert time.monotonic() - started < 45, located.name
            child = resident_mib(decoder._child.pid) if decoder._child else 0.0
            peak = max(peak, child + resident_mib(os.getpid()) - before)  # other tests have their memory, too
    assert peak < 2048
    assert decoded >= 100
    assert refused > 0
