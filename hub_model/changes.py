"""Changes of a picture that no radiologist would mind: by how much do they move the answer?

One table. Training draws from it for both classes alike, so that a network cannot use them; audits apply each of them
and count the answers that change. numpy and Pillow alone.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

Grey = np.ndarray
"""(H, W) uint8, a grey picture at its own size."""


@dataclass(frozen=True)
class Change:
    """A harmless change.

    Attributes:
        name: Short, for tables: "cropped 10 % a side".
        apply: Grey picture -> changed grey picture; the same picture always gives the same result.
        modalities: Those it makes sense for.
        limit: Share of answers that may change at most, as promised by the model card.
    """

    name: str
    apply: Callable[[Grey], Grey]
    modalities: tuple[str, ...] = ("xray", "ct")
    limit: float = 0.03


def cropped(grey: Grey, left: float, top: float, right: float, bottom: float) -> Grey:
    """Cut off shares of the width and height; at least 16 pixels stay each way."""
    height, width = grey.shape
    x0, x1 = round(left * width), width - round(right * width)
    y0, y1 = round(top * height), height - round(bottom * height)
    if x1 - x0 < 16 or y1 - y0 < 16:
        return grey
    return grey[y0:y1, x0:x1]


def bordered(grey: Grey, left: float, top: float, right: float, bottom: float, level: int = 0) -> Grey:
    """Add margins of one grey level; shares of the width and height as they came."""
    height, width = grey.shape
    across, down = (round(left * width), round(right * width)), (round(top * height), round(bottom * height))
    return np.pad(grey, (down, across), constant_values=level)


def letterboxed(grey: Grey) -> Grey:
    """Pad with black to a square."""
    height, width = grey.shape
    side = max(height, width)
    y, x = (side - height) // 2, (side - width) // 2
    return np.pad(grey, ((y, side - height - y), (x, side - width - x)))


def compressed(grey: Grey, quality: int, form: str = "JPEG") -> Grey:
    """Save with losses ("JPEG" or "WEBP") and open again."""
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, form, quality=quality)
    return np.asarray(Image.open(buffer).convert("L"))


def resampled(grey: Grey, side: int) -> Grey:
    """Bring the shorter side to so many pixels."""
    height, width = grey.shape
    factor = side / min(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0))


def toned(grey: Grey, gamma: float = 1.0, centre: float = 0.5, width: float = 1.0) -> Grey:
    """Change the grey-level curve: exponent of the levels in 0..1, then a window of that centre and width."""
    levels = (np.arange(256) / 255) ** gamma
    levels = ((levels - centre) / width + 0.5).clip(0, 1)
    return (levels * 255).round().astype(np.uint8)[grey]


def blurred(grey: Grey, share: float) -> Grey:
    """Blur by a Gaussian; standard deviation as a share of the shorter side."""
    return np.asarray(Image.fromarray(grey).filter(ImageFilter.GaussianBlur(share * min(grey.shape))))


def sharpened(grey: Grey, factor: float) -> Grey:
    """Sharpen as Pillow does: 1 leaves the picture as it is."""
    return np.asarray(ImageEnhance.Sharpness(Image.fromarray(grey)).enhance(factor))


def noisy(grey: Grey, deviation: float, seed: int = 0) -> Grey:
    """Add white noise; standard deviation in 0..1."""
    noise = np.random.default_rng(seed).standard_normal(grey.shape, np.float32) * (deviation * 255)
    return (grey + noise).round().clip(0, 255).astype(np.uint8)


def turned(grey: Grey, degrees: float) -> Grey:
    """Rotate about the middle; what comes in from outside is black."""
    return np.asarray(Image.fromarray(grey).rotate(degrees, Image.Resampling.BILINEAR))


def mirrored(grey: Grey) -> Grey:
    """Exchange left and right."""
    return np.ascontiguousarray(grey[:, ::-1])


def masked_corners(grey: Grey, share: float = 0.1, level: int = 0) -> Grey:
    """Blank the four corners, where letters and markers stand."""
    changed = grey.copy()
    y, x = round(share * grey.shape[0]), round(share * grey.shape[1])
    for rows in (slice(0, y), slice(grey.shape[0] - y, None)):
        for columns in (slice(0, x), slice(grey.shape[1] - x, None)):
            changed[rows, columns] = level
    return changed


def lettered(grey: Grey, text: str = "R  PORTABLE", x: float = 0.03, y: float = 0.03) -> Grey:
    """Print text, as machines do; the position is that of its upper left corner, in shares."""
    picture = Image.fromarray(grey)
    size = max(8, min(grey.shape) // 16)
    place = (x * grey.shape[1], y * grey.shape[0])
    ImageDraw.Draw(picture).text(place, text, fill=255, font_size=size)
    return np.asarray(picture)


def _around(share: float) -> dict[str, float]:
    return {"left": share, "top": share, "right": share, "bottom": share}


def _rows() -> list[Change]:
    films, slices = ("xray",), ("ct",)
    rows = [
        Change(
            f"cropped {share:.0%} a side".replace("%", " %"),
            lambda grey, s=share: cropped(grey, **_around(s)),
        )
        for share in (0.05, 0.10, 0.15)
    ]
    rows += [
        Change("black border 5 %", lambda grey: bordered(grey, **_around(0.05))),
        Change("white border 5 %", lambda grey: bordered(grey, **_around(0.05), level=255)),
        Change("padded to a square", letterboxed),
    ]
    rows += [Change(f"JPEG, quality {q}", lambda grey, q=q: compressed(grey, q)) for q in (75, 40)]
    rows += [
        Change("WebP, quality 40", lambda grey: compressed(grey, 40, "WEBP")),
        Change("resized to 256 px", lambda grey: resampled(grey, 256)),
        Change("gamma 0.8", lambda grey: toned(grey, gamma=0.8)),
        Change("gamma 1.25", lambda grey: toned(grey, gamma=1.25)),
        Change("window 5 % down", lambda grey: toned(grey, centre=0.45), slices),
        Change("window 5 % up", lambda grey: toned(grey, centre=0.55), slices),
        Change("blurred", lambda grey: blurred(grey, 0.003)),
        Change("noise of 2 %", lambda grey: noisy(grey, 0.02)),
        Change("mirrored", mirrored),
        Change("turned by 5 degrees", lambda grey: turned(grey, 5)),
        Change("corners masked", masked_corners),
        Change("text printed", lettered, films),
    ]
    return rows


CHANGES: tuple[Change, ...] = tuple(_rows())
"""What audits apply, one row a change."""


def random_copy(grey: Grey, rng: np.random.Generator, crop: float = 0.33) -> Grey:
    """Change a picture strongly and at random: frame, turn, tone, resolution, noise, corners and compression.

    Args:
        grey: (H, W) uint8.
        rng: where the numbers come from; the same state gives the same copy.
        crop: Largest share cut off each side; both sides together never take more than half.

    Returns:
        (H', W') uint8.
    """
    chance = lambda share: rng.random() < share  # noqa: E731
    if chance(0.35):
        grey = turned(grey, rng.uniform(-8, 8))
    if chance(0.65):
        sides = rng.uniform(0, crop, 4) * rng.choice([0.5, 1.0])
        left, right = _at_most_half(sides[0], sides[2])
        top, bottom = _at_most_half(sides[1], sides[3])
        grey = cropped(grey, left, top, right, bottom)
    if chance(0.35):
        level = int(rng.choice([0, 0, 255, rng.integers(0, 256)]))
        grey = bordered(grey, *(rng.uniform(0, 0.12, 4) * rng.integers(0, 2, 4)), level=level)
    if chance(0.15):
        grey = letterboxed(grey)
    if chance(0.5):
        grey = mirrored(grey)
    if chance(0.7):
        gamma = math.exp(rng.uniform(math.log(0.6), math.log(1.6)))
        grey = toned(grey, gamma, rng.uniform(0.38, 0.62), rng.uniform(0.75, 1.35))
    if chance(0.5):
        grey = resampled(grey, int(rng.uniform(128, 360)))
    if chance(0.25):
        grey = blurred(grey, rng.uniform(0.001, 0.005))
    elif chance(0.25):
        grey = sharpened(grey, rng.uniform(1, 3))
    if chance(0.25):
        grey = noisy(grey, rng.uniform(0, 0.04), int(rng.integers(2**31)))
    if chance(0.2):
        grey = masked_corners(grey, rng.uniform(0.03, 0.15), int(rng.choice([0, 255, rng.integers(0, 256)])))
    if chance(0.15):
        grey = lettered(
            grey, "".join(rng.choice(list("LRAPSUPINE  "), 6)), rng.uniform(0, 0.8), rng.uniform(0, 0.2)
        )
    if chance(0.6):
        grey = compressed(grey, int(rng.uniform(15, 95)), str(rng.choice(["JPEG", "JPEG", "JPEG", "WEBP"])))
    return grey


def _at_most_half(one: float, other: float) -> tuple[float, float]:
    scale = min(1.0, 0.5 / max(one + other, 1e-9))
    return one * scale, other * scale
