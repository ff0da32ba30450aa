"""The network of a hub folder in torch: built by timm, given its weights whole, or refused."""

import numpy as np
import timm
import torch

from . import covid_cnn, layout
from .layout import LABELS, FolderRefused, Tensors


def build(config: dict, place: object = "config") -> torch.nn.Module:
    """Build the untrained network that ``config`` names.

    Raises:
        FolderRefused: an architecture that neither timm nor this package knows, or arguments timm does not take.
    """
    architecture, args = config["architecture"], config.get("model_args") or {}
    if not timm.is_model(architecture):
        code = (
            " Its config.json asks for remote code, which this package never runs."
            if "auto_map" in config
            else ""
        )
        raise FolderRefused(
            f"{place}: unknown architecture {architecture!r}.{code} Known are timm's models and "
            f"{', '.join(covid_cnn.VARIANTS)}; a newer timm may know it."
        )
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # whatever the caller computes with, the folder is made for this
    try:
        return timm.create_model(architecture, pretrained=False, num_classes=len(LABELS), **args)
    except Exception as error:  # timm passes wrong arguments on to whatever layer chokes on them
        raise FolderRefused(f"{place}: timm cannot build {architecture} with {args}: {error}") from error
    finally:
        torch.set_default_dtype(default)


@torch.inference_mode(False)  # a network made in that mode could never be changed or trained
def load(config: dict, weights: Tensors, place: object) -> torch.nn.Module:
    """Load the network that ``config`` names with all of its weights, in float32 and evaluation mode.

    What the configuration asks for is compared with the tensors of the file before anything of that size is made.

    Raises:
        FolderRefused: weights are missing, renamed, extra or misshapen, or the network cannot be built.
    """
    _check_sizes(config, weights, place)
    with torch.device("meta"):  # shapes without memory
        _check_fit(build(config, place).state_dict(), weights, place)
    model = build(config, place)
    with torch.no_grad():
        state = {name: torch.from_numpy(np.array(weights.array(name))) for name in weights.header}
        model.load_state_dict(state, strict=True)
    return model.eval()


def _check_sizes(config: dict, weights: Tensors, place: object) -> None:
    """Refuse arguments with a number larger than what the weights can fill."""
    shapes = [place.shape for place in weights.header.values()]
    most = max([len(shapes), layout.SIDES[1], *(side for shape in shapes for side in shape)])

    def numbers(value: object) -> list[float]:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            return [number for one in value for number in numbers(one)]
        return [value] if isinstance(value, (int, float)) else []

    try:
        largest = max(numbers(config.get("model_args") or {}), default=0)
    except RecursionError:
        largest = float("inf")
    if not largest <= most:
        raise FolderRefused(
            f"{place}: model_args ask for {largest:g} of something; the weights have no dimension above {most}. Is "
            f"{layout.CONFIG} the one saved with these weights?"
        )


def _check_fit(own: dict[str, torch.Tensor], weights: Tensors, place: object) -> None:
    missing, extra = sorted(own.keys() - weights.header.keys()), sorted(weights.header.keys() - own.keys())
    if missing or extra:
        raise FolderRefused(
            f"{place}: {layout.WEIGHTS} does not fit its architecture: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(extra)} unexpected {extra[:3]}. Nothing was loaded. Is {layout.CONFIG} the one saved with these "
            "weights?"
        )
    if wrong := [name for name in own if tuple(own[name].shape) != weights.header[name].shape]:
        name = wrong[0]
        raise FolderRefused(
            f"{place}: {len(wrong)} tensors of {layout.WEIGHTS} have another shape, first {name}: "
            f"{weights.header[name].shape}, expected {tuple(own[name].shape)}. Nothing was loaded."
        )
