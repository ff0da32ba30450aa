"""What pictures without COVID show instead, where their collection says so: a test errs more on some than on others."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit

from hub_model.check.findings import OTHER, WORDS, group
from hub_model.check.metrics import mean

from .predict import Predictions

if TYPE_CHECKING:
    from datasets import Dataset

TABLE = "metadata.csv"
MIN_PICTURES = 10
"""Findings of fewer test pictures get no figures of their own."""


def of_rows(split: "Dataset", data: Sequence[str]) -> np.ndarray:
    """Group what the collections say of each picture (n,): a key of `WORDS`, "other", or "" where they say nothing.

    Args:
        split: rows with path, and perhaps finding and finding_detail.
        data: what was given as data; their own tables say it where the rows do not.
    """
    if "finding" in split.column_names:
        details = split["finding_detail"] if "finding_detail" in split.column_names else [""] * len(split)
        return np.array([group(*words) for words in zip(split["finding"], details, strict=True)])
    told = told_by(data)
    return np.array([group(*told.get(path, ("", ""))) for path in split["path"]])


def told_by(data: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Read the metadata.csv of folders: path of a picture in its collection -> finding and its detail.

    Collections without such a table, or without a column ``finding`` in it, say nothing; neither does a path that
    stands in two of them with different findings.
    """
    told: dict[str, tuple[str, str]] = {}
    for place in data:
        named = place.partition("=")[2]
        table = Path(named if named and not Path(place).exists() else place).expanduser() / TABLE
        if not table.is_file():
            continue
        with open(table, newline="", encoding="utf-8-sig") as stream:
            for row in csv.DictReader(stream):
                words = (row.get("finding") or "", row.get("finding_detail") or "")
                path = row.get("file_name") or ""
                told[path] = words if told.get(path, words) == words else ("", "")
    return told


def by_finding(
    found: Predictions, findings: np.ndarray, points: dict[str, dict], seed: int
) -> dict[str, dict[str, Any]]:
    """Work out the specificity at each operating point for every finding among the pictures without COVID.

    Args:
        found: predictions of the test split.
        findings: (n,) as `of_rows` gives them.
        points: operating points by name.
        seed: of the bootstrap.

    Returns:
        By finding: ``n``, ``families``, and ``at``, operating point -> ``specificity`` as a record. The sensitivity is
        that of the whole test split. Empty where no collection says what its pictures show.
    """
    result = {}
    for name in (*WORDS, OTHER):
        mask = (findings == name) & (found.labels == 0)
        if mask.sum() < MIN_PICTURES:
            continue
        probabilities, families = expit(found.log_odds[mask]), found.families[mask]
        result[name] = {
            "n": int(mask.sum()),
            "families": len(np.unique(families)),
            "at": {
                point: {"specificity": mean("specificity", probabilities < row["threshold"], families, seed)}
                for point, row in points.items()
            },
        }
    return result
