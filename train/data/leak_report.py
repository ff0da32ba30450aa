"""What copies there are in a collection, and what they would have done to a random split."""

import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from hub_model.hub_folder import LABELS

from .manifest import Entry
from .split import LEAKING, random_crossings

CONTRADICTORY = "contradictory labels within its family"
LARGEST = 10
SHOWN = 10
"""Pictures shown of each family."""

TILE = 112
"""Pixels a picture takes on the contact sheet."""


def families_of(entries: Iterable[Entry]) -> list[list[Entry]]:
    """List pictures by family, the largest family first."""
    members: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.family:
            members.setdefault(entry.family, []).append(entry)
    for family in members.values():
        family.sort(key=lambda entry: (entry.source, entry.path))
    return [members[name] for name in sorted(members, key=lambda name: (-len(members[name]), name))]


def leak_report(entries: Sequence[Entry], settings: Mapping) -> dict:
    """Report families, their sizes, their contradictions, and a random split of the very same pictures.

    Args:
        entries: all pictures read; those in a split and those dropped for contradictory labels count.
        settings: `split`, `seed`, `ratios` of the data set.
    """
    families = families_of(entries)
    placed = [entry for entry in entries if entry.split]
    splits: dict[str, set[str]] = {}
    for entry in placed:
        splits.setdefault(entry.family, set()).add(entry.split)
    contradictions = [family for family in families if len({entry.label for entry in family}) > 1]
    return {
        "pictures": sum(map(len, families)),
        "families": len(families),
        "families_of_one": sum(len(family) == 1 for family in families),
        "exact_duplicates": sum(len(family) - len({entry.pixels for entry in family}) for family in families),
        "families_by_size": {str(size): n for size, n in sorted(Counter(map(len, families)).items())},
        "by_modality": _by_modality(families),
        "this_split": {
            "kind": settings["split"],
            "leaking": LEAKING if settings["split"] == "random" else False,
            "families_crossing": sum(len(found) > 1 for found in splits.values()),
        },
        "random_split": {
            "seed": settings["seed"],
            "ratios": settings["ratios"],
            **random_crossings(placed, settings["seed"], settings["ratios"]),
        },
        "contradictions": [
            {"family": family[0].family, "dropped": [_named(entry) for entry in family]}
            for family in contradictions
        ],
        "largest": [
            {
                "family": family[0].family,
                "size": len(family),
                "pictures": [_named(entry) for entry in family[:SHOWN]],
            }
            for family in families[:LARGEST]
        ],
    }


def _by_modality(families: Sequence[Sequence[Entry]]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for family in families:
        for modality, count in Counter(entry.modality for entry in family).items():
            told = found.setdefault(modality, {"pictures": 0, "families": 0, "largest": 0})
            told["pictures"] += count
            told["families"] += 1
            told["largest"] = max(told["largest"], count)
    return dict(sorted(found.items()))


def _named(entry: Entry) -> dict[str, str]:
    return {"source": entry.source, "path": entry.path, "label": LABELS[entry.label]}


def contact_sheet(pictures: Mapping[str, bytes], families: Sequence[Sequence[Entry]]) -> Image.Image:
    """Draw a row per family, its pictures side by side: copies are seen at once, and what was joined wrongly.

    Args:
        pictures: encoded pictures by family and path, of `sheet_entries`.
        families: pictures by family, the largest first.
    """
    rows = [family[:SHOWN] for family in families[:LARGEST]]
    caption = 18
    sheet = Image.new("L", (SHOWN * TILE, max(1, len(rows)) * (TILE + caption)), 255)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for row, (shown, family) in enumerate(zip(rows, families, strict=False)):
        top = row * (TILE + caption)
        classes = " and ".join(sorted({LABELS[entry.label] for entry in family}))
        draw.text((4, top + 2), f"{family[0].family}: {len(family)} {family[0].modality}, {classes}", 0, font)
        for column, entry in enumerate(shown):
            picture = Image.open(io.BytesIO(pictures[entry.family, entry.source, entry.path])).convert("L")
            picture.thumbnail((TILE - 2, TILE - 2))
            sheet.paste(picture, (column * TILE, top + caption))
    return sheet


def sheet_entries(families: Sequence[Sequence[Entry]]) -> list[Entry]:
    """Choose the entries whose pictures `contact_sheet` needs."""
    return [entry for family in families[:LARGEST] for entry in family[:SHOWN]]
