"""Look at the data before anybody trains on it: counts, sizes, grey levels, mean pictures, warnings.

    report/index.html    one page with every picture inside it; it asks for nothing from outside
    report/*.png         its pictures
    report/report.json   its numbers

Pictures are read once, one after the other; what is kept of each is a handful of numbers.
"""

import base64
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import jinja2
import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.progress import track

from hub_model.check.files import DataRefused, explain_write_errors
from hub_model.hub_folder import COVID, LABELS, MODALITIES
from hub_model.whole import whole_folder

from . import plots as data_plots
from .dataset import is_prepared, load_data, prepared_folder, read_told
from .manifest import read_manifest
from .prepared import MANIFEST_FILE, SPLIT_FILE
from .split import LEAKING, SPLITS

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

FORMAT = 1
SIDE = 128
"""Pixels a side of mean pictures."""
EXAMPLE_SIDE = 240
FEW = 30
"""Pictures of a class in a split below which figures are mostly chance: the 95 % interval of a sensitivity of
0.9 then is wider than 0.2 (Wilson)."""
TELLING = 0.65
"""AUROC from which a cue that has nothing to do with lungs is warned of."""
TOGETHER = 0.3
"""Cramér's V from which source and label are said to go together: medium in Cohen 1988, page 227."""
SYNTHETIC = "phantom"
"""Name of the source that `phantom` writes."""
TEMPLATES = Path(__file__).parent / "templates"
CUES = {
    "width": "width in pixels",
    "height": "height in pixels",
    "aspect": "width over height",
    "black": "share of black pixels",
    "white": "share of white pixels",
    "mean": "mean grey level",
}


@dataclass
class Tally:
    """What is known of the pictures of one modality after reading them.

    Attributes:
        columns: per picture: label, split, source, family, width, height, black, white, mean.
        levels: (2, 256) shares of grey levels, summed over the pictures of a class.
        sums: (2, SIDE, SIDE) pictures squashed to a square, summed over the pictures of a class.
    """

    columns: dict[str, list] = field(default_factory=dict)
    levels: np.ndarray = field(default_factory=lambda: np.zeros((len(LABELS), 256)))
    sums: np.ndarray = field(default_factory=lambda: np.zeros((len(LABELS), SIDE, SIDE)))

    def add(self, image: Image.Image, **known: Any) -> None:
        """Count one grey picture."""
        share = np.bincount(np.asarray(image).ravel(), minlength=256) / (image.width * image.height)
        self.levels[known["label"]] += share
        self.sums[known["label"]] += np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))
        numbers = {"width": image.width, "height": image.height, "black": share[0], "white": share[-1]}
        for name, value in {**known, **numbers, "mean": share @ np.arange(256)}.items():
            self.columns.setdefault(name, []).append(value)

    def __getitem__(self, name: str) -> np.ndarray:
        if name == "aspect":
            return self["width"] / self["height"]
        return np.array(self.columns[name])

    @property
    def counts(self) -> dict[str, int]:
        """Pictures per class, of the classes that are there."""
        found = Counter(self.columns["label"])
        return {label: found[index] for index, label in enumerate(LABELS) if found[index]}


def explore(
    sources: Annotated[
        list[str], typer.Argument(help="prepared folder, folder, zip or Hub id, as [NAME=]PATH")
    ],
    out: Annotated[Path, typer.Option(help="folder for the report; one written before is replaced")],
    modality: Annotated[str | None, typer.Option(help="xray or ct: the only one wanted")] = None,
    seed: Annotated[int, typer.Option(help="of the examples, and of the split of raw pictures")] = 0,
    split: Annotated[str | None, typer.Option(help="family or official; of raw pictures")] = None,
    labels: Annotated[list[str] | None, typer.Option(help="further class name, as Normal=Non-COVID")] = None,
    examples: Annotated[int, typer.Option(help="pictures shown per class and modality")] = 8,
) -> Path:
    """Write a report on SOURCES that shows what a network would see, and what it could cheat with.

    Returns:
        The page, `out`/index.html.

    Raises:
        DataRefused: sources that cannot be used, or `out` holds something else than a report.
    """
    out = Path(out).expanduser()
    _check_place(out)
    raw = len(sources) > 1 or not is_prepared(Path(sources[0]).expanduser())
    asked = {"seed": seed if raw else None, "split": split}
    folder = prepared_folder(sources, modality, asked, labels)
    data = load_data(folder, modality)
    tallies = tally(data)
    report = {
        "format": FORMAT,
        "pictures": sum(sum(found.counts.values()) for found in tallies.values()),
        "modalities": {name: summary(found) for name, found in tallies.items()},
        "families": family_figures(tallies),
        "prepared": None if raw else prepared(folder),
        "left_out": left_out(folder),
    }
    report["warnings"] = warnings(report)
    chosen = choose(tallies, data, examples, seed)
    sheet = None if raw else folder / "families.png"
    with explain_write_errors(out):
        _write(out, report, tallies, chosen, sheet)
    page = out / "index.html"
    told = f"{page}: {report['pictures']:,} pictures, {len(report['warnings'])} warnings"
    Console(stderr=True, highlight=False, markup=False).print(told, soft_wrap=True)
    return page


def _write(
    out: Path,
    report: Mapping,
    tallies: Mapping[str, Tally],
    chosen: Mapping[str, list],
    sheet: Path | None,
) -> None:
    """Write the report whole, in the place of an earlier one."""
    with whole_folder(out) as folder:
        drawn = draw(tallies, chosen, folder)
        if sheet and sheet.is_file():
            shutil.copyfile(sheet, folder / "families.png")
            drawn["families"] = folder / "families.png"
        (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
        (folder / "index.html").write_text(render(report, drawn), "utf-8")


def _check_place(out: Path) -> None:
    ours = (out / "report.json").is_file() and (out / "index.html").is_file()
    if out.exists() and not ours and (not out.is_dir() or any(out.iterdir())):
        raise DataRefused(
            f"{out}: something else than a report is there already. Name a new folder, or remove it first."
        )


# --- reading --------------------------------------------------------------------------------------


def tally(data: "DatasetDict") -> dict[str, Tally]:
    """Read every picture of a `DatasetDict` once. Returns a `Tally` per modality."""
    found: dict[str, Tally] = {}
    total = sum(len(part) for part in data.values())
    for row in track(_rows(data), "reading pictures", total=total, console=Console(stderr=True)):
        known = {name: row[name] for name in ("label", "split", "source", "family")}
        found.setdefault(row["modality"], Tally()).add(_grey(row["image"]["bytes"]), **known)
    return {name: found[name] for name in MODALITIES if name in found}


def _rows(data: "DatasetDict") -> Iterator[dict]:
    """Yield all rows with their split; pictures stay encoded."""
    for name in SPLITS:
        for row in _encoded(data[name]):
            yield {**row, "split": name}


def _encoded(split: "Dataset") -> "Dataset":
    import datasets

    return split.cast_column("image", datasets.Image(decode=False))


def _grey(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("L")


def choose(tallies: Mapping[str, Tally], data: "DatasetDict", count: int, seed: int) -> dict[str, list]:
    """Choose examples from the training split: per modality a row per class, each picture of another family."""
    train = _encoded(data["train"])
    columns = {name: np.array(train[name]) for name in ("modality", "label", "family", "source")}
    order = np.random.default_rng(seed).permutation(len(train))
    chosen = {}
    for modality in tallies:
        chosen[modality] = []
        for index, label in enumerate(LABELS):
            ours = order[(columns["modality"][order] == modality) & (columns["label"][order] == index)]
            _, first = np.unique(columns["family"][ours], return_index=True)
            rows = ours[np.sort(first)][:count]
            pictures = [
                (str(columns["source"][row]), _small(train[int(row)]["image"]["bytes"])) for row in rows
            ]
            chosen[modality].append((label, pictures))
    return chosen


def _small(content: bytes) -> Image.Image:
    picture = _grey(content)
    picture.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE))
    return picture


# --- numbers --------------------------------------------------------------------------------------


def summary(found: Tally) -> dict:
    """Work out the numbers of one modality."""
    labels, split, source = found["label"], found["split"], found["source"]
    shortest = np.minimum(found["width"], found["height"])
    return {
        "counts": found.counts,
        "splits": {name: _per_class(labels[split == name]) for name in SPLITS},
        "sources": {name: _per_class(labels[source == name]) for name in sorted(set(source.tolist()))},
        "cramers_v": cramers_v(source, labels),
        "cues": {name: cue(labels, found[name]) for name in CUES},
        "black": {name: _spread(found["black"][labels == index]) for index, name in _classes(found)},
        "white": {name: _spread(found["white"][labels == index]) for index, name in _classes(found)},
        "shorter_side": {name: _spread(shortest[labels == index]) for index, name in _classes(found)},
        "sizes": len(set(zip(found["width"].tolist(), found["height"].tolist(), strict=True))),
    }


def _classes(found: Tally) -> list[tuple[int, str]]:
    return [(index, name) for index, name in enumerate(LABELS) if name in found.counts]


def _per_class(labels: np.ndarray) -> dict[str, int]:
    return {name: int((labels == index).sum()) for index, name in enumerate(LABELS)}


def _spread(values: np.ndarray) -> dict[str, float]:
    low, middle, high = np.percentile(values, [10, 50, 90])
    return {"mean": float(values.mean()), "p10": float(low), "median": float(middle), "p90": float(high)}


def cramers_v(source: np.ndarray, labels: np.ndarray) -> float | None:
    """Measure how far the source tells the label: 0 not at all, 1 always; None for one source or one class.

    Cramér 1946, Mathematical Methods of Statistics, page 282.
    """
    from scipy.stats.contingency import association, crosstab

    table = crosstab(source, labels).count
    return float(association(table, method="cramer")) if min(table.shape) > 1 else None


def cue(labels: np.ndarray, values: np.ndarray) -> float | None:
    """Measure how well one number alone tells the label: AUROC in the better direction; None for one class."""
    from sklearn.metrics import roc_auc_score

    if len(set(labels.tolist())) < 2:
        return None
    area = float(roc_auc_score(labels == COVID, values))
    return max(area, 1 - area)


def family_figures(tallies: Mapping[str, Tally]) -> dict:
    """Count families of copies and patients over all modalities: how many, how large, how many in two splits."""
    members: Counter[str] = Counter()
    homes: dict[str, set[str]] = {}
    for found in tallies.values():
        members.update(found.columns["family"])
        for family, split in zip(found.columns["family"], found.columns["split"], strict=True):
            homes.setdefault(family, set()).add(split)
    sizes = Counter(members.values())
    return {
        "families": len(members),
        "of_one": sizes[1],
        "largest": max(sizes),
        "crossing": sum(len(splits) > 1 for splits in homes.values()),
    }


def prepared(folder: Path) -> dict:
    """Read what a prepared folder records: its split and its leak report."""
    told, leaks = read_told(folder / SPLIT_FILE), read_told(folder / "leak_report.json")
    return {
        "split": {name: told[name] for name in ("split", "seed", "hash", "leaking")},
        "leak_report": {
            name: leaks[name] for name in ("families_by_size", "exact_duplicates", "random_split")
        },
        "contradictions": len(leaks["contradictions"]),
        "left_out": left_out(folder),
    }


def left_out(folder: Path) -> dict[str, int]:
    """Count the files that are in no split, by reason: masks, lateral views, unreadable files, other labels ..."""
    reasons = Counter(entry.refused for entry in read_manifest(folder / MANIFEST_FILE) if entry.refused)
    return dict(reasons.most_common())


def warnings(report: Mapping) -> list[str]:
    """List what to know before trusting a score on this data, the gravest first."""
    found = []
    told = report["prepared"]
    if (told and told["split"]["leaking"]) or report["families"]["crossing"]:
        found.append(
            f"{LEAKING}: {report['families']['crossing']:,} families have pictures in more than one split."
            " Scores on this split measure memory. Prepare the data again with the split by family."
        )
    drawn = {name for numbers in report["modalities"].values() for name in numbers["sources"]}
    if any(name.split("/")[-1] == SYNTHETIC for name in drawn):
        found.append("Synthetic pictures are among these: nothing measured on them speaks of patients.")
    for modality, numbers in report["modalities"].items():
        found += [f"{modality}: {text}" for text in _warnings_of(numbers)]
    if told and told["contradictions"]:
        found.append(
            f"{told['contradictions']:,} families hold both labels and were left out. Look at them: they are"
            " wrong labels, or different patients that look alike."
        )
    return found


def _warnings_of(numbers: Mapping) -> Iterator[str]:
    if numbers["cramers_v"] is not None and numbers["cramers_v"] >= TOGETHER:
        single = [name for name, counts in numbers["sources"].items() if not all(counts.values())]
        text = f"source and label go together (Cramér's V {numbers['cramers_v']:.2f})"
        if single:
            text += f"; only one label in {', '.join(single)}"
        yield f"{text}. A network can score by telling collections apart: report results by source."
    for name, area in numbers["cues"].items():
        if area is not None and area >= TELLING:
            yield (
                f"the {CUES[name]} alone tells the label with AUROC {area:.2f}. A model must clearly beat"
                " that to have learnt anything about lungs."
            )
    few = []
    for split, counts in numbers["splits"].items():
        rare = [f"{count:,} {label}" for label, count in counts.items() if count < FEW]
        few += [f"{' and '.join(rare)} in {split}"] if rare else []
    if few:
        yield f"{', '.join(few)}: figures on so few pictures are mostly chance."
    share = min(numbers["counts"].values()) / sum(numbers["counts"].values())
    if share < 0.2:
        yield f"the rarer class has {share:.0%} of the pictures: accuracy flatters, look at sensitivity."


# --- page -----------------------------------------------------------------------------------------


def draw(tallies: Mapping[str, Tally], chosen: Mapping[str, list], folder: Path) -> dict[str, Path]:
    """Write the pictures as PNG. Returns their files by name, as 'ct_grey_levels'."""
    figures = {}
    for modality, found in tallies.items():
        labels, split = found["label"], found["split"]
        counts = found.counts
        levels = {name: found.levels[index] / counts[name] for index, name in _classes(found)}
        means = {name: found.sums[index] / counts[name] for index, name in _classes(found)}
        figures[f"{modality}_splits"] = data_plots.splits(
            {name: _per_class(labels[split == name]) for name in SPLITS}
        )
        figures[f"{modality}_examples"] = data_plots.examples(chosen[modality])
        figures[f"{modality}_grey_levels"] = data_plots.grey_levels(levels, counts)
        figures[f"{modality}_mean"] = data_plots.mean_pictures(means, counts)
        figures[f"{modality}_sizes"] = data_plots.sizes(found["width"], found["height"], labels)
    files = {name: folder / f"{name}.png" for name in figures}
    for name, figure in figures.items():
        figure.savefig(files[name], dpi=110, bbox_inches="tight", metadata={"Software": None})
    return files


def render(report: Mapping, drawn: Mapping[str, Path]) -> str:
    """Render the page from the report's numbers and the drawn pictures alone."""
    pictures = {
        name: "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
        for name, path in drawn.items()
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("explore.html")
    return page.render(report=report, pictures=pictures, labels=LABELS, cues=CUES, leaking=LEAKING, side=SIDE)
