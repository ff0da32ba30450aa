"""What the card says of collections of pictures and of weights to start from; the text lies in ``collections.json``."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hub_model.refused import Refused

FILE = "collections.json"
"""Name of the project's list, and of the one that a run folder may hold of collections that are not in it."""


@dataclass(frozen=True)
class Collection:
    """What the card says of a collection of pictures.

    Attributes:
        title: name and citation.
        licence: as stated by its makers.
        leak: what gives the label away in it, or what is known to be wrong with it.
        may_pass_on: whether its licence lets others have the pictures from us.
        published: pictures in each part of the split that it published.
    """

    title: str
    licence: str
    leak: str
    may_pass_on: bool = False
    published: dict[str, int] = field(default_factory=dict)


def _read(file: Path) -> dict[str, dict]:
    return json.loads(file.read_text("utf-8"))


_LIST = _read(Path(__file__).with_name(FILE))
COLLECTIONS = {name: Collection(**row) for name, row in _LIST["collections"].items()}
"""Collections the project knows, by the name they have as a source."""
COLLECTIONS["phantoms"] = COLLECTIONS["phantom"]
STARTING_POINTS: dict[str, str] = _LIST["starting_points"]
"""Weights to start from that the project knows, by file name, in words. None of them is a model on the Hub."""


def described(run: Path, names: Iterable[str]) -> dict[str, Collection]:
    """Describe some collections: from the project's list, or from `collections.json` in the run folder.

    Args:
        run: a hub folder.
        names: of the collections, as the data call their sources.

    Raises:
        Refused: a collection that nobody described, or a list that cannot be read.
    """
    file = run / FILE
    try:
        told = _read(file) if file.is_file() else {}
        known = COLLECTIONS | {name: Collection(**row) for name, row in told.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise Refused(
            f"{file} cannot be read ({error}). It holds title, licence and leak of each collection."
        ) from error
    names = sorted(names)
    if unknown := [name for name in names if name not in known]:
        example = json.dumps(
            {unknown[0]: {"title": "...", "licence": "...", "leak": "...", "may_pass_on": False}}
        )
        raise Refused(
            "The card has to say where the pictures come from and under which licence, and nobody has told "
            f"of {', '.join(unknown)}. Write {file}, such as {example}"
        )
    return {name: known[name] for name in names}
