"""One network out of several runs of one architecture: the mean of their weights.

Runs that start from the same weights and head stay in one valley of the loss, so that the mean of their weights does
about as well as their ensemble, at the cost of one network (model soup, Wortsman et al. 2022, arXiv:2203.05482).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from scipy.special import expit

from hub_model import hub_folder, lungs
from hub_model.check.metrics import figures, interval
from hub_model.hub_folder import HubFolder
from hub_model.refused import Refused
from hub_model.whole import whole_folder

from ..measure.predict import predict
from ..measure.provenance import parts_of

if TYPE_CHECKING:
    from datasets import Dataset


def soup(
    runs: Annotated[list[Path], typer.Argument(help="hub folders written by fit, not evaluated yet")],
    data: Annotated[list[str], typer.Option(help="what fit was given; may repeat")],
    out: Annotated[Path, typer.Option(help="run folder to write")],
) -> dict[str, dict]:
    """Average the weights of RUNS into OUT, an uncalibrated run like those of ``fit``.

    Looks at the validation split only. Batch-norm statistics are averaged as well, which is right where the runs kept
    those they came with (``freeze_norms``) and an approximation elsewhere: compare the figures.

    Returns:
        Validation AUROC by the path of each run and, under OUT, of their mean; each with its interval.

    Raises:
        Refused: fewer than two runs, another network, another split, a calibrated run, or OUT exists.
        Refused: DATA is not what the runs were trained on.
        FolderRefused: a run cannot be opened.
    """
    if out.exists():
        raise Refused(f"{out} exists. Give another --out.")
    folders = [hub_folder.open_folder(run) for run in runs]
    _check(folders)
    first = folders[0]
    validation = parts_of(first, data)["validation"]
    found = {str(folder.path): _auroc(folder, validation) for folder in folders}
    first.model.load_state_dict(mean_weights([folder.model.state_dict() for folder in folders]))
    found[str(out)] = _auroc(first, validation)
    for name, figure in found.items():
        print(f"{name}: validation AUROC {interval(figure)}")
    config = first.config
    with whole_folder(out) as new:
        if first.finder is not None:
            lungs.copy(first.path, new)
        hub_folder.save(
            new,
            first.model,
            architecture=config["architecture"],
            model_args=config.get("model_args") or {},
            pretrained_cfg=config["pretrained_cfg"],
            screening={**first.screening, "provenance": _provenance(folders, found, str(out))},
        )
    return found


def mean_weights(states: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Average each floating tensor, added up in float64; counters are those of the first."""
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in states[0].items()
    }


def _check(folders: list[HubFolder]) -> None:
    if len(folders) < 2:
        raise Refused("One run has no mean with others. Give two or more.")
    first = folders[0]
    for folder in folders:
        if folder.screening.get("calibrated"):
            raise Refused(
                f"{folder.path} is calibrated: its logits have a scale of their own. Give runs as `fit` leaves them, "
                "and evaluate their mean."
            )
        for what, told in (
            ("modality", lambda f: f.modality),
            (
                "network",
                lambda f: [f.config.get(k) for k in ("architecture", "model_args", "pretrained_cfg")],
            ),
            ("split of the data", lambda f: f.screening["provenance"].get("split_sha256")),
        ):
            if told(folder) != told(first):
                raise Refused(
                    f"{folder.path} has another {what} than {first.path}. Only runs of one network on one split have "
                    "a meaningful mean."
                )


def _auroc(folder: HubFolder, validation: "Dataset") -> dict[str, Any]:
    told = predict(folder, validation, folder.path.name)
    return figures(told.labels, expit(told.log_odds), told.families, {})["auroc"]


def _setting(provenance: dict, key: str) -> Any:
    """Say what held in a run: a field of the recipe may have been left to it, or given with the same value."""
    recipe = provenance["recipe"]
    return recipe[key] if key in recipe else provenance["settings"].get(key)


def _provenance(folders: list[HubFolder], found: dict[str, dict], out: str) -> dict:
    """Say what went into the mean: the first run's provenance, settings that differ, and the seconds of all.

    The history of the first run gives place to the mean's own figure.
    """
    each = [folder.screening["provenance"] for folder in folders]
    shared = {key: value for key, value in each[0].items() if key not in ("history", "training")}
    members = [
        {
            "weights_sha256": folder.screening["weights_sha256"],
            "validation_auroc": found[str(folder.path)]["value"],
            "settings": {
                key: value
                for key, value in told["settings"].items()
                if any(_setting(other, key) != _setting(told, key) for other in each)
            },
            "seconds": told["training"]["seconds"],
        }
        for folder, told in zip(folders, each, strict=True)
    ]
    seconds = round(sum(member["seconds"] for member in members), 1)
    return {
        **shared,
        "training": {**each[0]["training"], "seconds": seconds},
        "validation_auroc": found[out]["value"],
        "soup": members,
    }
