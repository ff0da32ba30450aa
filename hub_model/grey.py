"""Grey pictures: how large they may be, and from numbers or colours of any kind to 8 bits."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from PIL import Image

from .refused import Reason, Refused

MAX_BYTES = 256 * 2**20  # of one file
MAX_PIXELS = 40_000_000  # of one picture; the largest digital chest films have about 20 million
MAX_SIDE = 10_000  # pixels
MIN_SIDE = 32  # pixels; in less there is no lung to judge
MAX_FRAMES = 5_000  # in one file; counting stops there, whatever number the file declares
PERCENTILES = (0.5, 99.5)  # shown as black and white where the file does not say
COLOUR_STEP = 32  # of 255: a pixel whose largest and smallest channel lie further apart is visibly coloured
COLOUR_SHARE = 0.02  # of all pixels; re-compressed grey pictures have 0, photographs and Doppler scans > 0.04
LOGGERS = (  # that quote a file's metadata, the last three when set to DEBUG
    "pydicom",
    "pydicom.pixels.decoders.base",
    "PIL.Image",
    "PIL.PngImagePlugin",
    "PIL.TiffImagePlugin",
)


class ImageRefused(Refused):
    """A picture that cannot be judged; the message says what came, what to do and what is accepted.

    Attributes:
        reason: the message with its code.
    """

    def __init__(self, text: str, code: str, **values: Any) -> None:
        super().__init__(text, code)
        self.reason = Reason(text, code, **values)

    def __str__(self) -> str:
        return str(self.reason)


DAMAGED = Reason("the file is damaged or cut short. Export it again.", "damaged")


class _Hush:
    """Answers the logging and the warnings module whether a message came from the thread that made this."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self._thread

    def match(self, _text: str) -> bool:
        return threading.get_ident() == self._thread


@contextmanager
def hushed() -> Iterator[None]:
    """Keep libraries' messages about a file out of logs and warnings: they quote its path and its metadata.

    Filters of loggers and of warnings belong to the whole process, hence `warnings.catch_warnings` is no help
    where several threads read; what other threads say is still heard.
    """
    hush = _Hush()
    ignore = ("ignore", hush, Warning, None, 0)  # an entry as `warnings.filterwarnings` makes them
    warnings.filters.insert(0, ignore)
    for name in LOGGERS:
        logging.getLogger(name).addFilter(hush)
    try:
        yield
    finally:
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(hush)
        with suppress(ValueError):  # another thread has set the filters back meanwhile
            warnings.filters.remove(ignore)


@contextmanager
def decoding(refusal: Reason = DAMAGED) -> Iterator[None]:
    """Turn any exception of a decoder on a bad file into a refusal; no decoder's list of exceptions is complete."""
    try:
        with hushed():
            yield
    except (ImageRefused, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageRefused(
            f"the picture has more than {MAX_PIXELS:,} pixels. Reduce its size.",
            "too_many_pixels",
            limit=MAX_PIXELS // 10**6,
        ) from None
    except Exception:
        raise ImageRefused(refusal, refusal.code, **refusal.values) from None


def chosen_frame(frame: int | None, frames: int) -> int:
    """Say which frame to read, counted from 0; one must be named where there are several.

    Raises:
        ImageRefused: none is named, or there is no such frame.
    """
    if frame is None and frames > 1:
        raise ImageRefused(
            f"it holds {frames} frames (a series, pages or an animation), not one picture. Export the one frame "
            "to be judged, or name its number (frame=).",
            "frames",
            frames=frames,
        )
    if not 0 <= (frame or 0) < frames:
        raise ImageRefused(
            f"it has no frame {frame}: there are {frames}, counted from 0. Choose one.",
            "no_frame",
            frame=frame,
            frames=frames,
        )
    return frame or 0


def check_frames(frames: int) -> None:
    """Refuse a file that declares more frames than `MAX_FRAMES`, before anything is made for each of them."""
    if frames > MAX_FRAMES:
        raise ImageRefused(
            f"it holds more than {MAX_FRAMES:,} frames. Export the frames to be judged.",
            "too_many_frames",
            limit=MAX_FRAMES,
        )


def check_size(width: int, height: int) -> None:
    """Refuse a picture of unfit size before it is decoded: a small file can hold one that fills the memory."""
    if min(width, height) < MIN_SIDE:
        raise ImageRefused(
            f"the picture has only {width} x {height} pixels. Export it with {MIN_SIDE} or more a side, not as "
            "a thumbnail.",
            "too_small",
            width=width,
            height=height,
            limit=MIN_SIDE,
        )
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise ImageRefused(
            f"the picture is too large, {width} x {height} pixels. Reduce it to at most {MAX_SIDE:,} a side and "
            f"{MAX_PIXELS:,} in all.",
            "too_large",
            width=width,
            height=height,
            limit=MAX_SIDE,
        )


def to_8_bit(values: np.ndarray, inside: np.ndarray | None = None) -> np.ndarray:
    """Bring grey levels of any number type to 8 bits.

    uint8 and integers within 0..255 stay; truth values become 0 and 255; everything else is stretched linearly
    from its 0.5th..99.5th percentile to 0..255.

    Args:
        values: numbers of any shape.
        inside: boolean, same shape: which of them count for the percentiles; all if None or none is True.

    Returns:
        uint8, same shape.

    Raises:
        ImageRefused: some value is not a finite number.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values * np.uint8(255)
    if values.dtype.kind == "f":
        values = values.astype(np.float64)
        if not np.abs(values).max() < 1e30:  # NaN, infinite, or not meant as a grey level
            raise ImageRefused(
                "some pixels are not finite numbers. Give the background a number such as 0.", "not_finite"
            )
    elif values.min() >= 0 and values.max() <= 255:
        return values.astype(np.uint8)
    shown = values if inside is None or not inside.any() else values[inside]
    if values.dtype in (
        np.uint16,
        np.int16,
    ):  # far fewer levels than a film has pixels: each is stretched once
        least = np.iinfo(values.dtype).min
        levels = np.arange(least, least + 2**16)
        counts = np.bincount(shown.ravel().astype(np.int32) - least, minlength=2**16)
        return _stretched(levels, *_ends(levels, counts))[values.astype(np.int32) - least]
    low, high = np.percentile(shown, PERCENTILES)
    if low == high:  # nearly all pixels are alike: keep what differs
        low, high = float(shown.min()), float(shown.max())
    return _stretched(values, low, high)


def _ends(levels: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Compute the percentiles of levels in rising order from their counts; the outermost levels if both are equal."""
    below = np.cumsum(counts)
    places = np.array(PERCENTILES) / 100 * (below[-1] - 1)
    lower, upper = (
        levels[np.searchsorted(below, ends(places), side="right")].astype(np.float64)
        for ends in (np.floor, np.ceil)
    )
    low, high = lower + (upper - lower) * (places % 1)
    if low == high:  # nearly all pixels are alike: keep what differs
        low, high = levels[counts > 0][[0, -1]]
    return float(low), float(high)


def _stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = np.clip((values.astype(np.float64) - low) / ((high - low) or 1.0), 0, 1)
    return np.rint(scaled * 255).astype(np.uint8)


def grey_of_colour(rgb: np.ndarray) -> np.ndarray:
    """Turn colours that are really grey into grey: (H, W, 3) uint8 -> (H, W) uint8 luminance (ITU-R BT.601).

    Raises:
        ImageRefused: colour can be seen.
    """
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    chroma = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    share = float((chroma > COLOUR_STEP).mean())
    if share > COLOUR_SHARE:
        raise ImageRefused(
            f"it is a picture in colour ({share:.0%} of it). Export the film or slice itself, in grey and "
            "without coloured overlays.",
            "colour",
            share=round(100 * share),
        )
    return np.asarray(Image.fromarray(rgb).convert("L"))
