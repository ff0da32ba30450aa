"""Networks to train: any timm CNN by name, from scratch, from timm's weights, or from a local safetensors
file.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from hub_model import covid_cnn, hub_folder
from hub_model.hub_folder import LABELS, WEIGHTS
from hub_model.refused import Refused

TESTED = {
    "resnet18": "the plain residual network (He et al. 2016, arXiv:1512.03385)",
    "mobilenetv2_100": "inverted residuals (Sandler et al. 2018, arXiv:1801.04381)",
    "mobilenetv3_small_100": "the smallest here (Howard et al. 2019, arXiv:1905.02244)",
    "mobilenetv4_conv_small": "made for phones (Qin et al. 2024, arXiv:2404.10518)",
    "efficientnet_b0": "compound scaling (Tan & Le 2019, arXiv:1905.11946)",
    "densenet121": "the usual choice for chest films since CheXNet (Huang et al. 2017, arXiv:1608.06993)",
    "convnext_atto": "layer norm and large kernels (Liu et al. 2022, arXiv:2201.03545)",
    "regnety_004": "a searched design space (Radosavovic et al. 2020, arXiv:2003.13678)",
}
"""Stock backbones that the contract test asks its questions of; every other timm CNN may be tried."""

STEM_CHANNELS = 3  # grey pictures come as three equal channels: so does every stock loader's RGB


@dataclass(frozen=True)
class Network:
    """An untrained or pretrained network and what `hub_folder.save` wants to know of it.

    Attributes:
        model: Takes (N, 3, H, W), gives two logits.
        architecture: timm's name, without a tag.
        model_args: Further arguments of `timm.create_model`.
        pretrained_cfg: input_size, mean, std, first_conv and classifier, as timm spells them.
    """

    model: nn.Module
    architecture: str
    model_args: dict
    pretrained_cfg: dict

    @property
    def config(self) -> dict:
        """``config.json`` of the hub folder that the network is saved in."""
        return hub_folder.make_config(
            self.architecture, self.model_args, self.pretrained_cfg, self.model.num_features
        )


def build(
    variant: str,
    *,
    init: str | Path | None = None,
    pretrained: bool = False,
    model_args: dict | None = None,
    input_size: int | None = None,
    mean: float | None = None,
    std: float | None = None,
) -> Network:
    """Build a network with a three-channel stem and two logits.

    Args:
        variant: covid_cnn_* or a timm name, with a tag (`resnet18.a1_in1k`) or without.
        init: Safetensors file under timm's parameter names, or a hub folder; its classifier is left out.
        pretrained: Start from timm's weights on the Hub.
        model_args: Further arguments of `timm.create_model`, as {"pad_type": "same"}.
        input_size: Side of the picture in pixels; by default the architecture's own.
        mean: Of pixels in 0..1, what `init` was trained with where that is not timm's own.
        std: Likewise.

    Raises:
        Refused: For an unknown name, a network without a 4-D feature map, weights that cannot be had or
            do not fit.
    """
    if init is not None and pretrained:
        raise Refused("Both --init and --pretrained name weights to start from; give one of them.")
    architecture, model_args = variant.partition(".")[0], dict(model_args or {})
    model = _create(variant, pretrained, model_args)
    cfg = {key: model.pretrained_cfg[key] for key in ("input_size", "fixed_input_size", "mean", "std")}
    cfg |= {key: model.pretrained_cfg.get(key) for key in ("first_conv", "classifier")}
    cfg["input_size"] = [STEM_CHANNELS, *([input_size] * 2 if input_size else cfg["input_size"][1:])]
    cfg |= {key: [value] * 3 for key, value in (("mean", mean), ("std", std)) if value is not None}
    _probe(model, variant, cfg["input_size"])
    if init is not None:
        load_init(model, init)
    return Network(model, architecture, model_args, cfg)


def _create(variant: str, pretrained: bool, model_args: dict) -> nn.Module:
    if not timm.is_model(variant):
        near = get_close_matches(variant, timm.list_models(), n=3)
        raise Refused(
            f"Unknown network {variant!r}.{' Did you mean ' + ', '.join(near) + '?' if near else ''} Known "
            f"are {', '.join(covid_cnn.VARIANTS)} and timm's CNNs, of which {', '.join(TESTED)} are tested."
        )
    if pretrained and not timm.models.is_model_pretrained(variant):
        raise Refused(
            f"There are no pretrained weights for {variant}. Leave out --pretrained to train from scratch, "
            "or give weights by --init FILE."
        )
    try:
        return timm.create_model(
            variant, pretrained=pretrained, num_classes=len(LABELS), in_chans=STEM_CHANNELS, **model_args
        )
    except OSError as error:  # what huggingface_hub, httpx and urllib raise without a network
        raise Refused(
            f"The weights of {variant} are not in the local Hub cache and the Hub cannot be reached "
            f"({type(error).__name__}). Run the command once on a connected machine and bring its Hub cache "
            "(HF_HOME) along, or give a safetensors file by --init FILE."
        ) from error
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:  # whichever layer chokes on them
        raise Refused(
            f"timm cannot build {variant} with {model_args or 'its defaults'}: {error} Check --model-args."
        ) from error


@torch.no_grad()
def _probe(model: nn.Module, variant: str, input_size: list[int]) -> None:
    """Refuse a network that cannot take such pictures, gives no map (N, C, h, w) or has no last layer."""
    trained = model.training
    try:
        features = model.eval().forward_features(torch.zeros(1, *input_size))
    except (ValueError, AssertionError, RuntimeError) as error:
        raise Refused(f"{variant} does not take pictures of {input_size[1]} pixels: {error}") from error
    finally:
        model.train(trained)
    if (
        not isinstance(features, torch.Tensor)
        or features.ndim != 4
        or features.shape[1] != model.num_features
    ):
        raise Refused(
            f"{variant} has no feature map (N, C, h, w): it gives no heat map. Choose a convolutional "
            f"network, such as {', '.join(TESTED)}."
        )
    if not isinstance(model.get_classifier(), nn.Linear | nn.Conv2d):
        raise Refused(
            f"{variant} does not end in one linear layer: its logits cannot be calibrated. Choose another "
            f"network, such as {', '.join(TESTED)}."
        )


def load_init(model: nn.Module, file: str | Path) -> None:
    """Load every tensor but the classifier's from a safetensors file, or none at all.

    Args:
        model: The network; its classifier keeps its fresh weights.
        file: Safetensors under timm's parameter names, of any floating type; or a hub folder.

    Raises:
        Refused: The file is no safetensors, or a tensor is missing, extra, misshapen or not finite.
    """
    file = Path(file)
    file = file / WEIGHTS if file.is_dir() else file
    try:
        given = load_file(file)
    except (OSError, SafetensorError) as error:
        raise Refused(
            f"--init {file.name}: no readable safetensors file ({error}). Pickles (.bin, .pt, .pth) are "
            "never opened: convert them with safetensors first."
        ) from error
    own = model.state_dict()
    head = {name for name in own if _is_classifier(model, name)}
    given = {name: tensor for name, tensor in given.items() if name not in head}
    wanted = {name: tensor for name, tensor in own.items() if name not in head}
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    misshapen = sorted(
        name for name in wanted.keys() & given.keys() if wanted[name].shape != given[name].shape
    )
    broken = sorted(name for name, tensor in given.items() if not torch.isfinite(tensor.float()).all())
    counts = {"missing": missing, "unexpected": extra, "of another shape": misshapen, "not finite": broken}
    if any(counts.values()):
        said = ", ".join(f"{len(names)} {what} ({names[0]} ...)" for what, names in counts.items() if names)
        raise Refused(
            f"--init {file.name} does not fit {type(model).__name__}: {said}. Nothing was loaded. Is it "
            "another architecture, or does it need --model-args?"
        )
    model.load_state_dict({**own, **given})


def _is_classifier(model: nn.Module, name: str) -> bool:
    classifier = model.pretrained_cfg.get("classifier") or "classifier"
    prefixes = (classifier,) if isinstance(classifier, str) else classifier
    return any(name.startswith(f"{prefix}.") for prefix in prefixes)
