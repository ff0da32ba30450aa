"""Kinds of TIFF and PNG that Pillow misreads or refuses: exact, or refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from hub_model.grey import ImageRefused
from hub_model.images import frame_count, read_image
from tests import bombs
from tests.bad_files import png
from tests.pictures import GREY, RAMP, encoded, stretched, values

tifffile = pytest.importorskip("tifffile", reason="writes the TIFF files; comes with scikit-image")

NUMBERS = {
    "uint8": GREY,
    "int8": (GREY.astype(int) - 128).astype(np.int8),
    "uint16": RAMP * 40,
    "int16": RAMP.astype(np.int16) - 900,
    "uint32": RAMP.astype(np.uint32) * 2_600_000,  # beyond 2**31
    "int32": RAMP.astype(np.int32) * 1000 - 700_000,
    "uint64": RAMP.astype(np.uint64) * 10**9,
    "int64": RAMP.astype(np.int64) * 10**9 - 10**11,
    "float16": (RAMP / 1599).astype(np.float16),
    "float32": (RAMP / 1599 - 0.3).astype(np.float32),
    "float64": RAMP / 1599 - 0.3,
}
WAYS = {
    "plain": {},
    "big endian": {"byteorder": ">"},
    "BigTIFF": {"bigtiff": True},
    "BigTIFF, big endian": {"bigtiff": True, "byteorder": ">"},
    "deflate": {"compression": "zlib"},
    "deflate with predictor": {"compression": "zlib", "predictor": True},
    "tiles": {"tile": (32, 16)},
    "tiles, deflate with predictor": {"tile": (32, 16), "compression": "zlib", "predictor": True},
    "strips": {"rowsperstrip": 7},
}


def tiff(array: np.ndarray, byteorder: str | None = None, bigtiff: bool = False, **options) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, byteorder=byteorder, bigtiff=bigtiff) as writer:
        writer.write(array, **{"metadata": None, "photometric": "minisblack", **options})
    return buffer.getvalue()


def shown(array: np.ndarray) -> np.ndarray:
    return array.astype(int) if array.dtype == np.uint8 else stretched(array.astype(float))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_every_type_in_every_way(name, way):
    options = WAYS[way]
    if options.get("predictor"):
        if name in ("uint64", "int64"):
            pytest.skip("tifffile writes no predictor for 64-bit integers")
        pytest.importorskip("imagecodecs", reason="writes predictors")
    data = tiff(NUMBERS[name], **options)
    assert np.array_equal(values(data), shown(NUMBERS[name]))
    assert frame_count(data) == 1


@pytest.mark.parametrize("name", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("way", ["plain", "big endian", "deflate", "strips", "tiles"])
def test_grey_in_rgb(name, planar, way):
    array = NUMBERS[name]
    rgb = np.stack([array] * 3, axis=0 if planar == "separate" else 2)
    data = tiff(rgb, photometric="rgb", planarconfig=planar, **WAYS[way])
    assert np.array_equal(values(data), shown(array))


def test_colour_in_wide_rgb():
    colours = np.stack([RAMP * 40, RAMP * 20, RAMP * 10], axis=2)
    for planar in ("contig", "separate"):
        array = colours if planar == "contig" else colours.transpose(2, 0, 1)
        with pytest.raises(ImageRefused, match="in colour"):
            read_image(tiff(array, photometric="rgb", planarconfig=planar))


@pytest.mark.parametrize("name", ["uint8", "uint16", "uint32", "float32", "float64", "int16"])
def test_white_is_zero(name):
    data = tiff(NUMBERS[name], photometric="miniswhite")
    assert np.array_equal(values(data), 255 - shown(NUMBERS[name]))


def test_a_second_channel_is_alpha_only_where_it_says_so():
    deep = RAMP * 40
    alpha = np.full_like(deep, 65535)
    alpha[:, :10], alpha[:, 10:20] = 0, 32768
    pair = np.stack([deep, alpha], axis=2)
    inside = deep[:, 10:].astype(float)
    low, high = np.percentile(inside, [0.5, 99.5])
    expected = np.rint(np.clip((deep - low) / (high - low), 0, 1) * 255)
    faded = np.where(alpha == 0, 0, np.where(alpha == 65535, expected, expected * 32768 / 65535))
    shown = values(tiff(pair, extrasamples=["unassalpha"], planarconfig="contig"))
    assert np.abs(shown - faded).max() <= 1 and shown[:, :10].max() == 0
    for meaning in ("unspecified", "assocalpha"):  # nothing, and already multiplied
        shown = values(tiff(pair, extrasamples=[meaning], planarconfig="contig"))
        assert np.array_equal(shown, stretched(deep.astype(float)))
    faint = np.full_like(GREY, 255)
    faint[:, :10] = 0
    small = np.stack([GREY, faint], axis=2)
    for planar, array in (("contig", small), ("separate", small.transpose(2, 0, 1))):
        shown = values(tiff(array, extrasamples=["unassalpha"], planarconfig=planar))
        assert np.array_equal(shown, GREY * (faint > 0))
    four = np.stack([deep, deep, deep, alpha], axis=2)
    assert values(tiff(four, photometric="rgb", extrasamples=["unassalpha"]))[:, :10].max() == 0


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_packed_bits(bits):
    """Detectors write 12 bits a pixel; Pillow reads them in one byte order and without compression only."""
    deep = (RAMP * 0.6).astype(np.uint16)
    rows = np.packbits(
        (deep[:, :, None] >> np.arange(bits)[::-1].astype(np.uint16) & 1)
        .reshape(len(deep), -1)
        .astype(np.uint8),
        axis=1,
    )
    fields = {
        256: deep.shape[1],
        257: deep.shape[0],
        258: bits,
        259: 1,
        262: 1,
        273: 8,
        277: 1,
        278: 40,
        279: rows.size,
    }
    for order in "<>":
        head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "L", 8 + rows.size)
        entries = b"".join(struct.pack(order + "HHLL", tag, 4, 1, value) for tag, value in fields.items())
        data = head + rows.tobytes() + struct.pack(order + "H", len(fields)) + entries + bytes(4)
        assert np.array_equal(values(data), stretched(deep.astype(float)))


def test_a_palette_of_8_bits_where_16_belong():
    indices = (GREY // 16).astype(np.uint8)
    levels = np.arange(256) * 10 % 256
    for scale in (1, 256):
        colours = np.stack([levels * scale] * 3).astype(np.uint16)
        data = tiff(indices, photometric="palette", colormap=colours)
        assert np.array_equal(values(data), levels[indices])


@pytest.mark.parametrize(
    "array,options",
    [
        (np.zeros((64, 64), np.complex64), {}),
        (np.zeros((64, 64, 5), np.uint16), {"planarconfig": "contig"}),
        (np.zeros((64, 64, 5), np.uint8), {"planarconfig": "contig"}),
        (
            np.zeros((3, 64, 64), np.uint16),
            {"planarconfig": "separate"},
        ),  # of which none is said to be the picture
    ],
)
def test_what_is_refused_by_name(array, options):
    with pytest.raises(ImageRefused, match=r"stored in a way that is not read.*Save it"):
        read_image(tiff(array, **options))


def test_pages_are_counted_and_chosen_by_what_they_are():
    """A thumbnail or a mask behind the picture is no second page."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(GREY, metadata=None)
        writer.write(GREY[::2, ::2], metadata=None, subfiletype=1)
    assert frame_count(buffer.getvalue()) == 1 and np.array_equal(values(buffer.getvalue()), GREY)
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(GREY[::2, ::2], metadata=None, subfiletype=1)
        writer.write(GREY, metadata=None)
        writer.write(RAMP * 40, metadata=None)
    data = buffer.getvalue()
    assert frame_count(data) == 2
    assert np.array_equal(values(data, frame=0), GREY)
    assert np.array_equal(values(data, frame=1), stretched(RAMP * 40.0))


def test_a_circle_of_pages():
    data = bytearray(encoded(Image.fromarray(GREY), "TIFF"))
    first = struct.unpack("<L", data[4:8])[0]
    count = struct.unpack("<H", data[first : first + 2])[0]
    data[first + 2 + 12 * count : first + 6 + 12 * count] = struct.pack("<L", first)
    for reading in (frame_count, read_image):
        with pytest.raises(ImageRefused, match="damaged"):
            reading(bytes(data))


# ---- PNG


def png_of(array: np.ndarray, colour: int, filters: bool = True, extra: bytes = b"") -> bytes:
    """16-bit PNG of (H, W, channels), each line with another of the five filters."""
    lines, above = [], np.zeros(array[0].size * 2, int)
    step = array.shape[2] * 2
    for number, row in enumerate(array.astype(">u2")):
        now = np.frombuffer(row.tobytes(), np.uint8).astype(int)
        left, corner = np.r_[np.zeros(step, int), now[:-step]], np.r_[np.zeros(step, int), above[:-step]]
        guess = left + above - corner
        far = [abs(guess - near) for near in (left, above, corner)]
        paeth = np.where(
            (far[0] <= far[1]) & (far[0] <= far[2]), left, np.where(far[1] <= far[2], above, corner)
        )
        kind = number % 5 if filters else 0
        predicted = [0, left, above, (left + above) // 2, paeth][kind]
        lines.append(bytes([kind]) + ((now - predicted) % 256).astype(np.uint8).tobytes())
        above = now
    whole = png(array.shape[1], array.shape[0], b"".join(lines), depth=16, colour=colour)
    return whole[:33] + extra + whole[33:]


@pytest.mark.parametrize("filters", [False, True])
@pytest.mark.parametrize("scale", [1, 40])
def test_16_bit_png_of_all_colour_types(filters, scale):
    deep = RAMP * np.uint16(scale)
    opaque = np.full_like(deep, 65535)
    for colour, channels in ((0, [deep]), (2, [deep] * 3), (4, [deep, opaque]), (6, [deep] * 3 + [opaque])):
        data = png_of(np.stack(channels, axis=2), colour, filters)
        assert np.array_equal(values(data), stretched(deep.astype(float))), colour


def test_16_bit_png_with_transparent_parts():
    deep = RAMP * np.uint16(40)
    alpha = np.full_like(deep, 65535)
    alpha[:, :10] = 0
    low, high = np.percentile(deep[:, 10:], [0.5, 99.5])
    expected = np.rint(np.clip((deep - low) / (high - low), 0, 1) * 255) * (alpha > 0)
    for colour, channels in ((4, [deep, alpha]), (6, [deep] * 3 + [alpha])):
        assert np.array_equal(values(png_of(np.stack(channels, axis=2), colour)), expected)
    key = int(deep[20, 20])
    for colour, count in ((0, 1), (2, 3)):
        body = struct.pack(f">{count}H", *[key] * count)
        chunk = struct.pack(">L", len(body)) + b"tRNS" + body + struct.pack(">L", zlib.crc32(b"tRNS" + body))
        shown = values(png_of(np.stack([deep] * count, axis=2), colour, extra=chunk))
        assert shown[20, 20] == 0 and np.abs(shown - stretched(deep.astype(float)))[:20].max() <= 1


@pytest.mark.parametrize("mode,bits", [("1", 1), ("L", 2), ("L", 4)])
def test_few_bits(mode, bits):
    coarse = GREY >> (8 - bits)
    picture = Image.fromarray(coarse).convert("P") if bits > 1 else Image.fromarray(coarse.astype(bool))
    if bits > 1:
        step = 255 // (2**bits - 1)
        picture = Image.fromarray(coarse, mode="P")
        picture.putpalette([level * step for level in range(2**bits) for _ in range(3)])
    data = encoded(picture, "PNG", **({"bits": bits} if bits > 1 else {}))
    assert np.array_equal(values(data), coarse * (255 // (2**bits - 1)))


def test_gamma_and_resolution_change_nothing():
    body = struct.pack(">L", 100000)
    gamma = struct.pack(">L", 4) + b"gAMA" + body + struct.pack(">L", zlib.crc32(b"gAMA" + body))
    data = encoded(Image.fromarray(GREY), "PNG", dpi=(100, 200))
    assert np.array_equal(values(data[:33] + gamma + data[33:]), GREY)


def test_a_16_bit_png_that_is_cut_or_holds_more_than_it_says():
    whole = png_of(np.stack([RAMP] * 3, axis=2), 2)
    for data in (whole[: len(whole) // 2], png(40, 40, bytes(10**6), depth=16, colour=2)):
        with pytest.raises(ImageRefused, match="damaged"):
            read_image(data)


# ---- every kind that a phone or another program makes


def test_a_phones_jpeg_is_one_picture():
    """MPO: the picture, and behind it a preview or a map of its brightness."""
    data = encoded(
        Image.fromarray(GREY), "MPO", save_all=True, append_images=[Image.fromarray(GREY[::2, ::2])]
    )
    assert Image.open(io.BytesIO(data)).n_frames == 2
    for source in (data, Image.open(io.BytesIO(data))):
        assert frame_count(source) == 1
        assert np.abs(values(source) - GREY).mean() < 12


def test_a_picture_is_left_where_it_stood():
    for kind in ("TIFF", "GIF", "PNG"):
        frames = [Image.fromarray(np.roll(GREY, 7 * number, axis=1)) for number in range(3)]
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        picture = Image.open(io.BytesIO(data))
        picture.seek(1)
        assert np.array_equal(values(picture, frame=2), np.asarray(frames[2]))
        assert picture.tell() == 1
        assert np.array_equal(np.asarray(picture.convert("L")), np.asarray(frames[1]))
        with pytest.raises(ImageRefused):
            read_image(picture, frame=9)
        assert picture.tell() == 1


def test_file_objects_given_twice_or_as_text(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(GREY), "PNG"))
    with path.open("rb") as file:
        file.read(16)
        for _ in range(2):
            assert np.array_equal(values(file), GREY)
    with pytest.raises(ImageRefused, match="no picture came, but BufferedReader"):
        read_image(file)  # closed
    (tmp_path / "secret.txt").write_text("patient: Jane Doe")
    with (tmp_path / "secret.txt").open() as text, pytest.raises(ImageRefused) as refusal:
        read_image(text)
    assert "no picture came, but TextIOWrapper" in str(refusal.value) and "Jane" not in str(refusal.value)


def nifti() -> bytes:
    return struct.pack("<L", 348) + bytes(340) + b"n+1\0" + bytes(1000)


OTHERS = {
    "JPEG 2000": encoded(Image.fromarray(GREY), "JPEG2000"),
    "AVIF": b"\0\0\0\x20ftypavif\0\0\0\0avifmif1" + bytes(500),
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500),
    "MP4 video": b"\0\0\0\x18ftypisom\0\0\0\0" + bytes(500),
    "JPEG XL": b"\xff\x0a" + bytes(500),
    "PDF": b"%PDF-1.7\n" + bytes(500),
    "Office document": b"PK\x03\x04" + bytes(26) + b"[Content_Types].xml" + bytes(500),
    "zip": b"PK\x03\x04" + bytes(500),
    "RAR": b"Rar!\x1a\x07\x01\0" + bytes(500),
    "7z": b"7z\xbc\xaf\x27\x1c" + bytes(500),
    "gzip": zlib.compress(b"some text", wbits=31),
    "NIfTI": nifti(),
    "NIfTI (gzip)": zlib.compress(nifti(), wbits=31),
    "NRRD": b"NRRD0004\ntype: short\n" + bytes(500),
    "MetaImage": b"ObjectType = Image\nNDims = 3\n" + bytes(500),
    "NumPy": b"\x93NUMPY\x01\0" + bytes(500),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(500),
    "web page": b"\n<!DOCTYPE html><html><body>Not found</body></html>",
    "SVG": b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "Python pickle": b"\x80\x04\x95" + bytes(100),
    "tar": bytes(257) + b"ustar\0" + bytes(300),
    "Netpbm": b"P5\n64 64\n255\n" + bytes(64 * 64),
    "JPEG-LS": b"\xff\xd8\xff\xf7\0\x0b" + bytes(100),
    "Photoshop": b"8BPS\0\x01" + bytes(100),
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_other_kinds_are_named(tmp_path, name):
    for source in (OTHERS[name], tmp_path / "a.png"):
        (tmp_path / "a.png").write_bytes(OTHERS[name])
        for reading in (read_image, frame_count):
            with pytest.raises(ImageRefused) as refusal:
                reading(source)
            said = str(refusal.value)
            assert f": {name}. " in said and refusal.value.reason.code == "other_format", said
            assert "pip" not in said and said.count(". ") >= 2  # and what to do


def test_a_jpeg_of_12_bits_is_named():
    data = bytearray(encoded(Image.fromarray(GREY), "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(ImageRefused, match="JPEG of 12 bits"):
        read_image(bytes(data))


# ---- counts that a file declares


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "APNG"])
def test_counting_stops_at_the_limit(kind, tmp_path):
    frame = Image.fromarray(GREY[:40, :40])
    if kind == "TIFF":
        data = bombs.pages(tmp_path / "a.tif", 20_000).read_bytes()
    elif kind == "GIF":
        data = bombs.frames(tmp_path / "a.gif", 20_000).read_bytes()
    else:
        data = bytearray(encoded(frame, "PNG", save_all=True, append_images=[frame.rotate(90)]))
        place = data.index(b"acTL") + 4
        data[place : place + 4] = struct.pack(">L", 2**31 - 1)
        data[place + 8 : place + 12] = struct.pack(">L", zlib.crc32(data[place - 4 : place + 8]))
    for reading in (frame_count, read_image):
        with pytest.raises(ImageRefused, match="more than 5,000 frames") as refusal:
            reading(bytes(data))
        assert refusal.value.reason.code == "too_many_frames"


def test_a_frame_far_into_a_large_animation_is_not_played_to(monkeypatch):
    monkeypatch.setattr("hub_model.images.MAX_PLAYED", 10_000)
    frames = [Image.fromarray(np.roll(GREY, number)) for number in range(4)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read_image(data, frame=1).mode == "L"
    with pytest.raises(ImageRefused, match="too far in an animation"):
        read_image(data, frame=3)


def test_a_jpeg_of_endless_scans(tmp_path):
    assert read_image(bombs.scans(tmp_path / "a.jpg", 1)).mode == "L"
    with pytest.raises(ImageRefused, match="more scans"):
        read_image(bombs.scans(tmp_path / "a.jpg", 200))
