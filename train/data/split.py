"""Which split a picture goes to: whole families, stratified, reproducible; and the proof that none straddles
two.

Copies of one original, or pictures of one patient, on both sides of a split turn a score into a memory test
(Kapoor & Narayanan, Patterns 4(9), 2023, 'Leakage and the reproducibility crisis', type L1.4).
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from hub_model.check.files import DataRefused
from hub_model.hub_folder import LABELS

SPLITS = ("train", "validation", "test")
SPLIT_KINDS = ("family", "official", "random")
RATIOS = (0.70, 0.15, 0.15)
"""Shares of train, validation and test."""

LEAKING = "LEAKING"
"""What a random split is marked with wherever it shows up."""

Stratum = tuple[str, ...]


class LeakError(DataRefused):
    """A split that has one family, or one picture, on two sides."""


class Picture(Protocol):
    """What splitting needs to know of a picture; `official_split` and `split` may be None."""

    path: str
    source: str
    label: int
    modality: str
    family: str
    official_split: str | None
    split: str | None
    pixels: str


def assign_splits(
    rows: Sequence[Picture], kind: str = "family", seed: int = 0, ratios: Sequence[float] = RATIOS
) -> list[str | None]:
    """Deal pictures to train, validation and test.

    Args:
        rows: the pictures; their `split` is not looked at.
        kind: "family" keeps families together; "official" takes `official_split` for the modalities that have
            it, where collections without any go to train, and treats the others as "family"; "random" deals
            single pictures and so leaks copies.
        seed: of the order in which equals are dealt. The order of `rows` does not matter.
        ratios: shares of train, validation and test, of the pictures of every class and source.

    Returns:
        "train", "validation" or "test" per row; None for a picture that must be left out: it has no official
        split, or a later split holds a member of its family.

    Raises:
        DataRefused: unknown kind, bad ratios, or a class with too few families to be in all three.
    """
    check_split(kind, ratios)
    shares = dict(zip(SPLITS, ratios, strict=True))
    if kind == "random":
        return _dealt(rows, [f"{row.source}/{row.path}" for row in rows], seed, shares)
    if kind == "family":
        return _dealt(rows, [row.family for row in rows], seed, shares)
    return _official(rows, seed, shares)


def check_split(kind: str, ratios: Sequence[float]) -> None:
    """Raise DataRefused for an unknown kind or bad ratios, before any work is done."""
    if kind not in SPLIT_KINDS:
        raise DataRefused(f"Split {kind!r}: accepted are {', '.join(map(repr, SPLIT_KINDS))}.")
    if len(ratios) != len(SPLITS) or min(ratios) <= 0 or abs(sum(ratios) - 1) > 1e-6:
        raise DataRefused(
            f"Ratios {tuple(ratios)}: needed are three shares above 0 that add up to 1, as {RATIOS}."
        )


def prove_no_leak(rows: Iterable[Picture]) -> None:
    """Prove that no family and no picture (by its pixels) is in two splits.

    Raises:
        LeakError: names the first few families that straddle, and how many there are.
    """
    homes: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for row in rows:
        if row.split not in SPLITS or not row.family:
            raise LeakError(
                f"{row.path} has the family {row.family!r} and the split {row.split!r}; both must be set."
            )
        homes["family", row.family].setdefault(row.split, row.path)
        homes["picture", row.pixels].setdefault(row.split, row.path)
    straddling = [(kind, name, places) for (kind, name), places in homes.items() if len(places) > 1]
    if straddling:
        shown = "; ".join(
            f"{kind} {name[:16]} in "
            + " and ".join(f"{split} ({path})" for split, path in sorted(places.items()))
            for kind, name, places in straddling[:3]
        )
        raise LeakError(
            f"This split leaks: {len(straddling)} families or pictures are in more than one split. {shown}. "
            "Make a new split by family (prepare --split family)."
        )


def split_hash(rows: Iterable[Picture]) -> str:
    """Hash who went where (SHA-256), in any order: equal hash, equal split of equal pictures."""
    lines = sorted(f"{row.source}\t{row.path}\t{row.pixels}\t{row.family}\t{row.split}" for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _strata(row: Picture) -> list[Stratum]:
    """List what a picture counts towards: the balance of its modality, of its class, and of its class in its
    source.
    """
    key = (row.modality, str(row.label), row.source)
    return [key[:1], key[:2], key]


def _dealt(
    rows: Sequence[Picture], units: Sequence[str], seed: int, shares: Mapping[str, float]
) -> list[str]:
    """Deal units (families, or single pictures), each whole to one split.

    Largest first, each to the split that would be the least full after it, relative to its share: the rule for
    scheduling on machines of different speed (Graham's LPT), here on all strata of a unit at once.
    """
    counts: dict[str, Counter[Stratum]] = defaultdict(Counter)
    for row, unit in zip(rows, units, strict=True):
        counts[unit].update(_strata(row))
    order = sorted(counts, key=lambda unit: (-counts[unit].total(), _shuffled(seed, unit)))
    have = {split: Counter() for split in shares}
    home = {}
    for unit in order:
        fullness = {
            split: sum((have[split][key] + count) / share for key, count in counts[unit].items())
            for split, share in shares.items()
        }
        home[unit] = min(fullness, key=fullness.get)
        have[home[unit]].update(counts[unit])
    _fill_empty(home, counts, list(shares))
    return [home[unit] for unit in units]


def _shuffled(seed: int, unit: str) -> bytes:
    """Give the order of equals: by a keyed hash, so that it depends on no other picture of the collection."""
    return hashlib.sha256(f"{seed}:{unit}".encode()).digest()


def _fill_empty(home: dict[str, str], counts: Mapping[str, Counter[Stratum]], splits: Sequence[str]) -> None:
    """Give every class a family in every split, where few families left one empty (moves the smallest)."""
    for key in sorted({key for count in counts.values() for key in count if len(key) == 2}):
        holders = sorted(
            (unit for unit in home if counts[unit][key]), key=lambda unit: (counts[unit].total(), unit)
        )
        if len(holders) < len(splits):
            modality, label = key
            raise DataRefused(
                f"{modality}: class {LABELS[int(label)]} has {len(holders)} families; a split needs at least"
                f" {len(splits)}, one for each of {', '.join(splits)}. Add pictures of other patients."
            )
        for split in splits:
            per_split = Counter(home[unit] for unit in holders)
            if not per_split[split]:
                richest = max(splits, key=lambda one: (per_split[one], one == "train"))
                home[next(unit for unit in holders if home[unit] == richest)] = split


def _official(rows: Sequence[Picture], seed: int, shares: Mapping[str, float]) -> list[str | None]:
    """Take published splits where a modality has them, cleaned of copies towards the later split; else by family.

    Where test is published but no validation, families of train are dealt to the two. A collection without
    parts of its own beside one that has them is for training alone: the published parts stay comparable.
    """
    splits: list[str | None] = [row.official_split for row in rows]
    if not any(splits):
        raise DataRefused(
            "No row names an official split (a column official_split or split with train, validation, test). "
            "Add the column, or split by family."
        )
    for modality in sorted({row.modality for row in rows}):
        own = [index for index, row in enumerate(rows) if row.modality == modality]
        published = {splits[index] for index in own} - {None}
        if published and not {"train", "test"} <= published:
            raise DataRefused(
                f"{modality}: its official splits are {', '.join(sorted(published))}; train and test must be"
                " among them. Complete the column, or split by family."
            )
        dealt = {} if published == set(SPLITS) else dict(shares)
        if published == {"train", "test"}:
            own = [index for index in own if splits[index] == "train"]
            dealt.pop("test")
        if dealt:
            some = [rows[index] for index in own]
            for index, split in zip(
                own, _dealt(some, [row.family for row in some], seed, dealt), strict=True
            ):
                splits[index] = split
        if published:
            parted = {row.source for row in rows if row.modality == modality and row.official_split}
            for index, row in enumerate(rows):
                if row.modality == modality and row.source not in parted:
                    splits[index] = "train"
    last: dict[str, int] = {}
    for row, split in zip(rows, splits, strict=True):
        if split:
            last[row.family] = max(last.get(row.family, 0), SPLITS.index(split))
    return [
        split if split and SPLITS.index(split) == last[row.family] else None
        for row, split in zip(rows, splits, strict=True)
    ]


def random_crossings(
    rows: Sequence[Picture], seed: int = 0, ratios: Sequence[float] = RATIOS
) -> dict[str, int]:
    """Count what a random split of the same pictures would do: families on two sides, test pictures known from
    training."""
    splits = assign_splits(rows, "random", seed, ratios)
    homes: dict[str, set[str]] = defaultdict(set)
    for row, split in zip(rows, splits, strict=True):
        homes[row.family].add(split)
    tested = [row for row, split in zip(rows, splits, strict=True) if split == "test"]
    return {
        "families_crossing": sum(len(found) > 1 for found in homes.values()),
        "families": len(homes),
        "test_pictures_with_family_in_train": sum("train" in homes[row.family] for row in tested),
        "test_pictures": len(tested),
    }
