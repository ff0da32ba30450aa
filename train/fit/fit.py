"""Train a network with transformers' Trainer and leave a hub folder.

The run folder is the hub folder; while training goes on, ``trainer/`` inside it holds what a resumed run needs.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from PIL import Image
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from hub_model import hub_folder, lungs
from hub_model.hub_folder import LABELS
from hub_model.refused import Refused
from hub_model.whole import copy_linked, held, partial_folder, whole_folder

from ..data.dataset import Origin, open_data
from . import backbones, distillation, experts, probe, speed, steady
from . import trainer as training
from .batches import NAMELESS, Batches, Images, join, read_images, read_unlabelled
from .exchange import Exchange
from .settings import Settings, with_settings

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

CHECKPOINTS, SETTINGS = "trainer", "fit.json"
REPORTS = ("none", "tensorboard", "trackio")
UNCALIBRATED = {
    "calibrated": False,
    "temperature": 1.0,
    "operating_points": {"uncalibrated": {"threshold": 0.5, "target": "not chosen yet: evaluate the run"}},
}


@with_settings
def fit(
    *,
    out: Annotated[Path | None, typer.Option(help="run folder; by default runs/MODALITY-VARIANT")] = None,
    report: Annotated[str, typer.Option(help="none, tensorboard or trackio")] = "none",
    overwrite: Annotated[bool, typer.Option(help="replace a finished run")] = False,
    **knobs: Any,
) -> Path:
    """Train VARIANT on DATA; a killed run resumes when the same command is given again.

    Keywords are those here and the fields of `train.fit.settings.Settings`. Nothing is written until settings and data
    have been found good.

    Returns:
        The run folder, a hub folder whose probabilities are not calibrated yet (see ``evaluate``).

    Raises:
        Refused: settings or data that cannot be trained with, or a run folder that holds something else.
        TrainingFailed: the loss stopped being a number, or a checkpoint could not be saved; the last good one stays.
        OSError: the run folder cannot be written.
    """
    settings = Settings(**knobs)
    if report not in REPORTS:
        raise Refused(f"--report {report!r}: accepted are {', '.join(REPORTS)}.")
    out = Path(out or Path("runs") / f"{settings.modality}-{settings.variant}")
    _check_run(out, settings, overwrite)
    torch.manual_seed(settings.seed)
    speed.keep_memory()
    network = _build(settings)
    processes = speed.processes()
    with processes.main_process_first():  # the others find the data prepared
        splits, origin = open_data(
            settings.data,
            settings.modality,
            seed=settings.split_seed,
            split=settings.split,
            families=settings.families,
        )
    images = _read(settings, splits, network)
    with _alone(out, settings, overwrite) if processes.is_main_process else nullcontext():
        processes.wait_for_everyone()
        trainer = _trainer(settings, network, images, out / CHECKPOINTS, report)
        clock = _train(trainer, out / CHECKPOINTS)
        processes.wait_for_everyone()
        if processes.is_main_process:
            _save(out, settings, splits, origin, network, trainer, clock)
    return out


def without(splits: "DatasetDict", sources: list[str]) -> "DatasetDict":
    """Leave the rows of some sources out of every split.

    Raises:
        Refused: the data has no such source.
    """
    known = {source for split in splits.values() for source in split.unique("source")}
    if unknown := set(sources) - known:
        raise Refused(
            f"--without-source {', '.join(sorted(unknown))}: the data has no such source, only "
            f"{', '.join(sorted(known))}."
        )
    if not sources:
        return splits
    return splits.filter(lambda source: source not in sources, input_columns="source")


def _build(settings: Settings) -> backbones.Network:
    """Build the network that is trained.

    Raises:
        Refused: no such network, weights that do not fit it, or a recipe that is not for it.
    """
    row = settings.row
    network = backbones.build(
        settings.variant,
        init=settings.init,
        pretrained=settings.pretrained,
        model_args=settings.network_arguments,
        input_size=row.input_size,
        mean=settings.mean,
        std=settings.std,
    )
    name, model = settings.recipe_name, network.model
    if missing := set(row.l2_kernels) - dict(model.named_parameters()).keys():
        raise Refused(
            f"Recipe {name!r} penalises {', '.join(sorted(missing))}, which {settings.variant} does not have. Choose "
            "another --recipe, as 'scratch' or 'transfer'."
        )
    if row.freeze_stages > max(training.stage_of(model).values()) and not settings.transfer:
        raise Refused(
            f"Recipe {name!r} trains the last layer alone, and all before it would stay the random numbers that "
            f"{settings.variant} starts from. Give weights by --init or --pretrained, or choose another --recipe."
        )
    world = _world()
    if row.batch % world:
        raise Refused(
            f"A global batch of {row.batch} does not divide over {world} processes; give another --batch."
        )
    return network


def _world() -> int:
    """Count the processes that train together, as torchrun says."""
    return int(os.environ.get("WORLD_SIZE", 1))


def _read(settings: Settings, splits: "DatasetDict", network: backbones.Network) -> dict[str, Images]:
    """Read the images of train and validation, with the teachers' share in the targets of the former."""
    finder = _finder(settings)
    transform = hub_folder.transform_of(network.config, finder if settings.view == lungs.LUNGS else None)
    cfg = network.config["pretrained_cfg"]
    known = without(splits, settings.without_source)
    for name in ("train", "validation"):
        counts = [list(known[name]["label"]).count(index) for index in range(len(LABELS))]
        if 0 in counts:
            found = ", ".join(f"{count} {label}" for label, count in zip(LABELS, counts, strict=True))
            raise Refused(
                f"The {name} split has {found}. Both classes are needed in both splits: give more data, of more "
                "families."
            )
    copies, seed = settings.row.copies, settings.seed
    # the recipe's own teacher learns from them by their lungs; those in folders say what they make of any picture
    pictures = distillation.unlabelled_pictures(settings.unlabelled, None if settings.teacher else finder)
    exchange = _exchange(settings, known["train"], pictures, finder)
    images = {
        "train": read_images(known["train"], transform, cfg, "train", copies, seed, exchange),
        "validation": read_images(known["validation"], transform, cfg, "validation"),
    }
    further = read_unlabelled(pictures, transform, cfg, copies, seed, exchange) if pictures else None
    if settings.teacher:
        distillation.ask_teachers(settings, images["train"], known["train"], further, pictures)
    if further is not None:
        images["train"] = join(images["train"], further)
    if settings.expert:
        bf16 = speed.faster_in_bf16(network.model) if settings.bf16 is None else settings.bf16
        images["train"].expert = experts.ask(
            experts.load_expert(settings.expert), images["train"].pixels, bf16
        )
    images["train"].any_look = (
        bool(settings.row.copies) and not settings.row.steady
    )  # a steady head decides itself
    return images


def _exchange(
    settings: Settings, rows: "Dataset", unlabelled: list[Image.Image], finder: lungs.LungFinder | None
) -> Exchange | None:
    """Set up the exchange of style and background between all training pictures; None where the recipe has none."""
    if not (settings.row.style or settings.row.background):
        return None

    def picture(index: int) -> Image.Image:
        labelled = index < len(rows)
        return rows[index]["image"].convert("L") if labelled else unlabelled[index - len(rows)]

    sources = [*rows["source"], *[NAMELESS] * len(unlabelled)]
    return Exchange(
        sources, picture, style=settings.row.style, background=settings.row.background, finder=finder
    )


def _finder(settings: Settings) -> lungs.LungFinder | None:
    """Open the lung network that travels with the run.

    Raises:
        Refused: the folder has none, or one for the other modality.
    """
    if settings.lungs is None:
        return None
    finder = lungs.load(settings.lungs)
    if finder is None or finder.modality != settings.modality:
        found = f"one for {finder.modality} pictures" if finder else "no lung network"
        raise Refused(
            f"--lungs {settings.lungs} holds {found}; one for {settings.modality} pictures is needed (`python -m train "
            "lungs`)."
        )
    return finder


def _check_run(out: Path, settings: Settings, overwrite: bool) -> None:
    """Refuse a run folder that is neither new nor what the same command left unfinished; writes nothing.

    Raises:
        Refused: the folder holds something else.
    """
    checkpoints = out / CHECKPOINTS
    if out.is_dir() and any(out.iterdir()) and not checkpoints.is_dir():
        if not overwrite:
            raise Refused(
                f"{out} holds a finished run or other files. Give another --out, or --overwrite to replace it."
            )
        if not (out / hub_folder.CONFIG).is_file():
            raise Refused(f"{out} is no run folder, so it is not overwritten. Give another --out.")
    if not overwrite and (changed := _changed(checkpoints, settings)):
        raise Refused(
            f"{out} holds an unfinished run with other settings ({', '.join(changed)}). Repeat its command to "
            "resume it, give another --out, or --overwrite to start anew."
        )


def _changed(checkpoints: Path, settings: Settings) -> list[str]:
    """Name the settings in which an unfinished run differs; none where there is no such run."""
    file = checkpoints / SETTINGS
    if not file.is_file():
        return []
    earlier, now = hub_folder.read_json(file), settings.as_json()
    return [key for key in sorted(now.keys() | earlier.keys()) if earlier.get(key) != now.get(key)]


@contextmanager
def _alone(out: Path, settings: Settings, overwrite: bool) -> Iterator[None]:
    """Open the run folder, and hold it while the block runs.

    Raises:
        InUse: another process works there.
        Refused: another process has finished a run there meanwhile.
    """
    out.mkdir(parents=True, exist_ok=True)
    with held(out):
        _check_run(out, settings, overwrite)
        _open_run(out, settings)
        yield


def _open_run(out: Path, settings: Settings) -> None:
    """Make the folder of checkpoints, emptied unless it is what the same command left unfinished; see `_check_run`.

    A finished run that is to be replaced stays until the new one is finished.
    """
    checkpoints = out / CHECKPOINTS
    if _changed(checkpoints, settings):
        with partial_folder(
            checkpoints
        ) as rest:  # the settings last: without them it would pass for any run's
            for entry in list(checkpoints.iterdir()):
                if entry.name not in (SETTINGS, rest.name):
                    entry.replace(rest / entry.name)
    checkpoints.mkdir(parents=True, exist_ok=True)
    hub_folder.write_json(checkpoints / SETTINGS, settings.as_json())


def _trainer(
    settings: Settings,
    network: backbones.Network,
    images: dict[str, Images],
    checkpoints: Path,
    report: str,
) -> training.RecipeTrainer:
    """Set up the Trainer of a run, with what its recipe asks for."""
    row = settings.row
    bf16 = speed.faster_in_bf16(network.model) if settings.bf16 is None else settings.bf16
    model = TimmWrapperForImageClassification(TimmWrapperConfig.from_dict(network.config))
    model.timm_model = speed.arrange(network.model, bf16)
    batches = Batches(network.config["pretrained_cfg"], settings.modality, row)
    trainer = training.RecipeTrainer(
        model=model,
        args=_arguments(settings, checkpoints, bf16, report),
        train_dataset=images["train"],
        eval_dataset=images["validation"],
        data_collator=batches,
        compute_metrics=training.validation_figures,
        recipe=row,
        batches=batches,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(training.Progress())
    if row.average:
        trainer.add_callback(training.Average(trainer, row.average))
    if row.stop_patience:
        trainer.add_callback(training.StopOnTrainingAccuracy(trainer, row.stop_min_delta, row.stop_patience))
    return trainer


def _arguments(settings: Settings, checkpoints: Path, bf16: bool, report: str) -> TrainingArguments:
    row = settings.row
    return TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=row.epochs,
        per_device_train_batch_size=row.batch // _world(),
        per_device_eval_batch_size=64,
        lr_scheduler_type=row.schedule,
        warmup_steps=row.warm_up,
        max_grad_norm=0,  # neither the documented system nor ours clips gradients
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=2,
        label_names=["labels"],
        remove_unused_columns=False,
        restore_callback_states_from_checkpoint=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        use_cpu=not torch.cuda.is_available(),
        bf16=bf16,
        seed=settings.seed,
        report_to=report,
        project="covid-xct",
    )


def _train(trainer: training.RecipeTrainer, checkpoints: Path) -> training.Complete:
    """Train, from the last whole checkpoint if there is one; returns the clock of the training."""
    last = training.last_complete(checkpoints)
    clock = training.Complete(last)
    trainer.add_callback(clock)
    if trainer.recipe.probe and last is None:
        probe.probe_head(trainer.network, trainer.train_dataset, trainer.batches, trainer.sampler().weights)
    # also where a run goes on: this is its teacher, and the same seed gives the same one
    if trainer.recipe.steady:
        speed.keep_head_precise(trainer.network.get_classifier())
        steady.steady_head(trainer.network, trainer.train_dataset, trainer.batches.pretrained_cfg, trainer.recipe,
                           trainer.args.seed, trainer.args.bf16)  # fmt: skip
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    return clock


def _save(
    out: Path,
    settings: Settings,
    splits: "DatasetDict",
    origin: Origin,
    network: backbones.Network,
    trainer: training.RecipeTrainer,
    clock: training.Complete,
) -> None:
    """Put the hub folder in place of the run folder, whose checkpoints go.

    What others have put there stays, unless it belongs to a finished run that is replaced.
    """
    provenance = {
        "data_sha256": origin.data_sha256,
        "split_sha256": origin.split_sha256,
        "seed": origin.seed,
        "split": origin.split,
        "families": origin.families,
        "without_source": settings.without_source,
        "recipe": {"name": settings.recipe_name, **asdict(settings.row)},
        "settings": settings.portable(),
        "images": {name: len(split) for name, split in splits.items()},
        "versions": {name: version(name) for name in ("torch", "timm", "transformers")},
        "training": {
            "seconds": clock.seconds,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "cores": torch.get_num_threads(),
            "bf16": trainer.args.bf16,
        },
        "history": training.history(trainer),
    }
    view = {"view": settings.view} if settings.lungs else {}
    with whole_folder(out) as new:
        if not (out / hub_folder.CONFIG).is_file():
            copy_linked(out, new, without=[CHECKPOINTS])
        if settings.lungs:
            lungs.copy(settings.lungs, new)
        hub_folder.save(
            new,
            training.kept_network(trainer),
            architecture=network.architecture,
            model_args=network.model_args,
            pretrained_cfg=network.pretrained_cfg,
            screening={"modality": settings.modality, **view, **UNCALIBRATED, "provenance": provenance},
        )
