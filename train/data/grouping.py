"""Give every picture its family: the union of what collections know, of equal pixels, and of look-alikes."""

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from threadpoolctl import threadpool_limits

from hub_model.check.families import joined
from hub_model.whole import whole_file

from . import families
from .leak_report import CONTRADICTORY
from .manifest import Entry
from .reading import column_of


@cache
def code_hash(*modules: ModuleType) -> str:
    """Hash (SHA-256) the code that finds look-alikes, and some modules: what another version made is not used again."""
    code = b"".join(Path(module.__file__).read_bytes() for module in (families, *modules))
    return hashlib.sha256(code).hexdigest()


def group(entries: Sequence[Entry], chunks: Sequence[Path], folder: Path, look: bool, jobs: int) -> None:
    """Set `family` of every readable picture; drop families whose members have different labels.

    Args:
        entries: all pictures read.
        chunks: working files with their descriptors.
        folder: for the result of the search, which a later run of the same pictures takes up.
        look: whether look-alikes are searched.
        jobs: threads of the search.
    """
    good = [entry for entry in entries if not entry.refused]
    tokens = [[*entry.known, f"pixels {entry.pixels}"] for entry in good]
    for modality in sorted({entry.modality for entry in good}) if look else ():
        places = [place for place, entry in enumerate(good) if entry.modality == modality]
        found = _look_alikes([good[place] for place in places], chunks, folder, modality, jobs)
        for place, name in zip(places, found, strict=True):
            tokens[place].append(f"{modality} {name}")
    for members in joined(tokens):
        family = [good[index] for index in members]
        name = min(entry.pixels for entry in family)[:16]  # named after its contents
        contradictory = len({entry.label for entry in family}) > 1
        for entry in family:
            entry.family = name
            entry.refused = CONTRADICTORY if contradictory else None


def _look_alikes(
    entries: Sequence[Entry], chunks: Sequence[Path], folder: Path, modality: str, jobs: int
) -> list[str]:
    """Find a family name for each picture of one modality."""
    known = _names([[*entry.known, f"pixels {entry.pixels}"] for entry in entries])
    told = json.dumps([code_hash(), [entry.pixels for entry in entries], known])
    result = folder / f"families-{hashlib.sha256(told.encode()).hexdigest()[:32]}.json"
    if result.exists():
        return json.loads(result.read_text("utf-8"))
    records = np.zeros(len(entries), families.RECORD)
    for place, (_, descriptor) in enumerate(column_of(entries, chunks, "descriptor")):
        records[place] = np.frombuffer(descriptor, families.RECORD)[0]
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # Thousands of small matrix products: their own threads would cost eight times the work they save
    with Progress(*columns, console=Console(stderr=True)) as progress, threadpool_limits(1):
        task = progress.add_task(f"comparing {modality} pictures", total=None)
        found = families.find_families(
            records,
            known,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
            jobs=jobs,
        )
    with whole_file(result) as new:
        new.write_text(json.dumps(found), "utf-8")
    return found


def _names(tokens: Sequence[Sequence[str]]) -> list[str]:
    """Name each item; names are equal where items share a token, directly or through others."""
    names = [""] * len(tokens)
    for number, members in enumerate(joined(tokens)):
        for index in members:
            names[index] = str(number)
    return names
