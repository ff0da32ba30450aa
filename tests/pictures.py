"""Small pictures whose grey levels are known, and the rule by which deep ones are shown, for tests of the reading."""

import io

import numpy as np
from PIL import Image

from hub_model.images import read_image
from tests.bad_files import grey_picture

SIDE = 40
RAMP = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE)  # 0..1599, each value once
GREY = np.asarray(grey_picture())


def values(source, **options) -> np.ndarray:
    picture = read_image(source, **options)
    assert picture.mode == "L" and not picture.info and not picture.getexif()
    return np.asarray(picture).astype(int)


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def stretched(numbers: np.ndarray) -> np.ndarray:
    """The documented rule, written once more: 0.5th..99.5th percentile to 0..255."""
    low, high = np.percentile(numbers, [0.5, 99.5])
    return np.rint(np.clip((numbers - low) / (high - low), 0, 1) * 255)
