"""PNG and TIFF of more than 8 bits, exactly: Pillow drops half of 16-bit colours and misreads or refuses the rest.

Nothing is unpacked by hand. The packed bytes are declared to be 8-bit grey levels (TIFF) or two 8-bit pictures, of
high and of low bytes (PNG), which Pillow's decoders read exactly; numpy puts the numbers together.
"""

import io
import struct
import zlib
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from .grey import MAX_FRAMES, ImageRefused, check_size

LOSSLESS = (
    1,
    5,
    8,
    32773,
    32946,
    34925,
    50000,
)  # TIFF compressions: none, LZW, deflate, PackBits, LZMA, Zstandard
NUMBERS = {
    1: "u",
    2: "i",
    3: "f",
    4: "u",
}  # TIFF SampleFormat -> the letter by which numpy names such numbers
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


class Deep(NamedTuple):
    """What a file holds, before it is brought to 8 bits.

    Attributes:
        values: (H, W) or (H, W, 3) of any number type.
        alpha: (H, W) float 0..1, 1 where opaque; None where everything is, or where values hold it already.
        white_is_zero: the smallest number is white.
        orientation: as of EXIF, 1..8.
    """

    values: np.ndarray
    alpha: np.ndarray | None = None
    white_is_zero: bool = False
    orientation: int = 1


def read_png(stream: BinaryIO) -> Deep | None:
    """Read a PNG of 16-bit colours or 16-bit grey with transparency; None for every other one.

    Raises:
        ImageRefused: an animation.
        Exception: damaged; the list is open.
    """
    stream.seek(0)
    chunks = list(_chunks(stream))
    names = [name for name, _ in chunks]
    width, height, depth, colour, *_, interlaced = struct.unpack(">2L5B", chunks[0][1])
    if depth != 16 or (colour == 0 and b"tRNS" not in names):
        return None
    if b"acTL" in names:
        raise ImageRefused(
            "it is an animation of 16-bit pictures. Export the one frame to be judged.", "layout"
        )
    check_size(width, height)
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    passes = [(width, height)]
    if interlaced:
        passes = [(-((x - width) // dx), -((y - height) // dy)) for x, y, dx, dy in ADAM7]
        passes = [(columns, rows) for columns, rows in passes if columns > 0 and rows > 0]
    size = sum(rows * (1 + 2 * channels * columns) for columns, rows in passes)
    inflater = zlib.decompressobj()
    raw = np.frombuffer(
        inflater.decompress(b"".join(body for name, body in chunks if name == b"IDAT"), size + 1), "u1"
    )
    if len(raw) != size or not inflater.eof:
        raise ValueError("cut short, or longer than it should be")
    planes = []
    for byte in (
        0,
        1,
    ):  # PNG's filters take the bytes of a pixel one by one, so that both halves stay filtered PNGs
        rows, place = [], 0
        for columns, count in passes:
            lines = raw[place : place + count * (1 + 2 * channels * columns)].reshape(count, -1)
            rows.append(np.hstack([lines[:, :1], lines[:, 1 + byte :: 2]]).tobytes())
            place += lines.size
        head = struct.pack(">2L5B", width, height, 8, colour, 0, 0, interlaced)
        body = (
            _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(b"".join(rows), 1)) + _chunk(b"IEND", b"")
        )
        with Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + body), formats=["PNG"]) as plane:
            planes.append(np.asarray(plane).reshape(height, width, channels).astype(np.uint16))
    values = planes[0] << 8 | planes[1]
    alpha = None
    if channels in (2, 4):
        alpha = values[..., -1] / 65535
    elif b"tRNS" in names:  # one colour is transparent
        key = np.frombuffer(chunks[names.index(b"tRNS")][1], ">u2", channels)
        alpha = (values != key).any(axis=2).astype(float)
    values = values[..., 0] if channels <= 2 else values[..., :3]
    exif = Image.Exif()
    if b"eXIf" in names:
        exif.load(chunks[names.index(b"eXIf")][1])
    return Deep(values, alpha, orientation=exif.get(274, 1))


def _chunks(stream: BinaryIO) -> Any:
    """Yield name and body of each chunk that matters here, in their order (PNG specification, 5.3)."""
    stream.seek(8)
    while len(head := stream.read(8)) == 8:
        length, name = struct.unpack(">L4s", head)
        if name in (b"IHDR", b"acTL", b"tRNS", b"IDAT", b"eXIf"):
            body = stream.read(length)
            if stream.read(4) != struct.pack(">L", zlib.crc32(name + body)):
                raise ValueError("a chunk is damaged")
            yield name, body
        else:
            stream.seek(length + 4, 1)
        if name == b"IEND":
            return


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))


def tiff_pages(stream: BinaryIO) -> list[tuple[int, ImageFileDirectory_v2]]:
    """List the pages of a TIFF: number of the directory, and its tags.

    Reduced copies of a page and masks (NewSubfileType) are no pages. Counting stops after `MAX_FRAMES`.

    Raises:
        Exception: damaged; the list is open.
    """
    stream.seek(0)
    head = stream.read(8)
    order = head[:2]
    if head[2:4] in (b"+\0", b"\0+"):  # BigTIFF, which Pillow looks for in one byte order only
        head = b"II+\0" + head[4:] + stream.read(8)
    tags = ImageFileDirectory_v2(head, order)
    pages, seen, offset = [], set(), tags.next
    while offset and len(seen) <= MAX_FRAMES:
        if offset in seen:
            raise ValueError("the list of pages runs in a circle")
        seen.add(offset)
        tags = ImageFileDirectory_v2(head, order)
        stream.seek(offset)
        tags.load(stream)
        if not _first(tags, 254, 0) & 5:
            pages.append((len(seen) - 1, tags))
        offset = tags.next
    if len(seen) == 1 and not pages:
        pages.append((0, tags))
    return pages


def _first(tags: ImageFileDirectory_v2, tag: int, default: Any) -> Any:
    value = tags.get(tag, default)
    return value[0] if isinstance(value, tuple) and value else value


def read_tiff(stream: BinaryIO, tags: ImageFileDirectory_v2, known: bool = True) -> Deep | None:
    """Read one page of a TIFF; None for those of 8 bits and less that Pillow reads exactly.

    Args:
        stream: the file.
        tags: of the page, from `tiff_pages`.
        known: whether Pillow opens the file at all.

    Raises:
        ImageRefused: its numbers are stored in a way that neither reads.
        Exception: damaged; the list is open.
    """
    width, height = _first(tags, 256, 0), _first(tags, 257, 0)
    samples, colour, compression = _first(tags, 277, 1), _first(tags, 262, 1), _first(tags, 259, 1)
    bits, kinds = set(tags.get(258, (1,))), set(tags.get(339, (1,)))
    extra, planar = tags.get(338, ()), _first(tags, 284, 1) == 2 and samples > 1
    plain = bits <= {1, 2, 4, 8} and kinds <= {1, 4}
    exact = known and not planar and not (colour < 2 and samples > 1)
    if colour not in (0, 1, 2) or (plain and (exact or compression not in LOSSLESS)):
        return None
    channels = 3 if colour == 2 else 1
    depth, kind = max(bits), NUMBERS.get(max(kinds), "")
    whole = depth in (8, 16, 32, 64) if kind in ("u", "i") else kind == "f" and depth in (16, 32, 64)
    packed = kind == "u" and 8 < depth < 16 and samples == 1 and _first(tags, 317, 1) == 1
    if (
        len(bits) != 1
        or len(kinds) != 1
        or not (whole or packed)
        or compression not in LOSSLESS
        or samples < channels
        or samples > channels + 1
        or _first(tags, 266, 1) != 1
        or _first(tags, 317, 1) not in (1, 2, 3)
    ):
        raise ImageRefused(
            f"its numbers are stored in a way that is not read ({depth} bits, {samples} a pixel, compression "
            f"{compression}). Save it as TIFF or PNG in 8-bit or 16-bit grey.",
            "layout",
        )
    check_size(width, height)
    planes = samples if planar else 1
    each = samples // planes
    columns = [_plane(stream, tags, number, planes, each * depth) for number in range(planes)]
    order = ">" if tags.prefix == b"MM" else "<"
    if packed:
        ones = np.unpackbits(columns[0], axis=1)[:, : width * depth].reshape(height, width, depth)
        values = (ones.astype(np.uint16) << np.arange(depth)[::-1].astype(np.uint16)).sum(
            axis=2, dtype=np.uint16
        )
        return Deep(values, None, colour == 0, _first(tags, 274, 1))
    block = _first(tags, 322, 0) or width
    numbers = [
        _numbers(part, f"{kind}{depth // 8}", order, each, block, _first(tags, 317, 1)) for part in columns
    ]
    values = np.concatenate(numbers, axis=2)[:, :width]
    alpha = None
    if samples > channels and extra[:1] == (2,):  # 2: not yet multiplied with the colours
        alpha = values[..., channels] / (np.iinfo(values.dtype).max if kind == "u" else 1)
    values = values[..., 0] if channels == 1 else values[..., :3]
    return Deep(values, alpha, colour == 0, _first(tags, 274, 1))


def _plane(stream: BinaryIO, tags: ImageFileDirectory_v2, number: int, planes: int, bits: int) -> np.ndarray:
    """Unpack one plane, (height, bytes a row) uint8; of tiles, the last one of a row whole.

    The file is declared anew as a TIFF of 8-bit grey levels: a directory behind its end, and a header to match.
    """
    width, height = _first(tags, 256, 0), _first(tags, 257, 0)
    tiled = 322 in tags
    offsets, counts = tags[324 if tiled else 273], tags[325 if tiled else 279]
    share = len(offsets) // planes
    offsets, counts = (part[number * share : (number + 1) * share] for part in (offsets, counts))
    across = _first(tags, 322, 0)
    row = (across * bits + 7) // 8 if tiled else (width * bits + 7) // 8
    fields = {
        256: row * -(-width // across) if tiled else row,
        257: height,
        258: 8,
        259: _first(tags, 259, 1),
        262: 1,
        277: 1,
        **({322: row, 323: _first(tags, 323, 0)} if tiled else {278: _first(tags, 278, height)}),
        **({324: offsets, 325: counts} if tiled else {273: offsets, 279: counts}),
    }
    stream.seek(0)
    data = bytearray(stream.read())
    data += bytes(len(data) % 2)
    entries, heap, start = b"", b"", len(data) + 2 + 12 * len(fields) + 4
    for tag, value in sorted(fields.items()):
        several = value if isinstance(value, tuple) else (value,)
        body = struct.pack(f"<{len(several)}L", *several)
        if len(several) > 1:
            body, heap = struct.pack("<L", start + len(heap)), heap + body
        entries += struct.pack("<HHL", tag, 4, len(several)) + body
    data[:8] = b"II*\0" + struct.pack("<L", len(data))
    data += struct.pack("<H", len(fields)) + entries + bytes(4) + heap
    with Image.open(io.BytesIO(data), formats=["TIFF"]) as picture:
        return np.asarray(picture)


def _numbers(rows: np.ndarray, name: str, order: str, samples: int, block: int, predictor: int) -> np.ndarray:
    """Convert bytes (H, bytes a row) to numbers (H, W, samples), the predictor (TIFF 6.0, section 14) undone.

    Args:
        rows: from `_plane`.
        name: numpy's name of the number type, without byte order.
        order: byte order of the file, ``<`` or ``>``.
        samples: of each pixel in this plane.
        block: pixels after which prediction starts anew: the width of a tile, or of the picture.
        predictor: 1 none, 2 differences, 3 differences of bytes in the order of their weight.
    """
    size = int(name[1:])
    height = len(rows)
    if predictor == 3:
        blocks = rows.reshape(height, -1, block * size, samples)
        blocks = np.cumsum(blocks, axis=2, dtype=np.uint8).reshape(height, -1, size, block * samples)
        rows = np.ascontiguousarray(blocks.transpose(0, 1, 3, 2)).reshape(height, -1)
        order = ">"
    rows = np.ascontiguousarray(rows)
    numbers = rows.view(f"{order}{name}").astype(name).reshape(height, -1, block, samples)
    if predictor == 2:
        numbers = np.cumsum(numbers.view(f"u{size}"), axis=2, dtype=f"u{size}").view(name)
    return numbers.reshape(height, -1, samples)
