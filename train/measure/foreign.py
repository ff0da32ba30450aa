"""Pictures a screening model was not made for, by kind: to teach its guard and to measure what the guard catches.

Drawn, written, photographed, noisy and wrongly turned pictures, made from a seed. Photographs come from the test
pictures that scikit-image, scikit-learn and matplotlib install; those that teach and those that measure differ.
"""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

SIDE = 288  # pixels of a made picture

# scikit-image's own pictures, of which those to teach and those to measure differ in subject
_TEACHING = ("astronaut.png brick.png cell.png chessboard_GRAY.png clock_motion.png coffee.png coins.png grass.png "
             "horse.png ihc.png logo.png motorcycle_left.png page.png retina.jpg rocket.jpg").split()  # fmt: skip
_MEASURING = ("camera.png chelsea.png color.png gravel.png hubble_deep_field.jpg microaneurysms.png moon.png "
              "text.png").split()  # fmt: skip


@cache
def _photographs(teaching: bool) -> tuple[Image.Image, ...]:
    import matplotlib
    import skimage
    import sklearn

    folder = Path(skimage.__file__).parent / "data"
    files = [folder / name for name in (_TEACHING if teaching else _MEASURING)]
    if not teaching:
        files += sorted((Path(sklearn.__file__).parent / "datasets" / "images").glob("*.jpg"))
        files.append(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    return tuple(Image.open(file).convert("L") for file in files if file.is_file())


def photograph(rng: np.random.Generator, real: Image.Image, teaching: bool) -> Image.Image:
    """Cut a random window of a photograph, sometimes mirrored."""
    pictures = _photographs(teaching)
    picture = pictures[rng.integers(len(pictures))]
    side = int(min(picture.size) * rng.uniform(0.5, 1))
    left, top = (int(rng.integers(full - side + 1)) for full in picture.size)
    window = picture.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return ImageOps.mirror(window) if rng.random() < 0.5 else window


def drawing(rng: np.random.Generator, real: Image.Image, teaching: bool) -> Image.Image:
    """Draw random shapes and strokes on a plain ground."""
    ground, ink = (255, 0) if rng.random() < 0.5 else (int(rng.integers(256)), int(rng.integers(256)))
    picture = Image.new("L", (SIDE, SIDE), ground)
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(3, 14)):
        x0, y0, x1, y1 = rng.integers(0, SIDE, 4)
        box = [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]
        shade, width = int(rng.integers(256)) if rng.random() < 0.5 else ink, int(rng.integers(1, 9))
        shape = rng.integers(4)
        if shape == 0:
            draw.ellipse(box, outline=ink, fill=shade if rng.random() < 0.4 else None, width=width)
        elif shape == 1:
            draw.rectangle(box, outline=ink, fill=shade if rng.random() < 0.4 else None, width=width)
        elif shape == 2:
            draw.line(
                [tuple(p) for p in rng.integers(0, SIDE, (int(rng.integers(2, 9)), 2)).tolist()], ink, width
            )
        else:
            draw.polygon(
                [tuple(p) for p in rng.integers(0, SIDE, (int(rng.integers(3, 7)), 2)).tolist()], shade, ink
            )
    return picture


def document(rng: np.random.Generator, real: Image.Image, teaching: bool) -> Image.Image:
    """Write lines, dark on light or light on dark."""
    light = rng.random() < 0.7
    picture = Image.new("L", (SIDE, SIDE), int(rng.integers(225, 256)) if light else int(rng.integers(0, 40)))
    draw, size = ImageDraw.Draw(picture), int(rng.integers(9, 22))
    font, letters = (
        ImageFont.load_default(size),
        list("abcdefghijklmnopqrstuvwxyzABCDEFGHILMNOPRST0123456789"),
    )
    for y in range(int(rng.integers(4, 30)), SIDE - size, int(size * rng.uniform(1.2, 1.9))):
        words = ["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(rng.integers(1, 8))]
        draw.text((int(rng.integers(4, 40)), y), " ".join(words), 20 if light else 235, font=font)
    return picture


def screenshot(rng: np.random.Generator, real: Image.Image, teaching: bool) -> Image.Image:
    """Draw a viewer's window with tool bars and text around a small copy of the picture."""
    grounds = ((250, 230), (240, 210), (60, 90)) if teaching else ((255, 200), (225, 245), (35, 70))
    ground, bar = grounds[rng.integers(3)]
    picture = Image.new("L", (int(SIDE * 1.4), SIDE), ground)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    draw.rectangle([0, 0, picture.width, int(rng.integers(18, 44))], bar)
    draw.rectangle([0, 0, int(rng.integers(50, 120)), picture.height], bar)
    for y in range(8, SIDE - 10, int(rng.integers(14, 26))):
        draw.text(
            (6, y),
            "".join(rng.choice(list("abcdefghimnorst "), rng.integers(4, 14))),
            255 - ground,
            font=font,
        )
    height = int(SIDE * rng.uniform(0.35, 0.6))
    small = real.resize((max(1, round(height * real.width / real.height)), height))
    picture.paste(small, (int(rng.integers(125, 180)), int(rng.integers(50, SIDE - height))))
    return picture


def noise(rng: np.random.Generator, real: Image.Image, teaching: bool) -> Image.Image:
    """Make white or smoothed noise, a gradient, or the picture's own pixels shuffled."""
    kind = rng.integers(4)
    if kind == 0:
        values = rng.integers(0, 256, (SIDE, SIDE))
    elif kind == 1:
        values = np.add.outer(*(np.linspace(0, rng.uniform(20, 127), SIDE) for _ in range(2)))
    elif kind == 2:
        values = rng.permutation(np.asarray(real).ravel()).reshape(real.height, real.width)
    else:
        rough = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE)).astype(np.uint8))
        return ImageOps.autocontrast(rough.filter(ImageFilter.GaussianBlur(float(rng.uniform(1, 12)))))
    return Image.fromarray(values.astype(np.uint8))


def lying(rng: np.random.Generator, real: Image.Image, teaching: bool) -> Image.Image:
    """Turn the picture by a quarter to either side."""
    return real.transpose(Image.Transpose.ROTATE_90 if rng.random() < 0.5 else Image.Transpose.ROTATE_270)


def upside_down(rng: np.random.Generator, real: Image.Image, teaching: bool) -> Image.Image:
    """Turn the picture by half."""
    return real.transpose(Image.Transpose.FLIP_TOP_BOTTOM)


def negative(rng: np.random.Generator, real: Image.Image, teaching: bool) -> Image.Image:
    """Exchange black and white."""
    return ImageOps.invert(real)


def fragment(rng: np.random.Generator, real: Image.Image, teaching: bool) -> Image.Image:
    """Blow up a small detail (a quarter of the sides, or less)."""
    part = rng.uniform(0.12, 0.25)
    width, height = max(8, int(real.width * part)), max(8, int(real.height * part))
    left, top = int(rng.integers(real.width - width + 1)), int(rng.integers(real.height - height + 1))
    return real.crop((left, top, left + width, top + height)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


Maker = Callable[[np.random.Generator, Image.Image, bool], Image.Image]
MAKERS: dict[str, Maker] = {
    make.__name__: make
    for make in (photograph, drawing, document, screenshot, noise, lying, upside_down, negative, fragment)
}
TURNED = {"lying", "upside_down"}
"""Kinds a CT slice may well be: slices are stored in every orientation, so only X-rays are refused for these."""


def kinds_for(modality: str) -> dict[str, Maker]:
    """List the kinds that a model of this modality has to refuse."""
    return {name: make for name, make in MAKERS.items() if modality == "xray" or name not in TURNED}


def foreign_pictures(
    reals: list[Image.Image], modality: str, count: int, seed: int, teaching: bool
) -> dict[str, Iterator[Image.Image]]:
    """Make ``count`` pictures of each kind a model of ``modality`` must refuse, from ``reals`` if a kind needs one.

    Args:
        reals: grey pictures of this modality, the part that teaches or the part that measures.
        modality: ``xray`` or ``ct``.
        count: pictures a kind.
        seed: the same seed makes the same pictures.
        teaching: whether they teach the guard; measuring draws other photographs and other windows.
    """

    def make_all(make: Maker, rng: np.random.Generator) -> Iterator[Image.Image]:
        for _ in range(count):
            yield make(rng, reals[rng.integers(len(reals))], teaching)

    seeds = np.random.SeedSequence([seed, int(teaching)]).spawn(len(MAKERS))
    rngs = {name: np.random.default_rng(s) for name, s in zip(MAKERS, seeds, strict=True)}
    return {name: make_all(make, rngs[name]) for name, make in kinds_for(modality).items()}
