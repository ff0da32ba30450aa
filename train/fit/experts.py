"""A large network that was trained on chest CT, as part of a teacher: it is asked before training and never shipped.

Known is one: the stages 1 to 3 of a ResNet-152 whose depth kernels were summed, int8 per output channel.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn import functional as F

from hub_model.refused import Refused

from . import speed

SIDE = 224
SHOWN, TAKEN = (-1350.0, 150.0), (-1000.0, 200.0)
"""Hounsfield units of black and white, in a picture in the lung window and in what the expert was trained on."""

Expert = Callable[[torch.Tensor], torch.Tensor]
"""Grey pictures (B, 1, H, W) in 0..1 -> features (B, 1536)."""


def load_expert(file: Path) -> Expert:
    """Open the expert's weights.

    Raises:
        Refused: no safetensors, or weights of another network.
    """
    try:
        stored = load_file(file)
    except (OSError, SafetensorError) as error:
        raise Refused(f"--expert {Path(file).name}: no readable safetensors file ({error}).") from error
    state = {
        name: tensor.float() * stored[f"{name}_scale"][:, None, None, None]
        if tensor.dtype == torch.int8 and f"{name}_scale" in stored
        else tensor.float()
        for name, tensor in stored.items()
        if not name.endswith("_scale")
    }
    network = timm.create_model("resnet152", features_only=True, out_indices=(2, 3)).eval()
    wanted = {name for name in network.state_dict() if "num_batches" not in name}
    try:
        network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise Refused(f"--expert {Path(file).name} does not fit a ResNet-152: {error}") from error
    if missing := sorted(name for name in wanted - state.keys() if not name.startswith("layer4")):
        raise Refused(
            f"--expert {Path(file).name} lacks {len(missing)} tensors of a ResNet-152 ({missing[0]} ...). Give the "
            "chest-CT network, stages 1 to 3."
        )
    network = network.to(speed.processes().device, memory_format=torch.channels_last)
    black, white = ((level - TAKEN[0]) / (TAKEN[1] - TAKEN[0]) for level in SHOWN)

    def features(grey: torch.Tensor) -> torch.Tensor:
        if grey.shape[-1] != SIDE:
            grey = F.interpolate(grey, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
        seen = (black + (white - black) * grey).clamp(0, 1)
        seen = seen.flip((2, 3)).transpose(2, 3).expand(-1, 3, -1, -1)
        second, third = network(seen.contiguous(memory_format=torch.channels_last))
        return torch.cat([third.float().mean((2, 3)), second.float().mean((2, 3))], 1)

    return features


@torch.inference_mode()
def ask(expert: Expert, pixels: torch.Tensor, bf16: bool) -> np.ndarray:
    """Ask the expert for features of pictures (N, 1, H, W) uint8: (N, 1536) float16."""
    rows, device = [], speed.processes().device
    for some in track(pixels.split(16), "asking the expert", transient=True):
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            rows.append(expert(some.to(device).float().div(255)).half().cpu())
    return torch.cat(rows).numpy()
