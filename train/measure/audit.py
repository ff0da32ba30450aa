"""Does the model read lungs, or something else that gives the label away?

Each audit asks how far one gets with what should not tell: the picture without its lungs, its blurred outline, the
collection it came from (Maguolo & Nanni 2021, arXiv:2004.12823; DeGrave et al. 2021, Nature Machine Intelligence
3:610-619); or by how much a change moves the answer that should not move it.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from PIL import Image, ImageFilter, ImageOps
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from hub_model import hub_folder, lungs
from hub_model.check.harmless import PICTURES, spread
from hub_model.check.metrics import Record, figures, mean, paired_difference
from hub_model.refused import Refused
from hub_model.whole import changed_folder

from . import harmless, plots
from .guard import balanced
from .predict import Predictions, predict
from .predict import run as answers
from .provenance import kept_out, parts_of

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

CENTRE = 0.6
"""Side of the middle of the picture, as a share of its sides: it stands for the lungs where nobody outlines them."""
RIM = 4
"""Pixels of 128 by which an outline of the lungs grows, so that their edge goes with them."""
COARSE = 16
THUMBNAIL = 32
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
SOURCE_PICTURES = 400
"""Training pictures from which the collections are learnt."""
CHANGED_PLOT = "harmless_changes"


def lungs_gone(image: Image.Image, inside: Image.Image) -> Image.Image:
    """Black out the lungs of a picture; `inside` is white where they are."""
    return Image.composite(Image.new("L", image.size, 0), image, inside)


def lungs_only(image: Image.Image, inside: Image.Image) -> Image.Image:
    """Black out everything but the lungs of a picture."""
    return Image.composite(image, Image.new("L", image.size, 0), inside)


def coarse_only(image: Image.Image, inside: Image.Image) -> Image.Image:
    """Leave of the picture what 16 x 16 pixels hold."""
    return image.resize((COARSE, COARSE), Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)


CHANGED = {change.__name__: change for change in (lungs_gone, lungs_only, coarse_only)}
"""Audits that take something away from the picture, by the name of their figure."""


def inside_lungs(image: Image.Image, finder: lungs.LungFinder | None) -> tuple[Image.Image, bool]:
    """Mask the lungs of a grey picture (mode "1"), a rim around them included, and say if they were found.

    Where there is no network that finds lungs, or it finds none, the middle of the picture stands for them.
    """
    found = finder.find(image) if finder else None
    if found is None or not found.found:
        width, height = image.size
        x, y = (round(side * (1 - CENTRE) / 2) for side in image.size)
        middle = Image.new("1", image.size, 0)
        middle.paste(1, (x, y, width - x, height - y))
        return middle, False
    outline = Image.fromarray((found.outline >= lungs.LIKELY).astype(np.uint8) * 255)
    return outline.filter(ImageFilter.MaxFilter(2 * RIM + 1)).resize(image.size).convert("1"), True


def audit(
    run: Annotated[Path, typer.Argument(help="evaluated hub folder")],
    data: Annotated[list[str], typer.Option(help="what fit was given; may repeat")],
    fold: Annotated[
        list[Path] | None, typer.Option(help="run of the same settings fitted --without-source; may repeat")
    ] = None,
    pictures: Annotated[
        int, typer.Option(help="test pictures on which harmless changes are tried, at most")
    ] = PICTURES,
    seed: Annotated[int, typer.Option(help="seed of the bootstrap and of the draw of pictures")] = 0,
) -> dict[str, Any]:
    """Audit RUN on the test split and add the figures to its evaluation.json.

    Returns:
        ``harmless``, see `harmless.measure_changes`; ``changed``, AUROC on as many test pictures ``whole`` and with
        something gone (lungs_gone, lungs_only, coarse_only), and ``lungs``, the share of them whose lungs were found;
        ``thumbnail``, AUROC on all test pictures with the network's ``advantage`` over it; ``source``, how well the
        collection can be told from what the network sees; ``uncut``, of a network that was trained on pictures cut to
        their lungs, what it makes of whole ones; ``kept_out``, what it makes of each source that it was kept from;
        ``unseen_source``, AUROC of each source that a fold left out against the Non-COVID test images, beside the
        thumbnail's.

    Raises:
        FolderRefused: RUN has not been evaluated.
        Refused: DATA is not what RUN was trained on, or a fold left out no source.
    """
    if pictures < 4:
        raise Refused(f"{pictures} pictures measure nothing; give at least 4, as {PICTURES}.")
    folder = hub_folder.open_folder(run)
    hub_folder.read_json(folder.path / hub_folder.EVALUATION)  # early: it may not be there
    parts = parts_of(folder, data)
    whole = predict(folder, parts["test"], "test pictures")
    test = parts["test"] = parts["test"].select(np.flatnonzero(whole.answered))
    whole = whole.only(whole.answered)
    changes = harmless.measure_changes(folder, test, pictures, seed)
    audits = {
        "harmless": changes,
        "changed": _changed(folder, test, whole, pictures, seed),
        "thumbnail": _thumbnail(parts, whole.log_odds, seed),
        "source": _source(folder, parts, whole, seed),
        **({"uncut": _uncut(folder, test, seed)} if folder.view == lungs.LUNGS else {}),
        "kept_out": {
            name: _at_default(folder, own, f"{name}, kept out", seed)
            for name, own in kept_out(folder, data).items()
        },
        "unseen_source": {
            name: row
            for path in fold or []
            for name, row in _unseen(path, parts, folder.modality, seed).items()
        },
    }
    default = next(iter(folder.screening["operating_points"]))
    with changed_folder(folder.path) as new:
        evaluation = hub_folder.read_json(new / hub_folder.EVALUATION)
        if evaluation.get("weights_sha256") != folder.screening.get("weights_sha256"):
            raise Refused(f"{folder.path} has got other weights meanwhile. Audit it again.")
        plots.save(harmless.draw(changes, default), new / "plots" / f"{CHANGED_PLOT}.png")
        hub_folder.write_json(new / hub_folder.EVALUATION, {**evaluation, "audits": audits})
    return audits


def _changed(
    folder: hub_folder.HubFolder, test: "Dataset", whole: Predictions, pictures: int, seed: int
) -> dict[str, Record]:
    """Score the network on pictures from which something was taken away."""
    chosen = spread(whole.labels, whole.families, pictures, seed)
    labels, families = whole.labels[chosen], whole.families[chosen]
    images, finder = [row["image"].convert("L") for row in test.select(chosen)], folder.finder
    masks = [inside_lungs(image, finder) for image in images]
    result = {"whole": _auroc(labels, whole.log_odds[chosen], families, seed)}
    for name, change in CHANGED.items():
        log_odds, _ = answers(
            folder, [change(image, mask) for image, (mask, _) in zip(images, masks, strict=True)]
        )
        result[name] = _auroc(labels, log_odds, families, seed)
    return {**result, "lungs": mean("lungs found", [found for _, found in masks], families, seed)}


def _uncut(folder: hub_folder.HubFolder, test: "Dataset", seed: int) -> dict[str, Record]:
    """Score what a stock loader shows the network where nobody cuts to the lungs before: whole pictures."""
    plain = replace(folder, screening={**folder.screening, "view": lungs.WHOLE})
    return _at_default(plain, test, "whole pictures", seed)


def _at_default(folder: hub_folder.HubFolder, pictures: "Dataset", name: str, seed: int) -> dict[str, Record]:
    """Score pictures at the default operating point; ``answered`` is the share of them that has an answer."""
    everything = predict(folder, pictures, name)
    found = everything.only(everything.answered)
    point = next(iter(folder.screening["operating_points"]))
    thresholds = {point: folder.screening["operating_points"][point]["threshold"]}
    told = figures(found.labels, expit(found.log_odds), found.families, thresholds, seed)
    return {
        "auroc": told["auroc"],
        **{key: told["at"][point][key] for key in ("sensitivity", "specificity")},
        "answered": mean("answered", everything.answered, everything.families, seed),
    }


def _auroc(labels: np.ndarray, log_odds: np.ndarray, families: np.ndarray, seed: int) -> Record:
    """Score the pictures (n,) that have an answer."""
    mask = np.isfinite(log_odds)
    return figures(labels[mask], expit(log_odds[mask]), families[mask], {}, seed)["auroc"]


def thumbnails(split: "Dataset") -> np.ndarray:
    """Make (n, 1024) thumbnails of the equalised pictures, in 0..1: they show no lung structure."""
    equal = (ImageOps.equalize(row["image"].convert("L")) for row in split.select_columns("image"))
    small = (image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX) for image in equal)
    return np.stack([np.asarray(image, np.float32).ravel() / 255 for image in small])


def _thumbnail(parts: "DatasetDict", ours: np.ndarray, seed: int) -> dict[str, Record]:
    """Score a classifier of equalised 32 x 32 thumbnails: a network that does not beat it has learnt nothing of lungs.

    Also by source where one has both classes. ``advantage`` is what the network's AUROC has over it, paired.
    """
    theirs = _thumbnail_classifier(parts).decision_function(thumbnails(parts["test"]))
    labels, families, sources = (np.array(parts["test"][key]) for key in ("label", "family", "source"))
    chosen = {"all": np.ones(len(labels), bool)} | {str(name): sources == name for name in np.unique(sources)}
    return {
        name: {
            **_auroc(labels[mask], theirs[mask], families[mask], seed),
            "advantage": paired_difference(
                labels[mask], expit(ours[mask]), expit(theirs[mask]), families[mask], seed=seed
            ),
        }
        for name, mask in chosen.items()
        if len(set(labels[mask])) == 2
    }


def _thumbnail_classifier(parts: "DatasetDict", without: Sequence[str] = ()) -> Pipeline:
    """Fit logistic regression to the thumbnails of the train split, regularised as is best on validation.

    So the network is compared with the best of its kind. Sources in ``without`` are kept from both splits."""
    known = {
        name: parts[name].filter(lambda source: source not in without, input_columns="source")
        for name in ("train", "validation")
    }
    pixels = {name: thumbnails(split) for name, split in known.items()}

    def score(classifier: Pipeline) -> float:
        return roc_auc_score(known["validation"]["label"], classifier.decision_function(pixels["validation"]))

    fitted = (make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000)) for c in STRENGTHS)
    return max((one.fit(pixels["train"], known["train"]["label"]) for one in fitted), key=score)


def _source(
    folder: hub_folder.HubFolder, parts: "DatasetDict", test: Predictions, seed: int
) -> dict[str, dict[str, Any]]:
    """Say how often the collection is told from what the network sees, learnt on the train split, by label."""
    chosen = balanced(parts["train"]["source"], SOURCE_PICTURES, np.random.default_rng(seed))
    train = predict(folder, parts["train"].select(chosen), "sources of train")
    train = train.only(train.answered)
    result = {}
    for index, label in enumerate(hub_folder.LABELS):
        mask, seen = test.labels == index, train.labels == index
        if len(set(train.sources[seen])) < 2 or not mask.any():
            continue
        classifier = make_pipeline(
            StandardScaler(), LogisticRegression(C=0.01, max_iter=1000, class_weight="balanced")
        )
        classifier.fit(train.features[seen], train.sources[seen])
        hits = classifier.predict(test.features[mask]) == test.sources[mask]
        chance = max(np.unique(test.sources[mask], return_counts=True)[1]) / mask.sum()
        share = mean("accuracy", hits, test.families[mask], seed)
        result[label] = {**share, "largest_source": round(float(chance), 6)}
    return result


def _unseen(path: Path, parts: "DatasetDict", modality: str, seed: int) -> dict[str, Record]:
    """Score the sources a fold never saw: all their pictures against the Non-COVID pictures of the test split.

    Each record has the AUROC of the ``thumbnail`` classifier, which never saw the source either, on the same pictures.
    """
    import datasets

    folder = hub_folder.open_folder(path)
    left_out = folder.screening.get("provenance", {}).get("without_source") or []
    if not left_out or folder.modality != modality:
        raise Refused(f"{path} is no fold of this run: fit it on the same data with --without-source NAME.")
    everything = datasets.concatenate_datasets(list(parts.values()))
    classifier = _thumbnail_classifier(parts, left_out)
    rows = {}
    for source in left_out:
        own = everything.filter(lambda s, source=source: s == source, input_columns="source")
        others = parts["test"].filter(
            lambda s, label, source=source: s != source and label == 0, input_columns=["source", "label"]
        )
        pictures = datasets.concatenate_datasets([own, others])
        found = predict(folder, pictures, f"{source}, never seen")
        trivial = classifier.decision_function(thumbnails(pictures))
        chosen = {source: np.ones(len(pictures), bool)}
        if len(set(own["label"])) == 2:
            chosen[f"inside {source}"] = found.sources == source
        for name, mask in chosen.items():
            ours, theirs = (
                _auroc(found.labels[mask], log_odds[mask], found.families[mask], seed)
                for log_odds in (found.log_odds, trivial)
            )
            rows[name] = {**ours, "thumbnail": theirs}
    return rows
