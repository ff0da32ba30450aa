"""The model card: a letter to the reader, its prose in model_card.md, its numbers from the files of the run.

Rendering is strict: a figure that the letter speaks of and the files do not hold stops it. The card is a
function of the run folder alone, so that `publish` can render it again and see whether it still says what the
files say.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import jinja2
import typer
import yaml

from hub_model import __version__, hub_folder
from hub_model.refused import Refused

TEMPLATE = Path(__file__).resolve().parents[2] / "model_card.md"
README, RESULTS, COLLECTIONS_FILE = "README.md", ".eval_results/covid-xct.yaml", "collections.json"
PLACEHOLDER = "ORG/NAME"
FOLDER = "path/to/this/folder"
LICENCE = "cc-by-nc-sa-4.0"
"""Of the weights: most of the pictures are for non-commercial research, some under share-alike. The code
is Apache-2.0.
"""
PREVALENCES = (0.02, 0.10, 0.30)
"""Shares of COVID-19 among those imaged for which predictive values are worked out: screening, clinic,
outbreak ward.
"""
SUBJECTS = {"xray": "chest-x-ray", "ct": "chest-ct"}
"""Tag of the card by modality."""
COIN = 0.5
"""AUROC of guessing."""
PLOTS = ("roc", "precision_recall", "reliability", "scores", "confusion", "worst_errors")
CORE_WATTS, GPU_WATTS, OVERHEAD = 12.0, 300.0, 1.67
"""Power of a busy CPU core and of a GPU, and the world's mean overhead of a data centre (Lannelongue et al.
2021, Green
Algorithms, doi 10.1002/advs.202100707; the GPU figure is the board power of common data-centre cards)."""


class CardRefused(Refused):
    """A run that no honest card can be written for."""


@dataclass(frozen=True)
class Collection:
    """What the card says of a collection of pictures.

    Attributes:
        title: name and citation.
        licence: as stated by its makers.
        leak: what gives the label away in it, or what is known to be wrong with it.
        may_pass_on: whether its licence lets others have the pictures from us.
        published: pictures in each part of the split that it published.
    """

    title: str
    licence: str
    leak: str
    may_pass_on: bool = False
    published: dict[str, int] = field(default_factory=dict)


COLLECTIONS = {
    "nih14": Collection(
        "[NIH ChestX-ray14](https://nihcc.app.box.com/v/ChestXray-NIHCC) (Wang et al. 2017, "
        "arXiv:1705.02315), the films chosen by [Ozturk et al. 2020](https://github.com/muhammedtalo/COVID-19)",
        "no restrictions; asks for a link to the NIH Clinical Center, a citation and credit",
        "Non-COVID only: one American hospital, years before the pandemic. A model that knows the hospital "
        "knows the label. Its labels of pneumonia and of no finding were mined from reports by software.",
        True,
    ),
    "cxnet": Collection(
        "[COVID-CXNet](https://github.com/armiro/COVID-CXNet) (Haghanifar et al. 2020, doi "
        "10.6084/m9.figshare.12580328)",
        "CC BY 4.0 as stated by the collectors, who do not own every film",
        "COVID only. Gathered from papers, radiology sites and social media; some carry printed panel "
        "letters, which no Non-COVID film does, and some show nothing of the disease.",
        True,
    ),
    "ieee8023": Collection(
        "[COVID-19 Image Data Collection](https://github.com/ieee8023/covid-chestxray-dataset) (Cohen et al. "
        "2020, arXiv:2006.11988)",
        "per picture: mostly CC BY-NC-SA, some CC BY, some CC BY-NC-ND, some not stated",
        "The one film collection with both labels. Its Non-COVID films are pneumonia of other causes, SARS "
        "and ARDS. Cut from publications, so picture quality follows the journal.",
    ),
    "hannover": Collection(
        "[COVID-19 Image Repository](https://github.com/ml-workgroup/covid-19-image-repository) of Hannover "
        "Medical School (Winther et al. 2020, doi 10.6084/m9.figshare.12275009)",
        "CC BY 3.0",
        "COVID only: one hospital, many bedside films of few patients, with tubes and cables.",
        True,
    ),
    "ucsd-ct": Collection(
        "[COVID-CT](https://github.com/UCSD-AI4H/COVID-CT) (Zhao et al. 2020, arXiv:2003.13865)",
        "not stated; the rights rest with the papers and with MedPix",
        "Slices cut from figures of papers: window, margin, size and sharpness differ from paper to paper, "
        "some carry drawn arrows, and COVID slices come from other papers than the rest, whose diagnosis is "
        "mostly not given. As published, some slices carry the printed word COVID-2019 and two figures stand "
        "in both classes.",
        published={"train": 425, "validation": 118, "test": 203},
    ),
    "luna16": Collection(
        "[LUNA16](https://luna16.grand-challenge.org) (Setio et al. 2017, arXiv:1612.08012), drawn from "
        "LIDC-IDRI",
        "CC BY 4.0 (LUNA16), CC BY 3.0 (LIDC-IDRI)",
        "Unlabelled here, and from before the pandemic.",
        True,
    ),
    "mendeley": Collection(
        "[Extensive COVID-19 X-Ray and CT Chest Images Dataset]"
        "(https://data.mendeley.com/datasets/8h65ywd2jr) (El-Shafai & Abd El-Samie 2020, doi "
        "10.17632/8h65ywd2jr.3)",
        "CC BY 4.0 as stated by the collectors",
        "Augmented: one original stands in it many times, rotated, mirrored, scaled or brightened, so that "
        "a random split tests memory.",
        True,
    ),
    "phantom": Collection(
        "synthetic drawings of a thorax made by this software (`python -m train phantom`)",
        "Apache-2.0",
        "Not patients. No figure measured on them says anything about people.",
        True,
    ),
}
COLLECTIONS["phantoms"] = COLLECTIONS["phantom"]
"""Collections the project knows, by the name they have as a source."""

RESNET = (
    "a ResNet-50 v2 trained on ImageNet-1k (GluonCV's, as the ONNX model zoo has it; taken from "
    "github.com/BruceDai/test-data, Apache-2.0 by its readme)"
)
STARTS = {
    "mobilenetv2_100.imagenet_tf.safetensors": "a MobileNetV2 trained on ImageNet-1k (TensorFlow's; taken "
    "from github.com/BruceDai/test-data and github.com/google-coral/test_data, Apache-2.0 as stated there)",
    "mobilenet_edgetpu_100.imagenet_mlperf.safetensors": "a MobileNet-EdgeTPU trained on ImageNet-1k for "
    "MLPerf (github.com/mlcommons/mobile_models, Apache-2.0)",
    "resnetv2_50.imagenet_gluon_stages1to3.safetensors": f"the first three stages of {RESNET}",
}
STARTS |= {  # what `python -m train start` makes of the last one for the embedded models
    f"resnetv2_50_{blocks}.safetensors": f"the first two stages and {blocks} block{'s' * (blocks > 1)} of "
    f"the third of {RESNET}, rewritten for timm's stock architecture without changing what they compute"
    for blocks in range(1, 7)
}
"""Weights to start from that the project knows, by file name. None of them is a model on the Hub."""

AUDITS = {
    "borders_only": "its border alone, the middle blacked out",
    "centre_only": "its middle alone, the border blacked out",
    "coarse_only": "a coarse blur, in which no lung structure can be seen",
}
"""What was left of a picture in an audit, in words; see `train.audits`."""
TOLD_AUDITS = ("changed", "thumbnail", "source", "unseen_source")
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
        CardRefused: it was not evaluated, its figures are of other weights, or something the card speaks of
            is missing.
    """
    run = Path(run)
    for name, text in render(run, dataset=dataset or _dataset(run)).items():
        target = run / name
        target.parent.mkdir(exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)
    return run / README


def render(run: Path, repo_id: str = PLACEHOLDER, dataset: str | None = None) -> dict[str, str]:
    """The card and the result file of a run, by their path in it.

    Args:
        run: an evaluated hub folder.
        repo_id: the Hub name that the examples in the card use; by default they open the folder.
        dataset: Hub id of the data; by default what the card in the folder names, if any.

    Raises:
        FolderRefused, CardRefused: see `card`.
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
        raise CardRefused(
            f"{run} lacks a figure that the card speaks of: {getattr(error, 'message', error)}. Evaluate "
            "the run again (`python -m train evaluate`) with this version; a card with a hole is not "
            "written."
        ) from error
    letter = re.sub(r"\n{3,}", "\n\n", letter).strip() + "\n"
    return {README: f"---\n{head}\n---\n\n{letter}", RESULTS: found}


def facts(run: Path, repo_id: str, dataset: str | None) -> dict[str, Any]:
    """What the template may speak of.

    Raises:
        CardRefused: no evaluation, one of other weights or operating points, or a collection nobody
            described.
    """
    run = Path(run)
    config = hub_folder.read_json(run / hub_folder.CONFIG)
    screening = hub_folder.read_json(run / hub_folder.SCREENING)
    evaluation = _evaluation(run, screening)
    provenance = screening.get("provenance", {})
    settings = provenance.get("settings", {})
    modality = evaluation["modality"]
    described = collections(run, evaluation)
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
        "audits": evaluation.get("audits") or {},
        "audit_words": AUDITS,
        "other_audits": [
            (name.replace("_", " "), list(records(found)))
            for name, found in (evaluation.get("audits") or {}).items()
            if name not in TOLD_AUDITS
        ],
        "collections": described,
        "published": _published(described, evaluation),
        "start": _start(settings, config["architecture"]),
        "base_model": _base_model(settings),
        "teachers": ", ".join(settings.get("teacher") or []),
        "recipe": provenance.get("recipe", {}),
        "soup": _soup(provenance.get("soup") or []),
        "families": provenance.get("families", "found"),
        "without_source": ", ".join(provenance.get("without_source") or []),
        "training": _training(provenance.get("training")),
        "predictive": _predictive(evaluation, next(iter(screening["operating_points"]))),
        "plots": [name for name in PLOTS if (run / "plots" / f"{name}.png").is_file()],
        "onnx": sorted(file.name for file in (run / "onnx").glob("*.onnx")),
        "has_guard": (run / hub_folder.GUARD).is_file(),
        "guard": _guard(evaluation),
    }


def _names(screening: dict, repo_id: str) -> dict[str, Any]:
    """How the examples open the model: by its Hub id, by its name in the package, or from a folder."""
    on_hub = repo_id != PLACEHOLDER
    weights = screening["weights_sha256"]
    shipped = {
        hub_folder.read_json(path / hub_folder.SCREENING)["weights_sha256"]: name
        for name, path in hub_folder.embedded().items()
    }
    return {"on_hub": on_hub, "place": repo_id if on_hub else shipped.get(weights, FOLDER), "folder": FOLDER}


def _mixed(evaluation: dict) -> list[dict[str, Any]]:
    """Sources with both labels in the test part: within them, knowing the source is of no use. `chance` where
    the interval of the AUROC reaches down to a coin's.
    """
    return [
        {"name": name, "auroc": found["auroc"], "chance": (found["auroc"]["low"] or 0) <= COIN}
        for name, found in evaluation["test_by_source"].items()
        if 0 < found["positives"] < found["n"]
    ]


def _twins(evaluation: dict) -> list[tuple[str, str]]:
    """Operating points that came out at the threshold of an earlier one."""
    at = {name: found["threshold"] for name, found in evaluation["test"]["at"].items()}
    names = list(at)
    return [
        (earlier, later)
        for index, later in enumerate(names)
        for earlier in names[:index]
        if at[earlier] == at[later]
    ]


def _published(described: dict[str, Collection], evaluation: dict) -> list[dict[str, Any]]:
    """Pictures here and in the published split, by part, where a single collection's own split was taken."""
    only = next(iter(described.values()))
    if evaluation["data"]["split"] != "official" or len(described) > 1 or not only.published:
        return []
    counts = evaluation["data"]["counts"]
    here = {name: sum(counts[name][label] for label in hub_folder.LABELS) for name in only.published}
    if here == only.published:
        return []
    return [{"part": name, "whole": whole, "here": here[name]} for name, whole in only.published.items()]


def _guard(evaluation: dict) -> dict[str, Any]:
    """The guard's figures, with an interval also where all pictures or none were refused."""
    guard, families = evaluation["guard"], evaluation["test"]["families"]
    of_source = {name: found["families"] for name, found in evaluation["test_by_source"].items()}
    return {
        "false_refusals": bounded(guard["false_refusals"], families),
        "by_source": {
            name: bounded(record, of_source.get(name, 1))
            for name, record in guard["false_refusals_by_source"].items()
        },
        "caught": {kind: bounded(record, record["n"]) for kind, record in guard["caught"].items()},
    }


def bounded(record: dict, units: int) -> dict:
    """A share of none or all of the pictures with the open end of its interval, which resampling cannot give:
    Clopper and Pearson's (Biometrika 26, 1934, 404-413), counting `units` that are independent.
    """
    if record["value"] not in (0, 1) or record["low"] != record["high"]:
        return record
    end = 0.025 ** (1 / units)
    low, high = (end, 1.0) if record["value"] else (0.0, 1 - end)
    return {**record, "low": low, "high": high}


def _evaluation(run: Path, screening: dict) -> dict:
    file = run / hub_folder.EVALUATION
    if not file.is_file():
        raise CardRefused(
            f"{run} has no {file.name}: nothing has been measured. Say `python -m train evaluate {run}`."
        )
    evaluation = hub_folder.read_json(file)
    weights = hub_folder.sha256(run / hub_folder.WEIGHTS)
    if evaluation.get("weights_sha256") != weights:
        raise CardRefused(
            f"{file} holds the figures of other weights (SHA-256 "
            f"{str(evaluation.get('weights_sha256'))[:12]}) than lie in {run} ({weights[:12]}). Evaluate "
            "the run again."
        )
    measured = {name: found["threshold"] for name, found in evaluation["test"]["at"].items()}
    chosen = {name: point["threshold"] for name, point in screening["operating_points"].items()}
    if measured != chosen:
        raise CardRefused(
            f"{file} was measured at the thresholds {measured}, {hub_folder.SCREENING} has {chosen}. "
            "Evaluate the run again."
        )
    if "guard" not in evaluation:
        raise CardRefused(
            f"{run} was evaluated for comparison only and has no input guard, so it would answer a photograph of a "
            f"cat. Say `python -m train evaluate {run} --again`."
        )
    return evaluation


def collections(run: Path, evaluation: dict) -> dict[str, Collection]:
    """The collections of the data, described by the project or by `collections.json` in the run folder."""
    file = run / COLLECTIONS_FILE
    try:
        told = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        known = COLLECTIONS | {name: Collection(**row) for name, row in told.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise CardRefused(
            f"{file} cannot be read ({error}). It holds title, licence and leak of each collection."
        ) from error
    names = sorted(evaluation["guard"]["false_refusals_by_source"])
    if unknown := [name for name in names if name not in known]:
        example = json.dumps(
            {unknown[0]: {"title": "...", "licence": "...", "leak": "...", "may_pass_on": False}}
        )
        raise CardRefused(
            "The card has to say where the pictures come from and under which licence, and nobody has told "
            f"of {', '.join(unknown)}. Write {file}, such as {example}"
        )
    return {name: known[name] for name in names}


def records(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, dict]]:
    """Every record in nested figures, with where it stands in words."""
    if isinstance(tree, dict) and {"value", "low", "high"} <= tree.keys():
        yield ", ".join(path) or tree.get("metric", ""), tree
    elif isinstance(tree, dict):
        for name, branch in tree.items():
            yield from records(branch, (*path, str(name).replace("_", " ")))


def _predictive(evaluation: dict, point: str) -> list[dict[str, Any]]:
    """PPV and NPV at assumed prevalences, from the sensitivity and specificity of the test part (Bayes'
    theorem): value, and with both at the lower and at the upper end of their intervals.
    """
    at = evaluation["test"]["at"][point]
    if at["sensitivity"]["value"] is None or at["specificity"]["value"] is None:
        raise CardRefused(
            "The test part lacks a class, so sensitivity or specificity is not defined. Give more data."
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


def _start(settings: dict, architecture: str) -> str:
    """What the weights were before training, in words."""
    if init := settings.get("init"):
        return STARTS.get(init, f"the file `{init}`, of whose origin nothing else is recorded")
    if settings.get("pretrained"):
        return f"timm's published weights `{settings.get('variant', architecture)}`"
    return "random numbers"


def _soup(members: list[dict]) -> list[str]:
    """What sets each run apart whose weights were averaged, in words; no entries where the weights are one run's."""
    return [
        ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in sorted(member["settings"].items()))
        for member in members
    ]


def _base_model(settings: dict) -> str | None:
    """Hub id of the weights that training started from; None where they have none."""
    if settings.get("init") or not settings.get("pretrained"):
        return None
    from timm.models import get_pretrained_cfg

    known = get_pretrained_cfg(settings["variant"], allow_unregistered=True)
    return known.hf_hub_id if known and "/" in (known.hf_hub_id or "") else None


def _training(told: dict | None) -> dict[str, Any] | None:
    """Hours and estimated energy of training, where the run recorded its seconds; None where it did not."""
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


def metadata(known: dict[str, Any]) -> str:
    """The YAML block of the card, as the Hub reads it."""
    from huggingface_hub import EvalResult, ModelCardData

    test, point = known["evaluation"]["test"], known["default_point"]
    measured = {
        "accuracy": test["at"][point]["accuracy"],
        "recall": test["at"][point]["sensitivity"],
        "specificity": test["at"][point]["specificity"],
        "f1": test["at"][point]["f1"],
        "roc_auc": test["auroc"],
    }
    name = f"covid-xct-{known['modality']}-{known['config']['architecture']}"
    found = [
        EvalResult(
            task_type="image-classification",
            dataset_type=known["dataset"] or _local_name(known),
            metric_type=metric,
            dataset_split="test",
            dataset_name=f"{', '.join(known['collections'])} ({known['evaluation']['data']['split']} split)",
            metric_value=record["value"],
            metric_name=f"{metric}, 95 % interval {record['low']} to {record['high']}, n = {record['n']}",
        )
        for metric, record in measured.items()
        if record["value"] is not None
    ]
    data = ModelCardData(
        license=LICENCE,
        library_name="timm",
        pipeline_tag="image-classification",
        language="en",
        datasets=[known["dataset"]] if known["dataset"] else None,
        metrics=list(measured),
        base_model=known["base_model"],
        tags=[
            "covid-xct",
            "covid-19",
            "medical",
            "radiology",
            SUBJECTS[known["modality"]],
            "screening",
            "transformers",
            *(["onnx"] if known["onnx"] else []),
        ],
        model_name=name,
        eval_results=found,
    )
    return data.to_yaml()


def results(known: dict[str, Any]) -> str:
    """The contents of `.eval_results/*.yaml`: one entry a figure, its interval in the notes."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    evaluation, point = known["evaluation"], known["default_point"]
    at = evaluation["test"]["at"][point]
    measured = {
        "auroc": (evaluation["test"]["auroc"], ""),
        "sensitivity": (at["sensitivity"], f", threshold {at['threshold']:.4f} ({point})"),
        "specificity": (at["specificity"], f", threshold {at['threshold']:.4f} ({point})"),
    }
    sources = "" if known["dataset"] else f"pictures of {', '.join(known['collections'])}, not on the Hub; "
    entries = [
        EvalResultEntry(
            dataset_id=known["dataset"] or _local_name(known), task_id=name, value=record["value"],
            notes=f"test part, 95 % interval {record['low']} to {record['high']}, n = {record['n']}, "
            f"families resampled{where}; {sources}weights {evaluation['weights_sha256'][:12]}, data "
            f"{evaluation['data']['data_sha256'][:12]}",
        )
        for name, (record, where) in measured.items()
    ]  # fmt: skip
    return yaml.safe_dump(
        eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True, width=110
    )


def _local_name(known: dict[str, Any]) -> str:
    """What the data is called where a name is asked for and it has none on the Hub: no owner, so nobody's."""
    return f"covid-xct-{known['modality']}"


def _dataset(run: Path) -> str | None:
    """The data set that the card in the folder names."""
    file = Path(run) / README
    found = re.match(r"---\n(.*?)\n---\n", file.read_text("utf-8"), re.DOTALL) if file.is_file() else None
    named = (yaml.safe_load(found[1]) or {}).get("datasets") if found else None
    return named[0] if named else None


def figure(record: dict) -> str:
    """A record in words: value and interval with three decimals, and n."""
    return _worded(record, lambda x: f"{x:.3f}")


def percent(record: dict | float | None) -> str:
    """A share in per cent; of a record with its interval and n."""
    if isinstance(record, dict):
        return _worded(record, _share)
    return "not defined" if record is None else _share(record)


def spread(found: dict) -> str:
    """A share in per cent with the ends between which it lies."""
    value, low, high = (percent(found[end]) for end in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def duration(hours: float) -> str:
    """A time in the unit in which people would say it."""
    if hours >= 2:
        return f"{hours:.1f} hours"
    return f"{60 * hours:.0f} minutes" if hours >= 1 / 30 else f"{3600 * hours:.0f} seconds"


def _share(x: float) -> str:
    return f"{x:.1%}".replace("%", " %")


def _worded(record: dict, spell) -> str:
    if record["value"] is None:
        return f"not defined (n = {record['n']:,})"
    interval = (
        "no interval" if record["low"] is None else f"{spell(record['low'])} to {spell(record['high'])}"
    )
    return f"{spell(record['value'])} ({interval}; n = {record['n']:,})"
