"""A contact sheet of phantoms, class by class; beside real pictures, to judge with one's own eyes.

    python -m tests.benchmarks.phantom_sheet docs/phantoms.png --columns 7 --cell 130
    python -m tests.benchmarks.phantom_sheet sheet.png --beside ../shared/data [--modality ct] [--seed 0]

DATA is a folder with a `metadata.csv` (file_name, modality, label). A sheet with real pictures: mind their
licence before passing it on.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from hub_model.hub_folder import LABELS, MODALITIES
from train.phantom.phantom import draw_patient, draw_view, grey

GAP = 4  # pixels
TITLE = 16


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


def sheet(rows: list[tuple[str, list[Image.Image]]], cell: int) -> Image.Image:
    """Rows of pictures of at most `cell` pixels a side, each row under its title and as high as it needs."""
    for _, pictures in rows:
        for picture in pictures:
            picture.thumbnail((cell, cell))
    heights = [TITLE + GAP + max(picture.height for picture in pictures) for _, pictures in rows]
    width = (cell + GAP) * max(len(pictures) for _, pictures in rows) - GAP
    canvas, top = Image.new("L", (width, sum(heights)), 40), 0
    for (title, pictures), height in zip(rows, heights, strict=True):
        ImageDraw.Draw(canvas).text((GAP, top + 2), title, fill=255)
        for column, picture in enumerate(pictures):
            canvas.paste(picture, (column * (cell + GAP), top + TITLE))
        top += height
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="picture file to write")
    parser.add_argument("--beside", type=Path, help="folder with real pictures and metadata.csv")
    parser.add_argument("--modality", choices=MODALITIES)
    parser.add_argument("--columns", type=int, default=7)
    parser.add_argument("--cell", type=int, default=230, help="pixels a picture takes, at most, a side")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = []
    for modality in [args.modality] if args.modality else MODALITIES:
        for label in (1, 0):
            what = (modality, label, args.columns, args.seed)
            rows.append((f"synthetic {modality}, {LABELS[label]}", phantoms(*what)))
            if args.beside:
                rows.append((f"real {modality}, {LABELS[label]}", real(args.beside, *what)))
    sheet(rows, args.cell).save(args.out, optimize=True)
    print(args.out)


if __name__ == "__main__":
    main()
