"""Learn from other models' probabilities: one network instead of several (Hinton et al. 2015, arXiv:1503.02531)."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from scipy.special import expit

from hub_model import hub_folder
from hub_model.grey import ImageRefused
from hub_model.images import read_image
from hub_model.refused import Refused

from ..measure.predict import run
from .batches import Images


class TeacherRefused(Refused):
    """A teacher that was made for other pictures."""


def with_teachers(
    train: Images,
    part,
    teachers: list[str],
    unlabelled: Path | None,
    transform,
    config: dict,
    share: float,
    modality: str,
) -> Images:
    """Training images whose targets are mixed with the mean probability of the teachers.

    Args:
        train: the labelled images.
        part: the rows they came from.
        teachers: hub folders of the same modality; each sees the pictures through its own preprocessing.
        unlabelled: a folder of further pictures that the teachers alone label, or None.
        transform, config: of the network to be trained.
        share: the teachers' share in the targets of labelled images.
        modality: of the pictures.

    Raises:
        FolderRefused: a teacher cannot be opened, or names its classes otherwise.
        TeacherRefused: a teacher reads the other modality.
    """
    folders = [hub_folder.load(teacher) for teacher in teachers]
    for folder in folders:
        if folder.modality != modality:
            raise TeacherRefused(
                f"--teacher {folder.path} reads {folder.modality} pictures, and these are {modality}: its "
                "probabilities would mean nothing. Give a teacher of the same modality."
            )
    told = _mean_probability(folders, [row["image"].convert("L") for row in part])
    train.targets = torch.lerp(train.targets, _two(told), share)
    if unlabelled is None:
        return train
    pictures = list(_pictures(unlabelled))
    mean, std = config["pretrained_cfg"]["mean"][0], config["pretrained_cfg"]["std"][0]
    pixels = [((transform(p)[:1] * std + mean) * 255).round().to(torch.uint8) for p in pictures]
    count = len(pictures)
    return Images(
        torch.cat([train.pixels, torch.stack(pixels)]),
        torch.cat([train.labels, torch.full((count,), -1)]),
        torch.cat([train.targets, _two(_mean_probability(folders, pictures))]),
        np.r_[train.sources, np.full(count, "unlabelled")],
        [*train.paths, *(f"unlabelled {index}" for index in range(count))],
    )


def _mean_probability(folders: list[hub_folder.HubFolder], pictures: list[Image.Image]) -> np.ndarray:
    each = [
        expit(run(folder, track(pictures, f"teacher {folder.path.name}", transient=True))[0])
        for folder in folders
    ]
    return np.mean(each, axis=0)


def _two(probabilities: np.ndarray) -> torch.Tensor:
    covid = torch.from_numpy(probabilities).float()
    return torch.stack([1 - covid, covid], 1)


def _pictures(folder: Path):
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            yield read_image(file)
        except ImageRefused:
            continue  # not every file in a folder of pictures is one
