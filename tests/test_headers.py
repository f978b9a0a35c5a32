"""The walk over data elements: the same values as pydicom's, from as few bytes as it takes."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medenhance_dicom.errors import UnreadableInstanceError
from medenhance_dicom.headers import ARCHIVE_FACTS, HEADER, LAST_FACT, Blocks, plausible, read_facts
from tests.synthetic import make_instance

META = b"\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\0"
PREFIX = b"\0" * 128 + b"DICM"


def facts_of(blocks, **more):
    return read_facts(blocks, ARCHIVE_FACTS, LAST_FACT, **more)


def short(tag, vr, value):
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def long(tag, vr, value, length=None):
    size = len(value) if length is None else length
    return struct.pack("<HH2sHL", tag >> 16, tag & 0xFFFF, vr, 0, size) + value


@pytest.mark.parametrize(
    "name",
    ["CT_small.dcm", "MR_small_bigendian.dcm", "JPEG2000.dcm", "rtplan.dcm", "UN_sequence.dcm", "image_dfl.dcm",
     "nested_priv_SQ.dcm", "SC_rgb_jpeg_gdcm.dcm", "liver_1frame.dcm", "MR_small_implicit.dcm", "no_meta.dcm"],
)  # fmt: skip
def test_values_are_those_that_pydicom_reads(name):
    path = Path(get_testdata_file(name))
    expected = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    with Blocks.of_file(path) as blocks:
        facts = facts_of(blocks, bare=True)
    for fact in ARCHIVE_FACTS.values():
        value = expected.get(fact.name)
        assert facts.get(fact.name, "") == ("" if value is None else str(value)), fact.name


def test_reads_no_further_than_it_has_to():
    """A private element of 40 MB before the UIDs is passed over; two blocks and the meta information are read."""
    huge = 40 << 20
    head = PREFIX + META + long(0x00091010, b"OB", b"", huge)
    tail = (
        short(0x0020000D, b"UI", b"1.2.3\0") + short(0x00280010, b"US", b"\x10\x00") + long(0x7FE00010, b"OW", b"", 8)
    )
    asked = []

    def read_at(position, count):
        asked.append(count)
        if position < len(head):
            return head[position : position + count] + b"\0" * max(0, position + count - len(head))
        at = position - len(head) - huge
        assert at >= 0
        return tail[at : at + count]

    facts = facts_of(Blocks(read_at, len(head) + huge + len(tail)))
    assert (facts["StudyInstanceUID"], facts["Rows"]) == ("1.2.3", "16")
    assert sum(asked) <= 3 * 16384


@pytest.mark.parametrize("block", [140, 141, 147, 160, 333, 16384])
def test_elements_may_lie_across_blocks(tmp_path, block):
    path = tmp_path / "a.dcm"
    make_instance("EnhancedCT").save_as(path, enforce_file_format=True)
    data = path.read_bytes()
    blocks = Blocks(lambda position, count: data[position : position + count], len(data), block=block)
    assert facts_of(blocks) == facts_of(Blocks.of_bytes(data))
    assert facts_of(blocks)["Columns"] == "12"


@pytest.mark.parametrize("letters", [b"OB", b"UN", b"SQ"])
def test_the_length_of_an_item_is_no_vr(letters):
    """Bytes 4 and 5 of an item's header are its length: 16975 reads as OB."""
    length = int.from_bytes(letters, "little")
    item = struct.pack("<HHL", 0xFFFE, 0xE000, length) + b"\0" * length + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    data = PREFIX + META + long(0x00081140, b"SQ", item, 0xFFFFFFFF) + short(0x0020000E, b"UI", b"1.2\0")
    assert facts_of(Blocks.of_bytes(data))["SeriesInstanceUID"] == "1.2"


def test_a_value_that_is_cut_off_is_not_read():
    data = PREFIX + META + short(0x0020000D, b"UI", b"1.2.3.4.5.6\0")
    assert facts_of(Blocks.of_bytes(data))["StudyInstanceUID"] == "1.2.3.4.5.6"
    for cut in range(1, 20):
        with pytest.raises(UnreadableInstanceError, match="cut off"):
            facts_of(Blocks.of_bytes(data[:-cut]))
    beyond = PREFIX + META + long(0x00091010, b"OB", b"", 1 << 20)
    with pytest.raises(UnreadableInstanceError, match="cut off"):
        facts_of(Blocks.of_bytes(beyond))


def test_meta_information_that_readers_disagree_about_is_for_a_careful_reader():
    odd = PREFIX + b"\x02\x00\x02\x00QQ\x04\x001.2\0" + META + short(0x0020000E, b"UI", b"1.2\0")
    assert facts_of(Blocks.of_bytes(odd))["SeriesInstanceUID"] == "1.2"
    with pytest.raises(UnreadableInstanceError, match="meta"):
        facts_of(Blocks.of_bytes(odd), bare=True)


def test_text_is_printable():
    data = PREFIX + META + short(0x00080070, b"LO", b"M\xfcller\x1b[2J\n") + short(0x00081090, b"LO", "Ä1".encode())
    facts = facts_of(Blocks.of_bytes(data))
    assert facts["Manufacturer"] == "Müller?[2J?"
    assert facts["ManufacturerModelName"] == "Ä1 ".strip()


def test_what_may_be_dicom():
    assert plausible(PREFIX)
    assert plausible(short(0x00080005, b"CS", b"ISO_IR 100"))
    assert not plausible(b"")
    assert not plausible(b"\x89PNG\r\n\x1a\n" + b"\0" * 200)


def header_of(instance, syntax=ExplicitVRLittleEndian):
    file = io.BytesIO()
    instance.file_meta.TransferSyntaxUID = syntax
    instance.save_as(file, enforce_file_format=True)
    return facts_of(Blocks.of_bytes(file.getvalue()), header=True)[HEADER]


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("PatientName", "Test^Two"), ("AccessionNumber", "8"), ("PixelSpacing", [0.71, 0.72]), ("WindowCenter", 41),
     ("ImageOrientationPatient", [0, 1, 0, 1, 0, 0]), ("StudyDate", "20260102"), ("RescaleIntercept", -1000)],
)  # fmt: skip
def test_a_header_that_says_something_else_has_another_digest(keyword, value):
    instance = make_instance("CT", rows=16)
    before = header_of(instance)
    setattr(instance, keyword, value)
    assert header_of(instance) != before


def test_the_digest_of_a_header_is_of_what_it_says():
    instance = make_instance("CT", rows=16)
    before = header_of(instance)
    instance.file_meta.ImplementationVersionName = "ANOTHER"
    instance.InstanceCreationTime = "101112"
    instance.add_new(0x00091010, "OB", b"\1" * 70000)
    assert header_of(instance) == before
    assert header_of(instance, ImplicitVRLittleEndian) == before
    del instance.PatientBirthDate
    assert header_of(instance) != before
