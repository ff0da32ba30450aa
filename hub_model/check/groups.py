"""Sort labelled pictures into groups by what is said of them: scanner, view, sex, age, finding, or any column."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from ..refused import Refused
from .cases import Case
from .findings import group as finding_group

USUAL = {
    "scanner": ("scanner", "manufacturer", "manufacturermodelname", "device"),
    "view": ("view", "viewposition", "view_position", "projection", "frontal/lateral"),
    "sex": ("sex", "gender", "patientsex", "patient_sex", "patient sex", "patient gender"),
    "age": ("age", "patientage", "patient_age", "patient age"),
    "finding": ("finding",),
}
"""Groups that are looked at wherever a column says them, and what collections and DICOM call that column."""
SOURCE = "source"
"""The collection a picture came in: a column that is always there."""
AGES = (40, 60, 80)
"""Where age groups begin, in years."""
SEXES = {
    **dict.fromkeys(("m", "male", "man"), "male"),
    **dict.fromkeys(("f", "female", "w", "woman"), "female"),
}
NOT_SAID = "not said"
OTHERS = "all others"
MOST = 12
"""Groups that are told apart in a column; the rest, each smaller, is one more group."""


def groupings(cases: Sequence[Case], by: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Name the groups of cases (n,): the columns of `USUAL` that have values, the source, and the columns asked for.

    Args:
        cases: pictures.
        by: further columns.

    Returns:
        Name of a grouping -> the name of each case's group (n,). What has only one group is left out, unless it was
        asked for.

    Raises:
        Refused: a column that no picture has a value for.
    """
    columns = sorted({column for case in cases for column in case.about})
    asked = [name.strip().lower() for name in by]
    for name in asked:
        if name not in (*USUAL, SOURCE, *columns):
            raise Refused(
                f"No column {name!r} is said of any picture. There are: {', '.join([SOURCE, *columns])}."
            )
    found: dict[str, np.ndarray] = {}
    for name in dict.fromkeys([*USUAL, SOURCE, *asked]):
        values = _few(np.array([_value(case, name) for case in cases], dtype=object))
        told = set(values) - {NOT_SAID}
        if len(told) > 1 or (told and name in asked):
            found[name] = values
    return found


def _value(case: Case, key: str) -> str:
    if key == SOURCE:
        return case.source
    said = " ".join(
        dict.fromkeys(
            case.about[column].strip() for column in USUAL.get(key, (key,)) if case.about.get(column)
        )
    )
    if key == "finding" and said:
        return finding_group(said, case.about.get("finding_detail"))
    return (WAYS.get(key, str)(said) if said else "") or NOT_SAID


def age_group(said: str) -> str:
    """Sort an age in years, or as DICOM writes it ("045Y", "010M"), into a group; empty where it is no age."""
    told = re.fullmatch(r"0*(\d{1,3})(?:\.\d+)?\s*([ymwd]?)(?:ears?|rs?)?", said.strip().lower())
    if told is None:
        return ""
    years = int(told[1]) if told[2] in ("", "y") else 0
    if years < AGES[0]:
        return f"under {AGES[0]}"
    start = max(age for age in AGES if age <= years)
    return f"{start} and over" if start == AGES[-1] else f"{start} to {AGES[AGES.index(start) + 1] - 1}"


def sex(said: str) -> str:
    """Translate a sex into one of the words in `SEXES`; anything else stays as it is given."""
    return SEXES.get(said.lower(), said)


WAYS: dict[str, Callable[[str], str]] = {"age": age_group, "sex": sex}


def _few(values: np.ndarray) -> np.ndarray:
    counts = Counter(values.tolist())
    if len(counts) <= MOST:
        return values
    kept = {name for name, _ in counts.most_common(MOST)}
    return np.array([value if value in kept else OTHERS for value in values], dtype=object)
