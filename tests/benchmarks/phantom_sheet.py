"""A contact sheet: phantoms above, real pictures below, class by class; to judge with one's own eyes.

    python -m tests.benchmarks.phantom_sheet ../shared/data sheet.png [--modality ct] [--columns 7] [--seed 0]

DATA is a folder with a `metadata.csv` (file_name, modality, label). The sheet holds real pictures: mind
their licence before passing it on.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from hub_model.hub_folder import LABELS, MODALITIES
from train.phantom import draw_patient, draw_view, grey

CELL = (230, 230)  # pixels
GAP = 4


def phantoms(modality: str, label: int, count: int, seed: int) -> list[Image.Image]:
    """One view each of `count` synthetic patients of a class."""
    pictures = []
    for number in range(label, 2 * count, 2):
        thorax, _ = draw_patient(seed, number)
        view = draw_view(thorax, modality, np.random.default_rng([seed, number]))
        pictures.append(Image.fromarray(grey(view)))
    return pictures


def real(data: Path, modality: str, label: int, count: int, seed: int) -> list[Image.Image]:
    """Real pictures of a class, at random."""
    with open(data / "metadata.csv", newline="", encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    rows = [row for row in table if (row["modality"], row["label"]) == (modality, LABELS[label])]
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    return [Image.open(data / rows[index]["file_name"]).convert("L") for index in chosen]


def sheet(rows: list[tuple[str, list[Image.Image]]]) -> Image.Image:
    """Rows of pictures, each under its title."""
    width, height = CELL[0] + GAP, CELL[1] + GAP + 16
    canvas = Image.new("L", (width * max(len(pictures) for _, pictures in rows), height * len(rows)), 40)
    draw = ImageDraw.Draw(canvas)
    for line, (title, pictures) in enumerate(rows):
        draw.text((GAP, line * height + 2), title, fill=255)
        for column, picture in enumerate(pictures):
            picture.thumbnail(CELL)
            canvas.paste(picture, (column * width, line * height + 16))
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with real pictures and metadata.csv")
    parser.add_argument("out", type=Path, help="picture file to write")
    parser.add_argument("--modality", choices=MODALITIES)
    parser.add_argument("--columns", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = []
    for modality in [args.modality] if args.modality else MODALITIES:
        for label in (1, 0):
            what = (modality, label, args.columns, args.seed)
            rows.append((f"PHANTOM {modality} {LABELS[label]}", phantoms(*what)))
            rows.append((f"real {modality} {LABELS[label]}", real(args.data, *what)))
    sheet(rows).save(args.out)
    print(args.out)


if __name__ == "__main__":
    main()
