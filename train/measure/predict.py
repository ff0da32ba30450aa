"""Run a hub folder's network over a part of the data, as every verb after training does."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from hub_model import evidence, hub_folder

BATCH = 32


@dataclass(frozen=True)
class Predictions:
    """What the network said of n pictures.

    Attributes:
        margins: (n,) float64, logit of COVID minus logit of Non-COVID; sigmoid gives P(COVID).
        features: (n, D) float32, the guard's view.
        labels: (n,) int, -1 where unknown.
        families, sources: (n,) str.
    """

    margins: np.ndarray
    features: torch.Tensor
    labels: np.ndarray
    families: np.ndarray
    sources: np.ndarray


def predict(folder: hub_folder.HubFolder, part, name: str, change=None) -> Predictions:
    """Predict every row of a `datasets.Dataset` part.

    Args:
        folder: an opened hub folder.
        part: rows with image, label, family and source.
        name: shown beside the progress bar.
        change: optional, grey picture -> grey picture, applied before the preprocessing (the audits use it).
    """
    images = (row["image"].convert("L") for row in part.select_columns("image"))
    if change is not None:
        images = map(change, images)
    margins, features = run(folder, track(images, description=name, total=len(part), transient=True))
    columns = part.select_columns(["label", "family", "source"]).to_dict()
    return Predictions(
        margins,
        features,
        np.array(columns["label"]),
        np.array(columns["family"]),
        np.array(columns["source"]),
    )


@torch.inference_mode()
def run(folder: hub_folder.HubFolder, images: Iterable[Image.Image]) -> tuple[np.ndarray, torch.Tensor]:
    """Margins (n,) and guard features (n, D) of grey pictures."""
    margins, features = [], []
    for batch in batches(map(folder.transform, images)):
        logits, _, view = evidence.view(folder.model, torch.stack(batch))
        margins.append((logits[:, 1] - logits[:, 0]).double())
        features.append(view)
    return torch.cat(margins).numpy(), torch.cat(features)


def batches(tensors: Iterable[torch.Tensor], size: int = BATCH) -> Iterator[list[torch.Tensor]]:
    """Lists of at most ``size``."""
    batch = []
    for tensor in tensors:
        batch.append(tensor)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
