"""Every kind of picture file is read as it should look; every bad one is refused in one line; maps lie over pictures.

The oracles are OpenCV's codecs, NumPy, and values worked out by hand: never Pillow's own conversions.
"""

import io
import os
import re
import struct
import tempfile
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageFile, PngImagePlugin

from gradcam_lib import images
from gradcam_lib.images import FORMATS, ImageError, load_image, overlay, to_uint8

unhurried = settings(deadline=None)  # the machines that run the tests are shared

H, W = 24, 40
y, x = np.mgrid[:H, :W]
PICTURE = np.dstack([6 * x, 10 * y, 255 - 3 * (x + y)]).astype(np.uint8)  # no two of its eight turns are alike
GREY = (4 * x + 4 * y).astype(np.uint8)
BITS = np.where(GREY > 100, 255, 0).astype(np.uint8)
ALPHA = (255 - 6 * x).astype(np.uint8)
DEEP = (1500 * x + 250 * y).astype(np.uint16)  # nearly all of it above 255, where Pillow's convert clips
DEEP_RGB = np.dstack([DEEP, DEEP[::-1], DEEP // 2])


def pillow_file(pixels, format, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def opencv_file(pixels, extension, *parameters):
    channels = {2: slice(None), 3: [2, 1, 0], 4: [2, 1, 0, 3]}[pixels.shape[2] if pixels.ndim == 3 else 2]
    return cv2.imencode(extension, np.ascontiguousarray(pixels[..., channels]), parameters)[1].tobytes()


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width, height):
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def tiff_file(data, bits, *, width=W, height=H, photometric=1, sample_format=1):
    """A little-endian TIFF by hand: one channel, one strip, no compression."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(data)}
    tags[339] = sample_format
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def palette_image(palette):
    image = Image.fromarray(GREY)
    image.putpalette(palette.astype(np.uint8).tobytes())
    return image


def grey_rgb(v):
    return np.dstack([v] * 3)


def over_white(rgb, alpha):
    a = alpha[..., None] / 255
    return a * rgb + (1 - a) * 255


def farthest(a, b):
    assert a.shape == b.shape
    return np.abs(a.astype(np.float64) - b).max()


# Reading: what must come out ----------------------------------------------------------------------------------------

EXACT = {
    "png": (opencv_file(PICTURE, ".png"), PICTURE),
    "bmp": (opencv_file(PICTURE, ".bmp"), PICTURE),
    "tiff": (opencv_file(PICTURE, ".tiff"), PICTURE),
    "tiff deflate": (pillow_file(PICTURE, "TIFF", compression="tiff_adobe_deflate"), PICTURE),
    "webp lossless": (opencv_file(PICTURE, ".webp", cv2.IMWRITE_WEBP_QUALITY, 101), PICTURE),
    "png grey": (opencv_file(GREY, ".png"), grey_rgb(GREY)),
    "bmp grey": (opencv_file(GREY, ".bmp"), grey_rgb(GREY)),
    "tiff grey": (opencv_file(GREY, ".tiff"), grey_rgb(GREY)),
    "tiff grey, 0 is white": (tiff_file(GREY.tobytes(), 8, photometric=0), grey_rgb(255 - GREY)),
    "png 1 bit": (pillow_file(Image.fromarray(BITS).convert("1"), "PNG"), grey_rgb(BITS)),
    "tiff 1 bit": (pillow_file(Image.fromarray(BITS).convert("1"), "TIFF", compression="group4"), grey_rgb(BITS)),
    "gif, two frames": (
        pillow_file(BITS, "GIF", save_all=True, append_images=[Image.new("L", (W, H), 9)]),
        grey_rgb(BITS),
    ),
    "webp, two frames": (
        pillow_file(PICTURE, "WebP", lossless=True, save_all=True, append_images=[Image.new("RGB", (W, H), "red")]),
        PICTURE,
    ),
    "png, two frames": (
        pillow_file(PICTURE, "PNG", save_all=True, append_images=[Image.new("RGB", (W, H), "red")]),
        PICTURE,
    ),
    "tiff, two pages": (
        pillow_file(PICTURE, "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9), "red")]),
        PICTURE,
    ),
    "bmp, one pixel": (opencv_file(PICTURE[:1, :1], ".bmp"), PICTURE[:1, :1]),
    "gif, one pixel": (pillow_file(BITS[:1, -1:], "GIF"), grey_rgb(BITS[:1, -1:])),
    "jpeg, one pixel": (pillow_file(BITS[:1, -1:], "JPEG"), grey_rgb(BITS[:1, -1:])),
    "png, one pixel": (opencv_file(PICTURE[:1, :1], ".png"), PICTURE[:1, :1]),
    "tiff, one pixel": (opencv_file(PICTURE[:1, :1], ".tiff"), PICTURE[:1, :1]),
    "webp, one pixel": (pillow_file(PICTURE[:1, :1], "WebP", lossless=True), PICTURE[:1, :1]),
    "png, one row": (opencv_file(PICTURE[:1], ".png"), PICTURE[:1]),
    "png 16 bits grey": (opencv_file(DEEP, ".png"), grey_rgb(DEEP >> 8)),
    "tiff 16 bits grey": (opencv_file(DEEP, ".tiff"), grey_rgb(DEEP >> 8)),
    "tiff 16 bits grey, big-endian": (pillow_file(Image.fromarray(DEEP.astype(">u2")), "TIFF"), grey_rgb(DEEP >> 8)),
    "tiff 16 bits grey, 0 is white": (
        tiff_file(DEEP.astype("<u2").tobytes(), 16, photometric=0),
        grey_rgb(255 - (DEEP >> 8)),
    ),
    "png 16 bits": (opencv_file(DEEP_RGB, ".png"), DEEP_RGB >> 8),
    "tiff 16 bits": (opencv_file(DEEP_RGB, ".tiff"), DEEP_RGB >> 8),
}


@pytest.mark.parametrize("kind", EXACT)
def test_lossless_files_are_read_exactly(kind, tmp_path):
    data, expected = EXACT[kind]
    (tmp_path / "picture").write_bytes(data)
    got = load_image(tmp_path / "picture")
    assert got.dtype == np.uint8 and got.flags.c_contiguous and got.flags.writeable
    np.testing.assert_array_equal(got, expected)


def test_twelve_bit_values_keep_their_upper_eight():
    a, b = (DEEP >> 4).reshape(-1, 2).T
    packed = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 1).astype(np.uint8)  # two values in three bytes
    np.testing.assert_array_equal(load_image(tiff_file(packed.tobytes(), 12)), grey_rgb(DEEP >> 8))


@pytest.mark.parametrize(
    "data, v",
    [
        (opencv_file(GREY.astype(np.float32) / 7 - 3, ".tiff"), GREY),
        (opencv_file(GREY.astype(np.int32) * 9_000_000 - 1_000_000_000, ".tiff"), GREY),
        (tiff_file((DEEP.astype("<u4") * 65537).tobytes(), 32), DEEP),  # up to 2 ** 32, unsigned
        (tiff_file((DEEP.astype("<i4") - 32000).astype("<i2").tobytes(), 16, sample_format=2), DEEP),
    ],
    ids=["float", "int32", "uint32", "int16"],
)
def test_values_without_a_fixed_range_are_stretched_from_smallest_to_largest(data, v):
    v = v.astype(np.float64)
    assert farthest(load_image(data), grey_rgb(255 * (v - v.min()) / (v.max() - v.min()))) <= 0.5 + 1e-6


def test_a_float_picture_of_one_value_is_black():
    assert not load_image(opencv_file(np.full((H, W), 3.5, np.float32), ".tiff")).any()


PALETTE = np.stack([np.arange(256), 255 - np.arange(256), np.full(256, 7)], 1)


@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF", "TIFF"])
def test_palette_indices_become_their_colours(format):
    np.testing.assert_array_equal(load_image(pillow_file(palette_image(PALETTE), format)), PALETTE[GREY])


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(format):
    got = load_image(pillow_file(palette_image(PALETTE), format, transparency=28))
    expected = np.where(GREY[..., None] == 28, 255, PALETTE[GREY])
    assert (GREY == 28).any()
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    "data, expected",
    [
        (opencv_file(np.dstack([PICTURE, ALPHA]), ".png"), over_white(PICTURE, ALPHA)),
        (opencv_file(np.dstack([PICTURE, ALPHA]).astype(np.uint16) * 257, ".png"), over_white(PICTURE, ALPHA)),
        (opencv_file(np.dstack([PICTURE, ALPHA]).astype(np.uint16) * 257, ".tiff"), over_white(PICTURE, ALPHA)),
        (pillow_file(np.dstack([PICTURE, ALPHA]), "WebP", lossless=True, exact=True), over_white(PICTURE, ALPHA)),
        (pillow_file(np.dstack([PICTURE, ALPHA]), "TIFF"), over_white(PICTURE, ALPHA)),
        (pillow_file(np.dstack([GREY, ALPHA]), "PNG"), over_white(grey_rgb(GREY), ALPHA)),
        (pillow_file(palette_image(PALETTE), "PNG", transparency=bytes(range(256))), over_white(PALETTE[GREY], GREY)),
        (
            pillow_file(PICTURE, "PNG", transparency=tuple(PICTURE[5, 5].tolist())),
            over_white(PICTURE, 255 * (PICTURE != PICTURE[5, 5]).any(2)),
        ),
    ],
    ids=["png", "png 16 bits", "tiff 16 bits", "webp", "tiff", "png grey", "png palette", "png one colour"],
)
def test_transparency_is_laid_over_white(data, expected):
    assert farthest(load_image(data), expected) <= 1


CMYK = np.dstack([PICTURE, GREY])
FROM_CMYK = (255 - PICTURE.astype(np.float64)) * (255 - GREY.astype(np.float64))[..., None] / 255


def test_cmyk_tiff_becomes_rgb():
    assert farthest(load_image(pillow_file(Image.frombytes("CMYK", (W, H), CMYK.tobytes()), "TIFF")), FROM_CMYK) <= 1


def test_cielab_tiff_becomes_rgb():
    lightness = np.broadcast_to(np.arange(256, dtype=np.uint8), (2, 256))
    lab = np.dstack([lightness, np.zeros((2, 256, 2), np.uint8)])  # a TIFF stores a* and b* signed: 0 is neutral
    expected = cv2.cvtColor(lab * np.float32(100 / 255), cv2.COLOR_LAB2RGB) * 255
    data = pillow_file(Image.frombytes("LAB", (256, 2), lab.tobytes()), "TIFF")
    assert lab.tobytes() in data
    assert farthest(load_image(data), expected) <= 2


def test_adobe_cmyk_jpeg_is_not_a_negative():
    data = pillow_file(Image.frombytes("CMYK", (W, H), CMYK.tobytes()), "JPEG", quality=100)
    assert b"Adobe" in data  # so its inks are stored inverted
    assert farthest(load_image(data), FROM_CMYK) <= 6  # what JPEG loses at this quality
    assert farthest(load_image(data), cv2.imdecode(np.frombuffer(data, np.uint8), 1)[..., ::-1]) <= 3


@pytest.mark.parametrize(
    "data",
    [
        pillow_file(PICTURE, "JPEG", quality=90),
        pillow_file(PICTURE, "JPEG", progressive=True),
        pillow_file(GREY, "JPEG"),
        pillow_file(PICTURE, "WebP"),
    ],
    ids=["jpeg", "jpeg progressive", "jpeg grey", "webp"],
)
def test_lossy_files_are_decoded_as_opencv_decodes_them(data):
    assert farthest(load_image(data), cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]) <= 2


TURNS = {  # EXIF 2.32, tag 274: how a viewer turns the stored picture
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),  # a quarter turn clockwise
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def exif(orientation):
    data = Image.Exif()
    data[274] = orientation
    return data


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("format, options", [("PNG", {}), ("TIFF", {}), ("WebP", {"lossless": True}), ("JPEG", {})])
def test_exif_orientation_is_applied(format, options, orientation):
    stored = load_image(pillow_file(PICTURE, format, **options))
    turned = pillow_file(PICTURE, format, exif=exif(orientation), **options)
    np.testing.assert_array_equal(load_image(turned), TURNS[orientation](stored))
    if format == "JPEG":  # OpenCV turns JPEG files by itself
        bgr = cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR)
        assert farthest(load_image(turned), bgr[..., ::-1]) <= 2


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("pixels", [DEEP, GREY.astype(np.float32), np.dstack([GREY, ALPHA])], ids=["I;16", "F", "LA"])
def test_exif_orientation_is_applied_in_every_mode(pixels, orientation):
    turned = load_image(pillow_file(pixels, "TIFF", exif=exif(orientation)))
    np.testing.assert_array_equal(turned, TURNS[orientation](load_image(pillow_file(pixels, "TIFF"))))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_without_meaning_is_none(orientation):
    np.testing.assert_array_equal(load_image(pillow_file(PICTURE, "PNG", exif=exif(orientation))), PICTURE)


def test_damaged_exif_data_do_not_cost_the_picture():
    np.testing.assert_array_equal(load_image(pillow_file(PICTURE, "PNG", exif=b"Exif\0\0no directory")), PICTURE)


# Reading: from where ------------------------------------------------------------------------------------------------


def test_path_string_bytes_and_open_file_give_the_same(tmp_path):
    path = tmp_path / "picture.jpg"  # the name lies: it is a PNG
    path.write_bytes(EXACT["png"][0])
    with open(path, "rb") as file:
        sources = [path, str(path), path.read_bytes(), bytearray(path.read_bytes()), file]
        for source in sources:
            np.testing.assert_array_equal(load_image(source), PICTURE)
        assert not file.closed


@pytest.mark.parametrize("name", ["two words.png", "two\nlines.png", "naïve 写真 🐈.png", "-rf", "%s {} $HOME.png"])
def test_files_of_any_name_are_read(tmp_path, name):
    (tmp_path / name).write_bytes(EXACT["png"][0])
    assert np.array_equal(load_image(tmp_path / name), PICTURE)


def test_a_name_that_is_no_text_is_read(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.png"
    with open(path, "wb") as file:
        file.write(EXACT["png"][0])
    assert np.array_equal(load_image(os.fsdecode(path)), PICTURE)
    os.remove(path)
    assert "udcff.png': there is no such file" in refusal(os.fsdecode(path))


def test_links_are_followed_and_those_that_lead_nowhere_are_said(tmp_path):
    (tmp_path / "picture.png").write_bytes(EXACT["png"][0])
    for name, to in {"link.png": "picture.png", "broken.png": "gone.png", "loop.png": "loop.png"}.items():
        (tmp_path / name).symlink_to(tmp_path / to)
    assert np.array_equal(load_image(tmp_path / "link.png"), PICTURE)
    assert re.search(r"broken\.png': there is no such file; check its path", refusal(tmp_path / "broken.png"))
    assert re.search(r"loop\.png': the file cannot be opened \(Too many levels", refusal(tmp_path / "loop.png"))


def test_an_open_file_is_read_from_where_it_stands():
    file = io.BytesIO(b"header" + EXACT["tiff deflate"][0])
    file.seek(6)
    np.testing.assert_array_equal(load_image(file), PICTURE)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_read(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        pool.submit(pipe.write_bytes, EXACT["png"][0])
        np.testing.assert_array_equal(load_image(pipe), PICTURE)


@pytest.mark.parametrize("source", [None, 3, PICTURE, io.StringIO("text")], ids=["None", "int", "array", "text file"])
def test_what_is_no_source_is_a_type_error(source):
    with pytest.raises(TypeError, match=r"a path, bytes, or a file opened in binary mode \('rb'\), not a "):
        load_image(source)


TEXTURE = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)  # no codec makes it small


def sample(format):
    return pillow_file(TEXTURE, format)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts the open files in /proc")
def test_no_file_stays_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for format in FORMATS:
        data = sample(format)
        for path, content in [(tmp_path / "whole", data), (tmp_path / "cut", data[: len(data) // 2])]:
            path.write_bytes(content)
            try:
                load_image(path)
            except ImageError as error:
                assert "cut" in str(error)
            assert len(os.listdir("/proc/self/fd")) == before


def test_threads_leave_the_process_as_they_found_it(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", "theirs")
    filters = list(warnings.filters)
    data = {format: sample(format) for format in FORMATS}
    expected = {format: load_image(data[format]) for format in FORMATS}

    def read(i):
        format = list(FORMATS)[i % len(FORMATS)]
        if i % 3:
            return (load_image(data[format]) == expected[format]).all()
        with pytest.raises(ImageError):
            load_image(data[format][: len(data[format]) // 2])
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(200)))
    assert ImageFile.LOAD_TRUNCATED_IMAGES == "theirs"
    assert warnings.filters == filters


# Reading: what is refused -------------------------------------------------------------------------------------------


def refusal(source):
    """The message, which must be one line of reasonable length."""
    with warnings.catch_warnings(record=True) as caught, pytest.raises(ImageError) as raised:
        warnings.simplefilter("always")
        load_image(source)
    message = str(raised.value)
    assert not caught, "a warning of Pillow's came through"
    assert len(message.splitlines()) == 1 and len(message) < 500
    return message


def refusal_of_file(tmp_path, content):
    path = tmp_path / "holiday.jpg"
    path.write_bytes(content)
    message = refusal(path)
    assert message.startswith(f"'{path}': ")
    return message


def test_a_missing_file(tmp_path):
    message = refusal(tmp_path / "none.jpg")
    assert re.search(r"none\.jpg': there is no such file; check its path", message)


def test_a_folder(tmp_path):
    assert f"'{tmp_path}': this is a folder; name a picture in it" == refusal(str(tmp_path))


def test_a_file_that_may_not_be_read(unprivileged):
    path = unprivileged / "private.png"
    path.write_bytes(EXACT["png"][0])
    path.chmod(0)
    assert re.search(r"private\.png': you may not read this file; ask its owner", refusal(path))


@pytest.mark.parametrize("path", ["a\0b.png", "x" * 300])
def test_a_path_that_cannot_be(path):
    assert re.search(r"': the file cannot be opened \(.+\); check its path", refusal(path))


def test_a_name_with_a_line_break_stays_on_one_line(tmp_path):
    assert r"two\nlines.png" in refusal(tmp_path / "two\nlines.png")


def test_an_empty_file(tmp_path):
    assert "there are no bytes in it; fetch or save" in refusal_of_file(tmp_path, b"")


def test_bytes_and_open_files_are_named_too():
    assert refusal(b"").startswith("the bytes given: ")
    assert refusal(io.BytesIO()).startswith("the BytesIO given: ")
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        assert refusal(file).startswith(f"'{file.name}': ")


@pytest.mark.parametrize(
    "content, kind",
    [
        (b"to be continued\n", "text"),
        ("d\u00e9j\u00e0 vu".encode(), "text"),
        (b"<!DOCTYPE html><html><svg></svg>404", "an HTML page"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "an HEIC or AVIF picture"),
        (pillow_file(PICTURE, "AVIF"), "an HEIC or AVIF picture"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "a PDF document"),
        (pillow_file(PICTURE, "JPEG2000"), "an unknown kind of file"),
        (bytes(100), "an unknown kind of file"),
    ],
)
def test_another_kind_of_file_is_named(tmp_path, content, kind):
    message = refusal_of_file(tmp_path, content)
    assert (
        f"its first bytes are those of {kind}, which is not read here; save the picture as one of BMP, GIF" in message
    )


@pytest.mark.parametrize("truncated_images", [False, True])  # what another library may have set
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("format", FORMATS)
def test_a_file_cut_short(tmp_path, monkeypatch, format, part, truncated_images):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", truncated_images)
    content = sample(format)
    message = refusal_of_file(tmp_path, content[: max(14, int(part * len(content)))])
    assert re.search(rf"its {format} (header is|pixels are) damaged, cut short, .*; fetch the file again", message)


def test_a_wrong_checksum(tmp_path):
    content = bytearray(sample("PNG"))
    content[len(content) // 2] ^= 255
    assert "its PNG pixels are damaged" in refusal_of_file(tmp_path, content)


def test_nan_and_infinity(tmp_path):
    for bad in (np.nan, np.inf):
        v = GREY.astype(np.float32)
        v[3, 4] = bad
        message = refusal_of_file(tmp_path, opencv_file(v, ".tiff"))
        assert "its TIFF pixels are damaged, cut short, or of an unusual kind (they include NaN or infinity)" in message


def test_an_unusual_kind_of_tiff(tmp_path):
    message = refusal_of_file(tmp_path, opencv_file(PICTURE.astype(np.float32), ".tiff"))
    assert re.search(r"of an unusual kind, .* \(unknown pixel mode\); .* save the picture as an ordinary PNG", message)


def with_size(format, width, height):
    """A file whose header tells this size, and which holds next to no pixels."""
    content = bytearray(sample(format))
    if format == "PNG":
        return png_header(width, height) + png_chunk(b"IDAT", b"")
    if format == "TIFF":
        return tiff_file(b"", 8, width=width, height=height)
    if format == "JPEG":
        struct.pack_into(">HH", content, content.index(b"\xff\xc0") + 5, height, width)
    if format == "GIF":
        struct.pack_into("<HH", content, 6, width, height)
    if format == "BMP":
        struct.pack_into("<ii", content, 18, width, height)
    return bytes(content)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG", "BMP"])
def test_a_size_of_zero(tmp_path, format, size):
    message = refusal_of_file(tmp_path, with_size(format, *size))
    assert f"its {format} header is damaged, cut short, of an unusual kind, or gives a size of zero" in message


@pytest.mark.parametrize("limit", [None, 10, 89_478_485])  # Pillow's own, which others may have moved
@pytest.mark.parametrize("size", [(10_001, 10_000), (60_000, 60_000)])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG", "GIF", "BMP"])
def test_a_bomb_is_refused_from_its_header(tmp_path, monkeypatch, format, size, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    message = refusal_of_file(tmp_path, with_size(format, *size))
    assert f"it has too many pixels ({size[0]} × {size[1]} is above the 100,000,000 that" in message
    assert Image.MAX_IMAGE_PIXELS == limit


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP"])
def test_a_limit_set_for_pillow_changes_nothing(monkeypatch, format):
    expected = load_image(sample(format))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", W * H // 4)
    np.testing.assert_array_equal(load_image(sample(format)), expected)


@pytest.mark.parametrize("format", ["TIFF", "WebP"])
def test_a_limit_set_for_pillow_is_said_where_it_counts(monkeypatch, format):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", W * H // 2)  # above it Pillow would warn: nothing may be heard
    assert load_image(sample(format)).shape == (H, W, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", W * H // 2 - 1)  # and it refuses what is above twice its limit
    assert "it has too many pixels (Image size (960 pixels) exceeds limit" in refusal(sample(format))


@pytest.mark.parametrize("format", FORMATS)
def test_the_largest_picture_is_allowed_and_one_more_pixel_is_not(monkeypatch, format):
    monkeypatch.setattr(images, "MAX_PIXELS", W * H)
    assert load_image(sample(format)).shape == (H, W, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", W * H - 1)
    assert f"it has too many pixels ({W} × {H} is above the {W * H - 1} that" in refusal(sample(format))


def test_text_that_inflates_is_not_inflated():
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000)))
    bomb = png_header(W, H) + text + sample("PNG")[33:]
    tracemalloc.start()
    message = refusal(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "Decompressed data too large" in message
    assert peak < 10 * PngImagePlugin.MAX_TEXT_CHUNK  # 10 MB of the 100


@given(data=st.data(), format=st.sampled_from(sorted(FORMATS)))
@settings(unhurried, max_examples=400)
def test_damage_gives_a_picture_or_an_image_error(data, format):
    content = bytearray(sample(format))
    # Half of the damage to the ends, where headers and directories are.
    place = st.integers(0, len(content) - 1) | st.integers(0, 60) | st.integers(-120, -1)
    for where, value in data.draw(st.lists(st.tuples(place, st.integers(0, 255)), max_size=12)):
        content[where] = value
    picture_or_error(bytes(content[: data.draw(st.none() | st.integers(0, len(content)))]))


@given(
    st.sampled_from([b"", b"BM", b"GIF89a", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"RIFFabcdWEBPVP8 "]),
    st.binary(max_size=300),
)
@settings(unhurried, max_examples=200)
def test_noise_gives_a_picture_or_an_image_error(signature, noise):
    picture_or_error(signature + noise)


def picture_or_error(content):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "MAX_PIXELS", 1_000_000)  # so that no damaged size makes this slow
        try:
            got = load_image(content)
        except ImageError as error:
            assert len(str(error).splitlines()) == 1
        else:
            assert got.dtype == np.uint8 and got.ndim == 3 and got.shape[2] == 3 and got.size


# Pictures of a network, and maps over them --------------------------------------------------------------------------

SIDES = st.integers(1, 12)


def pictures():
    return st.tuples(SIDES, SIDES).flatmap(lambda s: arrays(np.uint8, (*s, 3)))


def heatmaps(shape=None):
    values = st.floats(0, 1, width=32)
    return (st.just(shape) if shape else st.tuples(SIDES, SIDES)).flatmap(
        lambda s: arrays(np.float32, s, elements=values)
    )


def inferno(v):
    """matplotlib's table, which OpenCV's follows to within one step."""
    return matplotlib.colormaps["inferno"](np.rint(255 * v).astype(np.uint8), bytes=True)[..., :3]


@given(pictures(), st.sampled_from([np.float16, np.float32, np.float64]))
@unhurried
def test_a_float_picture_is_its_uint8_picture(picture, dtype):
    image = np.moveaxis(picture, 2, 0).astype(dtype) / dtype(255)
    for form in (
        image,
        torch.from_numpy(image),
        torch.from_numpy(image).requires_grad_(),
        picture,
        torch.tensor(picture),
    ):
        np.testing.assert_array_equal(to_uint8(form), picture)
    np.testing.assert_array_equal(to_uint8(image[:1]), picture[..., [0, 0, 0]])


def test_bfloat16_is_taken():
    image = torch.linspace(0, 1, 48).reshape(3, 4, 4)
    assert farthest(to_uint8(image.bfloat16()), 255 * image.permute(1, 2, 0).numpy()) <= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_picture_and_a_map_on_a_gpu():
    image, heatmap = torch.rand(3, 8, 8), torch.rand(4, 4)
    got = overlay(image.cuda().requires_grad_(), heatmap.cuda().requires_grad_())
    np.testing.assert_array_equal(got, overlay(image, heatmap))


@given(pictures(), heatmaps(), st.sampled_from(sorted(images.COLORMAPS)))
@unhurried
def test_at_opacity_0_the_picture_is_seen_exactly(picture, heatmap, colormap):
    before = picture.copy(), heatmap.copy()
    np.testing.assert_array_equal(overlay(picture, heatmap, opacity=0, colormap=colormap), picture)
    np.testing.assert_array_equal(picture, before[0])
    np.testing.assert_array_equal(heatmap, before[1])


@given(st.data(), pictures())
@unhurried
def test_at_opacity_1_the_coloured_map_is_seen_exactly(data, picture):
    heatmap = data.draw(heatmaps(picture.shape[:2]))
    got = overlay(picture, heatmap, opacity=1)
    assert farthest(got, inferno(heatmap)) <= 1
    np.testing.assert_array_equal(got, overlay(255 - picture, heatmap, opacity=1))


@given(pictures(), heatmaps(), st.floats(0, 1))
@unhurried
def test_between_them_the_two_are_mixed(picture, heatmap, opacity):
    colours = overlay(picture, heatmap, opacity=1).astype(np.float64)
    expected = opacity * colours + (1 - opacity) * picture
    assert farthest(overlay(picture, torch.from_numpy(heatmap), opacity=opacity), expected) <= 0.5 + 1e-3


@given(heatmaps(), SIDES, SIDES)
@unhurried
def test_a_map_of_another_size_is_interpolated_between_pixel_centres(heatmap, height, width):
    got = overlay(np.zeros((height, width, 3), np.uint8), heatmap, opacity=1)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(heatmap)[None, None], (height, width), mode="bilinear", align_corners=False
    )[0, 0].numpy()
    # float32 sums may fall on either side of a half: then the neighbouring colour is right too.
    near = [inferno(np.clip(resized + d, 0, 1)) for d in (-1e-5, 1e-5)]
    assert (np.minimum(*(np.abs(got.astype(int) - c).max(2) for c in near)) <= 1).all()


def test_the_colours_are_red_first():
    got = overlay(np.zeros((1, 2, 3), np.uint8), [[0.0, 1.0]], opacity=1, colormap="jet")
    np.testing.assert_array_equal(got, [[[0, 0, 128], [128, 0, 0]]])  # jet runs from dark blue to dark red


BLANK = np.zeros((4, 5, 3), np.uint8)
MAP = np.zeros((2, 2), np.float32)


@pytest.mark.parametrize(
    "image, message",
    [
        (torch.full((3, 4, 4), -2.1), r"picture runs from -2.1 to -2.1, not within \[0, 1\]: undo the normalisation"),
        (torch.full((3, 4, 4), 255.0), r"picture runs from 255 to 255, .* or divide by the largest value"),
        (torch.full((3, 4, 4), 1.01), r"picture runs from 1.01 to 1.01"),
        (torch.full((3, 4, 4), torch.nan), r"the picture holds NaN or infinity"),
        (torch.zeros(2, 3, 4, 4), r"this one is \(2, 3, 4, 4\) float32: take one from a batch with images\[0\]"),
        (np.zeros((4, 4, 3)), r"this one is \(4, 4, 3\) float64: .*move the channels with permute"),
        (np.zeros((3, 4, 4), np.uint8), r"this one is \(3, 4, 4\) uint8"),
        (np.zeros((4, 4), np.uint8), r"this one is \(4, 4\) uint8"),
        (np.zeros((4, 4, 3), np.int64), r"this one is \(4, 4, 3\) int64"),
        (np.zeros((0, 4, 3), np.uint8), r"this one is \(0, 4, 3\) uint8"),
        (np.zeros((3, 0, 4)), r"this one is \(3, 0, 4\) float64"),
    ],
)
def test_a_picture_that_cannot_be_shown(image, message):
    for call in (to_uint8, lambda image: overlay(image, MAP)):
        with pytest.raises(ValueError, match=message) as raised:
            call(image)
        assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    "heatmap, options, message",
    [
        (MAP - 1, {}, r"heat map runs from -1 to -1, not within \[0, 1\]: divide it by its largest value"),
        (MAP + 1.01, {}, r"heat map runs from 1.01 to 1.01"),
        (np.full((2, 2), 255, np.uint8), {}, r"heat map runs from 255 to 255"),
        (MAP + np.nan, {}, r"heat map holds NaN or infinity"),
        (MAP[None], {}, r"one heat map is \(h, w\), and this one is \(1, 2, 2\) float32: take one with heatmaps\[0\]"),
        (MAP[:0], {}, r"this one is \(0, 2\) float32"),
        (np.array([["a"]]), {}, r"this one is \(1, 1\) <U1"),
        (MAP, {"opacity": 1.5}, r"opacity lies between 0 \(the picture\) and 1 \(the map\), and 1.5 does not"),
        (MAP, {"opacity": float("nan")}, r"and nan does not"),
        (MAP, {"colormap": "infrno"}, r"there is no colour map 'infrno'; there is inferno$"),
        (MAP, {"colormap": "xyz"}, r"there is no colour map 'xyz'; there is autumn, bone, .*winter$"),
    ],
)
def test_a_map_that_cannot_be_shown(heatmap, options, message):
    with pytest.raises(ValueError, match=message) as raised:
        overlay(BLANK, heatmap, **options)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("excess", [-0.0009, 1.0009])
def test_what_rounding_adds_is_cut_off(excess):
    edge = 255 * round(excess)
    assert (to_uint8(torch.full((3, 2, 2), excess)) == edge).all()
    np.testing.assert_array_equal(
        overlay(BLANK, MAP + np.float32(excess), opacity=1), overlay(BLANK, MAP + round(excess), opacity=1)
    )
