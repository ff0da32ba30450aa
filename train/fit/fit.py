"""Train a network with transformers' Trainer and leave a hub folder.

The run folder is the hub folder; while training goes on, ``trainer/`` inside it holds what a resumed run needs.
"""

import json
import os
import shutil
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import torch
import typer
from accelerate import PartialState
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from hub_model import hub_folder
from hub_model.hub_folder import LABELS
from hub_model.refused import Refused

from ..data.dataset import load_data
from ..data.files import DataRefused
from ..measure.provenance import fingerprint
from . import backbones, distillation, probe, speed
from . import trainer as training
from .batches import Batches, Images, read_images
from .recipes import RECIPES, Recipe

SETTINGS = "fit.json"
UNCALIBRATED = {
    "calibrated": False,
    "temperature": 1.0,
    "operating_points": {"uncalibrated": {"threshold": 0.5, "target": "not chosen yet: evaluate the run"}},
}


class FitRefused(Refused):
    """Settings or data that cannot be trained with."""


def fit(
    data: Annotated[list[str], typer.Option(help="folder, zip, prepared dataset or Hub id; may repeat")],
    modality: Annotated[str, typer.Option(help="xray or ct")],
    variant: Annotated[str, typer.Option(help="covid_cnn_* or any timm CNN")],
    out: Annotated[Path | None, typer.Option(help="run folder; by default runs/MODALITY-VARIANT")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="row of train/fit/recipes.py; by default the variant's own")
    ] = None,
    init: Annotated[Path | None, typer.Option(help="safetensors file with weights to start from")] = None,
    pretrained: Annotated[bool, typer.Option(help="start from timm's weights on the Hub")] = False,
    model_args: Annotated[
        str, typer.Option(help='JSON for timm.create_model, as \'{"pad_type": "same"}\'')
    ] = "{}",
    split: Annotated[
        str, typer.Option(help="family, official or random (leaks; for demonstration)")
    ] = "family",
    families: Annotated[
        str, typer.Option(help="found (look-alikes too) or known (the collection's groups)")
    ] = "found",
    seed: Annotated[int, typer.Option(help="seed of the split, the weights and the order of the images")] = 0,
    without_source: Annotated[
        list[str] | None, typer.Option(help="source that is kept out of training and validation; may repeat")
    ] = None,
    input_size: Annotated[int | None, typer.Option(help="side in pixels, instead of the recipe's")] = None,
    augment: Annotated[
        str | None, typer.Option(help="row of train/fit/augment.py, instead of the recipe's")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="instead of the recipe's")] = None,
    batch: Annotated[int | None, typer.Option(help="global batch size, instead of the recipe's")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="instead of the recipe's")] = None,
    teacher: Annotated[
        list[str] | None, typer.Option(help="hub folder whose probabilities are learnt; may repeat")
    ] = None,
    unlabelled: Annotated[
        Path | None, typer.Option(help="folder of further images that only teachers label")
    ] = None,
    distil: Annotated[
        float, typer.Option(help="share of the teachers in the targets of labelled images")
    ] = 0.7,
    mean: Annotated[
        float | None, typer.Option(help="of pixels in 0..1, as INIT was trained; by default timm's")
    ] = None,
    std: Annotated[float | None, typer.Option(help="likewise")] = None,
    bf16: Annotated[
        bool | None, typer.Option(help="compute in bfloat16; by default where this CPU is faster so")
    ] = None,
    report: Annotated[str, typer.Option(help="none, tensorboard or trackio")] = "none",
    overwrite: Annotated[bool, typer.Option(help="replace a finished run")] = False,
) -> Path:
    """Train VARIANT on DATA; a killed run resumes when the same command is given again.

    Returns:
        The run folder, a hub folder whose probabilities are not calibrated yet (see ``evaluate``).

    Raises:
        FitRefused: unknown variant or recipe, or a run folder that holds something else.
        DataRefused: data that cannot be used.
        TeacherRefused: a teacher of the other modality.
        TrainingFailed: the loss stopped being a number, or a checkpoint could not be saved; the last good one stays.
    """
    settings = {
        key: str(value)
        for key, value in sorted(locals().items())
        if key not in ("out", "overwrite", "report")
    }
    out = out or Path("runs") / f"{modality}-{variant}"
    row = choose_recipe(recipe, variant, transfer=bool(init or pretrained), epochs=epochs, batch=batch,
                        learning_rate=learning_rate, input_size=input_size, augment=augment)  # fmt: skip
    torch.manual_seed(seed)
    speed.keep_memory()
    build = backbones.build(variant, init=init, pretrained=pretrained, model_args=_parse(model_args),
                            input_size=row.input_size, mean=mean, std=std)  # fmt: skip
    processes = PartialState(cpu=not torch.cuda.is_available())
    with processes.main_process_first():  # the others find the run folder opened and the data prepared
        fresh = not out.exists()
        checkpoints = _open_run(out, settings, overwrite and processes.is_main_process)
        try:
            parts = load_data(data, modality=modality, seed=seed, split=split, families=families)
        except DataRefused:
            if fresh:  # a folder that holds nothing but the refusal's settings would look like a run
                shutil.rmtree(out)
            raise
    config = hub_folder.make_config(
        build.architecture, build.model_args, build.pretrained_cfg, build.model.num_features
    )
    transform = hub_folder.transform_of(config)
    known = without(parts, without_source or [])
    train = read_images(known["train"], transform, config["pretrained_cfg"], "train")
    validation = read_images(known["validation"], transform, config["pretrained_cfg"], "validation")
    _check_classes(train, validation)
    if teacher:
        train = distillation.with_teachers(
            train, known["train"], teacher, unlabelled, transform, config, distil, modality
        )
    trainer = _trainer(build, config, row, train, validation, modality, checkpoints, seed, bf16, report)
    last = training.last_complete(checkpoints)
    clock = training.Complete(last)
    trainer.add_callback(clock)
    if row.probe and last is None:
        probe.probe_head(trainer.network, train, trainer.batches, trainer.sampler().weights)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    processes.wait_for_everyone()
    if not processes.is_main_process:
        return out
    model = training.best_network(trainer)
    provenance = {
        **fingerprint(parts),
        "seed": seed,
        "split": split,
        "families": families,
        "without_source": without_source or [],
        "recipe": {"name": recipe or default_recipe(variant, bool(init or pretrained)), **asdict(row)},
        "settings": _portable(settings),
        "images": {name: len(part) for name, part in parts.items()},
        **_told(trainer, clock),
    }
    screening = {"modality": modality, **UNCALIBRATED, "provenance": provenance}
    hub_folder.save(out, model, architecture=build.architecture, model_args=build.model_args,
                    pretrained_cfg=build.pretrained_cfg, screening=screening)  # fmt: skip
    shutil.rmtree(checkpoints)
    return out


def _told(trainer: training.RecipeTrainer, clock: training.Complete) -> dict:
    """What a run says of itself: with what, on what and how long it was trained, and how validation went."""
    return {
        "versions": {name: version(name) for name in ("torch", "timm", "transformers")},
        "training": {
            "seconds": clock.seconds,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "cores": torch.get_num_threads(),
            "bf16": trainer.args.bf16,
        },
        "history": training.history(trainer),
    }


def default_recipe(variant: str, transfer: bool) -> str:
    """The recipe of a variant that none was named for: its own, or one of the two for stock backbones."""
    return variant if variant in RECIPES else "transfer" if transfer else "scratch"


def choose_recipe(name: str | None, variant: str, transfer: bool, **changes) -> Recipe:
    """The row of `RECIPES`, with the changes that are not None.

    Raises:
        FitRefused: no such row.
    """
    name = name or default_recipe(variant, transfer)
    if name not in RECIPES:
        raise FitRefused(f"Unknown recipe {name!r}. Known are {', '.join(RECIPES)}.")
    return replace(RECIPES[name], **{key: value for key, value in changes.items() if value is not None})


def without(parts, sources: list[str]):
    """The parts without some sources' rows.

    Raises:
        FitRefused: the data has no such source.
    """
    known = {source for part in parts.values() for source in part.unique("source")}
    if unknown := set(sources) - known:
        raise FitRefused(
            f"No source {', '.join(sorted(unknown))} in the data; it has {', '.join(sorted(known))}."
        )
    if not sources:
        return parts
    return parts.filter(lambda source: source not in sources, input_columns="source")


def _parse(model_args: str) -> dict:
    try:
        parsed = json.loads(model_args)
    except ValueError as error:
        raise FitRefused(
            f'--model-args is no JSON ({error}). Write it as \'{{"pad_type": "same"}}\'.'
        ) from error
    if not isinstance(parsed, dict):
        raise FitRefused(
            f"--model-args is a {type(parsed).__name__}; an object such as '{{\"drop_rate\": 0.2}}' is meant."
        )
    return parsed


def _check_classes(train: Images, validation: Images) -> None:
    for name, images in (("train", train), ("validation", validation)):
        counts = [int((images.labels == index).sum()) for index in range(len(LABELS))]
        if 0 in counts:
            found = ", ".join(f"{count} {label}" for label, count in zip(LABELS, counts, strict=True))
            raise FitRefused(
                f"The {name} part has {found}. Both classes are needed in both parts: give more data, of more families."
            )


def _open_run(out: Path, settings: dict, overwrite: bool) -> Path:
    """Prepare the run folder: new, or one that the same command left unfinished. Returns its checkpoints' folder."""
    checkpoints = out / "trainer"
    if out.is_dir() and any(out.iterdir()) and not checkpoints.is_dir():
        if not overwrite:
            raise FitRefused(
                f"{out} holds a finished run or other files. Give another --out, or --overwrite to replace it."
            )
        if not (out / hub_folder.CONFIG).is_file():
            raise FitRefused(f"{out} is no run folder, so it is not overwritten. Give another --out.")
        shutil.rmtree(out)
    file = checkpoints / SETTINGS
    if file.is_file() and (earlier := json.loads(file.read_text())) != settings:
        if not overwrite:
            changed = [key for key in settings if earlier.get(key) != settings[key]]
            raise FitRefused(
                f"{out} holds an unfinished run with other settings ({', '.join(changed)}). Repeat its command to "
                "resume it, give another --out, or --overwrite to start anew."
            )
        shutil.rmtree(checkpoints)
    checkpoints.mkdir(parents=True, exist_ok=True)
    hub_folder.write_json(file, settings)
    return checkpoints


def _trainer(
    build, config, row, train, validation, modality, checkpoints, seed, bf16, report
) -> training.RecipeTrainer:
    model = TimmWrapperForImageClassification(TimmWrapperConfig.from_dict(config))
    if bf16 is None:
        bf16 = speed.faster_in_bf16(build.model)
    model.timm_model = speed.arrange(build.model, bf16)
    world = int(os.environ.get("WORLD_SIZE", 1))
    if row.batch % world:
        raise FitRefused(
            f"A global batch of {row.batch} does not divide over {world} processes; give another --batch."
        )
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=row.epochs,
        per_device_train_batch_size=row.batch // world,
        per_device_eval_batch_size=64,
        lr_scheduler_type=row.schedule,
        warmup_steps=row.warm_up,
        max_grad_norm=0,  # neither the documented system nor ours clips gradients
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=2,
        metric_for_best_model="auroc",
        greater_is_better=True,
        label_names=["labels"],
        remove_unused_columns=False,
        restore_callback_states_from_checkpoint=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        use_cpu=not torch.cuda.is_available(),
        bf16=bf16,
        seed=seed,
        report_to=report,
        project="covid-xct",
    )
    batches = Batches(config["pretrained_cfg"], modality, row)
    trainer = training.RecipeTrainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=validation,
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


def _portable(settings: dict) -> dict:
    """Settings without the folders of this machine: file names stay, the paths to them do not."""
    paths = {"data", "init", "teacher", "unlabelled"}
    return {
        key: Path(value.strip("[]'\"")).name if key in paths else value for key, value in settings.items()
    }
