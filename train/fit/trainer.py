"""What transformers' Trainer needs to train by a recipe: images, batches, loss, order, moving average, stopping."""

import contextlib
import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models import group_parameters
from timm.utils import ModelEmaV3
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState, ProgressCallback
from transformers.trainer_utils import get_last_checkpoint

from hub_model.refused import Failed

from ..measure.metrics import at_threshold, threshold_free
from .batches import BalancedSampler, Batches
from .recipes import Recipe

COMPLETE, AVERAGE = "complete.json", "average.safetensors"


class TrainingFailed(Failed):
    """Training cannot go on; the last good checkpoint is kept."""


@contextlib.contextmanager
def saving(args, state) -> Iterator[Path]:
    """The folder of the checkpoint that is being saved; where the disk is full, it goes and those before it stay."""
    folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
    try:
        yield folder
    except (OSError, RuntimeError, SafetensorError) as error:  # Python's, torch's and safetensors' own
        shutil.rmtree(folder, ignore_errors=True)
        raise TrainingFailed(
            f"The checkpoint of step {state.global_step} could not be saved under {args.output_dir}: {error} Those "
            "saved before it are whole. Make room and repeat the command to go on from there."
        ) from error


class RecipeTrainer(Trainer):
    """transformers' Trainer with a recipe's loss, order of images, learning rates and moving average."""

    def __init__(self, *args, recipe: Recipe, batches: Batches, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.recipe, self.batches = recipe, batches
        self.average: ModelEmaV3 | None = None
        self.hits = self.seen = 0

    @property
    def network(self) -> torch.nn.Module:
        """The timm network, out of its wrappers."""
        return self.accelerator.unwrap_model(self.model).timm_model

    def get_eval_dataloader(self, eval_dataset=None):
        collate, self.data_collator = (
            self.data_collator,
            Batches(self.batches.pretrained_cfg, self.batches.modality),
        )
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = collate

    def _get_train_sampler(self, train_dataset=None):
        return super()._get_train_sampler(train_dataset) if self.recipe.balance is None else self.sampler()

    def sampler(self) -> BalancedSampler:
        """The balanced order of the training images."""
        images = self.train_dataset
        return BalancedSampler(images.labels, images.sources, self.recipe.balance == "source", self.args.seed)

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            groups = parameter_groups(self.network, self.recipe)
            adam = torch.optim.AdamW if self.recipe.weight_decay else torch.optim.Adam
            # epsilon as in Keras for the documented recipes; PyTorch's own otherwise
            self.optimizer = adam(
                groups,
                lr=self.recipe.learning_rate,
                betas=(0.9, self.recipe.beta2),
                eps=self.recipe.epsilon,
                fused=True,  # one pass over the weights instead of a dozen: a quarter of the time on CPU
            )
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if model.training:
            self._freeze_norms()
        outputs = model(pixel_values=inputs["pixel_values"])
        logits = outputs.logits.float()
        loss = F.cross_entropy(logits, inputs["targets"]) + self._penalty()
        if not torch.isfinite(loss):
            paths = [str(self.train_dataset.paths[i]) for i in inputs["index"].tolist()[:3]]
            raise TrainingFailed(
                f"The loss became {loss.item()} at step {self.state.global_step} (epoch {self.state.epoch:.2f}, batch "
                f"with {', '.join(paths)} ...). Training stops; the last good checkpoint is kept under "
                f"{self.args.output_dir}. Try a smaller --learning-rate."
            )
        if model.training:
            known = inputs["labels"] >= 0
            self.hits += int((logits.argmax(1) == inputs["labels"])[known].sum())
            self.seen += int(known.sum())
        return (loss, {"logits": logits}) if return_outputs else loss

    def _freeze_norms(self) -> None:
        """Batch norm of frozen stages, and every other in the first epochs, keeps the statistics it came with: those of
        a small batch of a new kind of picture are too rough while the head is still settling."""
        early = (self.state.epoch or 0) < self.recipe.freeze_norms
        for module in self.network.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.train(not early and module.weight.requires_grad)

    def _penalty(self):
        """Keras' L2: the coefficient times the sum of squares of each named kernel, in the loss itself."""
        if not self.recipe.l2:
            return 0.0
        named = dict(self.network.named_parameters())
        return self.recipe.l2 * sum(named[name].square().sum() for name in self.recipe.l2_kernels)

    def _save_checkpoint(self, model, trial):
        with saving(self.args, self.state):
            super()._save_checkpoint(model, trial)

    def evaluate(self, *args, **kwargs):
        """Evaluates the moving average where the recipe keeps one: it is what will be shipped."""
        if self.average is None:
            return super().evaluate(*args, **kwargs)
        own = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.network.load_state_dict(self.average.module.state_dict())
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self.network.load_state_dict(own)


def stage_of(network: torch.nn.Module) -> dict[str, int]:
    """Parameter name -> how deep its stage lies, 0 being the stem; the head's is the highest (timm's own grouping)."""
    return group_parameters(network, network.group_matcher(coarse=True), reverse=True)


def parameter_groups(network: torch.nn.Module, recipe: Recipe) -> list[dict]:
    """Parameter groups: a learning rate for each stage, no weight decay on norms and biases, frozen stages left out."""
    head = {id(p) for p in network.get_classifier().parameters()}
    stages = stage_of(network)
    deepest = max(stages.values())
    groups: dict[tuple[float, bool], list] = {}
    for name, parameter in network.named_parameters():
        is_head = id(parameter) in head
        if stages[name] < recipe.freeze_stages and not is_head:
            parameter.requires_grad_(False)
            continue
        factor = 1.0 if is_head else recipe.backbone_lr * recipe.layer_decay ** (deepest - stages[name])
        groups.setdefault((factor, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": recipe.learning_rate * factor,
            "weight_decay": recipe.weight_decay if decays else 0.0,
        }
        for (factor, decays), parameters in groups.items()
    ]


class Average(TrainerCallback):
    """Keeps an exponential moving average of the weights and stores it in each checkpoint."""

    def __init__(self, trainer: RecipeTrainer, decay: float) -> None:
        self.trainer, self.decay = trainer, decay

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.average = ModelEmaV3(self.trainer.network, decay=self.decay, use_warmup=True)
        last = last_complete(Path(args.output_dir))
        if last and state.global_step:
            self.trainer.average.module.load_state_dict(load_file(last / AVERAGE))

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.average.update(self.trainer.network, step=state.global_step)

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            tensors = {k: v.contiguous().clone() for k, v in self.trainer.average.module.state_dict().items()}
            with saving(args, state) as folder:
                save_file(tensors, folder / AVERAGE)


class Complete(TrainerCallback):
    """Marks a checkpoint as whole, last of all, so that a killed save is never resumed from.

    Attributes:
        seconds: that training has taken so far, over all resumptions.
    """

    def __init__(self, earlier: Path | None) -> None:
        self.earlier = json.loads((earlier / COMPLETE).read_text())["seconds"] if earlier else 0.0
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        return round(self.earlier + time.monotonic() - self.started, 1)

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            told = {"step": state.global_step, "seconds": self.seconds}
            with saving(args, state) as folder:
                (folder / COMPLETE).write_text(json.dumps(told))


class StopOnTrainingAccuracy(TrainerCallback, ExportableState):
    """Keras' EarlyStopping on the accuracy of the training batches, as the documented baseline used it."""

    def __init__(self, trainer: RecipeTrainer, min_delta: float, patience: int) -> None:
        self.trainer, self.min_delta, self.patience = trainer, min_delta, patience
        self.best, self.waited = -math.inf, 0

    def on_epoch_end(self, args, state, control, **kwargs):
        counts = torch.tensor([[self.trainer.hits, self.trainer.seen]], device=args.device)
        hits, seen = self.trainer.accelerator.gather(counts).sum(0).tolist()
        self.trainer.hits = self.trainer.seen = 0
        if hits > (self.best + self.min_delta) * seen:
            self.best, self.waited = hits / seen, 0  # seen > 0: the epoch had batches
        else:
            self.waited += 1
            control.should_training_stop |= self.waited >= self.patience
        return control

    def state(self) -> dict:
        return {
            "args": {"min_delta": self.min_delta, "patience": self.patience},
            "attributes": {"best": self.best, "waited": self.waited},
        }


class Progress(ProgressCallback):
    """The Trainer's bar, with one readable line an epoch."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None and "eval_auroc" in (logs or {}):
            self.training_bar.write(
                f"epoch {state.epoch:5.1f}  validation: AUROC {logs['eval_auroc']:.3f}  sensitivity "
                f"{logs['eval_sensitivity']:.3f}  specificity {logs['eval_specificity']:.3f}  "
                f"loss {logs['eval_loss']:.3f}"
            )


def validation_figures(prediction) -> dict[str, float]:
    """Trainer's compute_metrics: AUROC, and sensitivity, specificity and accuracy at 0.5."""
    logits, labels = prediction.predictions, prediction.label_ids
    labels = labels[0] if isinstance(labels, tuple) else labels
    margins = (logits[:, 1] - logits[:, 0]).astype(float)
    found = at_threshold(labels, margins, 0.0)
    return {
        "auroc": float(threshold_free(labels, 1 / (1 + np.exp(-margins)))["auroc"]),
        **{name: float(found[name]) for name in ("sensitivity", "specificity", "accuracy")},
    }


def last_complete(checkpoints: Path) -> Path | None:
    """The last whole checkpoint; half-written ones are removed."""
    for folder in checkpoints.glob("checkpoint-*"):
        if not (folder / COMPLETE).is_file():
            shutil.rmtree(folder)
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    return Path(last) if last else None


def best_network(trainer: RecipeTrainer) -> torch.nn.Module:
    """The network as the recipe keeps it: of the best epoch on validation, or of the last."""
    network = trainer.network
    if trainer.recipe.keep == "last":
        if trainer.average is not None:
            network.load_state_dict(trainer.average.module.state_dict())
        return network.eval()
    best = Path(trainer.state.best_model_checkpoint)
    if trainer.average is not None:
        network.load_state_dict(load_file(best / AVERAGE))
    else:
        own = load_file(best / "model.safetensors")
        network.load_state_dict({name.removeprefix("timm_model."): tensor for name, tensor in own.items()})
    return network.eval()


def history(trainer: RecipeTrainer) -> list[dict]:
    """One row an epoch: epoch, loss, and the validation figures."""
    rows: dict[float, dict] = {}
    for entry in trainer.state.log_history:
        row = rows.setdefault(round(entry["epoch"], 2), {"epoch": round(entry["epoch"], 2)})
        for key in ("loss", "eval_loss", "eval_auroc", "eval_sensitivity", "eval_specificity"):
            if key in entry:
                row[key.replace("eval_", "validation_")] = round(float(entry[key]), 5)
    return list(rows.values())
