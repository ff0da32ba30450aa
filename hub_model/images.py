"""From a file to one 8-bit grey picture, or a refusal in words a clinician understands.

Files are told apart by content, never by name. What becomes of them:

- 8-bit grey pictures are taken as they are; EXIF orientation is applied.
- Deeper pictures (16 bit, float) are stretched linearly from their 0.5th..99.5th percentile to 0..255, the
  robust range of nnU-Net (Isensee et al., Nature Methods 18, 2021, 203-211). Integers within 0..255 stay.
- Transparent parts become black, like the surround of a film.
- Colour pictures that are really grey become grey; those with visible colour, and CMYK, are refused.
- Gamma, colour profiles and resolutions are not applied: the numbers of the file count.
- DICOM: see ``dicom.py``; CT in Hounsfield units is always shown in the lung window.

The picture carries no metadata: no EXIF, no DICOM element, no text. docs/reading.md lists every rule.
"""

import io
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from . import codecs, deep, dicom, foreign_formats
from .grey import (
    MAX_BYTES,
    MAX_FRAMES,
    ImageRefused,
    check_frames,
    check_size,
    chosen_frame,
    decoding,
    grey_of_colour,
    to_8_bit,
)

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF")
PRINT_MODES = ("CMYK", "LAB", "HSV")
ANIMATIONS = ("GIF", "PNG", "WEBP")  # whose frames can only be decoded one after the other
ORIENTATION = 274  # tag of EXIF
MAX_PLAYED = 500_000_000  # pixels of an animation that are decoded to get to a frame
ACCEPTED = "Accepted is one grey chest picture as PNG, JPEG, TIFF, WebP, BMP, GIF or DICOM file."


def read_image(source: Any, *, frame: int | None = None, modality: str | None = None) -> Image.Image:
    """Read one picture as 8-bit grey (mode "L", width x height as displayed, without metadata).

    Args:
        source: a path, bytes, an open binary file, a PIL picture, or a numpy array of shape (height, width),
            (height, width, 3) or, as uint8, (height, width, 4). Values of any number type are grey levels;
            Hounsfield units go through `hub_model.dicom.lung_window` first.
        frame: which frame of a multi-frame file, from 0; needed only where `frame_count` is more than 1.
        modality: ``"xray"`` or ``"ct"`` to refuse DICOM files that say they are something else.

    Raises:
        ImageRefused: no picture, damaged, too large or small, in colour, animated, or of another modality.
    """
    found = read_for(source, (modality,), frame=frame)[modality]
    if isinstance(found, ImageRefused):
        raise found from None  # its cause may quote the file
    return found


def read_for(
    source: Any, modalities: Sequence[str | None], *, frame: int | None = None
) -> dict[str | None, Image.Image | ImageRefused]:
    """Read as `read_image` does for each of several modalities, but fetch and decode the source once.

    Args:
        source: as for `read_image`.
        modalities: ``"xray"``, ``"ct"``, or None for any.
        frame: as for `read_image`.

    Returns:
        By modality its picture, or why it gets none; where the modality does not matter, all share one picture.
    """
    try:
        with opened(source) as found:
            if isinstance(found, np.ndarray):
                found = _picture_of_array(found)
            if isinstance(found, Image.Image):
                grey = _grey_of_picture(found, chosen_frame(frame, _frames_of(found)))
            elif not is_dicom(found):
                grey = _read_file(found, frame)
            else:
                greys = dicom.read_grey(found, frame, modalities)
                return {
                    modality: _named(source, one) if isinstance(one, ImageRefused) else Image.fromarray(one)
                    for modality, one in greys.items()
                }
            return dict.fromkeys(modalities, Image.fromarray(grey))
    except ImageRefused as refusal:
        return dict.fromkeys(modalities, refusal)


def frame_count(source: Any) -> int:
    """Count the frames or pages in what `read_image` takes; no pixel is decoded.

    Raises:
        ImageRefused: no picture, or damaged.
    """
    with opened(source) as found:
        if isinstance(found, np.ndarray):
            return 1
        if isinstance(found, Image.Image):
            return _frames_of(found)
        return dicom.read_header(found).frames if is_dicom(found) else len(_open_file(found)[1])


@contextmanager
def opened(source: Any, limit: int | None = None) -> Iterator[np.ndarray | Image.Image | BinaryIO]:
    """Open the source as an array, a picture or a seekable stream; name it in every refusal.

    Raises:
        ImageRefused: there is no such file, it is empty, or has more than `limit` bytes (`MAX_BYTES` by default).
    """
    limit = MAX_BYTES if limit is None else limit
    try:
        if isinstance(source, (np.ndarray, Image.Image)):
            yield source
        elif isinstance(source, (str, os.PathLike)):
            if not Path(source).is_file():
                raise ImageRefused(
                    "there is no such file. Check the path; name one file, not a folder.", "missing"
                )
            with _Within(source) as stream:
                yield _limited(stream, limit)
        elif isinstance(source, (bytes, bytearray, memoryview)):
            yield _limited(io.BytesIO(source), limit)
        elif (
            hasattr(source, "read")
            and not getattr(source, "closed", False)
            and isinstance(source.read(0), bytes)
        ):
            seekable = getattr(source, "seekable", lambda: False)()
            yield _limited(source if seekable else io.BytesIO(source.read(limit + 1)), limit)
        else:
            kind = type(source).__name__
            raise ImageRefused(
                f"no picture came, but {kind}. Give a path, bytes or a file opened as binary.", "no_picture"
            )
    except ImageRefused as refusal:
        raise _named(source, refusal) from None
    except OSError as error:
        what = f"it cannot be opened ({error.strerror or 'read error'}). Check that you may read it."
        raise _named(source, ImageRefused(what, "unreadable")) from None


class _Within(io.BufferedReader):
    """An open file that is never asked for more bytes than it has left.

    Python makes room for all bytes that are asked for before it looks, and a header may name 4 GB.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__(io.FileIO(path))
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = max(0, min(size, self._size - self.tell()))
        return super().read(size)


def _named(source: Any, refusal: ImageRefused) -> ImageRefused:
    """Add the name of the source, and what is accepted, to a refusal."""
    name = source if isinstance(source, (str, os.PathLike)) else getattr(source, "name", None)
    name = Path(name).name[:100] if isinstance(name, (str, os.PathLike)) else ""
    code, values = refusal.reason.code, refusal.reason.values
    return ImageRefused(f"{name or 'The picture'}: {refusal} {ACCEPTED}", code, **values)


def _limited(stream: BinaryIO, most: int) -> BinaryIO:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if not size:
        raise ImageRefused("the file is empty (0 bytes). Copy or export it again.", "empty")
    if size > most:
        limit = most >> 20
        raise ImageRefused(
            f"the file is larger than {limit} MiB. Export the single picture.", "file_too_large", limit=limit
        )
    return stream


def is_dicom(stream: BinaryIO) -> bool:
    """Recognise DICOM by the mark after the preamble or, without it, by a first element of group 0002 or 0008."""
    head = stream.read(132)
    stream.seek(0)
    return head[128:] == b"DICM" or head[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x08")


def _picture_of_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    channels = array.shape[2] if array.ndim == 3 else 0
    numbers = array.dtype.kind in "buif" if channels != 4 else array.dtype == np.uint8
    if array.ndim not in (2, 3) or channels not in (0, 3, 4) or not numbers:
        raise ImageRefused(
            f"an array of shape {array.shape} and type {array.dtype} came. Give numbers of shape (height, width) "
            "or (height, width, 3).",
            "no_picture",
        )
    check_size(array.shape[1], array.shape[0])
    return Image.fromarray(np.ascontiguousarray(to_8_bit(array)))


def _open_file(stream: BinaryIO) -> tuple[Image.Image | None, list]:
    """Open a picture file, and list its frames without decoding one.

    Returns:
        Pillow's picture, None where Pillow does not know how the numbers of a TIFF are stored; and for each
        frame its number or, in a TIFF, number and tags.

    Raises:
        ImageRefused: no picture, damaged, or too many frames.
    """
    with decoding():
        head = stream.read(foreign_formats.HEAD)
        stream.seek(0)
        if found := foreign_formats.named(head):
            raise ImageRefused(
                f"it is no picture that is read here: {found[0]}. {found[1]}", "other_format", format=found[0]
            )
        if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            frames = deep.tiff_pages(stream)
            check_frames(len(frames))
            stream.seek(0)
            try:
                return Image.open(stream, formats=["TIFF"]), frames
            except UnidentifiedImageError:
                return None, frames
        try:
            picture = Image.open(stream, formats=FORMATS)
        except UnidentifiedImageError:
            _check_jpeg(stream)
            raise ImageRefused(
                "it is no picture, whatever its name says, or its beginning is damaged. Export it again.",
                "no_picture",
            ) from None
        if picture.format == "JPEG":
            _check_jpeg(stream)
        if picture.format == "GIF":
            frames = _gif_frames(stream)
            stream.seek(0)
            picture = Image.open(stream, formats=["GIF"])
        else:
            frames = _frames_of(picture)
        check_frames(frames)
        return picture, list(range(frames))


def _read_file(stream: BinaryIO, frame: int | None) -> np.ndarray:
    picture, frames = _open_file(stream)
    if picture is not None:
        check_size(*picture.size)
    number = chosen_frame(frame, len(frames))
    found = frames[number]
    with decoding():
        read = None
        if isinstance(found, tuple):
            number, tags = found
            read = deep.read_tiff(stream, tags, known=picture is not None)
        elif picture.format == "PNG":
            read = deep.read_png(stream)
        if read is not None:
            return _grey_of_deep(read)
        if picture is None:
            raise ImageRefused(
                "its numbers are stored in a way that is not read. Save it in 8-bit or 16-bit grey.", "layout"
            )
    return _grey_of_picture(picture, number)


def _frames_of(picture: Image.Image) -> int:
    """Count the frames of an open picture; a phone's JPEG is one, even with previews beside it (MPO)."""
    with decoding():
        return 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)


def _gif_frames(stream: BinaryIO) -> int:
    """Count the frames of a GIF (version 89a, section 18 on) without decoding one; stops after `MAX_FRAMES`."""

    def skip_blocks() -> None:
        while size := stream.read(1)[0]:
            stream.seek(size, 1)

    def skip_table(flags: int) -> None:
        stream.seek(3 * 2 ** ((flags & 7) + 1) if flags & 128 else 0, 1)

    stream.seek(10)
    flags = stream.read(1)[0]
    stream.seek(13)
    skip_table(flags)
    frames = 0
    while frames <= MAX_FRAMES and (kind := stream.read(1)) in (b"!", b","):
        if kind == b",":
            frames += 1
            skip_table(stream.read(9)[8])
        stream.seek(1, 1)  # the label of an extension, or the size of codes
        try:
            skip_blocks()
        except IndexError:  # cut short: decoding says so
            break
    return max(frames, 1)


def _check_jpeg(stream: BinaryIO) -> None:
    """Refuse JPEG streams that Pillow cannot read, or would decode without end."""
    stream.seek(0)
    data = stream.read()
    stream.seek(0)
    if data[:2] != b"\xff\xd8":
        return
    if data.count(b"\xff\xda") > codecs.MAX_SCANS:
        raise ImageRefused(
            "it holds more scans than any camera or archive writes. Export it again.", "damaged"
        )
    try:
        bits = codecs.jpeg_header(data).bits
    except (codecs.StreamRefused, struct.error):
        return  # Pillow says what is wrong
    if bits != 8:
        raise ImageRefused(
            f"it is a JPEG of {bits} bits. Save it as JPEG of 8 bits, or as PNG or TIFF of 8 or 16.", "layout"
        )


def _grey_of_deep(read: deep.Deep) -> np.ndarray:
    """Convert numbers of any type, with transparency, to uint8, upright."""
    inside = None if read.alpha is None else read.alpha > 0
    values = read.values
    if values.ndim == 3:
        inside = inside if inside is None else np.repeat(inside[..., None], 3, axis=2)
        grey = grey_of_colour(to_8_bit(values, inside))
    else:
        grey = to_8_bit(values, inside)
    grey = 255 - grey if read.white_is_zero else grey
    if read.alpha is not None:
        grey = np.rint(grey * read.alpha).astype(np.uint8)
    upright = Image.fromarray(grey)
    upright.getexif()[ORIENTATION] = read.orientation
    return np.asarray(ImageOps.exif_transpose(upright))


def _grey_of_picture(picture: Image.Image, index: int) -> np.ndarray:
    """Convert frame `index` of an open picture to uint8, upright; the picture is left where it stood."""
    check_size(*picture.size)
    with decoding():
        stood = picture.tell()
    try:
        with decoding():
            if index != stood:
                _check_effort(picture, index)
                picture.seek(index)
        check_size(*picture.size)  # pages of a TIFF differ in size
        return _grey_of_frame(picture)
    finally:
        if index != stood:
            with decoding():
                picture.seek(stood)


def _check_effort(picture: Image.Image, index: int) -> None:
    if picture.format in ANIMATIONS and index * picture.width * picture.height > MAX_PLAYED:
        raise ImageRefused(
            f"frame {index} lies too far in an animation of {picture.width} x {picture.height} pixels. Export the "
            "frame to be judged.",
            "too_many_frames",
            limit=MAX_PLAYED // (picture.width * picture.height),
        )


def _grey_of_frame(picture: Image.Image) -> np.ndarray:
    if picture.mode in PRINT_MODES:
        raise ImageRefused(
            f"it is stored in {picture.mode} colours, as for printing. Save it in grey.",
            "print_colours",
            mode=picture.mode,
        )
    # Pillow turns "white is zero" (TIFF tag 262) round for 8 bit only
    tags = getattr(picture, "tag_v2", {})
    key = picture.info.get("transparency")
    with decoding():
        if picture.mode == "P" and picture.format == "TIFF" and max(tags.get(320, (256,))) < 256:
            # a palette of 8 bits where 16 belong: Pillow would show all of it as black
            picture = picture.copy()
            picture.putpalette(np.array(tags[320], np.uint8).reshape(3, -1).T.tobytes())
        picture.load()  # orientation may be said behind the pixels
        if picture.getexif().get(ORIENTATION, 1) != 1:
            picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith(("I", "F")):
            values = np.asarray(picture)
            opaque = values != key if isinstance(key, int) else None
            grey = to_8_bit(values, opaque)
            grey = 255 - grey if tags.get(262) == 0 else grey
            return grey if opaque is None else grey * opaque.astype(np.uint8)
        if picture.has_transparency_data:
            black = Image.new("RGBA", picture.size, "black")
            picture = Image.alpha_composite(black, picture.convert("RGBA"))
        if picture.mode in ("1", "L"):
            return np.asarray(picture if picture.mode == "L" else picture.convert("L"))
        rgb = np.asarray(picture.convert("RGB"))
    return grey_of_colour(rgb)
