"""Labelled pictures on their way through a model: read, hashed, judged; one `Case` each, with everything that follows.

Nothing of a picture stays in memory but its hashes and the model's answer.
"""

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..decision import REFUSED
from ..screener import Finding, Screener
from . import copies
from .families import joined
from .files import DataRefused, Ref, pointer, read_bytes
from .headers import Header, is_flat, read_header
from .labels import Row
from .layout import MASK, mask_twins
from .sources import ANOTHER_MODALITY, open_sources

UNREADABLE = "unreadable"
"""Code of a file that could not even be fetched."""
CONTRADICTORY = "copies of one picture carry both labels"


@dataclass(slots=True)
class Case:
    """One labelled picture and what came of it.

    Attributes:
        path: name within its source.
        source: the collection.
        label: 1 for COVID, 0 for Non-COVID.
        ref: where its bytes are.
        about: what its table or DICOM header says besides, column -> text.
        known: ids of patient, study and group, as hashes where they come from DICOM.
        sha256: of the file, as bytes; empty where it could not be read.
        hashes: of the picture; None where it could not be decoded.
        probability: P(COVID); None where it was refused.
        score: out-of-distribution score; None where there is none.
        code: name of the reason of a refusal; None where the picture was judged.
        reason: the refusal in words.
        left_out: why it does not count, though it may have been judged; None where it counts.
        flat: whether it has a few grey levels only.
        family: equal for copies of one original and pictures of one patient.
        seen: what a copy of it was for when the model was made, a name in `copies.ROLES`; None where there is none.
    """

    path: str
    source: str
    label: int
    ref: Ref
    about: dict[str, str] = field(default_factory=dict)
    known: tuple[str, ...] = ()
    sha256: bytes = b""
    hashes: copies.Hashes | None = None
    probability: float | None = None
    score: float | None = None
    code: str | None = None
    reason: str | None = None
    left_out: str | None = None
    flat: bool = False
    family: str = ""
    seen: str | None = None


@dataclass
class Material:
    """All that was given.

    Attributes:
        cases: pictures with a label, in the order of the collections.
        skipped: reason -> how many files are no labelled pictures, by their collections' own word.
        alike: pairs of places in `cases` that are copies of one original.
        patients: whether any collection names patients.
        seen_known: whether the model brings hashes of what it was made with.
    """

    cases: list[Case]
    skipped: Counter[str]
    alike: list[tuple[int, int]] = field(default_factory=list)
    patients: bool = False
    seen_known: bool = False

    @property
    def counted(self) -> list[Case]:
        """Pictures that were judged and count."""
        return [case for case in self.cases if case.probability is not None and case.left_out is None]

    @property
    def refused(self) -> list[Case]:
        """Pictures that the model refused, among those that count."""
        return [case for case in self.cases if case.code is not None and case.left_out is None]

    def sha256(self) -> str:
        """Return a hash of all pictures and their labels, independent of their names and order."""
        told = sorted(case.sha256 + bytes([case.label]) for case in self.cases)
        return hashlib.sha256(b"".join(told)).hexdigest()


def judge(
    data: str | Path | Sequence[str | Path],
    screener: Screener,
    labels: Sequence[str] | None = None,
    watch: Callable[[int, int], None] = lambda done, total: None,
    most: int | None = None,
) -> Material:
    """Read labelled pictures and let a model judge each.

    Args:
        data: what `open_sources` takes.
        screener: the model.
        labels: further class names, as "Normal=Non-COVID".
        watch: called after each picture with how many are done, and how many there are.
        most: more pictures than this are not taken.

    Raises:
        DataRefused: see `open_sources`; or there are more pictures than `most`.
    """
    rows = open_sources(data, screener.modality, labels)
    count = sum(row.skipped is None for row in rows)
    if most is not None and count > most:
        raise DataRefused(
            f"{count:,} pictures; at most {most:,} are checked here. Give fewer, or check them on your own machine: "
            "`covid-xct check`."
        )
    return judge_rows(rows, screener, watch)


def judge_rows(
    rows: Sequence[Row],
    screener: Screener,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Material:
    """Let a model judge the pictures among some rows, as `judge` does."""
    material = listed(rows)
    for done in judging(material, screener):
        watch(done, len(material.cases))
    return material


def listed(rows: Sequence[Row]) -> Material:
    """Collect the pictures to judge among some rows; none is judged yet."""
    skipped = Counter(
        ANOTHER_MODALITY if row.skipped.startswith(ANOTHER_MODALITY) else row.skipped
        for row in rows
        if row.skipped
    )
    return Material([_case(row) for row in rows if row.skipped is None], skipped)


def judging(material: Material, screener: Screener) -> Iterator[int]:
    """Judge picture by picture, and yield the number done after each; the material is complete only at the end."""
    seen = known_pictures(screener)
    material.seen_known = seen is not None
    waiting: deque[Case] = deque()
    found = screener.screen_many(_sources(material.cases, waiting))
    for done, finding in enumerate(found, start=1):
        _keep(waiting.popleft(), finding, seen)
        yield done
    _settle(material)


def known_pictures(screener: Screener) -> copies.Seen | None:
    """Return the hashes of the pictures that a model was made with; None if they are missing or of other data.

    Raises:
        FolderRefused: the file is damaged.
    """
    seen = copies.read_seen(screener.path)
    told = (screener.screening.get("provenance") or {}).get("data_sha256")
    return seen if seen is not None and seen.data.hex() == told else None


def _case(row: Row) -> Case:
    return Case(row.path, row.source, row.label, row.ref, dict(row.about), row.known)


def _sources(cases: Sequence[Case], waiting: deque[Case]) -> Iterator[bytes]:
    """Yield the contents of each file to judge; what its header says is kept in its case."""
    for case in cases:
        try:
            content = read_bytes(case.ref)
            if what := pointer(content):
                raise OSError(what)
        except OSError as error:
            case.code, case.reason = UNREADABLE, str(error.strerror or error)
            continue
        case.sha256 = hashlib.sha256(content).digest()
        _take_header(case, read_header(content))
        if case.left_out is None:
            waiting.append(case)
            yield content


def _take_header(case: Case, header: Header) -> None:
    case.left_out = header.left_out
    case.known += header.patient
    case.about = {**header.about, **case.about}


def _keep(case: Case, finding: Finding, seen: copies.Seen | None) -> None:
    case.probability, case.score = finding.probability, finding.out_of_distribution
    if finding.decision == REFUSED:
        case.code, case.reason = (*finding.codes, "refused")[0], " ".join(finding.reasons)
    if finding.image is not None:
        case.hashes, case.flat = copies.hashes(finding.image), is_flat(finding.image)
        case.seen = seen.role(case.hashes) if seen else None


def _settle(material: Material) -> None:
    """Find drawn masks, copies, families, and copies that carry both labels."""
    cases = material.cases
    masks = mask_twins((case.source, case.label, case.path, case.flat) for case in cases if case.hashes)
    for case in cases:
        if (case.source, case.path) in masks:
            case.left_out = MASK
    places = [place for place, case in enumerate(cases) if case.hashes and case.left_out is None]
    found = list(copies.pairs([cases[place].hashes for place in places]))
    material.alike = [(places[one], places[other]) for one, other in found]
    tokens = [[*case.known, f"picture {place}"] for place, case in enumerate(cases)]
    for one, other in material.alike:
        tokens[one].append(f"picture {other}")
    for number, members in enumerate(joined(tokens)):
        for place in members:
            cases[place].family = f"{number:06d}"
    material.patients = any(case.known for case in cases)
    for one, other in material.alike:
        if cases[one].label != cases[other].label:
            for place in (one, other):
                cases[place].left_out = CONTRADICTORY
