"""From a file to one 8-bit grey picture, or a refusal in words a clinician understands.

Files are told apart by content, never by name. What becomes of them:

- 8-bit grey pictures are taken as they are; EXIF orientation is applied.
- Deeper pictures (16 bit, float) are stretched linearly from their 0.5th..99.5th percentile to 0..255, the
  robust range of nnU-Net (Isensee et al., Nature Methods 18, 2021, 203-211). Integers within 0..255 stay.
- Transparent parts become black, like the surround of a film.
- Colour pictures that are really grey become grey; those with visible colour, and CMYK, are refused.
- DICOM: see ``dicom.py``; CT in Hounsfield units is always shown in the lung window.

The picture carries no metadata: no EXIF, no DICOM element, no text.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from . import dicom
from .grey import MAX_BYTES, ImageRefused, check_size, chosen_frame, decoding, grey_of_colour, to_8_bit

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF")
PRINT_MODES = ("CMYK", "LAB", "HSV")
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
    with _opened(source) as found:
        if isinstance(found, np.ndarray):
            found = _picture_of_array(found)
        elif not isinstance(found, Image.Image):
            if _is_dicom(found):
                return Image.fromarray(dicom.read_grey(found, frame, modality))
            found = _open_picture(found)
        return Image.fromarray(_grey_of_picture(found, frame))


def frame_count(source: Any) -> int:
    """Number of frames or pages in what `read_image` takes; no pixel is decoded.

    Raises:
        ImageRefused: no picture, or damaged.
    """
    with _opened(source) as found:
        if isinstance(found, np.ndarray):
            return 1
        if not isinstance(found, Image.Image):
            if _is_dicom(found):
                return dicom.read_header(found).frames
            found = _open_picture(found)
        with decoding():
            return getattr(found, "n_frames", 1)


def slice_place(source: Any) -> tuple | None:
    """Sort key of a DICOM slice among those of its series, from the head down; None for what says no place.

    Raises:
        ImageRefused: no picture, or damaged.
    """
    with _opened(source) as found:
        if isinstance(found, (np.ndarray, Image.Image)) or not _is_dicom(found):
            return None
        return dicom.read_place(found)


@contextmanager
def _opened(source: Any) -> Iterator[np.ndarray | Image.Image | BinaryIO]:
    """The array, the picture, or the file as a seekable stream; names the source in every refusal."""
    name = source if isinstance(source, (str, os.PathLike)) else getattr(source, "name", None)
    name = Path(name).name[:100] if isinstance(name, (str, os.PathLike)) else ""
    try:
        if isinstance(source, (np.ndarray, Image.Image)):
            yield source
        elif isinstance(source, (str, os.PathLike)):
            if not Path(source).is_file():
                what = "there is no such file. Check the path; name one file, not a folder."
                raise ImageRefused(what, "missing")
            with open(source, "rb") as stream:
                yield _limited(stream)
        elif isinstance(source, (bytes, bytearray, memoryview)):
            yield _limited(io.BytesIO(source))
        elif hasattr(source, "read") and isinstance(source.read(0), bytes):
            seekable = getattr(source, "seekable", lambda: False)()
            yield _limited(source if seekable else io.BytesIO(source.read(MAX_BYTES + 1)))
        else:
            what = type(source).__name__
            what = f"no picture came, but {what}. Give a path, bytes or a file opened as binary."
            raise ImageRefused(what, "no_picture")
    except ImageRefused as refusal:
        code, values = refusal.reason.code, refusal.reason.values
        raise ImageRefused(f"{name or 'The picture'}: {refusal} {ACCEPTED}", code, **values) from None
    except OSError as error:
        what = f"it cannot be opened ({error.strerror or 'read error'}). Check that you may read it."
        raise ImageRefused(f"{name or 'The picture'}: {what} {ACCEPTED}", "unreadable") from None


def _limited(stream: BinaryIO) -> BinaryIO:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if not size:
        raise ImageRefused("the file is empty (0 bytes). Copy or export it again.", "empty")
    if size > MAX_BYTES:
        limit = MAX_BYTES >> 20
        what = f"the file is larger than {limit} MiB. Export the single picture."
        raise ImageRefused(what, "file_too_large", limit=limit)
    return stream


def _is_dicom(stream: BinaryIO) -> bool:
    """By the mark after the preamble or, where that is missing, by a first element of group 0002 or 0008."""
    head = stream.read(132)
    stream.seek(0)
    return head[128:] == b"DICM" or head[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x08")


def _picture_of_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    channels = array.shape[2] if array.ndim == 3 else 0
    numbers = array.dtype.kind in "buif" if channels != 4 else array.dtype == np.uint8
    if array.ndim not in (2, 3) or channels not in (0, 3, 4) or not numbers:
        what = f"an array of shape {array.shape} and type {array.dtype} came"
        what = f"{what}. Give numbers of shape (height, width) or (height, width, 3)."
        raise ImageRefused(what, "no_picture")
    check_size(array.shape[1], array.shape[0])
    return Image.fromarray(np.ascontiguousarray(to_8_bit(array)))


def _open_picture(stream: BinaryIO) -> Image.Image:
    with decoding():
        try:
            return Image.open(stream, formats=FORMATS)
        except UnidentifiedImageError:
            what = "it is no picture, whatever its name says, or its beginning is damaged. Export it again."
            raise ImageRefused(what, "no_picture") from None


def _grey_of_picture(picture: Image.Image, frame: int | None) -> np.ndarray:
    check_size(*picture.size)
    with decoding():
        index = chosen_frame(frame, getattr(picture, "n_frames", 1))
        if index != picture.tell():
            picture.seek(index)
    check_size(*picture.size)  # pages of a TIFF differ in size
    if picture.mode in PRINT_MODES:
        what = f"it is stored in {picture.mode} colours, as for printing. Save it in grey."
        raise ImageRefused(what, "print_colours", mode=picture.mode)
    # Pillow turns "white is zero" (TIFF tag 262) round for 8 bit only, and drops 8 of 16 bits of RGB
    white_is_zero = getattr(picture, "tag_v2", {}).get(262) == 0
    halved = ";16" in str(getattr(picture, "tile", ""))
    with decoding():
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith(("I", "F")):
            grey = to_8_bit(np.asarray(picture))
            return 255 - grey if white_is_zero else grey
        if picture.has_transparency_data:
            black = Image.new("RGBA", picture.size, "black")
            picture = Image.alpha_composite(black, picture.convert("RGBA"))
        if picture.mode in ("1", "L"):
            return np.asarray(picture.convert("L"))
        rgb = np.asarray(picture.convert("RGB"))
    if halved and rgb.max() < 64:
        raise ImageRefused("it is a dark 16-bit picture in RGB. Save it as 16-bit or 8-bit grey.", "dark_rgb")
    return grey_of_colour(rgb)
