"""Run a hub folder's network over pictures, as every verb after training does."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from hub_model import evidence, hub_folder
from hub_model.grey import ImageRefused

if TYPE_CHECKING:
    from datasets import Dataset

BATCH = 32


@dataclass(frozen=True)
class Predictions:
    """What the network said of n pictures.

    Attributes:
        log_odds: (n,) float64, logit of COVID minus logit of Non-COVID; sigmoid gives P(COVID). NaN where the
            preprocessing refused the picture, as one without lungs.
        features: (n, D) float32, what the guard compares; NaN as above.
        labels: (n,) int, -1 where unknown.
        families, sources: (n,) str.
    """

    log_odds: np.ndarray
    features: np.ndarray
    labels: np.ndarray
    families: np.ndarray
    sources: np.ndarray

    @property
    def answered(self) -> np.ndarray:
        """Which pictures (n,) the network gave an answer for."""
        return np.isfinite(self.log_odds)

    def only(self, chosen: np.ndarray) -> "Predictions":
        """Keep the pictures that a mask (n,) or a list of places chooses."""
        return Predictions(**{name: values[chosen] for name, values in vars(self).items()})


def predict(
    folder: hub_folder.HubFolder,
    split: "Dataset",
    name: str,
    change: Callable[[Image.Image], Image.Image] | None = None,
) -> Predictions:
    """Predict every row of a split of the data.

    Args:
        folder: an opened hub folder.
        split: rows with image, label, family and source.
        name: shown beside the progress bar.
        change: grey picture -> grey picture, applied before the preprocessing (the audits use it).
    """
    images = (row["image"].convert("L") for row in split.select_columns("image"))
    if change is not None:
        images = map(change, images)
    log_odds, features = run(folder, track(images, description=name, total=len(split), transient=True))
    columns = split.select_columns(["label", "family", "source"]).to_dict()
    labels, families, sources = (np.array(columns[key]) for key in ("label", "family", "source"))
    return Predictions(log_odds, features, labels, families, sources)


@torch.no_grad()  # not inference_mode: the network is built and laid out in here, and heat maps need its gradient
def run(folder: hub_folder.HubFolder, images: Iterable[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Give log-odds (n,) float64 and guard features (n, D) float32 of grey pictures, as `Predictions` has them.

    Channels come last in memory: on processors with AMX convolutions are then twice as fast.
    """
    model = folder.model.to(memory_format=torch.channels_last)
    log_odds, features, refused, count = [], [], [], 0
    for batch in batches(images):
        pixels = []
        for image in batch:
            try:
                pixels.append(folder.transform(image))
            except ImageRefused:
                refused.append(count)
            count += 1
        if pixels:
            stacked = torch.stack(pixels).contiguous(memory_format=torch.channels_last)
            logits, _, view = evidence.view(model, stacked)
            log_odds.append((logits[:, 1] - logits[:, 0]).double().numpy())
            features.append(view.numpy())
    if not log_odds:
        return np.full(count, np.nan), np.full((count, 1), np.nan, np.float32)
    answered = np.setdiff1d(np.arange(count), refused)
    return tuple(_scattered(np.concatenate(rows), answered, count) for rows in (log_odds, features))


def _scattered(rows: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
    """Put rows at their places among `count`; NaN elsewhere."""
    whole = np.full((count, *rows.shape[1:]), np.nan, rows.dtype)
    whole[places] = rows
    return whole


def batches(items: Iterable[Any], size: int = BATCH) -> Iterator[list[Any]]:
    """Gather lists of at most ``size``."""
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
