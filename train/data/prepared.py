"""Write prepared pictures as a folder that `datasets.load_dataset` opens anywhere: parquet shards and a card."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hub_model.hub_folder import LABELS

from .manifest import Entry, counts
from .split import LEAKING, SPLITS, split_hash

if TYPE_CHECKING:
    import datasets

FORMAT = 1
ROW_GROUP = 100
ROW_GROUP_BYTES = 32 * 2**20
"""Pictures, and bytes of pictures, held at a time per split."""

SHARD_BYTES = 400 * 2**20
SPLIT_FILE = "split.json"
MANIFEST_FILE = "manifest.parquet"
HASHED, KEPT = "hashed", "kept"
"""What `split.json` says of the names of files."""
NAMES = {HASHED: ", by a hash of its contents in place of its name", KEPT: ", by its name"}
HOW_SPLIT = {
    "family": "by family",
    "official": "as published (by family where nothing is), without copies of later splits in earlier ones",
    "random": f"at random ({LEAKING})",
}


def features() -> "datasets.Features":
    """Describe the columns of a prepared data set; COVID is class 1."""
    import datasets

    text = datasets.Value("string")
    label = datasets.ClassLabel(names=list(LABELS))
    names = ("modality", "family", "source", "path")
    return datasets.Features({"image": datasets.Image(), "label": label, **dict.fromkeys(names, text)})


def write_pictures(folder: Path, pictures: Iterable[tuple[Entry, bytes]]) -> dict[str, int]:
    """Stream pictures to the parquet shards of their split.

    Args:
        folder: of the shards, `{split}-00000-of-0000N.parquet`.
        pictures: entries that have a split, with their encoded picture.

    Returns:
        Bytes of encoded pictures per split.
    """
    writers = {split: _Shards(folder, split) for split in SPLITS}
    for entry, image in pictures:
        writers[entry.split].add(_line(entry, image))
    return {split: writer.close() for split, writer in writers.items()}


def _line(entry: Entry, image: bytes) -> dict:
    suffix = ".png" if image.startswith(b"\x89PNG") else ".jpg"
    return {
        "image": {"bytes": image, "path": entry.pixels[:16] + suffix},
        "label": entry.label,
        "modality": entry.modality,
        "family": entry.family,
        "source": entry.source,
        "path": entry.path,
    }


class _Shards:
    """The shards of one split; holds at most one row group."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        self.schema = features().arrow_schema
        self.lines: list[dict] = []
        self.shards: list[Path] = []
        self.writer = None
        self.held = self.in_shard = self.total = 0

    def add(self, line: dict) -> None:
        self.lines.append(line)
        self.held += len(line["image"]["bytes"])
        if len(self.lines) == ROW_GROUP or self.held >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self.writer is None:
            self.shards.append(self.folder / f"{self.split}-{len(self.shards):05d}")
            self.writer = pq.ParquetWriter(self.shards[-1], self.schema)
        self.writer.write_table(pa.Table.from_pylist(self.lines, schema=self.schema))
        self.in_shard += self.held
        self.lines, self.held = [], 0
        if self.in_shard >= SHARD_BYTES:
            self._finish()

    def _finish(self) -> None:
        self.writer.close()
        self.total += self.in_shard
        self.writer, self.in_shard = None, 0

    def close(self) -> int:
        if self.lines or not self.shards:
            self._flush()
        if self.writer is not None:
            self._finish()
        for shard in self.shards:
            os.replace(shard, shard.with_name(f"{shard.name}-of-{len(self.shards):05d}.parquet"))
        return self.total


def write_split(path: Path, placed: Sequence[Entry], settings: Mapping) -> None:
    """Write `split.json`: how the split came about, and the hash of who went where (see `split_hash`)."""
    told = {
        "format": FORMAT,
        **settings,
        "leaking": LEAKING if settings["split"] == "random" else False,
        "hash": split_hash(placed),
        "counts": counts(placed),
    }
    path.write_text(json.dumps(told, indent=2) + "\n", "utf-8")


def write_card(path: Path, placed: Sequence[Entry], sizes: Mapping[str, int], settings: Mapping) -> None:
    """Write README.md with the YAML block that tells `datasets` the columns and splits without reading them."""
    from datasets import DatasetInfo, SplitDict, SplitInfo
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData

    number = Counter(entry.split for entry in placed)
    splits = SplitDict({s: SplitInfo(s, num_bytes=sizes[s], num_examples=number[s]) for s in SPLITS})
    total = sum(sizes.values())
    info = DatasetInfo(features=features(), splits=splits, download_size=total, dataset_size=total)
    tags = ["medical", "chest", "covid-19"] + ["leaking-split"] * (settings["split"] == "random")
    card = DatasetCardData(task_categories=["image-classification"], tags=tags)
    files = [{"split": split, "path": f"data/{split}-*"} for split in SPLITS]
    DatasetInfosDict({"default": info}).to_dataset_card_data(card)
    MetadataConfigs({"default": {"data_files": files}}).to_dataset_card_data(card)
    path.write_text(f"---\n{card}\n---\n\n{_card_text(placed, settings)}", "utf-8")


def _card_text(placed: Sequence[Entry], settings: Mapping) -> str:
    leaking = settings["split"] == "random"
    lines = [f"# Chest pictures, COVID against Non-COVID{f' ({LEAKING} random split)' * leaking}", ""]
    if leaking:
        lines += [
            (
                f"**{LEAKING}: pictures were dealt at random. Copies of one original are in train and in"
                " test; scores on this data set measure memory and must not be reported as performance.**"
            ),
            "",
        ]
    lines += ["| modality | split | " + " | ".join(LABELS) + " |", "| --- | --- |" + " ---: |" * len(LABELS)]
    for modality, splits in counts(placed).items():
        for split, numbers in splits.items():
            cells = " | ".join(f"{numbers[label]:,}" for label in LABELS)
            lines.append(f"| {modality} | {split} | {cells} |")
    families = len({entry.family for entry in placed})
    lines += [
        "",
        (
            f"Split {HOW_SPLIT[settings['split']]}, seed {settings['seed']}; {families:,} families. `family`"
            " joins copies of one original and pictures of one patient. `manifest.parquet` lists every file"
            f" met{NAMES[settings['names']]}, the refused ones with the reason; `leak_report.json` says what a"
            " random split would have done."
        ),
        "",
        "For research and development only; not fit for diagnosis. Licences are those of the sources.",
        "",
    ]
    return "\n".join(lines)
