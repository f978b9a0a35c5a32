"""The codestream and the byte count are believed before the header; where no choice is safe both values are told."""

from __future__ import annotations

import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from jpeg_ls.CharLS import encode_array
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import convert_color_space

from medenhance_dicom.codestream import inspect
from medenhance_dicom.decoding import Decoder
from medenhance_dicom.errors import UnreadableInstanceError
from medenhance_dicom.frames import pixel_format, stored_frame
from medenhance_dicom.lossy import Encoding
from medenhance_dicom.part10 import Limits, read_instance
from tests.streams import lossless_jpeg, picture, write

COLOUR = picture(8, samples=3, rows=40, columns=48)
LUMA = np.ascontiguousarray(COLOUR[..., 0])
GRAY = picture(12, rows=40, columns=48)
YBR = convert_color_space(COLOUR, "RGB", "YBR_FULL")


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "x.dcm"


def stored(decoder, path: Path):
    """All frames as stored values, (frames, rows, columns[, 3])."""
    header = read_instance(path)
    count = pixel_format(header).number_of_frames
    frames = np.stack([stored_frame(header, decoder.frame(path, index), index).stored for index in range(count)])
    return frames[..., 0] if frames.shape[-1] == 1 else frames


def j2k(values, **options) -> bytes:
    options = {"level": 0, "reversible": True, "codecformat": "j2k", **options}
    return bytes(imagecodecs.jpeg2k_encode(values, **options))


def jpeg(
    space: str, *, subsampling: str = "444", ids: bytes | None = None, markers: bool = True, adobe: int | None = None
) -> bytes:
    """COLOUR as baseline JPEG in the colour space `space`.

    Perhaps with other component ids, no APP markers, or none but Adobe's with a transform.
    """
    data = bytearray(imagecodecs.jpeg8_encode(COLOUR, level=98, outcolorspace=space, subsampling=subsampling))
    if ids:
        frame, scan = data.index(b"\xff\xc0") + 10, data.index(b"\xff\xda") + 5
        for number in range(3):
            data[frame + 3 * number] = data[scan + 2 * number] = ids[number]
    if not markers or adobe is not None:
        del data[2 : 4 + int.from_bytes(data[4:6], "big")]
    if adobe is not None:
        data[2:2] = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([adobe])
    return bytes(data)


def test_planar_configuration_means_nothing_for_compressed_pixels(decoder, path):
    planes = [COLOUR[..., n].tobytes() for n in range(3)]
    streams = {
        ".4.50": jpeg("ycbcr"),
        ".4.70": lossless_jpeg(COLOUR, 8),
        ".4.80": bytes(imagecodecs.jpegls_encode(COLOUR)),
        ".4.90": j2k(COLOUR),
        ".4.201": bytes(imagecodecs.htj2k_encode(COLOUR, reversible=True, rgb=True)),
        ".4.110": bytes(imagecodecs.jpegxl_encode(COLOUR, lossless=True)),
        ".5": rle(planes),
    }
    for syntax, stream in streams.items():
        found = [stored(decoder, write(path, [stream], syntax, COLOUR, PlanarConfiguration=n))[0] for n in (0, 1)]
        np.testing.assert_array_equal(found[0], found[1])
        worst = np.abs(found[0].astype(int) - COLOUR).max()
        assert worst < 20 if syntax == ".4.50" else worst == 0, syntax


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_every_interleave_mode_of_jpeg_ls_is_undone(decoder, path, mode):
    for bits in (8, 12):
        values = picture(bits, samples=3)
        ordered = np.ascontiguousarray(np.moveaxis(values, -1, 0)) if mode == 0 else values
        write(path, [bytes(encode_array(ordered, interleave_mode=mode))], ".4.80", values, bits=bits)
        np.testing.assert_array_equal(stored(decoder, path)[0], values)


def test_planar_configuration_counts_for_cells_that_are_not_compressed(decoder, path):
    planes = np.moveaxis(COLOUR, -1, 0).tobytes()
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    for syntax, data in ((".1", planes), (".1.98", planes), (".8.1", deflater.compress(planes) + deflater.flush())):
        write(path, [data], syntax, COLOUR, PlanarConfiguration=1)
        np.testing.assert_array_equal(stored(decoder, path)[0], COLOUR)


def rle(planes: list[bytes]) -> bytes:
    """An RLE frame of byte planes in literal runs (PS3.5 annex G)."""
    segments = []
    for plane in planes:
        runs = b"".join(bytes([len(plane[n : n + 128]) - 1]) + plane[n : n + 128] for n in range(0, len(plane), 128))
        segments.append(runs + b"\0" * (len(runs) % 2))
    starts = 64 + np.cumsum([0] + [len(s) for s in segments[:-1]])
    header = np.zeros(16, "<u4")
    header[0], header[1 : len(starts) + 1] = len(starts), starts
    return header.tobytes() + b"".join(segments)


@pytest.mark.parametrize("label", ["RGB", "YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize(
    ("stream", "says"),
    [
        (jpeg("ycbcr"), "YCbCr"),  # a JFIF marker
        (jpeg("rgb"), "RGB"),  # Adobe's marker, transform 0
        (jpeg("ycbcr", adobe=1), "YCbCr"),
        (jpeg("ycbcr", adobe=2), "YCbCr"),  # of four components by its number, and libjpeg takes it so
        (jpeg("rgb", markers=False), "RGB"),  # component ids R, G, B
        (jpeg("ycbcr", subsampling="420", markers=False), "YCbCr"),  # chroma at half the size
        (jpeg("ycbcr", markers=False), None),
        (jpeg("rgb", ids=b"\1\2\3", markers=False), None),
    ],
)
def test_the_colours_of_a_jpeg_are_told_by_its_markers_ids_and_sampling_and_then_by_the_label(
    decoder, path, stream, says, label
):
    assert inspect(stream).colour == says
    write(path, [stream], ".4.50", COLOUR, PhotometricInterpretation=label)
    as_ycbcr = (says or ("RGB" if label == "RGB" else "YCbCr")) == "YCbCr"
    chroma_of_components = imagecodecs.jpeg8_decode(stream, colorspace="ycbcr", outcolorspace="rgb")
    components = imagecodecs.jpeg8_decode(stream, colorspace="rgb", outcolorspace="rgb")
    expected = chroma_of_components if as_ycbcr else components
    np.testing.assert_array_equal(stored(decoder, path)[0], expected)
    assert np.abs(chroma_of_components.astype(int) - components).mean() > 20


@pytest.mark.parametrize(
    ("label", "values", "options"),
    [
        ("RGB", COLOUR, {"mct": True}),  # the codestream's own transform, whatever the label
        ("YBR_RCT", COLOUR, {"mct": True}),
        ("YBR_FULL", COLOUR, {"mct": True}),
        ("RGB", COLOUR, {"mct": False}),
        ("YBR_RCT", COLOUR, {"mct": False}),
        ("YBR_FULL", YBR, {"mct": False}),
        ("YBR_FULL_422", YBR, {"mct": False}),
    ],
)
def test_the_multiple_component_transform_of_jpeg_2000_counts_before_the_label(decoder, path, label, values, options):
    write(path, [j2k(values, **options)], ".4.90", COLOUR, PhotometricInterpretation=label)
    expected = convert_color_space(values, "YBR_FULL", "RGB") if values is YBR else COLOUR
    np.testing.assert_array_equal(stored(decoder, path)[0], expected)


def test_a_jpeg_recompressed_as_jpeg_xl_is_rgb_whatever_the_label(decoder, path):
    stream = jpeg("ycbcr")
    for label in ("YBR_FULL_422", "RGB"):
        coded = bytes(imagecodecs.jpegxl_encode_jpeg(stream))
        write(path, [coded], ".4.111", COLOUR, PhotometricInterpretation=label)
        away = np.abs(stored(decoder, path)[0].astype(int) - imagecodecs.jpeg8_decode(stream))
        assert away.mean() < 1
        assert away.max() < 8


def test_lossy_jpeg_xl_is_near(decoder, path):
    for values, label, bits in ((COLOUR, "XYB", 8), (GRAY, "MONOCHROME2", 12)):
        coded = bytes(imagecodecs.jpegxl_encode(values, lossless=False, distance=0.5, bitspersample=bits))
        write(path, [coded], ".4.112", values, bits=bits, PhotometricInterpretation=label)
        assert np.abs(stored(decoder, path)[0].astype(int) - values).mean() < 0.02 * (1 << bits)


def test_a_jp2_file_around_the_codestream_is_taken_off(decoder, path):
    write(path, [j2k(YBR, mct=False, codecformat="jp2")], ".4.90", COLOUR, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_array_equal(stored(decoder, path)[0], convert_color_space(YBR, "YBR_FULL", "RGB"))


def test_ybr_of_more_than_eight_bits_becomes_rgb(decoder, path):
    deep = picture(12, samples=3)
    ybr = convert_color_space((deep >> 4).astype("u1"), "RGB", "YBR_FULL").astype("u2") << 4
    write(path, [ybr.tobytes()], ".1", ybr, bits=12, PhotometricInterpretation="YBR_FULL")
    assert np.abs(stored(decoder, path)[0].astype(int) - deep).max() < 48
    stream = bytes(imagecodecs.jpeg8_encode(deep, level=98, bitspersample=12, outcolorspace="ycbcr", subsampling="444"))
    write(path, [stream], ".4.51", deep, bits=12, PhotometricInterpretation="YBR_FULL_422")
    assert np.abs(stored(decoder, path)[0].astype(int) - deep).max() < 100


def test_precision_and_sign_are_the_codestreams(decoder, path):
    values = picture(13, signed=True)
    cells = (values & 0x1FFF).astype("u2")
    for stream, bits in ((j2k(values, bitspersample=13), 16), (j2k(cells, bitspersample=13), 13)):
        write(path, [stream], ".4.90", values, bits=bits)
        np.testing.assert_array_equal(stored(decoder, path)[0], values)
    wider = GRAY.astype("u2")
    write(path, [j2k(wider, bitspersample=16)], ".4.90", wider, bits=12)
    np.testing.assert_array_equal(stored(decoder, path)[0], wider)


def test_eight_bits_in_sixteen_bit_cells_keep_their_values(decoder, path):
    eight = picture(8)
    wide = eight.astype("u2")
    for syntax, stream in (
        (".4.90", j2k(eight)),
        (".4.70", lossless_jpeg(eight, 8)),
        (".4.80", bytes(imagecodecs.jpegls_encode(eight))),
        (".4.110", bytes(imagecodecs.jpegxl_encode(eight, lossless=True))),
    ):
        write(path, [stream], syntax, wide, bits=8)
        np.testing.assert_array_equal(stored(decoder, path)[0], eight)
    stream = bytes(imagecodecs.jpeg8_encode(eight, level=95))
    write(path, [stream], ".4.50", wide, bits=8)
    np.testing.assert_array_equal(stored(decoder, path)[0], imagecodecs.jpeg8_decode(stream))


@pytest.mark.parametrize(
    ("name", "precision", "bits"),
    [("CR", 10, 10), ("MR", 12, 12), ("CT", 10, 12), ("OP16", 12, 16), ("EnhancedMR", 10, 12), ("XA", 9, 9)],
)
def test_bits_stored_are_no_more_than_the_codestream_has_and_the_class_allows(decoder, path, name, precision, bits):
    """Without a window a picture is shown in the range of Bits Stored: ten bits in that of 16 are black."""
    values = picture(precision)
    wide = values.astype("u2")
    write(path, [j2k(wide, bitspersample=precision)], ".4.90", wide, name=name, PixelPaddingValue=0)
    header = read_instance(path)
    assert (header.BitsStored, header.HighBit, pixel_format(header).maximum) == (bits, bits - 1, 2**bits - 1)
    assert header.overruled.get("BitsStored") == ("16" if bits < 16 else None)
    np.testing.assert_array_equal(stored(decoder, path)[0], wide)
    for syntax, stream in ((".4.70", lossless_jpeg(wide, precision)), (".4.50", imagecodecs.jpeg8_encode(picture(8)))):
        write(path, [bytes(stream)], syntax, wide, name="CR")
        assert read_instance(path).BitsStored == (precision if syntax == ".4.70" else 8)
    write(path, [lossless_jpeg(wide, precision)], ".4.70", wide.view("i2"), name="MR", PixelPaddingValue=0)
    assert read_instance(path).BitsStored == 16  # whether the highest of its bits is a sign nothing says
    write(path, [bytes(encode_array(wide))], ".4.80", wide, name="CR")
    assert read_instance(path).BitsStored == 16


@pytest.mark.parametrize("representation", [0, 1, None])
def test_a_signed_codestream_makes_signed_pixels(decoder, path, representation):
    """CT scanners have written them under Pixel Representation 0."""
    values = picture(13, signed=True)
    write(path, [j2k(values, bitspersample=13)], ".4.90", values.astype("u2"), PixelRepresentation=representation)
    header = read_instance(path)
    assert (header.PixelRepresentation, pixel_format(header).minimum) == (1, -4096)
    np.testing.assert_array_equal(stored(decoder, path)[0], values)


def test_samples_below_zero_that_the_header_has_no_room_for_are_refused(decoder, path):
    values = picture(13, signed=True)
    write(path, [j2k(values, bitspersample=13)], ".4.90", values.astype("u2"), bits=12)
    with pytest.raises(
        UnreadableInstanceError, match=r"PixelRepresentation: the header says 0 .* codestream is signed"
    ):
        decoder.frame(path, 0)
    positive = np.abs(values) // 2
    write(path, [j2k(positive, bitspersample=14)], ".4.90", values.astype("u2"), bits=12)
    np.testing.assert_array_equal(stored(decoder, path)[0], positive)


@pytest.mark.parametrize(
    ("syntax", "stream"),
    [
        (".4.50", bytes(imagecodecs.jpeg8_encode(LUMA, level=90))),
        (".4.70", lossless_jpeg(LUMA, 8)),
        (".4.80", bytes(imagecodecs.jpegls_encode(LUMA))),
        (".4.90", j2k(LUMA)),
        (".4.110", bytes(imagecodecs.jpegxl_encode(LUMA, lossless=True))),
        (".4.201", bytes(imagecodecs.htj2k_encode(LUMA, reversible=True))),
    ],
)
def test_another_size_or_number_of_samples_is_refused_with_both_values(decoder, path, syntax, stream):
    for keyword, value, text in (
        ("Rows", 44, "the header says 44, the codestream 40"),
        ("Columns", 40, "the header says 40, the codestream 48"),
    ):
        write(path, [stream], syntax, LUMA, **{keyword: value})
        with pytest.raises(UnreadableInstanceError, match=f"^{keyword}: {text}$"):
            decoder.frame(path, 0)
    write(path, [stream], syntax, COLOUR)
    with pytest.raises(UnreadableInstanceError, match=r"^SamplesPerPixel: the header says 3, the codestream 1$"):
        decoder.frame(path, 0)


def test_more_bits_than_a_cell_has_are_refused_with_both_values(decoder, path):
    for syntax, stream in ((".4.90", j2k(GRAY, bitspersample=12)), (".4.70", lossless_jpeg(GRAY, 12))):
        write(path, [stream], syntax, GRAY.astype("u1"))
        with pytest.raises(UnreadableInstanceError, match=r"^BitsAllocated: the header says 8, the codestream 12$"):
            decoder.frame(path, 0)
    write(path, [rle([b"\0" * GRAY.size] * 2)], ".5", GRAY.astype("u1"))
    with pytest.raises(UnreadableInstanceError, match="the header says 1 bytes a pixel, the RLE frame has 2"):
        decoder.frame(path, 0)


@pytest.mark.parametrize("precision", [8, 12, 16])
@pytest.mark.parametrize("samples", [1, 3])
def test_lossless_jpeg_with_folded_differences_or_a_point_transform_is_exact(decoder, path, precision, samples):
    values = picture(precision, samples=samples)
    for predictor in (1, 2, 4):
        folded = lossless_jpeg(values, precision, predictor=predictor, fold=True)
        write(path, [folded], ".4.70", values, bits=precision)
        np.testing.assert_array_equal(stored(decoder, path)[0], values)
        shifted = lossless_jpeg(values, precision, predictor=predictor, point=3)
        write(path, [shifted], ".4.57", values, bits=precision)
        np.testing.assert_array_equal(stored(decoder, path)[0], values >> 3 << 3)


@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
def test_a_jpeg_that_is_cut_short_is_refused(decoder, path, end):
    """libjpeg fills up what is missing and says nothing."""
    streams = ((jpeg("ycbcr", subsampling="420"), ".4.50", COLOUR), (lossless_jpeg(GRAY, 12), ".4.70", GRAY))
    for stream, syntax, like in streams:
        for part in (0.5, 0.97):
            write(path, [stream[: int(len(stream) * part)] + end], syntax, like, bits=12 if like is GRAY else 8)
            with pytest.raises(UnreadableInstanceError, match="cut short"):
                decoder.frame(path, 0)


def test_the_kind_of_codestream_counts_not_the_transfer_syntax(decoder, path):
    write(path, [lossless_jpeg(GRAY, 12)], ".4.90", GRAY, bits=12)
    np.testing.assert_array_equal(stored(decoder, path)[0], GRAY)
    assert decoder.encoding(path).kind == "JPEG"


@pytest.mark.parametrize("label", ["RGB", "YBR_FULL", "YBR_FULL_422"])
def test_native_pixels_of_three_bytes_are_taken_by_their_length(decoder, path, label):
    cells = COLOUR if label == "RGB" else YBR
    expected = COLOUR if label == "RGB" else convert_color_space(YBR, "YBR_FULL", "RGB")
    for syntax in (".1", ".2", ".1.98"):
        write(path, [cells.tobytes()] * 2, syntax, COLOUR, PhotometricInterpretation=label)
        np.testing.assert_array_equal(stored(decoder, path), [expected] * 2)


def test_native_pixels_of_a_length_that_fits_no_layout_are_refused_with_both_numbers(decoder, path):
    pairs = YBR.reshape(-1, 6)[:, [0, 3, 1, 2]].tobytes()
    write(path, [pairs], ".1", COLOUR, PhotometricInterpretation="YBR_FULL_422")
    np.testing.assert_array_equal(stored(decoder, path)[0, :, ::2, 0].shape, (40, 24))
    size = COLOUR.size
    write(path, [pairs[:-8]], ".1", COLOUR, PhotometricInterpretation="YBR_FULL_422")
    with pytest.raises(UnreadableInstanceError, match=f"PixelData: .*{len(pairs) - 8}, not {len(pairs)} or {size}"):
        decoder.frame(path, 0)
    write(path, [COLOUR.tobytes() + bytes(200)], ".1", COLOUR, PhotometricInterpretation="YBR_FULL_422")
    with pytest.raises(UnreadableInstanceError, match=f"{size + 200}, not {len(pairs)} or {size}"):
        decoder.frame(path, 0)
    write(path, [pairs], ".1", COLOUR)
    with pytest.raises(
        UnreadableInstanceError, match=f"fewer bytes than the header declares: {len(pairs)}, not {size}"
    ):
        decoder.frame(path, 0)


def test_deflated_and_encapsulated_frames_of_another_length_are_refused_with_both_numbers(decoder, path):
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    short = GRAY.tobytes()[:-10]
    for syntax, data in ((".1.98", short), (".8.1", deflater.compress(short) + deflater.flush())):
        write(path, [data], syntax, GRAY, bits=12)
        with pytest.raises(UnreadableInstanceError, match=rf"declares {GRAY.nbytes} bytes a frame, there are \d+"):
            decoder.frame(path, 0)
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    write(path, [deflater.compress(bytes(1 << 24)) + deflater.flush()], ".8.1", GRAY, bits=12)
    with pytest.raises(UnreadableInstanceError, match="bytes a frame"):
        decoder.frame(path, 0)


FRAMES = [lossless_jpeg(picture(8, seed=n), 8) for n in range(3)]
HALVES = [half for f in FRAMES for half in (f[: len(f) // 4 * 2], f[len(f) // 4 * 2 :])]


def table(offsets: list[int], fragments: list[bytes]) -> bytes:
    """A value of Pixel Data with this Basic Offset Table, and fragments as they are, odd ones not padded."""

    def item(data: bytes) -> bytes:
        return b"\xfe\xff\x00\xe0" + len(data).to_bytes(4, "little") + data

    return item(np.array(offsets, "<u4").tobytes()) + b"".join(map(item, fragments))


@pytest.mark.parametrize(
    ("offsets", "fragments"),
    [
        ([0], FRAMES),  # too few entries
        ([0, 0, 0], FRAMES),
        ([0, 10, 20], FRAMES),
        ([], FRAMES),
        ([], HALVES),
        ([0], HALVES),
        ([0, 8 + len(HALVES[0]), 16 + len(HALVES[0] + HALVES[1])], HALVES),  # in the middle of a frame
        ([0, 0], [*HALVES[:2], *FRAMES[1:]]),
    ],
)
def test_a_wrong_offset_table_does_not_hide_the_frames(decoder, path, offsets, fragments):
    like = picture(8)
    write(path, FRAMES, ".4.70", like, pixel_data=table(offsets, fragments))
    np.testing.assert_array_equal(stored(decoder, path), [picture(8, seed=n) for n in range(3)])


def test_an_extended_offset_table_is_read(decoder, path):
    lengths = [8 + len(f) + len(f) % 2 for f in HALVES]
    data = encapsulate(HALVES, has_bot=False)
    right = np.cumsum([0, lengths[0] + lengths[1], lengths[2] + lengths[3]]).astype("<u8").tobytes()
    for offsets in (right, np.array([0, 1, 2], "<u8").tobytes()):
        write(path, FRAMES, ".4.70", picture(8), pixel_data=data, ExtendedOffsetTable=offsets)
        np.testing.assert_array_equal(stored(decoder, path), [picture(8, seed=n) for n in range(3)])


def test_frames_in_several_fragments_without_codestreams_are_found_by_their_length(decoder, path):
    frames = [picture(12, seed=n) for n in range(3)]
    pieces = [piece for f in frames for piece in (f.tobytes()[:500], f.tobytes()[500:])]
    write(path, pieces, ".1.98", frames[0], bits=12, table=False, NumberOfFrames=3)
    np.testing.assert_array_equal(stored(decoder, path), frames)


def test_another_number_of_frames_is_refused_with_both(decoder, path):
    for said in (2, 5):
        write(path, FRAMES, ".4.70", picture(8), NumberOfFrames=said)
        with pytest.raises(
            UnreadableInstanceError, match=f"^NumberOfFrames: the header says {said}, Pixel Data holds 3"
        ):
            decoder.frame(path, 0)


@pytest.mark.parametrize(
    ("stream", "reversible"),
    [
        (lossless_jpeg(GRAY, 12), True),
        (lossless_jpeg(GRAY, 12, point=1), False),
        (jpeg("ycbcr"), False),
        (bytes(imagecodecs.jpegls_encode(GRAY)), True),
        (bytes(imagecodecs.jpegls_encode(GRAY, level=2)), False),
        (j2k(GRAY), True),
        (j2k(GRAY, level=40, reversible=False), False),
        (bytes(imagecodecs.htj2k_encode(GRAY, reversible=True)), True),
        (bytes(imagecodecs.htj2k_encode(GRAY, level=0.01, reversible=False)), False),
        (bytes(imagecodecs.jpegxl_encode(GRAY, lossless=True)), None),
        (bytes(imagecodecs.jpegxl_encode(GRAY, lossless=False, distance=1.0)), False),
        (bytes(imagecodecs.jpegxl_encode_jpeg(jpeg("ycbcr"))), False),
    ],
)
def test_a_codestream_says_whether_its_coding_loses_something(decoder, path, stream, reversible):
    like = COLOUR if inspect(stream).samples == 3 else GRAY
    write(path, [stream], ".4.91", like)
    found = inspect(stream)
    assert (found.rows, found.columns, found.reversible) == (*like.shape[:2], reversible)
    padded = len(stream) + len(stream) % 2
    assert decoder.encoding(path) == Encoding(
        padded, found.kind, reversible, found.precision, found.signed, found.colour
    )
    write(path, [like.tobytes()], ".1", like)
    assert decoder.encoding(path) == Encoding(like.nbytes)


def test_all_frames_count_and_one_that_loses_something_decides(decoder, path):
    kept, lost = j2k(GRAY), j2k(GRAY, level=20, reversible=False)
    write(path, [kept, kept, lost], ".4.91", GRAY, table=False)
    total = sum(len(stream) + len(stream) % 2 for stream in (kept, kept, lost))
    assert decoder.encoding(path) == Encoding(total, "JPEG 2000", False, 16)
    write(path, [kept, kept], ".4.91", GRAY)
    assert decoder.encoding(path).reversible is True


def test_what_is_around_the_frames_does_not_count(decoder, path):
    """The ratio stands in derived objects, which are the same whatever held the file."""
    data = j2k(GRAY, level=20, reversible=False)
    write(path, [data], ".4.91", GRAY, table=False)
    bare = decoder.encoding(path)
    write(path, [data], ".4.91", GRAY, SeriesDescription="another header")
    path.write_bytes(path.read_bytes() + bytes(1000))
    assert decoder.encoding(path) == bare
    write(path, [], ".4.91", GRAY, pixel_data=encapsulate([data], fragments_per_frame=2), NumberOfFrames=1)
    assert decoder.encoding(path) == bare


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("shape", [(1, 1), (8, 700), (256, 256), (480, 640), (513, 300)])
def test_the_header_of_a_jpeg_xl_is_read(bits, shape):
    values = np.zeros((*shape, 3), "u1" if bits == 8 else "u2")
    for box in (False, True):
        options = {"bitspersample": bits, "usecontainer": box, "effort": 1}
        found = inspect(bytes(imagecodecs.jpegxl_encode(values, lossless=True, **options)))
        assert (found.rows, found.columns, found.samples, found.precision) == (*shape, 3, bits)


def test_a_header_that_is_cut_or_no_codestream_is_refused(decoder, path):
    for stream in (b"", b"\xff\xd8\xff", b"\xff\x4f\xff\x51\0", b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n", b"nothing"):
        with pytest.raises(UnreadableInstanceError):
            inspect(stream)


@pytest.mark.parametrize(
    "stream",
    [
        lossless_jpeg(GRAY, 12),
        jpeg("ycbcr"),
        bytes(imagecodecs.jpegls_encode(GRAY)),
        j2k(GRAY),
        j2k(GRAY, codecformat="jp2"),
        bytes(imagecodecs.jpegxl_encode(GRAY, lossless=True)),
        bytes(imagecodecs.jpegxl_encode(COLOUR, lossless=True, usecontainer=True)),
    ],
)
def test_whatever_a_broken_header_says_is_an_error_of_ours_or_a_value(stream):
    rng = np.random.default_rng(5)
    broken = [stream[:end] for end in range(120)]
    for _ in range(400):
        changed = bytearray(stream[:400])
        changed[rng.integers(2, 120)] = rng.integers(256)
        broken.append(bytes(changed))
    for data in broken:
        try:
            assert inspect(data).kind
        except UnreadableInstanceError:
            continue


@pytest.mark.slow
def test_codecs_that_run_out_of_memory_leave_a_child_that_works(path):
    large = np.zeros((1800, 1800), "u2")
    large[::7] = np.arange(1800)
    small = path.with_name("small.dcm")
    write(small, [lossless_jpeg(GRAY, 12)], ".4.70", GRAY, bits=12)
    with Decoder(Limits(memory_bytes=4 << 20)) as decoder:
        for syntax, stream in (
            (".4.90", j2k(large)),
            (".4.80", bytes(imagecodecs.jpegls_encode(large))),
            (".4.110", bytes(imagecodecs.jpegxl_encode(large, lossless=True, effort=1))),
        ):
            write(path, [stream], syntax, large)
            with pytest.raises(UnreadableInstanceError, match="decoding failed"):
                decoder.frame(path, 0)
            np.testing.assert_array_equal(decoder.frame(small, 0), GRAY)


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("us_real_planar1", "us_real_planar0"),
        ("vlp_real_planar1", "vlp_real_planar0"),
        ("fundus_real_planar1", "fundus_real_planar0"),
        ("j2k_rct_stale_planar1", "vl_planar1"),
        ("j2k_rgb_stale_planar1", "vl_planar1"),
        ("j2k_rgb_label_with_mct", "vl_planar1"),
        ("rle_planar0", "vl_planar1"),
        ("jpeg_rgb_adobe_labelled_ybr", "jpeg_rgb_adobe_labelled_rgb"),
        ("jpeg_ycc_jfif_labelled_rgb", "jpeg_ycc_jfif_labelled_ybr"),
        ("us_jpeg_ycc_nomarker_labelled_rgb", "jpeg_ycc_nomarker_labelled_ybr"),
        ("j2k_unsigned_stream_signed_header", "j2k_signed13_header16"),
        ("mr_signed12_jpegll", "mr_signed12_native"),
        ("us_bot_short", "us_eot"),
        ("us_bot_zeros", "us_eot"),
        ("us_odd_fragments_empty_bot", "us_frametimevector_split_fragments"),
        ("transfer_syntaxes/us_wrap", "transfer_syntaxes/us_plain"),
        ("transfer_syntaxes/p8in16", "transfer_syntaxes/us_plain"),
        ("transfer_syntaxes/ht_frag_nobot", "transfer_syntaxes/native"),
        ("transfer_syntaxes/difc_m12", "transfer_syntaxes/encunc_m12"),
        ("transfer_syntaxes/jxl_m12", "transfer_syntaxes/encunc_m12"),
        ("transfer_syntaxes/jxl_rgb", "transfer_syntaxes/encunc_rgb"),
    ],
)
def test_small_files_that_other_programs_misread_equal_their_twins(decoder, cases_folder, name, twin):
    one, other = (stored(decoder, cases_folder / f"{n}.dcm") for n in (name, twin))
    np.testing.assert_array_equal(one, other)


def test_a_scanners_codestream_of_the_wrong_sign_means_the_same_either_way(decoder, data_folder):
    names = ("TOSHIBA_J2K_SIZ1_PixRep0", "TOSHIBA_J2K_SIZ0_PixRep1")
    found = [stored(decoder, next(data_folder.rglob(f"{name}.dcm"))) for name in names]
    np.testing.assert_array_equal(*found)
    assert (found[0].min(), found[0].max()) == (-2048, 1717)
