"""Screen whole archives: find the pictures, judge them in batches, write a row for each as it is ready."""

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from . import hub_folder
from .heatmap import overlay
from .listing import Item, Listed, items
from .refused import Refused
from .rows import RowFile, Terminal, one_line
from .screener import BATCH, REFUSED, WORKERS, AutoScreener, Finding, Screener, sites_of
from .series import SeriesFinding, of_volume
from .volumes import Unusable, Volume, sorted_out
from .whole import whole_file

Series = TypeVar("Series", Item, Volume | Unusable | Item)
LONGEST_NAME = 120  # letters of a heat map's file name that say which picture it is of


@dataclass(frozen=True)
class Models:
    """Who judges: what `Screener.from_pretrained` is given, to be opened wherever work is done.

    Attributes:
        model: ``auto`` for the embedded ones, whichever fits; or one name.
        sites: files of local settings, each for one of the models.
        prevalence: share of COVID-19 among those who are screened, for one more probability.
    """

    model: str = "auto"
    revision: str | None = None
    backend: str = "onnx"
    device: str = "cpu"
    sites: tuple[str, ...] = ()
    prevalence: float | None = None

    def opened(self, threads: int | None = None) -> Screener | AutoScreener:
        """Open the models; raises as `Screener.from_pretrained` does."""
        if self.model == "auto":
            return AutoScreener.from_pretrained(
                backend=self.backend,
                device=self.device,
                threads=threads,
                sites=self.sites,
                prevalence=self.prevalence,
            )
        folder = hub_folder.load(self.model, self.revision)
        (site,) = sites_of([folder], self.sites)
        return Screener(folder, self.backend, self.device, threads, site, self.prevalence)


@dataclass(frozen=True)
class Options:
    """How pictures are judged; each is a flag of ``covid-xct score``.

    Attributes:
        operating_point: a name; by default each model's first.
        heat_maps: folder for pictures tinted by where the model looked.
        batch_size: pictures that the network sees at once.
        workers: threads that read the next pictures meanwhile.
        per_slice: a row for each slice of a series or volume, not one for the whole.
    """

    operating_point: str | None = None
    heat_maps: str | os.PathLike | None = None
    batch_size: int = BATCH
    workers: int = WORKERS
    per_slice: bool = False


DEFAULT = Options()


@dataclass
class Tally(Listed):
    """What a run came across.

    Attributes:
        decisions: how many pictures of each.
        earlier: pictures that an earlier run had judged.
    """

    decisions: Counter[str] = field(default_factory=Counter)
    earlier: int = 0


def score(
    paths: Sequence[str | os.PathLike],
    screener: Screener | AutoScreener,
    out: str | os.PathLike | None = None,
    options: Options = DEFAULT,
    *,
    json_lines: bool = False,
    watch: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """Judge every picture under some paths: one row for each file or CT series, none silently left out.

    Args:
        paths: pictures, folders of any depth (links are followed once), zip and tar archives (read in place).
        screener: who judges them.
        out: file for the rows, .csv, .jsonl or .parquet; the terminal by default. Rows of an earlier, killed run stay,
            and their files are not judged again.
        options: how they are judged.
        json_lines: on the terminal, JSON lines instead of CSV.
        watch: called after every row.

    Returns:
        How many pictures were decided how.

    Raises:
        Refused: there is no file under the paths; `out` cannot be written, or holds rows of other models or settings;
            or no model has the operating point.
        OSError: the disk is full, or a place cannot be written; rows so far are kept.
    """
    screener.screen_many([], options.operating_point)  # a wrong point is said before anything is made
    settings = settings_of(screener, options)
    if options.heat_maps is not None:
        check_apart(paths, options.heat_maps, "--heat-maps")
        Path(options.heat_maps).mkdir(parents=True, exist_ok=True)
    with RowFile(out, settings) if out is not None else Terminal(json_lines) as rows:
        run = _Run(screener, options, rows, watch)
        run.judge(paths)
        if not run.tally.expected:
            raise nothing_found(paths)
    return run.tally


class _Run:
    """One call of `score`: pictures go to the models in batches, series one by one, and every answer becomes a row.

    Args:
        screener, options, watch: as for `score`.
        rows: where the rows go.

    Attributes:
        tally: what was found so far.
    """

    def __init__(
        self,
        screener: Screener | AutoScreener,
        options: Options,
        rows: RowFile | Terminal,
        watch: Callable[[Tally], None],
    ) -> None:
        self.tally = Tally()
        self._screener, self._options, self._rows, self._watch = screener, options, rows, watch
        self._waiting: deque[Item] = deque()  # in the order of the findings
        self._reader = next((one for one in models_of(screener) if one.modality == "ct"), None)  # of series

    def judge(self, paths: Sequence[str | os.PathLike]) -> None:
        """Write a row for everything under the paths."""
        drawing = self._options.heat_maps is not None
        found = self._screener.screen_many(
            self._sources(paths),
            self._options.operating_point,
            drawing,
            batch_size=self._options.batch_size,
            workers=self._options.workers,
            keep_images=drawing,
        )
        for finding in found:
            item = self._waiting.popleft()
            drawn = _drawn(item, finding, self._options.heat_maps)
            self._write(row_of(item.name, finding, drawn), finding.decision)

    def _sources(self, paths: Sequence[str | os.PathLike]) -> Iterator[Any]:
        """Yield what `Screener.screen_many` takes; series are judged on the way."""
        results = [*self._rows.beside, *([self._options.heat_maps] if self._options.heat_maps else [])]
        found: Iterator[Any] = items(paths, self.tally, [Path(place).resolve() for place in results])
        if self._reader is not None:
            found = _apart(sorted_out(found, least=2), self._options.per_slice, self.tally)
        for one in unjudged(found, self._rows.done, self.tally, self._rows.named):
            if isinstance(one, Item):
                self._waiting.append(one)
                yield one.source
            else:
                self._judge_series(one)  # now, so that one volume at a time is open

    def _judge_series(self, series: Volume | Unusable) -> None:
        point = self._options.operating_point
        if point not in self._reader.operating_points:  # it is another model's
            point = next(iter(self._reader.operating_points))
        told = of_volume(self._reader, series, point, self._options.batch_size, self._options.workers)
        self._write(row_of_series(one_line(series.name), told), told.decision)

    def _write(self, row: dict[str, Any], decision: str) -> None:
        self._rows.write(row)
        self.tally.decisions[decision] += 1
        self._watch(self.tally)


def check_apart(paths: Sequence[str | os.PathLike], folder: str | os.PathLike, option: str) -> None:
    """Refuse a folder for results that holds the pictures, too: the next run could not tell them apart.

    Raises:
        Refused: as said.
    """
    place = Path(folder).resolve()
    if any(Path(path).resolve().is_relative_to(place) for path in paths):
        raise Refused(f"{option} {folder} holds the pictures. Give a folder of its own for what is written.")


def nothing_found(paths: Sequence[str | os.PathLike]) -> Refused:
    """Return the refusal of a run that found no file."""
    return Refused(
        f"There is no picture under {', '.join(map(str, paths))}. Give pictures, archives or folders of them."
    )


def models_of(screener: Screener | AutoScreener) -> tuple[Screener, ...]:
    """List the models behind a screener: one, or each of those that it chooses among."""
    return getattr(screener, "screeners", (screener,))


def settings_of(screener: Screener | AutoScreener, options: Options) -> dict[str, Any]:
    """Collect what the rows of a run depend on."""
    models = models_of(screener)
    keys = ("weights_sha256", "guard_sha256", "view", "series")
    return {
        "models": {one.modality: {key: one.screening.get(key) for key in keys} for one in models},
        "operating points": {one.modality: one.operating_points for one in models},
        "operating point": options.operating_point,
        "heat maps": options.heat_maps is not None,
        "per slice": options.per_slice,
        "sites": {one.modality: one.site and one.site.seal for one in models},
        "prevalence": next((one.prevalence for one in models), None),
    }


def row_of(name: str, finding: Finding, heat_map: str | None = None) -> dict[str, Any]:
    """Fill the columns of `rows.COLUMNS` for one finding."""
    told = finding.to_dict()
    return {
        **told,
        "file": name,
        "reasons": " ".join(one_line(reason) for reason in told["reasons"]),
        "codes": " ".join(told["codes"]),
        "heat_map": heat_map,
    }


def row_of_series(name: str, found: SeriesFinding) -> dict[str, Any]:
    """Fill the columns of `rows.COLUMNS` for a series; the volume's notes stand among the reasons."""
    told = found.to_dict()
    said = [*told["reasons"], *told["notes"]]
    codes = [*told["codes"], *(getattr(note, "code", "") for note in found.notes)]
    return {
        **told,
        "file": name,
        "reasons": " ".join(one_line(reason) for reason in said),
        "codes": " ".join(codes),
    }


def _apart(
    found: Iterable[Volume | Unusable | Item], per_slice: bool, tally: Tally
) -> Iterator[Volume | Unusable | Item]:
    """Count each series as one, or split it into its slices."""
    for one in found:
        if isinstance(one, Item):
            yield one
            continue
        tally.expected -= len(one.files)
        if per_slice and isinstance(one, Volume):
            tally.expected += len(one)
            yield from (
                Item(f"{one.name}#{n:04d}", read) for n, read in enumerate(one.slices.readers, start=1)
            )
        else:
            tally.expected += 1
            yield one


def unjudged(
    found: Iterable[Series], done: Counter[str], tally: Tally, named: Callable[[str], str] = str
) -> Iterator[Series]:
    """Yield what no earlier run has judged; of several with one name, as many are left out as there are rows."""
    for item in found:
        name = named(one_line(item.name)) if done else ""
        if done[name] > 0:
            done[name] -= 1
            tally.earlier += 1
        else:
            yield item


def _drawn(item: Item, finding: Finding, folder: str | os.PathLike | None) -> str | None:
    """Write the tinted picture; return its file name, or None where there is no heat map."""
    if folder is None or finding.heat_map is None:
        return None
    file = drawing_name(item.name, item.number)
    with whole_file(Path(folder) / file) as new:
        overlay(finding.image, finding.heat_map).save(new)
    return file


def drawing_name(name: str, number: int) -> str:
    """Make a readable file name for the tinted picture of an item, a different one for each."""
    letters = "".join(c if c.isalnum() or c in "-_." else "_" for c in name).lstrip(".")
    mark = hashlib.sha256(f"{number} {name}".encode()).hexdigest()[:12]
    return f"{letters[-LONGEST_NAME:]}-{mark}.png"


def all_refused(tally: Tally) -> bool:
    """Say whether a run judged pictures and refused every one; False for a run that continues an earlier one."""
    return bool(tally.decisions) and not tally.earlier and tally.decisions[REFUSED] == tally.decisions.total()


def told(tally: Tally) -> str:
    """Sum up a run in one line."""
    counts = ", ".join(f"{count:,} {decision}" for decision, count in sorted(tally.decisions.items()))
    parts = [f"{tally.decisions.total():,} judged{f' ({counts})' if counts else ''}"]
    further = {
        "judged by an earlier run": tally.earlier,
        "files of systems passed over": tally.rubbish,
        "links to folders that were listed already": tally.again,
    }
    parts += [f"{count:,} {what}" for what, count in further.items() if count]
    return "; ".join(parts) + "."
