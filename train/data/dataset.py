"""The door to training data: any collection, or a prepared folder, as a `datasets.DatasetDict`."""

import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from hub_model.check.files import DataRefused
from hub_model.check.sources import open_sources
from hub_model.hub_folder import MODALITIES
from hub_model.layout import loads, number, one_of, problem, text, three

from . import split as split_code
from .grouping import code_hash
from .manifest import read_manifest
from .prepare import prepare
from .prepared import FORMAT, MANIFEST_FILE, SPLIT_FILE
from .reading import input_hash
from .split import LEAKING, RATIOS, SPLITS, prove_no_leak, split_hash

if TYPE_CHECKING:
    from datasets import DatasetDict

USUAL = {"split": "family", "seed": 0, "families": "found", "ratios": list(RATIOS), "long_side": None}
"""What raw pictures are prepared with where nothing is asked for."""


SPLIT_RULES = {
    "format": one_of(FORMAT),
    **dict.fromkeys(("split", "families", "hash"), text),
    "seed": number(),
    "leaking": one_of(False, LEAKING),
    "ratios": three(0, 1),
    "long_side?": number(1),
}
"""What `verify` asks of split.json before it compares anything, as `hub_model.layout.problem` reads it."""


@dataclass(frozen=True)
class Origin:
    """Where the data of a run come from and how they were split, by what the data themselves say.

    Attributes:
        split, seed, families, ratios, long_side: what they were prepared with, see `open_data`.
        leaking: whether copies and patients may be on both sides of the split.
        sources: names of the collections that pictures come from.
        data_sha256: of the encoded pictures, in the order of the rows of test, train and validation.
        split_sha256: of which picture (source and path), label and family lies in which split.
    """

    split: str
    seed: int
    families: str
    ratios: tuple[float, float, float]
    long_side: int | None
    leaking: bool
    sources: tuple[str, ...]
    data_sha256: str
    split_sha256: str


def load_data(
    path_or_paths: str | Path | Sequence[str | Path], modality: str | None = None, **asked: Any
) -> "DatasetDict":
    """Open training data as a `DatasetDict`, without its `Origin`; arguments and errors are `open_data`'s."""
    return open_data(path_or_paths, modality, **asked)[0]


def open_data(
    path_or_paths: str | Path | Sequence[str | Path],
    modality: str | None = None,
    *,
    seed: int | None = None,
    split: str | None = None,
    families: str | None = None,
    ratios: Sequence[float] | None = None,
    labels: Sequence[str] | None = None,
    long_side: int | None = None,
    jobs: int | None = None,
    allow_leak: bool = False,
) -> tuple["DatasetDict", Origin]:
    """Open training data as a `DatasetDict` with the splits train, validation and test, and say where it is from.

    Columns: `image` (8-bit grey), `label` (ClassLabel Non-COVID, COVID; COVID = 1), `modality`, `family`,
    `source`, `path`. A folder written by `prepare` is opened as it is. Everything else is prepared into the
    cache of `datasets` (HF_DATASETS_CACHE) and opened from there the next time, unless a file has changed.

    None for an argument means: what the prepared data say; for other data, what `prepare` does by default.

    Args:
        path_or_paths: a prepared folder, or what `open_sources` takes.
        modality: "xray" or "ct": the only one wanted, and that of pictures that say none.
        seed: of the split.
        split: "family", "official" or "random"; see `assign_splits`.
        families: "found" or "known", see `prepare`.
        ratios: shares of train, validation and test.
        labels: further class names, see `open_sources`.
        long_side: store at most so many pixels a side.
        jobs: processes; None takes one per core.
        allow_leak: must be said for split "random".

    Raises:
        DataRefused: see `prepare`; or a prepared folder that was changed, or says something else than asked.
        LeakError: a prepared folder whose split leaks.
    """
    asked = {"split": split, "seed": seed, "families": families, "long_side": long_side}
    asked["ratios"] = None if ratios is None else list(ratios)
    folder = prepared_folder(path_or_paths, modality, asked, labels, jobs, allow_leak)
    return _open(folder, modality, asked)


def prepared_folder(
    path_or_paths: str | Path | Sequence[str | Path],
    modality: str | None,
    asked: Mapping[str, Any],
    labels: Sequence[str] | None = None,
    jobs: int | None = None,
    allow_leak: bool = False,
) -> Path:
    """Find the prepared folder behind training data: the one given, or that in the cache, made where it is not there.

    Args:
        path_or_paths, modality, labels, jobs, allow_leak: see `open_data`.
        asked: its settings by name; None for what nothing is asked of.
    """
    places = [path_or_paths] if isinstance(path_or_paths, str | Path) else list(path_or_paths)
    if len(places) == 1 and is_prepared(Path(places[0]).expanduser()):
        if labels:
            raise DataRefused(
                f"{places[0]}: was prepared, and its labels are settled; --labels {' '.join(labels)} comes too late."
                " Leave it out, or prepare the pictures again with it."
            )
        return Path(places[0]).expanduser()
    rows = open_sources(places, modality, labels)
    settings = {key: usual if asked.get(key) is None else asked[key] for key, usual in USUAL.items()}
    cached = _cache() / input_hash(rows, {**settings, "code": code_hash(split_code)})[:32]
    with FileLock(f"{cached}.lock"):  # whoever wants the same data at the same time waits for the first
        told = {
            "labels": labels,
            "jobs": jobs,
            "allow_leak": allow_leak,
            "keep_names": True,
        }  # the cache stays here
        prepare(places, cached, modality, **told, **settings)
    return cached


def is_prepared(folder: Path) -> bool:
    """Say whether `prepare` wrote this folder."""
    return (folder / SPLIT_FILE).is_file() and (folder / MANIFEST_FILE).is_file()


def verify(folder: Path) -> dict:
    """Prove that a prepared folder is what `prepare` wrote, and that its split does not leak.

    Compares `split.json` with the manifest, and the manifest with the rows of the parquet files; reads no
    picture.

    Returns:
        The contents of `split.json`.

    Raises:
        DataRefused: changed after it was written, or written by another version.
        LeakError: a family, or a picture, is in two splits; but not for a folder that is marked as leaking.
    """
    told = read_told(folder / SPLIT_FILE)
    if found := problem(told, SPLIT_RULES):
        raise DataRefused(
            f"{folder / SPLIT_FILE} has {found}, by this version of covid-xct. Prepare it again."
        )
    try:
        entries = [entry for entry in read_manifest(folder / MANIFEST_FILE) if entry.split]
        listed = sorted(
            (entry.split, entry.source, entry.path, entry.family, entry.label) for entry in entries
        )
        same = split_hash(entries) == told["hash"] and listed == sorted(_stored(folder))
    except DataRefused:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError) as error:
        raise DataRefused(
            f"{folder}: its manifest or a file of its pictures cannot be read ({error}). Prepare the data again."
        ) from error
    if not same:
        raise DataRefused(
            f"{folder}: split.json, the manifest and the pictures do not belong together: one was changed or"
            " exchanged after it was written. Prepare the data again."
        )
    if not told["leaking"]:
        prove_no_leak(entries)
    return told


def read_told(file: Path) -> dict:
    """Read a JSON file that `prepare` left beside its data.

    Raises:
        DataRefused: missing, or no JSON object.
    """
    try:
        told = loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataRefused(f"{file} cannot be read ({error}). Prepare the data again.") from error
    if not isinstance(told, dict):
        raise DataRefused(f"{file} holds no object. Prepare the data again.")
    return told


def _stored(folder: Path) -> list[tuple]:
    """Read split, source, path, family and label of every row in the parquet files.

    Raises:
        DataRefused: a row names a file elsewhere, which `datasets` would open in place of a picture.
    """
    import pyarrow.parquet as pq

    columns = ["source", "path", "family", "label"]
    found = []
    for split in SPLITS:
        for shard in sorted((folder / "data").glob(f"{split}-*.parquet")):
            with pq.ParquetFile(shard) as file:
                lines = file.read(columns=[*columns, "image.path"]).to_pylist()
            for line in lines:
                name = (line["image"] or {}).get("path") or ""
                if not re.fullmatch(r"[\w.-]*", name):
                    raise DataRefused(
                        f"{folder}: a row of {shard.name} names the file {name!r} instead of holding its picture;"
                        " nobody's `prepare` writes that. Do not use this data set."
                    )
                found.append((split, *(line[column] for column in columns)))
    return found


def _cache() -> Path:
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE) / "covid-xct"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _open(folder: Path, modality: str | None, asked: Mapping[str, Any]) -> tuple["DatasetDict", Origin]:
    import datasets

    if modality not in (None, *MODALITIES):
        raise DataRefused(f"Modality {modality!r}: accepted are {' and '.join(MODALITIES)}.")
    told = verify(folder)
    for name, value in asked.items():
        if value not in (None, told[name]):
            raise DataRefused(
                f"{folder}: was prepared with {name} {told[name]!r}; {value!r} was asked for"
                f" (--{name.replace('_', '-')}). Leave that out, or prepare the pictures again."
            )
    if told["leaking"]:
        warnings.warn(f"{folder}: {LEAKING}, a random split; scores on it measure memory.", stacklevel=4)
    data = datasets.load_dataset(str(folder))
    if modality is not None:
        chosen = {
            name: [i for i, kind in enumerate(data[name]["modality"]) if kind == modality] for name in SPLITS
        }
        if not any(chosen.values()):
            raise DataRefused(f"{folder}: holds no pictures of modality {modality!r}.")
        data = datasets.DatasetDict({name: data[name].select(indices) for name, indices in chosen.items()})
    return data, _origin(data, told)


def _origin(data: "DatasetDict", told: Mapping[str, Any]) -> Origin:
    """Collect what is known of opened data; `told` is the contents of `split.json`."""
    import datasets

    content, split = hashlib.sha256(), hashlib.sha256()
    columns = ("source", "path", "label", "family")
    for name in sorted(data):
        lines = data[name].select_columns(list(columns)).to_dict()
        split.update(repr((name, sorted(zip(*(lines[key] for key in columns), strict=True)))).encode())
        pictures = data[name].select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
        for row in pictures:
            content.update(hashlib.sha256(row["image"]["bytes"] or b"").digest())
    return Origin(
        **{name: told[name] for name in ("split", "seed", "families", "long_side")},
        ratios=tuple(told["ratios"]),
        leaking=bool(told["leaking"]),
        sources=tuple(sorted({source for part in data.values() for source in part.unique("source")})),
        data_sha256=content.hexdigest(),
        split_sha256=split.hexdigest(),
    )
