"""Compressed pixel data of a DICOM file (PS3.5, annex A): what a frame unpacks to is checked before it is unpacked.

A frame is handed to a decoder only where its own header names the size that the file's header names; a stream that
unpacks to more than that is refused, whatever its compression.
"""

import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pydicom import Dataset, uid
from pydicom.encaps import encapsulate
from pydicom.pixels import convert_color_space, pixel_array

DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"  # Deflated Image Frame Compression, younger than pydicom's list
UNCOMPRESSED_FRAMES = "1.2.840.10008.1.2.1.98"  # Encapsulated Uncompressed Explicit VR Little Endian
JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
JPEG_LOSSLESS = (uid.JPEGLossless, uid.JPEGLosslessSV1)
JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000)
HTJ2K = (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
READ = (DEFLATED_FRAMES, UNCOMPRESSED_FRAMES, *JPEG, *JPEG_LS, *JPEG_2000, *HTJ2K, uid.RLELossless)
"""Transfer syntaxes of compressed frames that are read."""

END_OF_IMAGE = b"\xff\xd9"  # the last marker of a JPEG or JPEG-LS stream
MAX_SCANS = 100  # of one JPEG stream; each goes over the whole picture, and a handful is usual
MAX_TILES = 10_000  # of one JPEG 2000 stream
MAX_BITS = 16  # of a compressed sample
IMAGE_TAGS = [
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
]


class StreamRefused(ValueError):
    """A compressed stream that is damaged or does not hold the picture that the file's header describes."""


class Stream(NamedTuple):
    """What the header of a compressed frame states."""

    width: int
    height: int
    samples: int
    bits: int


def decoded(frame: bytes, syntax: str, tags: Dataset) -> np.ndarray:
    """Unpack one compressed frame.

    Args:
        frame: the fragments of the frame, joined.
        syntax: its transfer syntax, one of `READ`.
        tags: the elements of the image pixel module (PS3.3 C.7.6.3).

    Returns:
        (rows, columns), or (rows, columns, 3) as RGB; of unsigned or signed integers as the file's header says.

    Raises:
        StreamRefused: damaged, or not of the size that `tags` name.
        Exception: whatever the decoders raise on damaged streams.
    """
    image = Dataset()
    for keyword in IMAGE_TAGS:
        if keyword in tags:
            image[keyword] = tags[keyword]
    if syntax in (DEFLATED_FRAMES, UNCOMPRESSED_FRAMES, uid.RLELossless):
        return _native(frame, syntax, image)
    if syntax in (*JPEG_2000, *HTJ2K):
        frame = _codestream(frame)
        stream = _jpeg_2000_header(frame)
        syntax = uid.JPEG2000  # the decoder tells high-throughput streams by themselves
    else:
        stream = jpeg_header(frame)
    declared = (image.Columns, image.Rows, image.SamplesPerPixel)
    if stream[:3] != declared or not 0 < stream.bits <= min(MAX_BITS, image.BitsAllocated):
        raise StreamRefused(f"the header says {declared}, the stream {tuple(stream)}")
    if syntax in JPEG_LS or (syntax in JPEG and (stream.bits > 8 or syntax in JPEG_LOSSLESS)):
        return _by_imagecodecs(image, frame, syntax, stream.bits)
    # compressed samples lie at the low end of their cells; where all bits up to a higher one are coded, they do not
    empty = image.get("HighBit", image.BitsStored - 1) + 1 - image.BitsStored
    if empty > 0 and stream.bits == image.BitsStored + empty:
        return _by_pydicom(image, encapsulate([frame]), syntax, correct_unused_bits=False) >> empty
    return _by_pydicom(image, encapsulate([frame]), syntax)


def _by_imagecodecs(image: Dataset, frame: bytes, syntax: str, coded: int) -> np.ndarray:
    """Decode JPEG of more than 8 bits, lossless JPEG and JPEG-LS, which Pillow does not read; `coded` bits a sample."""
    import imagecodecs

    # of a stream that is cut, libjpeg makes half a picture without a word
    if frame.rfind(END_OF_IMAGE) < frame.rfind(b"\xff\xda"):
        raise StreamRefused("the end is missing")
    # CharLS stops at a marker; where bytes end without one, it counts 2^31 bits that are not there: five seconds
    decode = imagecodecs.jpegls_decode if syntax in JPEG_LS else imagecodecs.jpeg8_decode
    values = decode(frame + END_OF_IMAGE)
    if values.shape[:2] != (image.Rows, image.Columns):
        raise StreamRefused("decoded to another size")
    if values.ndim == 3:
        return (
            convert_color_space(values, "YBR_FULL", "RGB")
            if "YBR" in image.PhotometricInterpretation
            else values
        )
    empty = image.get("HighBit", image.BitsStored - 1) + 1 - image.BitsStored
    if empty > 0 and coded == image.BitsStored + empty:
        values, coded = values >> empty, image.BitsStored
    if not image.PixelRepresentation:
        return values
    unused = 16 - min(coded, image.BitsStored)  # these codecs know no sign
    return (values.astype(np.uint16) << unused).view(np.int16) >> unused


def _by_pydicom(image: Dataset, data: bytes, syntax: str, **options: Any) -> np.ndarray:
    image.file_meta = Dataset()
    image.file_meta.TransferSyntaxUID = uid.UID(syntax)
    image.PixelData = data
    image["PixelData"].VR = "OW"
    return pixel_array(image, index=0, **options)


def _native(frame: bytes, syntax: str, image: Dataset) -> np.ndarray:
    """Decode frames that unpack to cells as they lie in an uncompressed file."""
    size = image.Rows * image.Columns * image.SamplesPerPixel * ((image.BitsAllocated + 7) // 8)
    if syntax == uid.RLELossless:
        frame = _rle(frame, size, image.Rows * image.Columns, (image.BitsAllocated + 7) // 8)
        image.PlanarConfiguration = 1
    elif syntax == DEFLATED_FRAMES:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        frame = inflater.decompress(frame, size + 2)
    if not size <= len(frame) <= size + size % 2:
        raise StreamRefused(f"{size} bytes are declared, {len(frame)} or more came")
    if image.SamplesPerPixel == 1:
        image.pop("PlanarConfiguration", None)
    return _by_pydicom(
        image, frame[:size] + bytes(size % 2), uid.ExplicitVRLittleEndian, correct_unused_bits=False
    )


def _rle(frame: bytes, size: int, pixels: int, depth: int) -> bytes:
    """Unpack RLE (PS3.5, annex G): one segment for each byte of each sample, the most significant first."""
    count, *offsets = struct.unpack("<16L", frame[:64])
    if count * pixels != size or count > 15:
        raise StreamRefused(f"{count} segments came")
    ends = [*offsets[1:count], len(frame)]
    planes = []
    for start, end in zip(offsets[:count], ends, strict=True):
        segment = frame[start:end]
        if len(segment) < 2 or start < 64:
            raise StreamRefused("an empty segment came")
        planes.append(np.asarray(Image.frombytes("L", (pixels, 1), segment, "packbits", "L")).ravel())
        try:
            Image.frombytes("L", (pixels + 2, 1), segment, "packbits", "L")
        except ValueError:
            continue  # it ends where it should
        raise StreamRefused(f"a segment unpacks to more than {pixels} bytes")
    cells = np.stack(planes).reshape(-1, depth, pixels)[
        :, ::-1
    ]  # sample, byte from the least significant, pixel
    return np.ascontiguousarray(cells.transpose(0, 2, 1)).tobytes()


def jpeg_header(frame: bytes) -> Stream:
    """Read the frame header of a JPEG or JPEG-LS stream (ITU-T T.81 B.2.2, T.87 C.2.2)."""
    if frame[:2] != b"\xff\xd8":
        raise StreamRefused("no JPEG stream came")
    found, place = [], 2
    while place + 4 <= len(frame):
        if frame[place] != 0xFF:
            raise StreamRefused("no marker where one belongs")
        marker = frame[place + 1]
        if marker == 0xFF:  # filling
            place += 1
            continue
        if marker == 0xDA:  # start of scan
            break
        length = int.from_bytes(frame[place + 2 : place + 4], "big")
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            bits, height, width, samples = struct.unpack(">BHHB", frame[place + 4 : place + 10])
            found.append(Stream(width, height, samples, bits))
        place += 2 + length
    if len(found) != 1 or frame.count(b"\xff\xda") > MAX_SCANS:
        raise StreamRefused(f"{len(found)} frame headers came, or too many scans")
    return found[0]


def _codestream(frame: bytes) -> bytes:
    """Take the JPEG 2000 codestream out of a JP2 file: against the standard, but seen (ISO 15444-1, annex I)."""
    if not frame.startswith(b"\0\0\0\x0cjP  "):
        return frame
    place = 12
    while place + 8 <= len(frame):
        length, kind = struct.unpack(">L4s", frame[place : place + 8])
        if kind == b"jp2c":
            return frame[place + (16 if length == 1 else 8) :]
        if length < 8:  # pydicom would read an empty box again and again
            break
        place += length
    raise StreamRefused("no codestream in the JP2 file")


def _jpeg_2000_header(frame: bytes) -> Stream:
    """Read image and tile size, the first segment of a codestream (ISO 15444-1, A.5.1)."""
    if frame[:4] != b"\xff\x4f\xff\x51":
        raise StreamRefused("no JPEG 2000 codestream came")
    right, bottom, left, top, tile_width, tile_height = struct.unpack(">6L", frame[8:32])
    samples, depth, *step = struct.unpack(">H3B", frame[40:45])
    width, height = right - left, bottom - top
    if step != [1, 1] or not tile_width or not tile_height:
        raise StreamRefused("sub-sampled, or tiles of no size")
    if -(-width // tile_width) * -(-height // tile_height) > MAX_TILES:
        raise StreamRefused("too many tiles")
    return Stream(width, height, samples, (depth & 0x7F) + 1)
