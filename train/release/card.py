"""The model card: a letter to the reader, its prose in model_card.md, its numbers from the files of the run.

Rendering is strict: a figure that the letter speaks of and the files do not hold stops it. The card is a
function of the run folder alone, so that `publish` can render it again and see whether it still says what the
files say.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import jinja2
import typer
import yaml

from hub_model import __version__, hub_folder
from hub_model.check.harmless import worst
from hub_model.refused import Refused
from hub_model.whole import changed_folder, whole_file

from ..measure.faithfulness import REPORT as FAITHFULNESS
from .metadata import LICENCE, metadata, results
from .origins import STARTING_POINTS, Collection, described
from .wording import bounded, duration, figure, percent, spread

TEMPLATE = Path(__file__).resolve().parents[2] / "model_card.md"
README, RESULTS = "README.md", ".eval_results/covid-xct.yaml"
PLACEHOLDER = "ORG/NAME"
FOLDER = "path/to/this/folder"
PREVALENCES = (0.02, 0.10, 0.30)
"""Shares of COVID-19 among those imaged for which predictive values are worked out: screening, clinic,
outbreak ward.
"""
COIN = 0.5
"""AUROC of guessing."""
PLOTS = ("roc", "precision_recall", "reliability", "scores", "confusion", "worst_errors", "harmless_changes",
         "faithfulness")  # fmt: skip
CORE_WATTS, GPU_WATTS, OVERHEAD = 12.0, 300.0, 1.67
"""Power of a busy CPU core and of a GPU, and the world's mean overhead of a data centre (Lannelongue et al.
2021, Green Algorithms, doi 10.1002/advs.202100707; the GPU figure is the board power of common data-centre
cards).
"""
AUDITS = {
    "whole": "the whole picture",
    "lungs_gone": "the picture with its lungs blacked out",
    "lungs_only": "its lungs alone, all else blacked out",
    "borders_only": "its border alone, the middle blacked out",
    "centre_only": "its middle alone, the border blacked out",
    "coarse_only": "a coarse blur, in which no lung structure can be seen",
}
"""What was left of a picture in an audit, in words; see `train.measure.audit`."""
TOLD_AUDITS = ("harmless", "changed", "thumbnail", "source", "uncut", "kept_out", "unseen_source")
"""Audits that the letter has words for; others are listed as they are."""


def card(
    run: Annotated[Path, typer.Argument(help="hub folder that has been evaluated")],
    dataset: Annotated[
        str | None, typer.Option(help="Hub id of the data it was evaluated on, if published")
    ] = None,
) -> Path:
    """Write README.md (the card) and .eval_results/ of RUN.

    Raises:
        FolderRefused: RUN is no hub folder.
        Refused: it was not evaluated, its figures are of other weights, or something the card speaks of
            is missing.
    """
    run = Path(run)
    written = render(run, dataset=dataset or _dataset(run))
    with changed_folder(run) as folder:
        for name, text in written.items():
            with whole_file(folder / name) as new:
                new.write_text(text, encoding="utf-8")
    return run / README


def render(run: Path, repo_id: str = PLACEHOLDER, dataset: str | None = None) -> dict[str, str]:
    """Render the card and the result file of a run, by their path in it.

    Args:
        run: an evaluated hub folder.
        repo_id: the Hub name that the examples in the card use; by default they open the folder.
        dataset: Hub id of the data; by default what the card in the folder names, if any.

    Raises:
        FolderRefused, Refused: see `card`.
    """
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {
        "figure": figure, "percent": percent, "range": spread, "count": lambda n: f"{n:,}", "hours": duration,
    }  # fmt: skip
    try:
        known = facts(run, repo_id, dataset or _dataset(run))
        letter = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(known)
        head, found = metadata(known), results(known)
    except (jinja2.UndefinedError, KeyError) as error:
        raise Refused(
            f"{run} lacks a figure that the card speaks of: {getattr(error, 'message', error)}. Evaluate "
            "the run again (`python -m train evaluate`) with this version; a card with a hole is not "
            "written."
        ) from error
    letter = re.sub(r"\n{3,}", "\n\n", letter).strip() + "\n"
    return {README: f"---\n{head}\n---\n\n{letter}", RESULTS: found}


def facts(run: Path, repo_id: str, dataset: str | None) -> dict[str, Any]:
    """Collect what the template may speak of.

    Raises:
        Refused: no evaluation, one of other weights or operating points, or a collection nobody
            described.
    """
    run = Path(run)
    config = hub_folder.read_json(run / hub_folder.CONFIG)
    screening = hub_folder.read_json(run / hub_folder.SCREENING)
    evaluation = _evaluation(run, screening)
    provenance = screening.get("provenance", {})
    settings = provenance.get("settings", {})
    modality = evaluation["modality"]
    sources = collections_of(run, evaluation)
    return {
        **_names(screening, repo_id),
        "version": __version__,
        "licence": LICENCE,
        "modality": modality,
        "thing": {"xray": "frontal chest X-ray", "ct": "axial chest CT slice"}[modality],
        "dataset": dataset,
        "config": config,
        "input_size": config["pretrained_cfg"]["input_size"],
        "remote_code": "auto_map" in config,
        "screening": screening,
        "points": screening["operating_points"],
        "default_point": next(iter(screening["operating_points"])),
        "twins": _twins(evaluation),
        "evaluation": evaluation,
        "mixed": (mixed := _mixed(evaluation)),
        "one_label": sorted(evaluation["test_by_source"].keys() - {inside["name"] for inside in mixed}),
        **_audits(evaluation),
        "collections": sources,
        "published": _published(sources, evaluation),
        "start": _start(settings, config["architecture"]),
        "base_model": _base_model(settings),
        "teachers": ", ".join(settings.get("teacher") or []),
        "recipe": provenance.get("recipe", {}),
        "soup": _soup(provenance.get("soup") or []),
        "families": provenance.get("families", "found"),
        "expert": _named(provenance.get("settings", {}).get("expert")),
        "without_source": ", ".join(provenance.get("without_source") or []),
        "training": _training(provenance.get("training")),
        "predictive": _predictive(evaluation, next(iter(screening["operating_points"]))),
        "plots": [name for name in PLOTS if (run / "plots" / f"{name}.png").is_file()],
        "onnx": (run / hub_folder.GRAPH).is_file(),
        "web": (run / "web" / "onnx" / "model.onnx").is_file(),
        "has_guard": (run / hub_folder.GUARD).is_file(),
        "guard": _guard(evaluation),
        "promises": _promises(screening["operating_points"]),
        "by_finding": evaluation.get("test_by_finding") or {},
        "harmless": _harmless(evaluation, next(iter(screening["operating_points"]))),
        "faithfulness": _faithfulness(run, evaluation),
    }


def _audits(evaluation: dict) -> dict[str, Any]:
    """Collect the audits, with the words for those that the template tells, and every record of the others."""
    audits = evaluation.get("audits") or {}
    others = {name: found for name, found in audits.items() if name not in TOLD_AUDITS}
    return {
        "audits": audits,
        "audit_words": AUDITS,
        "other_audits": [(name.replace("_", " "), list(records(found))) for name, found in others.items()],
    }


def _names(screening: dict, repo_id: str) -> dict[str, Any]:
    """Say how the examples open the model: by its Hub id, by its name in the package, or from a folder."""
    on_hub = repo_id != PLACEHOLDER
    weights = screening["weights_sha256"]
    shipped = {
        hub_folder.read_json(path / hub_folder.SCREENING)["weights_sha256"]: name
        for name, path in hub_folder.embedded().items()
    }
    return {"on_hub": on_hub, "place": repo_id if on_hub else shipped.get(weights, FOLDER), "folder": FOLDER}


def _mixed(evaluation: dict) -> list[dict[str, Any]]:
    """List the sources with both labels in the test split: within them, knowing the source is of no use.

    `chance` says that the interval of the AUROC reaches down to 0.5, that of a coin.
    """
    return [
        {"name": name, "auroc": found["auroc"], "chance": (found["auroc"]["low"] or 0) <= COIN}
        for name, found in evaluation["test_by_source"].items()
        if 0 < found["positives"] < found["n"]
    ]


def _twins(evaluation: dict) -> list[tuple[str, str]]:
    """Name the operating points that came out at the threshold of an earlier one."""
    at = {name: found["threshold"] for name, found in evaluation["test"]["at"].items()}
    names = list(at)
    return [
        (earlier, later)
        for index, later in enumerate(names)
        for earlier in names[:index]
        if at[earlier] == at[later]
    ]


def _published(sources: dict[str, Collection], evaluation: dict) -> list[dict[str, Any]]:
    """Count pictures here and in the published split, by part, where a single collection's own split was taken."""
    only = next(iter(sources.values()))
    if evaluation["data"]["split"] != "official" or len(sources) > 1 or not only.published:
        return []
    counts = evaluation["data"]["counts"]
    here = {name: sum(counts[name][label] for label in hub_folder.LABELS) for name in only.published}
    if here == only.published:
        return []
    return [
        {"part": name, "whole": whole, "here": here[name]}
        for name, whole in only.published.items()
        if here[name] <= whole  # more are of further collections, which have no published split
    ]


def _guard(evaluation: dict) -> dict[str, Any]:
    """Collect the guard's figures, with an interval also where all pictures or none were refused."""
    guard, families = evaluation["guard"], evaluation["test"]["families"]
    of_source = {name: found["families"] for name, found in evaluation["test_by_source"].items()}
    return {
        "false_refusals": bounded(guard["false_refusals"], families),
        "by_source": {
            name: bounded(record, of_source.get(name, 1))
            for name, record in guard["false_refusals_by_source"].items()
        },
        "caught": {kind: bounded(record, record["n"]) for kind, record in guard["caught"].items()},
        "unseen_source": guard.get("unseen_source"),
    }


def _promises(points: dict[str, dict]) -> list[dict[str, Any]]:
    """Collect what the operating points promise, or cannot; empty for folders written before they promised anything."""
    return [{"point": name, **told} for name, row in points.items() if (told := row.get("promise"))]


def _harmless(evaluation: dict, point: str) -> dict[str, Any] | None:
    """Collect the figures of harmless changes, with the rows that flip more than is accepted and the worst of all."""
    measured = (evaluation.get("audits") or {}).get("harmless")
    if not measured:
        return None
    above = [row for row in measured["rows"] if (row["flips"][point]["value"] or 0) > row["limit"]]
    return {**measured, "above": above, "worst": worst(measured, point)}


def _faithfulness(run: Path, evaluation: dict) -> dict[str, Any] | None:
    """Read what `faithfulness` measured of the heat maps of these very weights; None where it did not."""
    file = run / FAITHFULNESS
    told = hub_folder.read_json(file) if file.is_file() else {}
    return told if told.get("weights_sha256") == evaluation["weights_sha256"] else None


def _evaluation(run: Path, screening: dict) -> dict:
    file = run / hub_folder.EVALUATION
    if not file.is_file():
        raise Refused(
            f"{run} has no {file.name}: nothing has been measured. Say `python -m train evaluate {run}`."
        )
    evaluation = hub_folder.read_json(file)
    weights = hub_folder.sha256(run / hub_folder.WEIGHTS)
    if evaluation.get("weights_sha256") != weights:
        raise Refused(
            f"{file} holds the figures of other weights (SHA-256 "
            f"{str(evaluation.get('weights_sha256'))[:12]}) than lie in {run} ({weights[:12]}). Evaluate "
            "the run again."
        )
    measured = {name: found["threshold"] for name, found in evaluation["test"]["at"].items()}
    chosen = {name: point["threshold"] for name, point in screening["operating_points"].items()}
    if measured != chosen:
        raise Refused(
            f"{file} was measured at the thresholds {measured}, {hub_folder.SCREENING} has {chosen}. "
            "Evaluate the run again."
        )
    if "guard" not in evaluation:
        raise Refused(
            f"{run} was evaluated for comparison only and has no input guard, so it would answer a photograph of a "
            f"cat. Say `python -m train evaluate {run} --again`."
        )
    return evaluation


def collections_of(run: Path, evaluation: dict[str, Any]) -> dict[str, Collection]:
    """Describe the collections that the data of a run come from, by name; errors are `origins.described`'s."""
    guard = evaluation["guard"]  # a collection may have pictures in train alone
    return described(run, {**guard["false_refusals_by_source"], **(guard.get("unseen_source") or {})})


def records(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, dict]]:
    """Yield every record in nested figures, with where it stands in words."""
    if isinstance(tree, dict) and {"value", "low", "high"} <= tree.keys():
        yield ", ".join(path) or tree.get("metric", ""), tree
    elif isinstance(tree, dict):
        for name, branch in tree.items():
            yield from records(branch, (*path, str(name).replace("_", " ")))


def _predictive(evaluation: dict, point: str) -> list[dict[str, Any]]:
    """Compute PPV and NPV at assumed prevalences from sensitivity and specificity of the test split (Bayes' theorem).

    Each has the value, and that at the lower and at the upper end of both intervals.
    """
    at = evaluation["test"]["at"][point]
    if at["sensitivity"]["value"] is None or at["specificity"]["value"] is None:
        raise Refused(
            "The test split lacks a class, so sensitivity or specificity is not defined. Give more data."
        )
    rows = []
    for prior in PREVALENCES:
        worth = [
            _worth(at["sensitivity"][end], at["specificity"][end], prior) for end in ("value", "low", "high")
        ]
        ppv, npv = (
            dict(zip(("value", "low", "high"), ends, strict=True)) for ends in zip(*worth, strict=True)
        )
        rows.append({"prevalence": prior, "ppv": ppv, "npv": npv})
    return rows


def _worth(sensitivity: float, specificity: float, prior: float) -> tuple[float | None, float | None]:
    true, false = sensitivity * prior, (1 - specificity) * (1 - prior)
    right, missed = specificity * (1 - prior), (1 - sensitivity) * prior
    return (true / (true + false) if true + false else None), (
        right / (right + missed) if right + missed else None
    )


def _named(weights: str | None) -> str | None:
    """Name a file of weights in words; None where there is none."""
    return weights and STARTING_POINTS.get(
        weights, f"the file `{weights}`, of whose origin nothing else is recorded"
    )


def _start(settings: dict, architecture: str) -> str:
    """Say in words what the weights were before training."""
    if init := settings.get("init"):
        return _named(init)
    if settings.get("pretrained"):
        return f"timm's published weights `{settings.get('variant', architecture)}`"
    return "random numbers"


def _soup(members: list[dict]) -> list[str]:
    """Say in words what sets each run apart whose weights were averaged; no entries where the weights are one run's."""
    return [
        ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in sorted(member["settings"].items()))
        for member in members
    ]


def _base_model(settings: dict) -> str | None:
    """Give the Hub id of the weights that training started from; None where they have none."""
    if settings.get("init") or not settings.get("pretrained"):
        return None
    from timm.models import get_pretrained_cfg

    known = get_pretrained_cfg(settings["variant"], allow_unregistered=True)
    return known.hf_hub_id if known and "/" in (known.hf_hub_id or "") else None


def _training(told: dict | None) -> dict[str, Any] | None:
    """Give hours and estimated energy of training, where the run recorded its seconds; None where it did not."""
    if not told:
        return None
    watts = GPU_WATTS if told["device"] != "cpu" else CORE_WATTS * told["cores"]
    hours = told["seconds"] / 3600
    return {
        **told,
        "hours": hours,
        "watts": watts,
        "kwh": hours * watts * OVERHEAD / 1000,
        "overhead": OVERHEAD,
    }


def _dataset(run: Path) -> str | None:
    """Name the data set that the card in the folder names."""
    file = Path(run) / README
    found = re.match(r"---\n(.*?)\n---\n", file.read_text("utf-8"), re.DOTALL) if file.is_file() else None
    named = (yaml.safe_load(found[1]) or {}).get("datasets") if found else None
    return named[0] if named else None
