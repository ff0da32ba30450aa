"""Rewrite ImageNet weights for a stock timm network that computes the same function.

Two of the backbones that training starts from differ from timm's networks: a ResNet50-v2 with batch norm in its stem,
and a MobileNet-EdgeTPU without a ReLU after its first block. A shipped model has to open in every stock loader, so
their weights are carried over: exactly for the ResNet, to within five standard deviations for the EdgeTPU.
"""

import json
from pathlib import Path
from typing import Annotated

import timm
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hub_model.layout import tensors_written
from hub_model.refused import Refused
from hub_model.whole import whole_file

WIDE_STEM = 72
"""Stem channels of the carried-over ResNet: 64 and room for those that need a second copy."""
DEVIATIONS = 5.0
"""Standard deviations below its mean at which the added ReLU cuts a norm's output off."""


def start(
    file: Annotated[
        Path, typer.Argument(help="safetensors of a ResNet50-v2 with a stem norm, or of an EdgeTPU")
    ],
    out: Annotated[Path, typer.Option(help="safetensors to write, for fit --init")],
    blocks: Annotated[int, typer.Option(help="blocks of the ResNet's third stage to keep, 1 to 6")] = 6,
) -> Path:
    """Carry FILE over to a stock timm architecture; prints the --variant and --model-args that go with it.

    Raises:
        Refused: FILE holds neither of the two networks.
    """
    state = {name: tensor.float() for name, tensor in load_file(file).items()}
    if "stem.norm.weight" in state:
        model = stock_resnetv2(state, blocks)
        said = f"--variant resnetv2_50 --model-args '{json.dumps(resnetv2_args(blocks))}' --mean 0.4185 --std 0.2822"
    elif "blocks.0.0.bn1.weight" in state and "blocks.1.0.conv_exp.weight" in state:
        model = stock_edgetpu(state)
        said = '--variant mobilenet_edgetpu_100 --model-args \'{"pad_type": "same"}\' --mean 0.5 --std 0.5'
    else:
        raise Refused(
            f"{file} holds neither a ResNet50-v2 with a norm in its stem nor a MobileNet-EdgeTPU. A file under stock "
            "timm names needs no carrying over: give it to fit --init."
        )
    head = {f"{name}.{kind}" for name in (model.pretrained_cfg["classifier"],) for kind in ("weight", "bias")}
    tensors = {name: t.contiguous() for name, t in model.state_dict().items() if name not in head}
    with whole_file(out) as new, tensors_written(Path(out)):
        save_file(tensors, new)
    print(f"python -m train fit --init {out} {said}")
    return out


def resnetv2_args(blocks: int) -> dict:
    """Give model_args of the first three stages of ResNet50-v2, the third cut after ``blocks`` of its six blocks."""
    return {"layers": [3, 4, blocks], "channels": [256, 512, 1024], "stem_chs": WIDE_STEM}


def affine(state: dict[str, Tensor], norm: str, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Compute slope and intercept, each (C,), of a batch norm in evaluation mode."""
    slope = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + eps)
    return slope, state[f"{norm}.bias"] - slope * state[f"{norm}.running_mean"]


@torch.no_grad()
def stock_resnetv2(state: dict[str, Tensor], blocks: int = 6) -> nn.Module:
    """Write the network without the stem's norm and ReLU: conv - norm - ReLU - pool - (norm - ReLU), same function.

    With a stem of slope a, intercept b and a first block's norm of g, h, a channel carries
    ``relu(g * relu(a u + b) + h)``. For g > 0 and h <= 0 that is ``relu(g (a u + b) + h)``: one norm does it. For g < 0
    and h <= 0 it is zero. For g < 0 and h > 0 it is ``h - relu(-g (a u + b)) + relu(-g (a u + b) - h)``: the channel
    is written twice with other intercepts, the convolutions that read it take the difference, and the constant
    h moves into the norms behind them. Pooling commutes with all of it, the slope being carried by the
    convolution (a max does not commute with a negative slope).
    """
    a, b = affine(state, "stem.norm")
    g, h = affine(state, "stages.0.blocks.0.norm1")
    if ((g > 0) & (h > 0)).any():
        raise Refused("A norm with positive slope and intercept after the stem cannot be carried over.")
    twice = torch.nonzero((g < 0) & (h > 0)).flatten()
    width, count = len(g), len(twice)
    new = {name: tensor for name, tensor in state.items() if not name.startswith("stem.norm")}

    stem = torch.zeros(WIDE_STEM, *state["stem.conv.weight"].shape[1:])
    stem[:width] = state["stem.conv.weight"] * a[:, None, None, None]
    copies = slice(width, width + count)
    stem[copies] = stem[twice]
    slope, intercept = _stem_norm(b, g, h, twice)
    first, constant = "stages.0.blocks.0.", torch.zeros(width)
    constant[twice] = h[twice]
    readers = {
        "conv1.weight": [f"{first}norm2"],
        "downsample.conv.weight": [
            "stages.0.blocks.1.norm1",
            "stages.0.blocks.2.norm1",
            "stages.1.blocks.0.norm1",
        ],
    }
    for name, norms in readers.items():
        kernel = state[first + name]
        wide = torch.zeros(kernel.shape[0], WIDE_STEM, 1, 1)
        wide[:, :width] = kernel
        wide[:, twice] = -kernel[:, twice]
        wide[:, copies] = kernel[:, twice]
        new[first + name] = wide
        for norm in norms:
            new[f"{norm}.running_mean"] = state[f"{norm}.running_mean"] - kernel[:, :, 0, 0] @ constant
    new["stem.conv.weight"] = stem
    # zero mean and unit variance: the norm is then its slope and intercept
    new[f"{first}norm1.running_mean"], new[f"{first}norm1.running_var"] = (
        torch.zeros(WIDE_STEM),
        torch.full((WIDE_STEM,), 1 - 1e-5),
    )
    new[f"{first}norm1.weight"], new[f"{first}norm1.bias"] = slope, intercept
    if blocks < 6:  # the norm that opened the first block left out was trained on just this sum
        for part in ("weight", "bias", "running_mean", "running_var"):
            new[f"norm.{part}"] = state[f"stages.2.blocks.{blocks}.norm1.{part}"]
    model = timm.create_model("resnetv2_50", num_classes=2, **resnetv2_args(blocks))
    return _load(model, new)


def _stem_norm(b: Tensor, g: Tensor, h: Tensor, twice: Tensor) -> tuple[Tensor, Tensor]:
    """Compute slope and intercept, each (WIDE_STEM,), of the one norm that stands for two; see `stock_resnetv2`."""
    slope, intercept = torch.zeros(WIDE_STEM), torch.zeros(WIDE_STEM)
    width = len(g)
    slope[:width], intercept[:width] = g, g * b + h
    slope[twice], intercept[twice] = -g[twice], -g[twice] * b[twice]
    copies = slice(width, width + len(twice))
    slope[copies], intercept[copies] = -g[twice], -g[twice] * b[twice] - h[twice]
    silent = (g < 0) & (h <= 0)
    slope[:width][silent], intercept[:width][silent] = 0.0, -1.0
    return slope, intercept


@torch.no_grad()
def stock_edgetpu(state: dict[str, Tensor]) -> nn.Module:
    """Write the network with a ReLU after its first block, as timm has it, that hardly changes anything.

    The block's output is lifted above zero, where a ReLU leaves it alone, and the norm that reads it takes the lift off
    again. Two small differences remain: values further than `DEVIATIONS` standard deviations below their mean are cut,
    and along the border the 3 x 3 convolution that reads the block is padded with zeros that are not lifted.
    """
    model = timm.create_model("mobilenet_edgetpu_100", pad_type="same", num_classes=2)
    _load(model, {name: tensor for name, tensor in state.items() if not name.startswith("classifier")})
    norm, reader = model.blocks[0][0].bn1, model.blocks[1][0]
    lift = (DEVIATIONS * norm.weight.abs() - norm.bias).clamp(min=0)
    norm.bias += lift
    reader.bn1.running_mean += reader.conv_exp.weight.sum((2, 3)) @ lift
    return model


def _load(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    own = model.state_dict()
    head = model.pretrained_cfg["classifier"]
    missing = [
        name for name in own if name not in state and not name.startswith(head) and "num_batches" not in name
    ]
    if missing:
        raise Refused(f"{len(missing)} tensors are missing, first {missing[0]}: this is another network.")
    model.load_state_dict({name: state[name] for name in own if name in state}, strict=False)
    return model
