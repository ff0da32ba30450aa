"""Search for the penalties of a steady head: judged by sources and families left out, and by the answers it flips.

The frozen network looks at every picture, its random copies and its harmless changes once; a trial is then a few
closed-form fits (`train.fit.steady`), a second or so. Test pictures are never read.
"""

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from PIL import Image
from sklearn.metrics import roc_auc_score

from hub_model import hub_folder
from hub_model import lungs as lung_views
from hub_model.changes import CHANGES
from hub_model.refused import Failed, Refused
from hub_model.whole import PATIENCE, held, whole_files

from ..data.dataset import load_data
from . import backbones, experts, speed
from .batches import Images, Transform, read_images
from .recipes import RECIPES
from .steady import Moments, beside, features_of_looks, solve

if TYPE_CHECKING:
    import datasets
    import optuna

FOLDS = 5
FLIPPED = 200
"""Pictures at most that the harmless changes are applied to, drawn at random."""
SENSITIVITY = 0.95
"""Share of positive pictures found at the operating point at which flips are counted."""
FLIP_COST = 2.0
"""What a share of flipped answers costs, in AUROC."""
RANGES = {"steady": (0.1, 30.0), "source_penalty": (0.1, 100.0), "ridge": (0.01, 3.0)}


@dataclass(frozen=True)
class Seen:
    """What the frozen network saw of train and validation.

    Attributes:
        features: (N, 1 + K, D) of pictures and random copies.
        changed: (M, C, D) of harmless changes of some pictures.
        which: (M,) which pictures those are.
        labels, sources, folds: (N,).
    """

    features: np.ndarray
    changed: np.ndarray
    which: np.ndarray
    labels: np.ndarray
    sources: np.ndarray
    folds: np.ndarray


def tune(
    data: Annotated[list[str], typer.Option(help="folder, zip, prepared dataset or Hub id; may repeat")],
    modality: Annotated[str, typer.Option(help="xray or ct")],
    variant: Annotated[str, typer.Option(help="any timm CNN")],
    out: Annotated[Path, typer.Option(help="folder of the study; the same command goes on with it")],
    init: Annotated[Path | None, typer.Option(help="safetensors file with weights to start from")] = None,
    model_args: Annotated[str, typer.Option(help="JSON for timm.create_model")] = "{}",
    mean: Annotated[float | None, typer.Option(help="of pixels in 0..1, as INIT was trained")] = None,
    std: Annotated[float | None, typer.Option(help="standard deviation, likewise")] = None,
    lungs: Annotated[Path | None, typer.Option(help="folder of a lung network, as for fit")] = None,
    recipe: Annotated[
        str, typer.Option(help="row of train/fit/recipes.py whose penalties are searched")
    ] = "steady",
    expert: Annotated[
        Path | None, typer.Option(help="as for fit: what the teacher listens to besides")
    ] = None,
    split: Annotated[str | None, typer.Option(help="as for fit")] = None,
    families: Annotated[str | None, typer.Option(help="as for fit")] = None,
    split_seed: Annotated[int | None, typer.Option(help="as for fit")] = None,
    seed: Annotated[int, typer.Option(help="of the copies, the folds and the search")] = 0,
    trials: Annotated[int, typer.Option(help="to end with, those of earlier calls counted in")] = 40,
    storage: Annotated[
        str | None,
        typer.Option(help="URL of a database that several machines share; by default a file in OUT"),
    ] = None,
) -> dict:
    """Search the penalties of RECIPE; writes study.db, trials.csv, trials.png and best.json into OUT.

    The objective is the mean AUROC over positive sources that were left out (against negatives of families that were
    left out), of the folds by family, and of those folds inside each source that holds both labels; less
    twice the share of answers that harmless changes flip.

    Returns:
        The contents of ``best.json``: the best trial, its figures, and the recipe row with its penalties.

    Raises:
        Refused: a recipe without a steady head, fewer families than folds, a study of other data or settings, or data
            or a network that cannot be used.
        Failed: the study's database cannot be opened or written.
    """
    row = RECIPES.get(recipe)
    if row is None or not row.steady:
        usable = ", ".join(name for name, row in RECIPES.items() if row.steady)
        raise Refused(
            f"--recipe {recipe!r} has no steady head whose penalties could be searched; {usable} have."
        )
    asked = {"data": data, "modality": modality, "variant": variant, "init": init and str(init),
             "model_args": model_args, "mean": mean, "std": std, "lungs": lungs and str(lungs), "recipe": recipe,
             "expert": expert and str(expert), "split": split, "families": families, "split_seed": split_seed,
             "seed": seed}  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    storage = storage or f"sqlite:///{out / 'study.db'}"
    with _explained(storage):
        study = open_study(storage, asked)
    parts = load_data(data, modality=modality, seed=split_seed, split=split, families=families)
    network = backbones.build(variant, init=init, model_args=json.loads(model_args), input_size=row.input_size,
                              mean=mean, std=std)  # fmt: skip
    seen = look(parts, network, lungs, row.copies, seed, expert)
    with _explained(storage):
        search(study, seen, trials)
        return _write(out, study, recipe)


@contextmanager
def _explained(storage: str) -> Iterator[None]:
    """Say in words what the database of a study means.

    Raises:
        Failed: it cannot be opened or written.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        found = getattr(error if isinstance(error, SQLAlchemyError) else error.__cause__, "orig", error)
        raise Failed(
            f"The study in {storage} cannot be opened or written ({found}). Finished trials stay in it: make room, or "
            "mend who may write there, and repeat the command to go on."
        ) from error


def open_study(storage: str, asked: dict[str, Any]) -> "optuna.Study":
    """Open the study that lies in a database, or begin it there.

    Args:
        storage: URL of the database.
        asked: all that the figures of a trial depend on, as JSON knows it; ``seed`` is that of the search too.

    Raises:
        Refused: a study that was asked something else.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="steady",
        storage=storage,
        sampler=optuna.samplers.TPESampler(seed=asked["seed"]),
        direction="maximize",
        load_if_exists=True,
    )
    earlier = study.user_attrs.get("settings", asked)
    if differing := sorted(name for name in earlier.keys() | asked if earlier.get(name) != asked.get(name)):
        raise Refused(
            f"The study in {storage} is of other data or settings ({', '.join(differing)}). Repeat its command to go "
            "on with it, or give another --out."
        )
    study.set_user_attr("settings", asked)
    return study


def search(study: "optuna.Study", seen: Seen, trials: int) -> None:
    """Try penalties until the study holds so many finished trials, each with its `figures`."""
    from optuna.trial import TrialState

    groups = moments(seen)

    def objective(trial: "optuna.Trial") -> float:
        penalties = {name: trial.suggest_float(name, *span, log=True) for name, span in RANGES.items()}
        found = figures(seen, groups, **penalties)
        for name, value in found.items():
            trial.set_user_attr(name, value)
        return found["score"]

    done = study.get_trials(states=[TrialState.COMPLETE])
    study.optimize(objective, n_trials=max(0, trials - len(done)))


def look(
    parts: "datasets.DatasetDict",
    network: backbones.Network,
    lungs: Path | None,
    copies: int,
    seed: int,
    expert: Path | None = None,
) -> Seen:
    """Run the frozen network over train and validation, their copies, and the harmless changes of some.

    Copies exchange nothing between sources: of a source that is left out later, nothing may show in the others. An
    expert's features of the picture as it came stand beside those of each look, as in the teacher of `steady`.

    Raises:
        Refused: fewer families of a label than folds.
    """
    import datasets

    rows = datasets.concatenate_datasets([parts["train"], parts["validation"]])
    config = hub_folder.make_config(
        network.architecture, network.model_args, network.pretrained_cfg, network.model.num_features
    )
    cfg = config["pretrained_cfg"]
    transform = hub_folder.transform_of(config, lung_views.load(lungs) if lungs else None)
    labels, families = np.array(rows["label"]), np.array(rows["family"])
    for label in (0, 1):
        if (count := len(set(families[labels == label]))) < FOLDS:
            raise Refused(
                f"{hub_folder.LABELS[label]} has {count} families in train and validation; {FOLDS} folds need as many. "
                "Give more data."
            )
    images = read_images(rows, transform, cfg, "pictures", copies, seed)
    which = np.sort(np.random.default_rng(seed).permutation(len(rows))[:FLIPPED])
    changed = _changed(rows.select(which), transform, cfg)
    network.model.eval()
    bf16 = speed.faster_in_bf16(network.model)  # as `fit` computes them
    features = features_of_looks(network.model, images, cfg, bf16)
    moved = features_of_looks(network.model, changed, cfg, bf16)[:, 1:]
    if expert is not None:
        told = experts.ask(experts.load_expert(expert), images.pixels, bf16)
        features, moved = beside(features, told), beside(moved, told[which])
    return Seen(
        features,
        moved,
        which,
        labels,
        np.array(rows["source"]),
        folds_of(labels, images.sources, families, seed),
    )


def _changed(rows: "datasets.Dataset", transform: Transform, cfg: dict) -> Images:
    """Read pictures, with each one's harmless changes in place of its random copies."""
    images = read_images(rows, transform, cfg, "pictures to change")
    mean, std = cfg["mean"][0], cfg["std"][0]
    modality = rows["modality"][0]
    changes = [change for change in CHANGES if modality in change.modalities]
    copies = images.pixels.new_empty((len(images), len(changes), *images.pixels.shape[1:]))
    for index, row in enumerate(rows):
        grey = np.asarray(row["image"].convert("L"))
        for number, change in enumerate(changes):
            seen = transform(Image.fromarray(change.apply(grey)))[:1]
            copies[index, number] = ((seen * std + mean) * 255).round().to(copies.dtype)
    images.copies = copies
    return images


def folds_of(labels: np.ndarray, sources: np.ndarray, families: np.ndarray, seed: int) -> np.ndarray:
    """Deal whole families into folds, in turn within each label and source. Returns the fold of each picture, (N,)."""
    rng = np.random.default_rng(seed)
    folds = np.zeros(len(labels), int)
    names, first = np.unique(families, return_index=True)
    for key in sorted({(labels[i], sources[i]) for i in first}):
        own = names[[(labels[i], sources[i]) == key for i in first]]
        for number, name in enumerate(own[rng.permutation(len(own))], rng.integers(FOLDS)):
            folds[families == name] = number % FOLDS
    return folds


def moments(seen: Seen) -> dict[tuple[int, int, str], Moments]:
    """Sum up what the head needs to know of the pictures of each fold, label and source."""
    keys = sorted(set(zip(seen.folds.tolist(), seen.labels.tolist(), seen.sources.tolist(), strict=True)))
    return {
        key: Moments.of(
            seen.features[(seen.folds == key[0]) & (seen.labels == key[1]) & (seen.sources == key[2])]
        )
        for key in keys
    }


def figures(seen: Seen, groups: dict, *, steady: float, source_penalty: float, ridge: float) -> dict:
    """Measure one setting, always on pictures whose families the head did not learn from.

    Returns:
        ``score``; ``home`` AUROC over folds; ``flips``, the mean share of answers that a harmless change flips;
        ``inside SOURCE`` AUROC for sources with both labels; ``unseen SOURCE`` AUROC of left-out positive sources.
    """

    def head(keep: Callable[[int, int, str], bool]) -> tuple[np.ndarray, float]:
        joined: dict[tuple[int, str], Moments] = {}
        for (fold, label, source), group in groups.items():
            if keep(fold, label, source):
                key = (label, source)
                joined[key] = joined[key] + group if key in joined else group
        return solve(joined, steady=steady, blind=source_penalty, ridge=ridge)

    labels, sources, folds = seen.labels, seen.sources, seen.folds
    first = seen.features[:, 0].astype(np.float64)
    scores, moved = np.zeros(len(labels)), np.zeros(seen.changed.shape[:2])
    for fold in range(FOLDS):
        slope, intercept = head(lambda f, label, source, fold=fold: f != fold)
        scores[folds == fold] = first[folds == fold] @ slope + intercept
        own = folds[seen.which] == fold
        moved[own] = seen.changed[own].astype(np.float64) @ slope + intercept
    threshold = np.quantile(scores[labels == 1], 1 - SENSITIVITY)
    flips = float(((moved > threshold) != (scores[seen.which] > threshold)[:, None]).mean())
    found = {"home": float(roc_auc_score(labels, scores)), "flips": flips}
    both = set(sources[labels == 0]) & set(sources[labels == 1])
    for source in sorted(both):
        own = sources == source
        found[f"inside {source}"] = float(roc_auc_score(labels[own], scores[own]))
    negative = (labels == 0) & (np.isin(sources, sorted(both)) if both else True)
    positives = sorted(set(sources[labels == 1]))
    for source in positives if len(positives) > 1 else ():
        own, ranks = (labels == 1) & (sources == source), []
        for fold in range(FOLDS):
            slope, _ = head(lambda f, label, of, fold=fold, left=source: not (
                (label == 1 and of == left) or (label == 0 and f == fold)
            ))  # fmt: skip
            against = first[negative & (folds == fold)] @ slope
            ranks.append((first[own] @ slope)[:, None] > against)
        found[f"unseen {source}"] = float(np.concatenate([rank.ravel() for rank in ranks]).mean())
    areas = [value for name, value in found.items() if name != "flips"]
    return {"score": float(np.mean(areas)) - FLIP_COST * flips, **found}


def _write(out: Path, study: "optuna.Study", recipe: str) -> dict:
    """Write the table, the picture and the best row, all of the same trials."""
    with held(out, PATIENCE), whole_files(out) as new:  # whoever writes last tells of the most trials
        done = [trial for trial in study.trials if trial.value is not None]
        best = max(done, key=lambda trial: trial.value)
        row = replace(RECIPES[recipe], **{name: float(f"{value:.3g}") for name, value in best.params.items()})
        told = {
            "trials": len(done),
            "best": {"trial": best.number, **best.params, **best.user_attrs},
            "recipe": asdict(row),
            "settings": study.user_attrs["settings"],
        }
        told = json.loads(json.dumps(told))
        _table(new / "trials.csv", done)
        _picture(new / "trials.png", done)
        hub_folder.write_json(new / "best.json", told)
    return told


def _table(file: Path, done: list["optuna.trial.FrozenTrial"]) -> None:
    """Write penalties and figures, one row a trial."""
    columns = [*RANGES, *(key for key in done[0].user_attrs)]
    with open(file, "w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["trial", *columns])
        for trial in done:
            values = {**trial.params, **trial.user_attrs}
            table.writerow([trial.number, *(f"{values[column]:.5g}" for column in columns)])


def _picture(file: Path, done: list["optuna.trial.FrozenTrial"]) -> None:
    """Draw the score over each penalty, one dot a trial."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(RANGES), sharey=True), RANGES, strict=True):
        axes.scatter([trial.params[name] for trial in done], [trial.value for trial in done], s=12)
        axes.set(xscale="log", xlabel=name.replace("_", " "))
    figure.axes[0].set_ylabel("score")
    figure.savefig(file, dpi=110)
