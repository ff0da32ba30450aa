"""transformers' Trainer by a recipe: loss, learning rates, moving average, stopping, and checkpoints that are whole."""

import contextlib
import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models import group_parameters
from timm.utils import ModelEmaV3
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState, ProgressCallback, TrainerControl, TrainerState
from transformers.trainer_utils import EvalPrediction, get_last_checkpoint

from hub_model.check.metrics import at_threshold, threshold_free
from hub_model.refused import Failed

from .batches import BalancedSampler, Batches
from .recipes import Recipe

COMPLETE, AVERAGE = "complete.json", "average.safetensors"
SURE = 1e-4
"""Targets nearer to 0 and 1 than this count as this near: log-odds of 9.2."""


class TrainingFailed(Failed):
    """Training cannot go on; the last good checkpoint is kept."""


@contextlib.contextmanager
def saving(args: TrainingArguments, state: TrainerState) -> Iterator[Path]:
    """Yield the folder of the checkpoint that is being saved.

    Raises:
        TrainingFailed: the disk is full; then this checkpoint is removed, and those before it stay.
    """
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

    def __init__(self, *args: Any, recipe: Recipe, batches: Batches, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recipe, self.batches = recipe, batches
        self.average: ModelEmaV3 | None = None
        self.hits = self.seen = 0

    @property
    def network(self) -> torch.nn.Module:
        """The timm network, out of its wrappers."""
        return self.accelerator.unwrap_model(self.model).timm_model

    def get_eval_dataloader(self, eval_dataset: Dataset | None = None) -> DataLoader:
        """Load validation images as they are: only training images are changed."""
        collate, self.data_collator = (
            self.data_collator,
            Batches(self.batches.pretrained_cfg, self.batches.modality),
        )
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = collate

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        return super()._get_train_sampler(train_dataset) if self.recipe.balance is None else self.sampler()

    def sampler(self) -> BalancedSampler:
        """Make the balanced order of the training images."""
        images = self.train_dataset
        return BalancedSampler(images.labels, images.sources, self.recipe.balance == "source", self.args.seed)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Make Adam, or AdamW where weights decay, with the recipe's learning rates."""
        if self.optimizer is None:
            groups = parameter_groups(self.network, self.recipe)
            adam = torch.optim.AdamW if self.recipe.weight_decay else torch.optim.Adam
            # epsilon as in Keras for the documented recipes; PyTorch's own otherwise
            self.optimizer = adam(
                groups,
                lr=self.recipe.learning_rate,
                eps=self.recipe.epsilon,
                fused=True,  # one pass over the weights instead of a dozen: a quarter of the time on CPU
            )
        return self.optimizer

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the distance from the targets (see `distance`), and the recipe's penalty on weights.

        Raises:
            TrainingFailed: the loss is no finite number.
        """
        if model.training:
            self._freeze_norms()
        outputs = model(pixel_values=inputs["pixel_values"])
        logits = outputs.logits.float()
        loss = distance(logits, inputs["targets"], self.recipe.consistent and model.training)
        loss = loss + self._penalty()
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
        """Keep the batch-norm statistics of frozen stages, and in the first epochs those of all stages, as they came.

        The statistics of a small batch of a new kind of picture are too rough while the head is still settling.
        """
        early = (self.state.epoch or 0) < self.recipe.freeze_norms
        for module in self.network.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.train(not early and module.weight.requires_grad)

    def _penalty(self) -> torch.Tensor | float:
        """Compute Keras' L2 penalty: the coefficient times the sum of squares of each named kernel."""
        if not self.recipe.l2:
            return 0.0
        named = dict(self.network.named_parameters())
        return self.recipe.l2 * sum(named[name].square().sum() for name in self.recipe.l2_kernels)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        with saving(self.args, self.state):
            super()._save_checkpoint(model, trial)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate the moving average where the recipe keeps one: it is what will be shipped."""
        if self.average is None:
            return super().evaluate(*args, **kwargs)
        own = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.network.load_state_dict(self.average.module.state_dict())
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self.network.load_state_dict(own)


def distance(logits: torch.Tensor, targets: torch.Tensor, in_odds: bool) -> torch.Tensor:
    """Measure how far logits (N, 2) are from targets (N, 2), as a mean over pictures.

    Cross-entropy, or, with `in_odds`, the Huber distance of the log-odds (1 from its quadratic part on). Cross-entropy
    hardly minds what becomes of an answer that is nearly certain; where copies of a picture shall get the same answer
    at a threshold of a few per cent too, a step in log-odds counts alike everywhere.
    """
    if not in_odds:
        return F.cross_entropy(logits, targets)
    return F.smooth_l1_loss(logits[:, 1] - logits[:, 0], torch.logit(targets[:, 1], eps=SURE))


def stage_of(network: torch.nn.Module) -> dict[str, int]:
    """Say of each parameter, by name, how deep its stage lies by timm's grouping: from 0, the stem, to the head."""
    return group_parameters(network, network.group_matcher(coarse=True), reverse=True)


def parameter_groups(network: torch.nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Give each stage its learning rate, norms and biases no weight decay; leave frozen stages out."""
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
    """Keep an exponential moving average of the weights and store it in each checkpoint."""

    def __init__(self, trainer: RecipeTrainer, decay: float) -> None:
        self.trainer, self.decay = trainer, decay

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.average = ModelEmaV3(self.trainer.network, decay=self.decay, use_warmup=True)
        last = last_complete(Path(args.output_dir))
        if last and state.global_step:
            self.trainer.average.module.load_state_dict(load_file(last / AVERAGE))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.average.update(self.trainer.network, step=state.global_step)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            tensors = {k: v.contiguous().clone() for k, v in self.trainer.average.module.state_dict().items()}
            with saving(args, state) as folder:
                save_file(tensors, folder / AVERAGE)


class Complete(TrainerCallback):
    """Mark a checkpoint as whole, last of all, so that a killed save is never resumed from.

    Attributes:
        seconds: that training has taken so far, over all resumptions.
    """

    def __init__(self, earlier: Path | None) -> None:
        self.earlier = json.loads((earlier / COMPLETE).read_text())["seconds"] if earlier else 0.0
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Give the seconds of training so far, those before a resumption counted in."""
        return round(self.earlier + time.monotonic() - self.started, 1)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            told = {"step": state.global_step, "seconds": self.seconds}
            with saving(args, state) as folder:
                (folder / COMPLETE).write_text(json.dumps(told))


class StopOnTrainingAccuracy(TrainerCallback, ExportableState):
    """Stop on the accuracy of the training batches, as Keras' EarlyStopping in the documented baseline did."""

    def __init__(self, trainer: RecipeTrainer, min_delta: float, patience: int) -> None:
        self.trainer, self.min_delta, self.patience = trainer, min_delta, patience
        self.best, self.waited = -math.inf, 0

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        counts = torch.tensor([[self.trainer.hits, self.trainer.seen]], device=args.device)
        hits, seen = self.trainer.accelerator.gather(counts).sum(0).tolist()
        self.trainer.hits = self.trainer.seen = 0
        if hits > (self.best + self.min_delta) * seen:
            self.best, self.waited = hits / seen, 0  # seen > 0: the epoch had batches
        else:
            self.waited += 1
            control.should_training_stop |= self.waited >= self.patience
        return control

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores of this callback."""
        return {
            "args": {"min_delta": self.min_delta, "patience": self.patience},
            "attributes": {"best": self.best, "waited": self.waited},
        }


class Progress(ProgressCallback):
    """Show the Trainer's bar, with one readable line an epoch."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and self.training_bar is not None and "eval_auroc" in (logs or {}):
            self.training_bar.write(
                f"epoch {state.epoch:5.1f}  validation: AUROC {logs['eval_auroc']:.3f}  sensitivity "
                f"{logs['eval_sensitivity']:.3f}  specificity {logs['eval_specificity']:.3f}  "
                f"loss {logs['eval_loss']:.3f}"
            )


def validation_figures(prediction: EvalPrediction) -> dict[str, float]:
    """Compute, for the Trainer, AUROC, and sensitivity, specificity and accuracy at a probability of 0.5."""
    logits, labels = prediction.predictions, prediction.label_ids
    labels = labels[0] if isinstance(labels, tuple) else labels
    log_odds = (logits[:, 1] - logits[:, 0]).astype(float)
    found = at_threshold(labels, log_odds, 0.0)
    return {
        "auroc": float(threshold_free(labels, 1 / (1 + np.exp(-log_odds)))["auroc"]),
        **{name: float(found[name]) for name in ("sensitivity", "specificity", "accuracy")},
    }


def last_complete(checkpoints: Path) -> Path | None:
    """Find the last whole checkpoint, and remove those that were cut short."""
    for folder in checkpoints.glob("checkpoint-*"):
        if not (folder / COMPLETE).is_file():
            shutil.rmtree(folder)
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    return Path(last) if last else None


def kept_network(trainer: RecipeTrainer) -> torch.nn.Module:
    """Give the network with the weights that are kept: the last ones, or their moving average where there is one."""
    network = trainer.network
    if trainer.average is not None:
        network.load_state_dict(trainer.average.module.state_dict())
    return network.eval()


def history(trainer: RecipeTrainer) -> list[dict[str, float]]:
    """List epoch, loss and validation figures, one row an epoch."""
    rows: dict[float, dict[str, float]] = {}
    for entry in trainer.state.log_history:
        row = rows.setdefault(round(entry["epoch"], 2), {"epoch": round(entry["epoch"], 2)})
        for key in ("loss", "eval_loss", "eval_auroc", "eval_sensitivity", "eval_specificity"):
            if key in entry:
                row[key.replace("eval_", "validation_")] = round(float(entry[key]), 5)
    return list(rows.values())
