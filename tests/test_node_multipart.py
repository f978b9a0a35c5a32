"""Multipart bodies in blocks of every size, and bodies that are not multipart."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medenhance_dicom.node.multipart import MultipartError, MultipartReader, PartBegins, PartData, PartEnds, media_type


def parts(body: bytes, boundary: str, size: int) -> list[tuple[str | None, bytes]]:
    reader = MultipartReader(boundary)
    found: list[tuple[str | None, bytes]] = []
    ended = 0
    for start in range(0, len(body), size):
        for event in reader.feed(body[start : start + size]):
            if isinstance(event, PartBegins):
                found.append((event.content_type, b""))
            elif isinstance(event, PartData):
                found[-1] = found[-1][0], found[-1][1] + event.data
            else:
                assert isinstance(event, PartEnds)
                ended += 1
    reader.close()
    assert ended == len(found)
    return found


BODY = (
    b"a preamble nobody reads\r\n--b0\r\nContent-Type: Application/DICOM; transfer-syntax=1.2.840.10008.1.2.1\r\n"
    b"Content-Location: x\r\n\r\none\r\n--b\r\n-two\r\n--b0 \t\r\n\r\n\r\n--b0--\r\nan epilogue --b0\r\n"
)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 16, 1000])
def test_parts_are_the_same_in_blocks_of_any_size(size):
    assert parts(BODY, "b0", size) == [("application/dicom", b"one\r\n--b\r\n-two"), (None, b"")]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4), st.integers(1, 40))
def test_what_was_put_together_comes_apart(contents, size):
    body = b"".join(b"--=_x\r\nContent-Type: application/dicom\r\n\r\n" + c + b"\r\n" for c in contents) + b"--=_x--"
    assert [data for _, data in parts(body, "=_x", size)] == contents


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"--b0\r\n\r\ndata", "ends before"),
        (b"", "ends before"),
        (b"--b0\r\n\r\ndata\r\n--b0", "ends before"),
        (b"--b0trailing\r\n\r\n", "white space"),
        (b"--b0" + b" " * 300 + b"\r\n\r\n", "white space"),
        (b"--b0\r\nx: " + b"y" * 9000, "too long"),
        (b"--b0\r\nx: " + b"y" * 9000 + b"\r\n\r\n\r\n--b0--", "too long"),
    ],
)
def test_what_is_not_multipart_is_refused(body, words):
    for size in (3, 100_000):
        with pytest.raises(MultipartError, match=words):
            parts(body, "b0", size)


@pytest.mark.parametrize("boundary", ["", "x" * 71, "a\r\nb", "é"])
def test_boundaries_outside_the_rfc_are_refused(boundary):
    with pytest.raises(MultipartError):
        MultipartReader(boundary)


def test_memory_holds_no_more_than_a_block():
    reader = MultipartReader("b0")
    list(reader.feed(b"--b0\r\n\r\n"))
    for _ in range(50):
        list(reader.feed(b"\x00" * 10_000))
        assert len(reader._buffer) < 10


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            'multipart/related; type="application/dicom"; boundary=ab',
            ("multipart/related", {"type": "application/dicom", "boundary": "ab"}),
        ),
        ("Application/DICOM", ("application/dicom", {})),
        ("multipart/related; type*=utf-8''application%2Fdicom; Boundary=b", ("multipart/related", {"boundary": "b"})),
        ("a/b; type*0*=x; type*1=y; c", ("a/b", {"c": ""})),
        ("", ("", {})),
        ("nonsense", ("", {})),
    ],
)
def test_media_types(value, expected):
    assert media_type(value) == expected
