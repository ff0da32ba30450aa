"""What a collection's words mean: labels, modalities, splits and patients, known exactly or not at all."""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .. import dicom
from ..hub_folder import LABELS, MODALITIES
from .files import DataRefused, Ref

SKIP = "skip"
"""What --labels NAME=skip says: pictures of that label are left out."""

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
MODALITY_NAMES = {
    **dict.fromkeys(("xray", "xrays", "cxr", "chestxray"), "xray"),
    **dict.fromkeys(("ct", "cts", "ctscan", "ctscans"), "ct"),
}
LABEL_NAMES = {
    **dict.fromkeys(("covid", "covid19", "covidpositive", "positive"), "COVID"),
    **dict.fromkeys(("noncovid", "noncovid19", "covidnegative", "negative"), "Non-COVID"),
}
DICOM_MODALITIES = {code: name for name, codes in dicom.MODALITIES.items() for code in codes}
NOBODY = frozenset(
    "|na|n/a|#n/a|nan|null|nil|none|unknown|unk|anonymous|anonym|anon|anonymized|anonymised|removed|redacted|deleted"
    "|hidden|masked|missing|notavailable|notapplicable|deidentified|confidential|xxx|?|-|--".split("|")
)
"""What stands for a patient whose name was taken out, as `exact` writes it."""

KNOWN_COLUMNS = ("group", "family", "patient_id", "patient")
"""Columns whose equal values make pictures one family."""

LAYOUT = (
    "Accepted is 'X-ray' or 'CT' with 'COVID' and 'Non-COVID' below it (any case, any depth; a folder or an"
    " archive), two such class folders with the modality said beside them, or a metadata.csv with file_name and"
    " label"
)
LISTED = 8
"""Unknown names shown in a message."""

SEPARATORS = r"[\s_\-\u2010\u2013\u2212]+"


@dataclass(frozen=True, slots=True)
class Row:
    """One file of a collection, before anybody has looked at its pixels.

    Attributes:
        ref: where its bytes are; None for a table entry without a file.
        path: name within its source, '/' between the parts.
        source: name of the collection.
        label: 1 for COVID, 0 for Non-COVID; None only where `skipped`.
        modality: "xray" or "ct"; None only where `skipped`.
        known: ids of patient or group; rows that share one are one family.
        official_split: "train", "validation" or "test" where the collection says so.
        stamp: changes when the file changes (size and time, or checksum).
        skipped: why the file is no training picture by the collection's own word; None for a picture.
        about: what else its table says, column -> text.
    """

    ref: Ref
    path: str
    source: str = ""
    label: int | None = None
    modality: str | None = None
    known: tuple[str, ...] = ()
    official_split: str | None = None
    stamp: str = ""
    skipped: str | None = None
    about: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reader:
    """How the names of one collection are to be understood.

    Attributes:
        place: the collection, for messages.
        words: class name as `exact` writes it -> class index; None for a name whose pictures are left out.
        modality: of pictures that say none.
        above: name of the folder itself, where the collection is one: 'CT' may be said there.
        unknown: labels met that nobody knows, counted; `refuse_unknown` speaks of them all at once.
    """

    place: str
    words: Mapping[str, int | None]
    modality: str | None = None
    above: tuple[str, ...] = ()
    unknown: Counter[str] = field(default_factory=Counter)

    def labelled(self, said: object) -> dict[str, int | str | None]:
        """Read a label of a table as fields of a `Row`: `label`, or why it is `skipped`."""
        word = exact(said)
        if word not in self.words:
            self.unknown[str(said)] += 1
            return {"skipped": "an unknown label"}
        index = self.words[word]
        return {"skipped": f"left out by --labels {said}={SKIP}"} if index is None else {"label": index}

    def refuse_unknown(self) -> None:
        """Raise DataRefused where a table held unknown labels."""
        if self.unknown:
            first = next(iter(self.unknown))
            raise DataRefused(
                f"{self.place}: a label is {listed(self.unknown)}; accepted are {' and '.join(LABELS)}. Numbers are"
                " not guessed, since 0 means COVID in some collections, nor are words. Rename them, or say what each"
                f" means (--labels '{first}=COVID', ={LABELS[0]}, or ={SKIP} to leave its pictures out)."
            )

    def kind(self, said: object, path: str) -> str:
        """Read the modality as a table says it."""
        if not said:
            raise DataRefused(
                f"{self.place}: nothing says whether {path} is X-ray or CT. Say it in a column or folder name"
                " 'modality', or for all of them (--modality)."
            )
        if exact(said) not in MODALITY_NAMES:
            raise DataRefused(f"{self.place}: modality {said!r}; accepted are {' and '.join(MODALITIES)}.")
        return MODALITY_NAMES[exact(said)]

    def split(self, said: str) -> str | None:
        """Read the official split as a table says it; empty means none."""
        if said and said.lower() not in SPLIT_NAMES:
            raise DataRefused(
                f"{self.place}: official split {said!r}; accepted are train, validation and test."
            )
        return SPLIT_NAMES[said.lower()] if said else None


def exact(name: object) -> str:
    """Write a name as it is compared: letters of any script, digits and signs stay, ways to write them do not.

    Unicode's compatible forms (full-width digits, composed letters) and upper case are made one, separators between
    words go ('Non_COVID ' -> 'noncovid', 'X-Ray' -> 'xray'), and a number is written in one way ('1.0' -> '1').
    A sign at an end stays: 'COVID-', 'COVID?' and '-1' are other names than 'COVID' and '1'.
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", str(name)).casefold()).strip()
    if number := re.fullmatch(r"([+-]?)([0-9]+)(?:\.([0-9]*))?", text):
        sign, whole, rest = number[1].strip("+"), number[2].lstrip("0") or "0", (number[3] or "").rstrip("0")
        value = f"{whole}.{rest}" if rest else whole
        return value if value == "0" else sign + value
    return re.sub(rf"(?<=[^\W\d_]){SEPARATORS}(?=[^\W_])|(?<=\d){SEPARATORS}(?=[^\W\d_])", "", text)


def label_words(labels: Sequence[str] | None) -> dict[str, int | None]:
    """Map class names, as `exact` writes them, to class indices; adds names given as "Normal=Non-COVID" or "-1=skip".

    Raises:
        DataRefused: no such class, or one name with two meanings.
    """
    words: dict[str, int | None] = {word: LABELS.index(name) for word, name in LABEL_NAMES.items()}
    meanings = {exact(name): index for index, name in enumerate(LABELS)} | {SKIP: None}
    given: dict[str, str] = {}
    for pair in labels or ():
        name, _, meaning = pair.rpartition("=")
        if not exact(name) or exact(meaning) not in meanings:
            raise DataRefused(
                f"Label {pair!r}: accepted is NAME=CLASS with the class {' or '.join(LABELS)}, or {SKIP}, as"
                " Normal=Non-COVID."
            )
        earlier = given.setdefault(exact(name), pair)
        if meanings[exact(earlier.rpartition("=")[2])] != meanings[exact(meaning)]:
            raise DataRefused(
                f"Labels {earlier!r} and {pair!r} give one name two meanings. Keep one of them."
            )
        words[exact(name)] = meanings[exact(meaning)]
    return words


def names_nobody(said: object) -> bool:
    """Say whether what stands for a patient or group only marks a missing one: 'NA', 'unknown', 'REMOVED'."""
    return exact(said).strip("<>[]()*. ") in NOBODY


def listed(counts: Counter[str]) -> str:
    """List names with how often they were met, the most frequent first."""
    shown = ", ".join(f"{name!r} ({count})" for name, count in counts.most_common(LISTED))
    return f"{shown} and {len(counts) - LISTED} more" if len(counts) > LISTED else shown
