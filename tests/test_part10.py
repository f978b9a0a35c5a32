"""Finding, reading and writing files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.fileset import FileSet
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian

from medenhance_dicom import part10
from medenhance_dicom.errors import (
    DerivationError,
    InputError,
    LimitExceededError,
    OutputError,
    UnreadableInstanceError,
)
from medenhance_dicom.frames import pixel_format
from medenhance_dicom.part10 import Limits, find_instances, looks_like_dicom, read_instance, write_instance
from medenhance_dicom.uids import IMPLEMENTATION_CLASS_UID
from tests import synthetic

CT = Path(pydicom.data.get_testdata_file("CT_small.dcm", download=False))


def found(*paths, scratch, **more):
    return list(find_instances(paths, scratch, **more))


# ---------------------------------------------------------------- find


def test_folders_are_walked_in_order_without_hidden_files_pipes_and_dicomdirs(tmp_path):
    for name in ("b/IM2", "b/IM1", "a.dcm", ".hidden", ".git/x", "b/.x.dcm.part", "DICOMDIR", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    names = [located.path.relative_to(tmp_path).as_posix() for located in found(tmp_path, scratch=tmp_path)]
    assert names == ["a.dcm", "notes.txt", "b/IM1", "b/IM2"]


def test_a_missing_path_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        found(tmp_path / "nowhere", scratch=tmp_path)


def test_zips_are_unpacked_under_names_of_our_own(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    archive = tmp_path / "study.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.write(CT, "IMG1")
        zipped.writestr("../../escaped", b"x")
        zipped.writestr("/etc/absolute", b"x")
        zipped.writestr("__MACOSX/._IMG1", b"x")
        zipped.writestr("folder/", b"")
    instances = found(archive, scratch=scratch)
    assert [i.name for i in instances] == [f"{archive}!{n}" for n in ("IMG1", "../../escaped", "/etc/absolute")]
    assert {i.path.parent for i in instances} == {scratch}
    assert instances[0].path.read_bytes() == CT.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scratch", "study.zip"]


def test_zip_bombs_are_refused_and_leave_nothing(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("a", bytes(10 << 20))
        zipped.writestr("b", b"")
    with pytest.raises(LimitExceededError):
        found(archive, scratch=scratch, limits=Limits(max_archive_bytes=1 << 20))
    with pytest.raises(LimitExceededError):
        found(archive, scratch=scratch, limits=Limits(max_members=1))
    assert list(scratch.iterdir()) == []


def test_a_broken_zip_is_one_of_our_errors(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(UnreadableInstanceError, match="BadZipFile"):
        found(tmp_path / "x.zip", scratch=tmp_path)


def dicomdir(folder: Path) -> Path:
    files = FileSet()
    files.add(CT)
    files.write(folder)
    return folder / "DICOMDIR"


def test_a_dicomdir_yields_what_it_references_whatever_the_case(tmp_path):
    path = dicomdir(tmp_path)
    (located,) = found(path, scratch=tmp_path)
    assert read_instance(located.path).SOPInstanceUID == read_instance(CT).SOPInstanceUID
    top = located.path.relative_to(tmp_path).parts[0]
    (tmp_path / top).rename(tmp_path / top.lower())
    (located,) = found(path, scratch=tmp_path)
    assert located.path.exists()


def test_a_dicomdir_reference_in_vain_is_reported_by_reading(tmp_path):
    path = dicomdir(tmp_path)
    (located,) = found(path, scratch=tmp_path)
    located.path.unlink()
    (located,) = found(path, scratch=tmp_path)
    with pytest.raises(UnreadableInstanceError):
        read_instance(located.path)


@pytest.mark.parametrize("file_id", [["..", "secret"], "/etc/passwd", ["A", "../../x"]])
def test_a_dicomdir_cannot_lead_out_of_its_folder(tmp_path, file_id):
    path = dicomdir(tmp_path)
    directory = pydicom.dcmread(path)
    for record in directory.DirectoryRecordSequence:
        if record.DirectoryRecordType == "IMAGE":
            record.ReferencedFileID = file_id
    directory.save_as(path)
    with pytest.raises(UnreadableInstanceError, match="ReferencedFileID"):
        found(path, scratch=tmp_path)


# ---------------------------------------------------------------- read


def test_headers_come_without_pixels_and_with_a_transfer_syntax():
    instance = read_instance(CT)
    assert "PixelData" not in instance
    assert instance.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert (instance.Rows, instance.Columns) == (128, 128)


def test_a_data_set_without_preamble_and_meta_is_read(tmp_path):
    whole = pydicom.dcmread(CT)
    naked = Dataset(whole)
    naked.save_as(tmp_path / "naked", implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert looks_like_dicom(tmp_path / "naked")
    instance = read_instance(tmp_path / "naked")
    assert instance.file_meta.TransferSyntaxUID.is_implicit_VR
    assert instance.SOPInstanceUID == whole.SOPInstanceUID


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(600), bytes(2000)])
def test_what_is_not_dicom_is_said_so(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    assert not looks_like_dicom(tmp_path / "x")
    with pytest.raises(UnreadableInstanceError, match="not DICOM"):
        read_instance(tmp_path / "x")


def test_deflated_headers_are_read_without_inflating_the_pixels(tmp_path):
    whole = pydicom.dcmread(CT)
    whole.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    whole.save_as(tmp_path / "x.dcm")
    instance = read_instance(tmp_path / "x.dcm", limits=Limits(max_inflated_bytes=20_000))
    assert instance.SOPInstanceUID == whole.SOPInstanceUID


def test_a_big_endian_header_comes_back_little_endian(tmp_path):
    path = tmp_path / "x.dcm"
    whole = derived()
    whole.add_new("RedPaletteColorLookupTableData", "OW", b"\x01\x02")
    whole.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    whole.save_as(path, enforce_file_format=True)
    instance = read_instance(path)
    assert instance.RedPaletteColorLookupTableData == b"\x02\x01"
    assert instance.Rows == 3


def test_a_small_file_cannot_inflate_to_a_million_items(tmp_path, monkeypatch):
    monkeypatch.setattr(part10, "_MOST_INFLATED_TAGS", 10_000)
    path = tmp_path / "x.dcm"
    dataset = pydicom.Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    head = path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    at = head.index(b"\x08\x00\x16\x00")
    meta = bytearray(head[:at])
    meta[meta.index(b"1.2.840.10008.1.2.1.99") - 2] = 22
    meta[140:144] = (len(meta) - 144).to_bytes(4, "little")
    sequence = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff"
    for item in (b"\xfe\xff\x00\xe0\0\0\0\0", bytes(8)):
        packed = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        path.write_bytes(meta + packed.compress(head[at:] + sequence + item * 1_500_000) + packed.flush())
        assert path.stat().st_size < 100_000
        with pytest.raises(LimitExceededError, match="elements"):
            read_instance(path)
        assert read_instance(path, last=0x00080018).SOPInstanceUID == "1.2.3"


def test_truncation_nesting_and_size_are_errors_and_bad_values_are_not(tmp_path):
    path = tmp_path / "x.dcm"
    path.write_bytes(CT.read_bytes()[:1000])
    with pytest.raises(UnreadableInstanceError, match="truncated"):
        read_instance(path)
    with pytest.raises(LimitExceededError, match="elements"):
        read_instance(CT, limits=Limits(max_elements=10))
    with pytest.raises(LimitExceededError, match="larger"):
        read_instance(CT, limits=Limits(max_header_bytes=500))
    deep = pydicom.dcmread(CT)
    for _ in range(40):
        outer = Dataset()
        outer.ReferencedImageSequence = [deep] if "PixelData" not in deep else [Dataset()]
        deep = outer
    whole = pydicom.dcmread(CT)
    whole.ReferencedImageSequence = [deep]
    whole.save_as(path)
    with pytest.raises(LimitExceededError, match="nested"):
        read_instance(path)


def test_values_that_do_not_fit_their_vr_are_kept_and_never_printed(tmp_path, capfd, recwarn, caplog):
    path = tmp_path / "x.dcm"
    whole = derived()
    whole.add_new("PatientBirthDate", "LO", "SECRET")
    whole.add_new("RescaleSlope", "LO", "SECRET")
    whole.add_new("FrameTime", "OB", b"\1\2")
    whole.add_new("RecommendedDisplayFrameRate", "LO", "SECRET")
    whole.save_as(path, enforce_file_format=True)
    for vr, keyword in ((b"DA", b"\x10\x00\x30\x00"), (b"DS", b"\x28\x00\x53\x10"), (b"IS", b"\x08\x00\x44\x21")):
        path.write_bytes(path.read_bytes().replace(keyword + b"LO", keyword + vr))
    raw = path.read_bytes().replace(b"\x28\x00\x10\x00US\x02\x00\x03\x00", b"\x28\x00\x10\x00FL\x02\x00\x03\x00")
    path.write_bytes(raw)  # a float of two bytes
    instance = read_instance(path)
    assert instance["Rows"].VR == "UN"
    assert instance.Rows == b"\x03\x00"
    for keyword in ("RescaleSlope", "RecommendedDisplayFrameRate"):
        assert not isinstance(instance[keyword].value, int | float)
    assert not recwarn.list
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("photometric", "samples", "representation"),
    [("MONOCHROME1", 1, None), ("PALETTE COLOR", 1, None), ("RGB", 3, 0), ("YBR_FULL_422", 3, 0), (None, None, None)],
)
def test_what_has_one_possible_value_is_filled_in(tmp_path, photometric, samples, representation):
    whole = derived()
    whole.PhotometricInterpretation = photometric
    del whole.SamplesPerPixel, whole.PixelRepresentation
    whole.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    instance = read_instance(tmp_path / "x.dcm")
    assert (instance.get("SamplesPerPixel"), instance.get("PixelRepresentation")) == (samples, representation)


def test_errors_hold_no_values(tmp_path):
    path = tmp_path / "x.dcm"
    raw = CT.read_bytes()
    path.write_bytes(raw[: raw.index(b"CompressedSamples^CT1") + 10])
    with pytest.raises(UnreadableInstanceError) as caught:
        read_instance(path)
    assert "Compressed" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


# ---------------------------------------------------------------- write


@pytest.mark.parametrize("written", ["monochrome2", " MONOCHROME2", "Monochrome2 "])
def test_blanks_and_small_letters_of_the_photometric_interpretation_mean_nothing(tmp_path, written):
    path = synthetic.make_file(tmp_path / "x.dcm", "MR", PhotometricInterpretation=written)
    assert read_instance(path).PhotometricInterpretation == "MONOCHROME2"


def test_several_photometric_interpretations_are_none(tmp_path):
    header = read_instance(synthetic.make_file(tmp_path / "x.dcm", "US", PhotometricInterpretation=["RGB", "RGB"]))
    with pytest.raises(UnreadableInstanceError, match="PhotometricInterpretation: is not one value"):
        pixel_format(header)


def derived(rows=3, columns=3, allocated=8) -> Dataset:
    instance = Dataset()
    instance.file_meta = FileMetaDataset()
    instance.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    instance.SpecificCharacterSet = "ISO_IR 192"
    instance.SOPClassUID, instance.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "2.25.77"
    instance.PatientName = "山田^太郎"
    instance.SamplesPerPixel, instance.PhotometricInterpretation = 1, "MONOCHROME2"
    instance.Rows, instance.Columns = rows, columns
    instance.BitsAllocated = instance.BitsStored = allocated
    instance.HighBit, instance.PixelRepresentation = allocated - 1, 0
    return instance


@pytest.mark.parametrize(("allocated", "vr"), [(8, "OB"), (16, "OW")])
def test_what_is_written_is_read_back(tmp_path, allocated, vr):
    values = np.arange(9, dtype=f"<u{allocated // 8}").reshape(3, 3)
    (tmp_path / "pixels").write_bytes(values.tobytes())
    instance = derived(allocated=allocated)
    instance.add_new("PixelPaddingValue", "US or SS", 3)  # ambiguous until it is written
    target = tmp_path / "study" / "series" / "x.dcm"
    write_instance(instance, tmp_path / "pixels", target)
    again = pydicom.dcmread(target)
    np.testing.assert_array_equal(again.pixel_array, values)
    assert vr == again["PixelData"].VR
    assert len(again.PixelData) % 2 == 0
    assert again.PatientName == "山田^太郎"
    assert again.PixelPaddingValue == 3
    assert again.file_meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    assert again.file_meta.MediaStorageSOPInstanceUID == "2.25.77"
    assert [p.name for p in target.parent.iterdir()] == ["x.dcm"]
    assert "PixelData" not in instance


def test_text_that_the_character_set_cannot_carry_is_never_replaced(tmp_path):
    (tmp_path / "pixels").write_bytes(bytes(9))
    instance = derived()
    instance.SpecificCharacterSet = "ISO_IR 100"
    with pytest.raises(DerivationError) as caught:
        write_instance(instance, tmp_path / "pixels", tmp_path / "x.dcm")
    assert "山田" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["pixels"]


def test_pixels_of_another_size_and_stray_pixel_data_are_refused(tmp_path):
    (tmp_path / "pixels").write_bytes(bytes(8))
    with pytest.raises(DerivationError, match="another size"):
        write_instance(derived(), tmp_path / "pixels", tmp_path / "x.dcm")
    instance = derived()
    instance.PixelData = bytes(10)
    with pytest.raises(DerivationError, match="Pixel Data"):
        write_instance(instance, tmp_path / "pixels", tmp_path / "x.dcm")


def test_an_output_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "pixels").write_bytes(bytes(9))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError):
        write_instance(derived(), tmp_path / "pixels", tmp_path / "file" / "x.dcm")


@pytest.mark.slow
def test_kill_9_leaves_the_old_file_or_the_new_one_and_at_most_a_dot_part(tmp_path):
    rows = columns = 4096
    (tmp_path / "pixels").write_bytes(bytes(rows * columns))
    script = (
        "import sys; from pathlib import Path; import importlib.util as u\n"
        f"s = u.spec_from_file_location('t', {str(Path(__file__))!r})\n"
        "t = u.module_from_spec(s); s.loader.exec_module(t)\n"
        f"print('go', flush=True)\nwhile True: t.write_instance(t.derived({rows}, {columns}), "
        "Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    out = tmp_path / "out"
    for delay in np.linspace(0.005, 0.2, 8):
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "pixels"), str(out / "x.dcm")], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"go\n"
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        for path in out.iterdir() if out.exists() else []:
            if path.name == "x.dcm":
                assert len(pydicom.dcmread(path).PixelData) == rows * columns
            else:
                assert path.name.startswith(".x.dcm.")
                assert path.name.endswith(".part")
    assert not [located for located in find_instances([out], tmp_path) if located.path.name != "x.dcm"]
