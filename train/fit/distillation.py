"""Learn from other models' probabilities: one network instead of several (Hinton et al. 2015, arXiv:1503.02531)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from scipy.special import expit

from hub_model import hub_folder, lungs
from hub_model.grey import ImageRefused
from hub_model.images import read_image
from hub_model.refused import Refused

from ..measure.predict import run
from .batches import Images
from .settings import Settings

if TYPE_CHECKING:
    from datasets import Dataset


def ask_teachers(
    settings: Settings,
    train: Images,
    rows: "Dataset",
    further: Images | None,
    pictures: list[Image.Image],
) -> None:
    """Mix the targets of the training images with the mean probability of the teachers.

    Each teacher sees the pictures through its own preprocessing.

    Args:
        settings: name the teachers and their share.
        train: the labelled images; their targets are set.
        rows: what they were read from, in the same order.
        further: images without labels, which take what the teachers say alone; None where there are none.
        pictures: what those were read from, in the same order.

    Raises:
        FolderRefused: a teacher cannot be opened, or names its classes otherwise.
        Refused: a teacher reads the other modality.
    """
    teachers = [hub_folder.open_folder(teacher) for teacher in settings.teacher]
    for teacher in teachers:
        if teacher.modality != settings.modality:
            raise Refused(
                f"--teacher {teacher.path} reads {teacher.modality} pictures, and these are {settings.modality}: its "
                "probabilities would mean nothing. Give a teacher of the same modality."
            )
    targets = _targets(teachers, [row["image"].convert("L") for row in rows])
    train.targets = torch.lerp(train.targets, targets, settings.distil)
    if further is not None:
        further.targets = _targets(teachers, pictures)


def _targets(teachers: Sequence[hub_folder.HubFolder], pictures: list[Image.Image]) -> torch.Tensor:
    """Average the probabilities that the teachers give each picture, (n, 2) float32."""
    each = [
        expit(run(teacher, track(pictures, f"teacher {teacher.path.name}", transient=True))[0])
        for teacher in teachers
    ]
    covid = torch.from_numpy(np.mean(each, axis=0)).float()
    return torch.stack([1 - covid, covid], 1)


def unlabelled_pictures(folders: Sequence[Path], finder: lungs.LungFinder | None = None) -> list[Image.Image]:
    """Read the grey pictures in some folders, by folder in the order of their names; skip other files.

    Args:
        folders: searched to any depth.
        finder: where given, pictures in which it finds no lung are passed over too.

    Raises:
        Refused: there is none in one of them.
    """
    found = []
    for folder in folders:
        pictures = [picture for picture in _readable(folder) if finder is None or finder.find(picture).found]
        if not pictures:
            what = "holds no picture that can be read" if folder.is_dir() else "is no folder"
            what = what if finder is None or not folder.is_dir() else f"{what} and shows lungs"
            raise Refused(
                f"--unlabelled {folder} {what}. Give a folder of pictures, or leave --unlabelled out."
            )
        found += pictures
    return found


def _readable(folder: Path) -> Iterator[Image.Image]:
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            yield read_image(file)
        except ImageRefused:
            continue  # not every file in a folder of pictures is one
