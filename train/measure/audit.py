"""Does the model read lungs, or something else that gives the label away?

Each audit asks how far one gets with what should not tell: the picture's margin, its blurred outline, the collection
it came from (Maguolo & Nanni 2021, arXiv:2004.12823; DeGrave et al. 2021, Nature Machine Intelligence 3:610-619).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image, ImageOps
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hub_model import hub_folder

from .metrics import family_weights, figures, paired_difference, record
from .predict import Predictions, predict
from .provenance import WrongData, parts_of

CENTRE = 0.6
"""Side of the blacked-out (or the only kept) middle of the picture, as a share of its sides: it holds the lungs."""
COARSE = 16
THUMBNAIL = 32
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def borders_only(image: Image.Image) -> Image.Image:
    """The picture with its centre blacked out."""
    box = _centre(image)
    changed = image.copy()
    changed.paste(0, box)
    return changed


def centre_only(image: Image.Image) -> Image.Image:
    """The picture with everything but its centre blacked out."""
    box = _centre(image)
    changed = Image.new("L", image.size, 0)
    changed.paste(image.crop(box), box)
    return changed


def coarse_only(image: Image.Image) -> Image.Image:
    """What is left of the picture in 16 x 16 pixels."""
    return image.resize((COARSE, COARSE), Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)


def _centre(image: Image.Image) -> tuple[int, int, int, int]:
    margin = (1 - CENTRE) / 2
    width, height = image.size
    return (
        round(width * margin),
        round(height * margin),
        round(width * (1 - margin)),
        round(height * (1 - margin)),
    )


def audit(
    run: Annotated[Path, typer.Argument(help="evaluated hub folder")],
    data: Annotated[list[str], typer.Option(help="what fit was given; may repeat")],
    fold: Annotated[
        list[Path] | None, typer.Option(help="run of the same settings fitted --without-source; may repeat")
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of the bootstrap")] = 0,
) -> dict:
    """Audit RUN on the test part and add the figures to its evaluation.json.

    Returns:
        ``changed`` pictures (borders_only, centre_only, coarse_only) and ``thumbnail``, each with AUROC on the
        same test images, the latter with the network's ``advantage`` over it; ``source``, how well the collection
        can be told from what the network sees; ``unseen_source``, AUROC of each left-out source against the
        Non-COVID test images, beside the thumbnail's.

    Raises:
        FolderRefused: RUN has not been evaluated.
        WrongData: DATA is not what RUN was trained on, or a fold left out no source.
    """
    folder = hub_folder.open_folder(run)
    evaluation = hub_folder.read_json(folder.path / hub_folder.EVALUATION)
    parts = parts_of(folder, data)
    test = parts["test"]
    whole = predict(folder, test, "test pictures")
    changed = {}
    for change in (borders_only, centre_only, coarse_only):
        found = predict(folder, test, change.__name__, change)
        changed[change.__name__] = _auroc(found.labels, found.margins, found.families, seed)
    evaluation["audits"] = {
        "changed": changed,
        "thumbnail": _thumbnail(parts, whole.margins, seed),
        "source": _source(folder, parts, whole, seed),
        "unseen_source": {
            name: row
            for path in fold or []
            for name, row in _unseen(path, parts, folder.modality, seed).items()
        },
    }
    hub_folder.write_json(folder.path / hub_folder.EVALUATION, evaluation)
    return evaluation["audits"]


def _auroc(labels, margins, families, seed: int) -> dict:
    return figures(labels, expit(margins), families, {}, seed)["auroc"]


def thumbnails(part) -> np.ndarray:
    """(n, 1024) thumbnails of the equalised pictures, in 0..1: a cue that shows no lung structure."""
    equal = (ImageOps.equalize(row["image"].convert("L")) for row in part)
    small = (image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX) for image in equal)
    return np.stack([np.asarray(image, np.float32).ravel() / 255 for image in small])


def _thumbnail(parts, ours: np.ndarray, seed: int) -> dict:
    """Logistic regression on equalised 32 x 32 thumbnails: whoever does not beat it has learnt nothing of lungs.

    Also by source where one has both classes. ``advantage`` is what the network's AUROC has over it, paired.
    """
    theirs = _cue(parts).decision_function(thumbnails(parts["test"]))
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


def _cue(parts, without: Sequence[str] = ()):
    """Logistic regression on the thumbnails of the train part; validation chooses its strength, lest it be a man of
    straw. Sources in ``without`` are kept from both."""
    known = {
        name: parts[name].filter(lambda source: source not in without, input_columns="source")
        for name in ("train", "validation")
    }
    pixels = {name: thumbnails(part) for name, part in known.items()}

    def score(cue) -> float:
        return roc_auc_score(known["validation"]["label"], cue.decision_function(pixels["validation"]))

    cues = (make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000)) for c in STRENGTHS)
    return max((cue.fit(pixels["train"], known["train"]["label"]) for cue in cues), key=score)


def _source(folder, parts, test: Predictions, seed: int) -> dict:
    """How often the collection is told from what the network sees, trained on the train part, within each class."""
    train = predict(folder, parts["train"], "sources of train")
    result = {}
    for index, label in enumerate(hub_folder.LABELS):
        mask, seen = test.labels == index, train.labels == index
        if len(set(train.sources[seen])) < 2:
            continue
        classifier = make_pipeline(
            StandardScaler(), LogisticRegression(C=0.01, max_iter=1000, class_weight="balanced")
        )
        classifier.fit(train.features[seen], train.sources[seen])
        hits = classifier.predict(test.features[mask]) == test.sources[mask]
        units = test.families[mask]
        weights = family_weights(units, seed=seed)
        samples = (weights @ hits) / weights.sum(1)
        chance = max(np.unique(test.sources[mask], return_counts=True)[1]) / mask.sum()
        share = record("accuracy", hits.mean(), samples, len(hits), len(np.unique(units)))
        result[label] = {**share, "largest_source": round(float(chance), 6)}
    return result


def _unseen(path: Path, parts, modality: str, seed: int) -> dict:
    """AUROC of the sources a fold never saw: all their images against the Non-COVID images of the test part.

    Each record has the ``thumbnail`` cue's AUROC, which never saw the source either, on the same images.
    """
    import datasets

    folder = hub_folder.open_folder(path)
    left_out = folder.screening.get("provenance", {}).get("without_source") or []
    if not left_out or folder.modality != modality:
        raise WrongData(f"{path} is no fold of this run: fit it on the same data with --without-source NAME.")
    everything = datasets.concatenate_datasets(list(parts.values()))
    cue = _cue(parts, left_out)
    rows = {}
    for source in left_out:
        own = everything.filter(lambda s, source=source: s == source, input_columns="source")
        others = parts["test"].filter(
            lambda s, label, source=source: s != source and label == 0, input_columns=["source", "label"]
        )
        pictures = datasets.concatenate_datasets([own, others])
        found = predict(folder, pictures, f"{source}, never seen")
        trivial = cue.decision_function(thumbnails(pictures))
        chosen = {source: np.ones(len(pictures), bool)}
        if len(set(own["label"])) == 2:
            chosen[f"inside {source}"] = found.sources == source
        for name, mask in chosen.items():
            ours, theirs = (
                _auroc(found.labels[mask], margins[mask], found.families[mask], seed)
                for margins in (found.margins, trivial)
            )
            rows[name] = {**ours, "thumbnail": theirs}
    return rows
