"""From collections of files to a data set one can trust: read, group, split, prove, write.

The folder it writes, which `datasets.load_dataset` opens anywhere:

    data/{train,validation,test}-*.parquet   the pictures, encoded, and what is known of them
    manifest.parquet                         every file met: hash, size, mode, family, split, or why it was refused
    split.json                               who went where: kind, seed, ratios, families, hash
    leak_report.json, families.png           families of copies, and what a random split would have done
    README.md                                the data set card
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import joblib
import typer
from rich.console import Console

from hub_model.check.files import ZIP_LIMIT, DataRefused, Slice, explain_write_errors
from hub_model.check.headers import LEFT_OUT
from hub_model.check.labels import Row
from hub_model.check.sources import open_sources
from hub_model.hub_folder import LABELS
from hub_model.layout import loads
from hub_model.whole import InUse, held

from .grouping import code_hash, group
from .leak_report import contact_sheet, families_of, leak_report, sheet_entries
from .manifest import Entry, hide_names, write_manifest
from .prepared import HASHED, KEPT, MANIFEST_FILE, SPLIT_FILE, write_card, write_pictures, write_split
from .reading import column_of, entries_of, input_hash, read_all
from .slices import EVERY, unfolded
from .split import LEAKING, RATIOS, SPLITS, assign_splits, check_split, prove_no_leak

SMALL = 256
"""Pictures for which starting further processes does not pay."""

MAX_UNREADABLE = 0.05
"""Share of unreadable files above which a collection is not trusted."""

LISTED = 20
"""Unreadable files named in a message."""


def prepare(
    sources: Annotated[list[str], typer.Argument(help="folder, zip, data set or Hub id, as [NAME=]PATH")],
    out: Annotated[Path, typer.Option(help="folder to make")],
    modality: Annotated[str | None, typer.Option(help="xray or ct: where the pictures do not say")] = None,
    split: Annotated[str, typer.Option(help="family, official (from a column) or random (leaks)")] = "family",
    seed: Annotated[int, typer.Option(help="of the split")] = 0,
    ratios: Annotated[
        tuple[float, float, float], typer.Option(help="shares of train, validation, test")
    ] = RATIOS,
    families: Annotated[
        str, typer.Option(help="found (look-alikes too) or known (the collection's groups)")
    ] = "found",
    labels: Annotated[list[str] | None, typer.Option(help="further class name, as Normal=Non-COVID")] = None,
    long_side: Annotated[
        int | None, typer.Option(help="store at most so many pixels a side; default: as they are")
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="processes; by default one per core")] = None,
    allow_leak: Annotated[bool, typer.Option("--allow-leak", help="needed for a random split")] = False,
    max_unreadable: Annotated[
        float, typer.Option(help="share of unreadable files that is accepted")
    ] = MAX_UNREADABLE,
    zip_limit: Annotated[int, typer.Option(help="bytes that an archive may unpack to")] = ZIP_LIMIT,
    keep_names: Annotated[
        bool, typer.Option("--keep-names", help="write the names of files, which may name patients")
    ] = False,
    every: Annotated[int, typer.Option(min=1, help="of a CT volume, learn from each n-th slice")] = EVERY,
) -> Path:
    """Write one trustworthy data set from one or several collections; a killed run resumes when called again.

    Of CT volumes (NIfTI, NRRD, MetaImage, DICOM files with many frames) each n-th slice that shows a lung is taken; the
    slices of a volume or patient are one family.

    Pictures are stored as 8-bit grey: the file itself where it is that and says nothing else, else a PNG. Files are
    called by a hash of their contents in all that is written, unless `keep_names`. Work in progress lies beside the
    folder (OUT.partial), with names.

    Returns:
        The folder.

    Raises:
        DataRefused: input or output that cannot be used; nothing is left at `out`.
        InUse: another process prepares the same folder.
        LeakError: the split would leak.
    """
    out = Path(out).expanduser()
    settings = {"split": split, "seed": seed, "ratios": list(ratios), "families": families}
    settings["long_side"] = long_side
    _check(settings, allow_leak)
    rows = _ordered(unfolded(open_sources(sources, modality, labels, zip_limit), every))
    _check_classes([row for row in rows if row.skipped is None])
    settings["inputs"] = input_hash(rows, settings if keep_names else {**settings, "names": HASHED})
    settings["names"] = KEPT if keep_names else HASHED
    if _is_finished(out, settings["inputs"]):
        _drop(_unfinished(out))  # of a process that was killed after its last step
        _say(f"{out}: was prepared before from the same files")
        return out
    with explain_write_errors(out, f" The finished work in {out.name}.partial is not redone."):
        entries = _prepare(rows, out, settings, jobs, max_unreadable)
    _tell(out, entries, split)
    return out


def _prepare(
    rows: Sequence[Row], out: Path, settings: Mapping, jobs: int | None, max_unreadable: float
) -> list[Entry]:
    """Read, group, split and write; finished steps of an earlier run in OUT.partial are taken up.

    That folder stays when this fails, hence no `whole_folder` here; `out` itself appears in one step all the same.

    Returns:
        An entry per row.
    """
    look = settings["families"] == "found"
    partial = _unfinished(out)
    (partial / "work").mkdir(parents=True, exist_ok=True)
    pictures = [row for row in rows if row.skipped is None]
    jobs = jobs or (joblib.cpu_count() if len(pictures) > SMALL else 1)
    reading = {"long_side": settings["long_side"], "describe": code_hash() if look else None}
    with held(partial):
        chunks = read_all(pictures, partial / "work", reading, jobs)
        entries = entries_of(pictures, chunks)
        _stop_if_unreadable(entries, max_unreadable, partial)
        group(entries, chunks, partial / "work", look, jobs)
        _split(entries, settings)
        others = [Entry.of(row) for row in rows if row.skipped is not None]
        if settings["names"] == HASHED:
            hide_names([*entries, *others])
        _write(partial / "final", entries, others, chunks, settings)
        os.replace(partial / "final", out)
        shutil.rmtree(partial, ignore_errors=True)
    return [*entries, *others]


def _unfinished(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _drop(partial: Path) -> None:
    """Remove unfinished work that no process holds."""
    if partial.is_dir():
        with contextlib.suppress(InUse), held(partial):
            shutil.rmtree(partial, ignore_errors=True)


def _check(settings: Mapping, allow_leak: bool) -> None:
    check_split(settings["split"], settings["ratios"])
    if settings["split"] == "random" and not allow_leak:
        raise DataRefused(
            "A random split puts copies of one original, and pictures of one patient, on both sides: every"
            " score on it is a memory test. Use split 'family'. To measure the leak knowingly, write such a"
            " folder (prepare --split random --allow-leak) and give that one."
        )
    if settings["families"] not in ("found", "known"):
        raise DataRefused(f"Families {settings['families']!r}: accepted are 'found' and 'known'.")
    if settings["long_side"] is not None and settings["long_side"] < 32:
        raise DataRefused(
            f"Long side {settings['long_side']}: at least 32 pixels are needed to see anything."
        )


def _is_finished(out: Path, inputs: str) -> bool:
    """Say whether this very data set is there already.

    Raises:
        DataRefused: something else is there.
    """
    with explain_write_errors(out):
        told = out / SPLIT_FILE
        if told.is_file():
            try:
                found = loads(told.read_text("utf-8"))
            except ValueError:
                found = None
            if not isinstance(found, dict):
                raise DataRefused(f"{told} is damaged. Name a new folder, or remove this one.")
            if found.get("inputs") == inputs:
                return True
            raise DataRefused(
                f"{out}: holds a data set prepared from other files or with other settings (split"
                f" {found.get('split')!r}, seed {found.get('seed')}). Name a new folder, or remove this one."
            )
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise DataRefused(
                f"{out}: something else is there already. Name a new folder, or remove this one first."
            )
    return False


def _ordered(rows: list[Row]) -> list[Row]:
    """Mix classes and sources by a hash of the names: the first rows of a stream are then no single class."""
    names = Counter((row.source, row.path) for row in rows)
    twice = [f"{source}/{path}" for (source, path), count in names.items() if count > 1]
    if twice:
        raise DataRefused(
            f"{twice[0]}: met twice ({len(twice)} such files). Give each source a name: first=path"
            " second=path."
        )
    return sorted(rows, key=_mixed)


def _mixed(row: Row) -> tuple[bytes, str]:
    """Make a sort key by a hash; the slices of a volume stay together, as it is opened once for all of them."""
    name = row.path.rpartition("#")[0] if isinstance(row.ref, Slice) else row.path
    return hashlib.sha256(f"{row.source}\0{name}".encode()).digest(), row.path


def _check_classes(pictures: Sequence[Row] | Sequence[Entry]) -> None:
    for modality in sorted({picture.modality for picture in pictures}) or ["nothing usable"]:
        present = {LABELS[picture.label] for picture in pictures if picture.modality == modality}
        if len(present) < len(LABELS):
            raise DataRefused(
                f"{modality}: {f'only the class {present.pop()}' if present else 'no class'} is there; both"
                f" {' and '.join(LABELS)} are needed. Add pictures of the other class, or join a source that"
                " has them."
            )


def _stop_if_unreadable(entries: Sequence[Entry], limit: float, partial: Path) -> None:
    bad = [entry for entry in entries if entry.refused and entry.refused not in LEFT_OUT]
    if len(bad) <= limit * len(entries):
        return
    listing = partial / "unreadable.txt"
    listing.write_text("".join(f"{entry.source}/{entry.path}\t{entry.refused}\n" for entry in bad), "utf-8")
    shown = "; ".join(f"{entry.path}: {entry.refused}" for entry in bad[:LISTED])
    raise DataRefused(
        f"{len(bad)} of {len(entries)} pictures cannot be read, more than {limit:.0%}:"
        f" {shown}{f'; and more, all listed in {listing}' if len(bad) > LISTED else ''}. Repair or remove"
        " them and run again, or accept more (--max-unreadable)."
    )


def _split(entries: Sequence[Entry], settings: Mapping) -> None:
    """Give every accepted picture its split, and prove that no family straddles two."""
    good = [entry for entry in entries if not entry.refused]
    _check_classes(good)
    splits = assign_splits(good, settings["split"], settings["seed"], settings["ratios"])
    for entry, split in zip(good, splits, strict=True):
        entry.split = split
        if split is None:
            later = "a later official split holds a member of its family"
            entry.refused = later if entry.official_split else "it is in no official split"
    if settings["split"] != "random":
        prove_no_leak(entry for entry in good if entry.split)


def _write(
    folder: Path,
    entries: Sequence[Entry],
    others: Sequence[Entry],
    chunks: Sequence[Path],
    settings: Mapping,
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "data").mkdir(parents=True)
    placed = [entry for entry in entries if entry.split]
    sizes = write_pictures(folder / "data", column_of(placed, chunks, "image"))
    write_manifest(folder / MANIFEST_FILE, [*entries, *others])
    write_split(folder / SPLIT_FILE, placed, settings)
    write_card(folder / "README.md", placed, sizes, settings)
    report = json.dumps(leak_report(entries, settings), indent=2, ensure_ascii=False)
    (folder / "leak_report.json").write_text(report + "\n", "utf-8")
    families = families_of(entries)
    pictures = {
        (entry.family, entry.source, entry.path): image
        for entry, image in column_of(sheet_entries(families), chunks, "image")
    }
    contact_sheet(pictures, families).save(folder / "families.png")


def _is_unreadable(entry: Entry) -> bool:
    return entry.pixels is None and entry.chunk >= 0 and entry.refused not in LEFT_OUT


def _tell(out: Path, entries: Sequence[Entry], split: str) -> None:
    """Print the result in one line; everything that was left out is named."""
    placed = [entry for entry in entries if entry.split]
    sizes = Counter(entry.split for entry in placed)
    left_out = Counter(
        "unreadable" if _is_unreadable(entry) else entry.refused for entry in entries if entry.refused
    )
    text = f"{out}: {len(placed):,} pictures of {len({entry.family for entry in placed}):,} families ("
    text += ", ".join(f"{name} {sizes[name]:,}" for name in SPLITS) + ")."
    if split == "random":
        text += f" {LEAKING}: they were dealt at random; scores on them measure memory."
    if left_out:
        reasons = "; ".join(f"{reason} ({count:,})" for reason, count in left_out.most_common())
        text += f" Left out, one by one in {MANIFEST_FILE}: {reasons}."
    _say(text)


def _say(text: str) -> None:
    Console(stderr=True, highlight=False, markup=False).print(text, soft_wrap=True)
