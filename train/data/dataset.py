"""The door to training data: any collection, or a prepared folder, as a `datasets.DatasetDict`."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from hub_model.hub_folder import MODALITIES

from .files import DataRefused
from .grouping import code_hash
from .manifest import read_manifest
from .prepare import prepare
from .reading import fingerprint
from .sources import open_sources
from .split import LEAKING, RATIOS, SPLITS, audit, split_hash
from .writing import FORMAT, MANIFEST_FILE, SPLIT_FILE

if TYPE_CHECKING:
    from datasets import DatasetDict


def load_data(
    path_or_paths: str | Path | Sequence[str | Path],
    modality: str | None = None,
    seed: int = 0,
    split: str | None = None,
    jobs: int | None = None,
    *,
    ratios: Sequence[float] = RATIOS,
    families: str = "found",
    labels: Sequence[str] | None = None,
    long_side: int | None = None,
    allow_leak: bool = False,
) -> "DatasetDict":
    """Open training data as a `DatasetDict` with the parts train, validation and test.

    Columns: `image` (8-bit grey), `label` (ClassLabel Non-COVID, COVID; COVID = 1), `modality`, `family`,
    `source`, `path`. A folder written by `prepare` is opened as it is: its seed and split stand. Everything
    else is prepared into the cache of `datasets` (HF_DATASETS_CACHE) and opened from there the next time,
    unless a file has changed.

    Args:
        path_or_paths: a prepared folder, or what `open_sources` takes.
        modality: "xray" or "ct": the only one wanted, and that of pictures that say none.
        seed: of the split.
        split: "family" (what None means for raw pictures), "official" or "random"; see `assign_splits`.
        jobs: processes; None takes one per core.
        ratios: shares of train, validation and test.
        families: "found" or "known", see `prepare`.
        labels: further class names, see `open_sources`.
        long_side: store at most so many pixels a side.
        allow_leak: must be said for split "random".

    Raises:
        DataRefused: see `prepare`; or a prepared folder that was changed, or has another split than asked.
        LeakError: a prepared folder whose split leaks.
    """
    places = [path_or_paths] if isinstance(path_or_paths, str | Path) else list(path_or_paths)
    if len(places) == 1 and is_prepared(Path(places[0])):
        return _open(Path(places[0]), modality, split)
    rows = open_sources(places, modality, labels)
    settings = {"split": split or "family", "seed": seed, "ratios": tuple(ratios), "families": families}
    settings["long_side"] = long_side
    cached = _cache() / fingerprint(rows, {**settings, "code": code_hash()})[:32]
    with FileLock(f"{cached}.lock"):  # whoever wants the same data at the same time waits for the first
        prepare(places, cached, modality, labels=labels, jobs=jobs, allow_leak=allow_leak, **settings)
    return _open(cached, None, None)


def is_prepared(folder: Path) -> bool:
    """Whether `prepare` wrote this folder."""
    return (folder / SPLIT_FILE).is_file() and (folder / MANIFEST_FILE).is_file()


def verify(folder: Path) -> dict:
    """Prove that a prepared folder is what `prepare` wrote, and that its split does not leak.

    Compares `split.json` with the manifest, and the manifest with the rows of the parquet files; reads no
    picture.

    Returns:
        The contents of `split.json`.

    Raises:
        DataRefused: changed after it was written, or written by another version.
        LeakError: a family, or a picture, is in two parts; but not for a folder that is marked as leaking.
    """
    told = json.loads((folder / SPLIT_FILE).read_text("utf-8"))
    if told.get("format") != FORMAT:
        raise DataRefused(
            f"{folder}: format {told.get('format')!r}; this version reads {FORMAT}. Prepare it again."
        )
    entries = [entry for entry in read_manifest(folder / MANIFEST_FILE) if entry.split]
    listed = sorted((entry.split, entry.source, entry.path, entry.family, entry.label) for entry in entries)
    if split_hash(entries) != told["hash"] or listed != sorted(_stored(folder)):
        raise DataRefused(
            f"{folder}: split.json, the manifest and the pictures do not belong together: one was changed or"
            " exchanged after it was written. Prepare the data again."
        )
    if not told["leaking"]:
        audit(entries)
    return told


def _stored(folder: Path) -> list[tuple]:
    """Part, source, path, family and label of every row in the parquet files."""
    import pyarrow.parquet as pq

    columns = ["source", "path", "family", "label"]
    return [
        (split, *line.values())
        for split in SPLITS
        for shard in sorted((folder / "data").glob(f"{split}-*.parquet"))
        for line in pq.read_table(shard, columns=columns).select(columns).to_pylist()
    ]


def _cache() -> Path:
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE) / "covid-xct"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _open(folder: Path, modality: str | None, split: str | None) -> "DatasetDict":
    import datasets

    if modality not in (None, *MODALITIES):
        raise DataRefused(f"Modality {modality!r}: accepted are {' and '.join(MODALITIES)}.")
    told = verify(folder)
    if split not in (None, told["split"]):
        raise DataRefused(
            f"{folder}: was prepared with the split {told['split']!r}, seed {told['seed']}; {split!r} was"
            f" asked for. Ask for {told['split']!r} (--split), or prepare the pictures again."
        )
    if told["leaking"]:
        warnings.warn(f"{folder}: {LEAKING}, a random split; scores on it measure memory.", stacklevel=3)
    data = datasets.load_dataset(str(folder))
    if modality is None:
        return data
    chosen = {
        name: [i for i, kind in enumerate(data[name]["modality"]) if kind == modality] for name in SPLITS
    }
    if not any(chosen.values()):
        raise DataRefused(f"{folder}: holds no pictures of modality {modality!r}.")
    return datasets.DatasetDict({name: data[name].select(indices) for name, indices in chosen.items()})
