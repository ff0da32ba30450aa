"""An augmented archive with known truth, made from real pictures: the recipe behind the family benchmarks.

Public COVID-19 picture archives hold one original many times over: rotated, mirrored, cropped, brightened.
This module makes such an archive in the documented layout (`COVID-19 Dataset/{X-ray,CT}/{COVID,Non-COVID}/`)
from a folder with a `metadata.csv`, and writes beside it which file came from which original by which steps.

    python -m tests.augmented DATA OUT [--modality ct] [--originals 400] [--copies 10] [--seed 0]

OUT is a folder, or a zip file if it ends in `.zip`. The truth table lies outside the archive, in
`OUT/truth.csv` or `OUT.zip.truth.csv`, so that whoever reads the archive cannot read the answer.
"""

import argparse
import csv
import io
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

ROOT = "COVID-19 Dataset"
FOLDERS = {"xray": "X-ray", "ct": "CT"}
TRUTH_COLUMNS = ("file_name", "original", "group", "modality", "label", "steps")
Step = tuple[str, np.ndarray]


@dataclass(frozen=True)
class Original:
    """One picture of the source collection; pictures of one `group` are one patient or look-alikes."""

    path: Path
    modality: str
    label: str
    group: str


def originals(
    data: Path, modality: str | None = None, limit: int | None = None, seed: int = 0
) -> list[Original]:
    """Read the originals of a data folder from its `metadata.csv`, shuffled, at most `limit` per modality."""
    with open(data / "metadata.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    chosen = []
    for wanted in [modality] if modality else sorted({row["modality"] for row in rows}):
        some = [row for row in rows if row["modality"] == wanted]
        order = np.random.default_rng(seed).permutation(len(some))[:limit]
        chosen += [some[index] for index in order]
    return [Original(data / row["file_name"], row["modality"], row["label"], row["group"]) for row in chosen]


def mirror(image: np.ndarray, rng: np.random.Generator) -> Step:
    """Flip left-right, top-bottom or both."""
    axis = int(rng.choice([1, 0, -1]))
    return f"mirror({ {1: 'left-right', 0: 'top-bottom', -1: 'both'}[axis] })", cv2.flip(image, axis)


def _fill(image: np.ndarray, rng: np.random.Generator) -> tuple[str, dict]:
    """What stands where the picture ends: the five fills that augmentation libraries offer."""
    name = str(rng.choice(["black", "white", "mean", "edge", "reflect"]))
    level = {"black": 0, "white": 255, "mean": float(image.mean())}.get(name, 0)
    mode = {"edge": cv2.BORDER_REPLICATE, "reflect": cv2.BORDER_REFLECT_101}.get(name, cv2.BORDER_CONSTANT)
    return name, {"borderMode": mode, "borderValue": level, "flags": cv2.INTER_LINEAR}


def rotate(image: np.ndarray, rng: np.random.Generator) -> Step:
    """Turn by any angle, one time in four by quarter turns; one time in three the canvas grows along."""
    name, fill = _fill(image, rng)
    height, width = image.shape
    angle = float(rng.choice([90, 180, 270])) if rng.random() < 0.25 else float(rng.uniform(-180, 180))
    grows = angle % 90 == 0 or rng.random() < 1 / 3
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    size = (width, height)
    if grows:
        cos, sin = abs(matrix[0, 0]), abs(matrix[0, 1])
        size = (round(width * cos + height * sin), round(width * sin + height * cos))
        matrix[:, 2] += (np.array(size) - (width, height)) / 2
    return f"rotate({angle:.0f}, {name}{', grown' if grows else ''})", cv2.warpAffine(
        image, matrix, size, **fill
    )


def zoom(image: np.ndarray, rng: np.random.Generator) -> Step:
    """Cut out a window of 65 to 95 % of each side; one time in three shrink the picture inside its frame."""
    height, width = image.shape
    share = float(rng.uniform(0.65, 0.95))
    if rng.random() < 1 / 3:
        name, fill = _fill(image, rng)
        free = np.array([width, height]) * (1 - share)
        matrix = np.column_stack([np.eye(2) * share, free * rng.random(2)])
        return f"shrink({share:.2f}, {name})", cv2.warpAffine(image, matrix, (width, height), **fill)
    rows, columns = round(height * share), round(width * share)
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    window = image[top : top + rows, left : left + columns]
    if rng.random() < 0.5:
        window = cv2.resize(window, (width, height), interpolation=cv2.INTER_CUBIC)
    return f"crop({share:.2f})", window


def light(image: np.ndarray, rng: np.random.Generator) -> Step:
    """Change gamma (0.6 to 1.6), contrast (0.6 to 1.4) and brightness (up to 40 of 255 grey levels)."""
    gamma = float(np.exp(rng.uniform(np.log(0.6), np.log(1.6))))
    contrast, brightness = float(rng.uniform(0.6, 1.4)), float(rng.uniform(-40, 40))
    levels = 255 * (np.arange(256) / 255) ** gamma
    table = ((levels - 127.5) * contrast + 127.5 + brightness).clip(0, 255).astype(np.uint8)
    return f"light(gamma {gamma:.2f}, contrast {contrast:.2f}, brightness {brightness:+.0f})", table[image]


def blur(image: np.ndarray, rng: np.random.Generator) -> Step:
    """Gaussian blur of 0.5 to 1.5 pixels."""
    sigma = float(rng.uniform(0.5, 1.5))
    return f"blur({sigma:.1f})", cv2.GaussianBlur(image, (0, 0), sigma)


def noise(image: np.ndarray, rng: np.random.Generator) -> Step:
    """Gaussian noise of 3 to 15 grey levels; one time in four salt and pepper on 0.5 to 2 % of the pixels."""
    if rng.random() < 0.25:
        share = float(rng.uniform(0.005, 0.02))
        hit, salt = rng.random(image.shape) < share, rng.random(image.shape) < 0.5
        return f"salt-and-pepper({share:.3f})", np.where(hit, np.where(salt, 255, 0), image).astype(np.uint8)
    sigma = float(rng.uniform(3, 15))
    noisy = image + rng.normal(0, sigma, image.shape)
    return f"noise({sigma:.0f})", noisy.round().clip(0, 255).astype(np.uint8)


def resize(image: np.ndarray, rng: np.random.Generator) -> Step:
    """Bring to half to one and a half times the size, or (one time in three) squash to 224 x 224 pixels."""
    if rng.random() < 1 / 3:
        return "squash(224)", cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA)
    factor = float(rng.uniform(0.5, 1.5))
    size = tuple(max(32, round(side * factor)) for side in image.shape[::-1])
    return f"resize({factor:.2f})", cv2.resize(
        image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    )


STEPS = (mirror, rotate, zoom, light, blur, noise, resize)


def augment(image: np.ndarray, rng: np.random.Generator) -> tuple[bytes, str, str]:
    """Make one copy: every step is taken with probability one half, at least one of them.

    Args:
        image: grey picture, (height, width) uint8.
        rng: source of all chance.

    Returns:
        The encoded file, its suffix (`.jpg` if re-compressed with quality 30 to 90, else `.png`), the steps.
    """
    taken = []
    chosen = rng.random(len(STEPS) + 1) < 0.5
    if not chosen.any():
        chosen[rng.integers(len(chosen))] = True
    for step in np.array(STEPS, dtype=object)[chosen[:-1]]:
        name, image = step(image, rng)
        taken.append(name)
    if not chosen[-1]:
        return cv2.imencode(".png", image)[1].tobytes(), ".png", " ".join(taken)
    quality = int(rng.integers(30, 91))
    taken.append(f"recompress({quality})")
    return (
        cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes(),
        ".jpg",
        " ".join(taken),
    )


def copies_of(original: Original, copies: int, rng: np.random.Generator) -> Iterator[tuple[bytes, str, str]]:
    """Yield (file content, suffix, steps): the original as it is, then `copies` augmented ones."""
    content = original.path.read_bytes()
    yield content, original.path.suffix, ""
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
    for _ in range(copies):
        yield augment(image, rng)


class _Folder:
    """Writes an archive as a folder; the same two verbs as `zipfile.ZipFile`."""

    def __init__(self, root: Path):
        self.root = root

    def writestr(self, name: str, content: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def close(self) -> None:
        pass


def write_archive(sources: list[Original], out: Path, copies: int = 10, seed: int = 0) -> Path:
    """Write the archive and its truth table; the same arguments give the same bytes.

    Args:
        sources: originals, see `originals`.
        out: folder to make, or a path ending in `.zip`.
        copies: augmented copies per original; the original itself is always there too.
        seed: of every random choice. File numbers are dealt at random, so that no name tells its family.

    Returns:
        Path of the truth table (`TRUTH_COLUMNS`).
    """
    zipped = out.suffix.lower() == ".zip"
    truth = out.with_name(out.name + ".truth.csv") if zipped else out / "truth.csv"
    (out.parent if zipped else out).mkdir(parents=True, exist_ok=True)
    archive = zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) if zipped else _Folder(out)
    numbers = iter(np.random.default_rng(seed).permutation(len(sources) * (copies + 1)))
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(TRUTH_COLUMNS)
    for place, original in enumerate(sources):
        rng = np.random.default_rng([seed, place])
        for content, suffix, steps in copies_of(original, copies, rng):
            name = f"{ROOT}/{FOLDERS[original.modality]}/{original.label}/{next(numbers):06d}{suffix}"
            archive.writestr(name, content)
            writer.writerow(
                [name, original.path.name, original.group, original.modality, original.label, steps]
            )
    archive.close()
    partial = truth.with_name(truth.name + ".part")
    partial.write_text(table.getvalue(), encoding="utf-8")
    os.replace(partial, truth)
    return truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with metadata.csv")
    parser.add_argument("out", type=Path, help="folder to make, or a path ending in .zip")
    parser.add_argument("--modality", choices=FOLDERS)
    parser.add_argument("--originals", type=int, help="at most so many per modality (default: all)")
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chosen = originals(args.data, args.modality, args.originals, args.seed)
    print(write_archive(chosen, args.out, args.copies, args.seed))


if __name__ == "__main__":
    main()
