"""The colours of a heat map on the picture; `evidence` makes the map and says what it means.

A map holds probabilities: 0.5 is neutral, above it speaks for COVID, below it against, and the same value means
the same in every picture. It shows what moved the network, not disease.
"""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw

FOR, AGAINST = (230, 97, 1), (45, 110, 190)  # orange and blue, told apart by colour-blind readers too
OPACITY = 0.6  # of the strongest evidence
LEVELS = 254  # steps of a map between 0 and 1 that are told apart; even, so that 0.5 is one of them
ROWS = 16  # of a picture that are tinted at once


def overlay(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """Tint the grey picture, in RGB of the same size: orange where the map speaks for the class, blue where against.

    The tint is a fixed function of the map's value, the same in every picture; `legend` shows it.
    """
    levels = np.rint(np.clip(heat, 0, 1) * LEVELS).astype(np.uint8)
    fine = np.asarray(Image.fromarray(levels).resize(image.size, Image.Resampling.BILINEAR))
    grey = np.asarray(image if image.mode == "L" else image.convert("L"))
    # one look-up a pixel: with millions of pixels computing each takes longer than the network; some rows at a time, so
    # that their indices, eight times as large as the picture, never leave the processor's cache
    tints, tinted = _tints(), np.empty(grey.shape, np.uint32)
    for top in range(0, len(grey), ROWS):
        rows = slice(top, top + ROWS)
        index = fine[rows].astype(np.intp) * 256 + grey[rows]
        # "raise", the default mode, writes to a copy first
        tints.take(index, out=tinted[rows], mode="wrap")
    return Image.frombytes("RGB", image.size, tinted.data, "raw", "RGBX")


def legend(
    width: int = 320, labels: tuple[str, str, str] = ("against COVID", "neutral", "for COVID")
) -> Image.Image:
    """Draw the colour scale of `overlay` as a strip of RGB, `width` pixels wide: 0 at the left, 1 at the right."""
    bar, margin = 14, 18
    strip = np.zeros((bar + margin, width, 3), np.float32)
    strip[:bar] = 128
    scale = np.full(strip.shape[:2], 0.5, np.float32)
    scale[:bar] = np.linspace(0, 1, width, dtype=np.float32)
    picture = Image.fromarray(_tint(strip, scale))
    pen = ImageDraw.Draw(picture)
    for text, x, anchor in zip(labels, (2, width // 2, width - 2), ("lt", "mt", "rt"), strict=True):
        pen.text((x, bar + 3), text, fill=(255, 255, 255), anchor=anchor)
    return picture


@cache
def _tints() -> np.ndarray:
    """Return (LEVELS + 1) * 256 colours, the bytes R, G, B, 0 as one number: of each step of a map on each grey."""
    heat, grey = np.mgrid[: LEVELS + 1, :256].astype(np.float32)
    colours = _tint(np.repeat(grey[..., None], 3, axis=2), heat / np.float32(LEVELS))
    padded = np.concatenate([colours, np.zeros_like(colours[..., :1])], axis=2)
    return np.ascontiguousarray(padded).view(np.uint32).ravel()


def _tint(grey: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Blend (H, W, 3) in 0..255 with the colours of the map (H, W) in 0..1."""
    strength = OPACITY * np.abs(2 * heat - 1)[..., None]
    colour = np.where(heat[..., None] > 0.5, np.float32(FOR), np.float32(AGAINST))
    return ((1 - strength) * grey + strength * colour).round().clip(0, 255).astype(np.uint8)
