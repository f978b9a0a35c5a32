"""C-STORE to peers that accept, refuse, warn, break off, and take only some transfer syntaxes."""

from __future__ import annotations

import shutil
import time
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.encaps import generate_frames
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
)
from pynetdicom import evt

from medenhance_dicom.decoding import Decoder
from medenhance_dicom.errors import PeerError, UnsupportedInstanceError
from medenhance_dicom.frames import stored_frame
from medenhance_dicom.node import wire
from medenhance_dicom.node.forward import is_stored, send_files
from medenhance_dicom.node.settings import Destination
from medenhance_dicom.node.transcode import targets_of, transcode
from medenhance_dicom.node.wire import STORAGE_CLASSES, TRANSFER_SYNTAXES, SendQueue, accepted_context
from medenhance_dicom.part10 import read_instance
from tests.dicom_peers import dcmtk, destination, in_own_network, listen, running
from tests.streams import write as write_stream

EXPLICIT, IMPLICIT = str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian)
CT = "1.2.840.10008.5.1.4.1.1.2"


class Archive:
    """A peer that keeps what it gets, and answers with the statuses it was given."""

    def __init__(self, syntaxes=TRANSFER_SYNTAXES, statuses=(), classes=STORAGE_CLASSES):
        self.statuses = list(statuses)
        self.got = []
        self.associations = 0
        contexts = [accepted_context(sop_class, syntaxes) for sop_class in classes]
        self.server = listen(contexts, [(evt.EVT_C_STORE, self._store), (evt.EVT_ESTABLISHED, self._count)])

    def _count(self, event):
        self.associations += 1

    def _store(self, event):
        status = self.statuses.pop(0) if self.statuses else 0x0000
        if status == "abort":
            event.assoc.abort()
            return 0xA700
        if is_stored(status):
            self.got.append((event.context.transfer_syntax, pydicom.dcmread(event.dataset_path)))
        return status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()

    def send(self, paths, **more):
        return send_files(paths, destination(self.server, **more), calling_ae="ME")


@pytest.fixture
def ct(samples):
    """Two CT slices and two photographs."""
    study = samples / "study"
    return [*sorted((study / "ct").iterdir())[:2], study / "op-cornea.dcm", study / "op-fundus.dcm"]


def pydicom_file(name):
    return Path(get_testdata_file(name))


def test_files_arrive_as_they_are(ct, samples):
    paths = [*ct, samples / "study" / "us-abdomen.dcm", samples / "study" / "es-colon.dcm"]
    with Archive() as archive:
        report = archive.send(paths)
    assert [item.path for item in report.sent] == paths
    assert not report.failed
    assert archive.associations == 1
    for path, item, (syntax, received) in zip(paths, report.sent, archive.got, strict=True):
        original = pydicom.dcmread(path)
        assert (item.sop_class, item.sop_instance, item.status) == (original.SOPClassUID, original.SOPInstanceUID, 0)
        assert syntax == original.file_meta.TransferSyntaxUID
        assert received == original


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "stored", "permanent"),
    [
        (0x0000, True, None),
        (0x0111, True, None),
        (0xB000, True, None),
        (0xB007, True, None),
        (0xA700, False, False),
        (0xA900, False, True),
        (0xC000, False, False),
        (0x0110, False, False),
        (0x0122, False, True),
        (0x0124, False, True),
    ],
)
def test_what_a_status_means(ct, status, stored, permanent):
    with Archive(statuses=[status]) as archive:
        report = archive.send(ct[:1])
    if stored:
        assert [item.status for item in report.sent] == [status]
        assert not report.failed
    else:
        assert not report.sent
        assert [(item.status, item.permanent) for item in report.failed] == [(status, permanent)]
        assert f"0x{status:04X}" in report.failed[0].why


def test_one_refused_instance_does_not_keep_the_others(ct):
    with Archive(statuses=[0x0000, 0xA900]) as archive:
        report = archive.send(ct[:3])
    assert [item.path for item in report.sent] == [ct[0], ct[2]]
    assert [item.path for item in report.failed] == [ct[1]]


def test_an_abort_is_a_failure_of_that_instance_only(ct):
    with Archive(statuses=[0x0000, "abort"]) as archive:
        report = archive.send(ct[:4])
    assert [item.path for item in report.sent] == [ct[0], ct[2], ct[3]]
    assert [item[:2] + item[3:] for item in report.failed] == [(ct[1], None, False)]
    assert archive.associations == 2


def test_a_peer_that_always_aborts_is_left_alone(ct):
    with Archive(statuses=["abort"] * 9) as archive:
        report = archive.send(ct[:4])
    assert not report.sent
    assert sorted(item.path for item in report.failed) == ct[:4]
    assert not any(item.permanent for item in report.failed)
    assert archive.associations == 2


def test_nothing_listens(ct):
    archive = Archive()
    archive.server.shutdown()
    with pytest.raises(PeerError, match="cannot be reached"):
        archive.send(ct[:1])


def test_a_file_without_meta_information_fails_and_the_rest_goes(ct, tmp_path):
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"\0" * 128 + b"DICM" + b"\1" * 64)
    with Archive() as archive:
        report = archive.send([broken, tmp_path / "gone.dcm", ct[0]])
    assert [item.path for item in report.sent] == [ct[0]]
    assert [item.permanent for item in report.failed] == [True, True]
    assert not any(str(tmp_path) in item.why for item in report.failed)


def test_an_unknown_sop_class_is_permanent(ct, samples):
    with Archive(classes=[CT]) as archive:
        report = archive.send([samples / "study" / "us-abdomen.dcm", ct[0]])
        assert [item.path for item in report.sent] == [ct[0]]
        assert [item.permanent for item in report.failed] == [True]
        report = archive.send([samples / "study" / "us-abdomen.dcm"])
    assert [item.permanent for item in report.failed] == [True]


def test_more_contexts_than_an_association_has(ct, tmp_path):
    paths = []
    for number, sop_class in enumerate(STORAGE_CLASSES[:60]):
        dataset = pydicom.dcmread(ct[0])
        del dataset.PixelData
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
        syntax = JPEG2000Lossless if number % 2 else ExplicitVRLittleEndian  # without pixels, so any will do
        dataset.file_meta.TransferSyntaxUID = syntax
        paths.append(tmp_path / f"{number}.dcm")
        dataset.save_as(paths[-1])
    with Archive() as archive:
        report = archive.send(paths)
    assert len(report.sent) == 60
    assert archive.associations == 2


# ---------------------------------------------------------------- transfer syntaxes


def test_what_can_be_rewritten_in_what():
    assert targets_of(EXPLICIT) == (IMPLICIT,)
    assert targets_of(IMPLICIT) == (EXPLICIT,)
    assert targets_of(JPEGBaseline8Bit) == (EXPLICIT, IMPLICIT)
    assert targets_of("1.2.840.10008.1.2.4.102") == targets_of("1.2.840.10008.1.2.4.107") == ()
    assert targets_of(ExplicitVRBigEndian) == ()
    for syntax in ("1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.8.1", "1.2.840.10008.1.2.1.98"):
        assert targets_of(syntax) == (EXPLICIT, IMPLICIT)
    for syntax in ("1.2.840.10008.1.2.4.94", "1.2.840.10008.1.2.4.64", "1.2.840.10008.1.2.7.1", "1.2.3"):
        assert targets_of(syntax) == ()


def pixels(dataset):
    """As another reader decodes them; pydicom has no permissive decoder for JPEG Lossless."""
    if dataset.file_meta.TransferSyntaxUID == JPEGLosslessSV1:
        return imagecodecs.jpeg8_decode(next(generate_frames(dataset.PixelData, number_of_frames=1)))
    return dataset.pixel_array


@pytest.mark.slow
@pytest.mark.parametrize("only", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize(
    "name",
    [
        "JPEG2000.dcm",
        "JPEG-LL.dcm",
        "MR_small_RLE.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "emri_small_jpeg_2k_lossless.dcm",
        "CT_small.dcm",
        "MR_small_implicit.dcm",
        "image_dfl.dcm",
    ],
)
def test_rewritten_only_for_a_peer_that_takes_no_other(name, only):
    path = pydicom_file(name)
    original = pydicom.dcmread(path)
    with Archive(syntaxes=[only]) as archive:
        report = archive.send([path])
    assert [item.sop_instance for item in report.sent] == [original.SOPInstanceUID], report.failed
    syntax, received = archive.got[0]
    assert syntax == only
    assert np.array_equal(pixels(received), pixels(original))
    for element in original:
        if element.tag.group == 0x0028 and element.keyword.startswith("LossyImage"):
            assert received[element.tag] == element
    if original.SamplesPerPixel == 1:
        for element in original:
            if element.tag != 0x7FE00010 and element.tag.group != 0xFFFC and not element.tag.is_private:
                assert received[element.tag].value == element.value


def test_no_syntax_in_common_is_permanent_and_says_so():
    with Archive(syntaxes=[JPEGLosslessSV1]) as archive:
        report = archive.send([pydicom_file("JPEG2000.dcm"), pydicom_file("JPEG-LL.dcm")])
    assert [item.permanent for item in report.failed] == [True]
    assert "JPEG 2000" in report.failed[0].why
    assert len(report.sent) == 1


@pytest.mark.slow
def test_pixels_that_do_not_decode_fail_for_good(tmp_path):
    dataset = pydicom.dcmread(pydicom_file("JPEG2000.dcm"))
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + b"\0" * 400])
    dataset.save_as(tmp_path / "bad.dcm")
    with Archive(syntaxes=[EXPLICIT]) as archive:
        report = archive.send([tmp_path / "bad.dcm", pydicom_file("CT_small.dcm")])
    assert [item.permanent for item in report.failed] == [True]
    assert len(report.sent) == 1


def test_that_it_was_compressed_with_loss_is_not_forgotten(tmp_path):
    dataset = pydicom.dcmread(pydicom_file("SC_rgb_jpeg_dcmtk.dcm"))
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if keyword in dataset:
            del dataset[keyword]
    dataset.save_as(tmp_path / "before.dcm")
    transcode(tmp_path / "before.dcm", tmp_path / "after.dcm", EXPLICIT)
    after = pydicom.dcmread(tmp_path / "after.dcm")
    assert (after.LossyImageCompression, after.LossyImageCompressionMethod) == ("01", "ISO_10918_1")
    transcode(pydicom_file("JPEG-LL.dcm"), tmp_path / "lossless.dcm", EXPLICIT)
    assert "LossyImageCompressionMethod" not in pydicom.dcmread(tmp_path / "lossless.dcm")


_GRAY = np.random.default_rng(3).integers(0, 4096, (24, 20)).astype(np.uint16)


def test_new_syntaxes_are_rewritten_and_only_a_proven_loss_is_entered(tmp_path):
    before, after = tmp_path / "before.dcm", tmp_path / "after.dcm"
    with Decoder() as decoder:
        for syntax, frame, lossy in (
            (".1.98", _GRAY.tobytes(), None),
            (".8.1", zlib.compress(_GRAY.tobytes(), wbits=-15), None),
            (".4.81", bytes(imagecodecs.jpegls_encode(_GRAY)), None),
            (".4.203", bytes(imagecodecs.htj2k_encode(_GRAY, reversible=True)), None),
            (".4.81", bytes(imagecodecs.jpegls_encode(_GRAY, level=2)), "ISO_14495_1"),
        ):
            write_stream(before, [frame], syntax, _GRAY, bits=12)
            after.unlink(missing_ok=True)
            transcode(before, after, EXPLICIT, decoder)
            rewritten = pydicom.dcmread(after)
            off = np.abs(rewritten.pixel_array.astype(int) - _GRAY).max()
            assert (off, rewritten.get("LossyImageCompressionMethod")) == (2 if lossy else 0, lossy), syntax


def test_samples_of_a_codestream_keep_their_values_whatever_its_header_says_of_bits(tmp_path):
    before, after = tmp_path / "before.dcm", tmp_path / "after.dcm"
    jpegls, j2k = imagecodecs.jpegls_encode(_GRAY), imagecodecs.jpeg2k_encode(_GRAY, reversible=True, bitspersample=12)
    with Decoder() as decoder:
        for syntax, frame, bits in ((".4.80", jpegls, 12), (".4.90", j2k, 16)):
            write_stream(before, [bytes(frame)], syntax, _GRAY, bits=bits, HighBit=15)
            after.unlink(missing_ok=True)
            transcode(before, after, EXPLICIT, decoder)
            header = read_instance(after)
            assert (header.BitsStored, header.HighBit) == (12, 11)
            assert np.array_equal(stored_frame(header, decoder.frame(after, 0), 0).stored[..., 0], _GRAY)


@pytest.mark.slow
def test_texts_keep_their_bytes_or_the_file_is_not_rewritten(tmp_path):
    dataset = pydicom.dcmread(pydicom_file("JPEG2000.dcm"))
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.PatientName, dataset.StudyDescription = "Müller^Zoë", "Größe"
    dataset.save_as(tmp_path / "latin.dcm")
    for declared in (b"ISO_IR 100", b"ISO_IR 6  "):  # many writers declare the default and use Latin-1
        path = tmp_path / f"{declared.decode().strip()}.dcm"
        path.write_bytes((tmp_path / "latin.dcm").read_bytes().replace(b"ISO_IR 100", declared))
        transcode(path, tmp_path / "after.dcm", EXPLICIT)
        after = (tmp_path / "after.dcm").read_bytes()
        assert "Müller^Zoë".encode("latin-1") in after
        assert "Größe".encode("latin-1") in after
        (tmp_path / "after.dcm").unlink()
    path.write_bytes((tmp_path / "latin.dcm").read_bytes().replace(b"ISO_IR 100", b"ISO_IR 192"))
    with Archive(syntaxes=[EXPLICIT]) as archive:
        report = archive.send([path])
    assert [item.permanent for item in report.failed] == [True]
    assert report.failed[0].why == "CHARACTER_SET: a text is not in the character set that is declared"
    with Archive() as archive:
        assert len(archive.send([path]).sent) == 1


def test_big_endian_is_not_rewritten(tmp_path):
    with pytest.raises(UnsupportedInstanceError):
        transcode(pydicom_file("MR_small_bigendian.dcm"), tmp_path / "x.dcm", EXPLICIT)


def test_a_big_file_is_not_held_in_memory(tmp_path, ct, monkeypatch):
    dataset = pydicom.dcmread(ct[0])
    frames = 700
    dataset.NumberOfFrames = frames
    rows = np.random.default_rng(1).integers(0, 4000, (dataset.Rows, dataset.Columns), np.uint16).tobytes()
    dataset.PixelData = rows * frames
    path = tmp_path / "big.dcm"
    dataset.save_as(path)
    most = []

    class Watched(SendQueue):
        def put(self, *args, **kwargs):
            super().put(*args, **kwargs)
            most.append(self.qsize())

    monkeypatch.setattr(wire, "SendQueue", Watched)
    with Archive() as archive:
        report = archive.send([path])
    assert len(report.sent) == 1
    assert archive.got[0][1].PixelData == dataset.PixelData
    assert len(most) > 150
    assert max(most) <= 65


# ---------------------------------------------------------------- DCMTK's storescp


@pytest.fixture
def study(tmp_path, ct):
    for path in ct[:4]:
        shutil.copy(path, tmp_path)
    (tmp_path / "kept").mkdir()
    return tmp_path


STORESCP = Destination(name="storescp", ae_title="THERE", host="127.0.0.1", port=11115, response_timeout=60)


def storescp(folder, *options):
    return running(dcmtk("storescp"), *options, "-aet", "THERE", "-od", folder / "kept", "11115", port=11115)


@pytest.mark.slow
@in_own_network
def test_storescp_keeps_what_was_sent(study, ct):
    with storescp(study):
        report = send_files(ct, STORESCP, calling_ae="ME")
    assert [item.status for item in report.sent] == [0] * len(ct)
    kept = {pydicom.dcmread(path).SOPInstanceUID for path in (study / "kept").iterdir()}
    assert kept == {item.sop_instance for item in report.sent}


@pytest.mark.slow
@in_own_network
def test_storescp_refuses(study, ct):
    with storescp(study, "--refuse"), pytest.raises(PeerError, match="rejects") as caught:
        send_files(ct, STORESCP, calling_ae="ME")
    assert "ME" not in str(caught.value).split()


@pytest.mark.slow
@in_own_network
def test_storescp_lies(study, ct):
    """Success, and nothing kept: only Storage Commitment finds out."""
    with storescp(study, "--ignore"):
        report = send_files(ct[:2], STORESCP, calling_ae="ME")
    assert len(report.sent) == 2
    assert not list((study / "kept").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--abort-after", "--abort-during"])
@in_own_network
def test_storescp_aborts(study, ct, option):
    with storescp(study, option):
        report = send_files(ct[:3], STORESCP, calling_ae="ME")
    assert not report.sent
    assert sorted(item.path for item in report.failed) == ct[:3]
    assert not any(item.permanent for item in report.failed)


@pytest.mark.slow
@pytest.mark.parametrize(("option", "answers"), [("--sleep-after", 1), ("--sleep-during", 0)])
@in_own_network
def test_storescp_stalls(study, ct, option, answers):
    stalled = STORESCP.model_copy(update={"response_timeout": 3.0})
    with storescp(study, option, "30"):
        start = time.monotonic()
        report = send_files(ct[:1], stalled, calling_ae="ME")
        assert time.monotonic() - start < 25
    assert len(report.sent) == answers
    assert [item.permanent for item in report.failed] == [False] * (1 - answers)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["+xi", "+xs", "+xv", "+x="])
@in_own_network
def test_storescp_prefers_a_syntax(study, option):
    """+xs and +xv are lists that begin with one and end with uncompressed; +xi is Implicit VR alone."""
    paths = [pydicom_file(name) for name in ("CT_small.dcm", "JPEG2000.dcm", "JPEG-LL.dcm")]
    originals = [pydicom.dcmread(path) for path in paths]
    with storescp(study, option):
        report = send_files(paths, STORESCP, calling_ae="ME")
    assert len(report.sent) == 3, report.failed
    for kept in map(pydicom.dcmread, (study / "kept").iterdir()):
        original = next(item for item in originals if item.SOPInstanceUID == kept.SOPInstanceUID)
        assert np.array_equal(pixels(kept), pixels(original))
        if option == "+xi":
            assert kept.file_meta.TransferSyntaxUID == IMPLICIT
