"""The six documented CNNs as timm models `covid_cnn_baseline`, `covid_cnn_1` ... `covid_cnn_5`.

Importing this module registers them with timm. The file also travels inside the hub folder of such a network,
where modeling_covid_cnn.py opens it without this package; so it imports nothing of ours.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices  # as each of timm's own model files does
from torch import Tensor, nn
from torch.nn import functional as F

IMAGE_SIZE = 224  # pixels; the first dense layer is as large as the last feature map, so no other size fits


@dataclass(frozen=True)
class Variant:
    """One documented network: 3 x 3 'valid' convolutions, 2 x 2 max-pools, dense layers, one sigmoid unit.

    Attributes:
        convs: Filters of each convolution.
        pools_after: Indices into `convs` of the convolutions followed by a max-pool.
        dense: Units of each hidden dense layer.
        reading: How an ambiguous passage of the description was read; becomes the docstring of the model.
    """

    convs: tuple[int, ...]
    pools_after: tuple[int, ...]
    dense: tuple[int, ...]
    reading: str


VARIANTS = {
    "covid_cnn_baseline": Variant(
        convs=(32, 64),
        pools_after=(0,),
        dense=(16,),
        reading="12,184,993 parameters. Two convolutions with one pool between them, dense 16.",
    ),
    "covid_cnn_1": Variant(
        convs=(32, 64, 64),
        pools_after=(0, 1),
        dense=(64,),
        reading="11,131,457 parameters. 'An additional max-pool after the second convolution' together "
        "with the next model's penalty on 'the second and third convolutional layers': there is a third "
        "one from here on.",
    ),
    "covid_cnn_2": Variant(
        convs=(32, 64, 64),
        pools_after=(0, 1),
        dense=(64,),
        reading="11,131,457 parameters. Network of covid_cnn_1; it differs in its recipe (L2 penalty).",
    ),
    "covid_cnn_3": Variant(
        convs=(32, 32, 64, 64),
        pools_after=(0, 1, 2, 3),
        dense=(256, 256),
        reading="2,490,593 parameters. 'Four convolutional layers, each with 32 or 64 filters, two dense "
        "layers of 256'; its pooling is not stated: we pool after each convolution.",
    ),
    "covid_cnn_4": Variant(
        convs=(32, 64, 64),
        pools_after=(0, 1),
        dense=(64,),
        reading="11,131,457 parameters. Network of covid_cnn_1; it differs in its recipe (L2 penalty, "
        "learning rate 0.01). The first of two entries called 'Model 4'.",
    ),
    "covid_cnn_5": Variant(
        convs=(64, 64, 64),
        pools_after=(0, 1),
        dense=(64,),
        reading="11,150,209 parameters. The second entry called 'Model 4': 'filters from 32 to 64' can "
        "only mean the first convolution, the one place with 32.",
    ),
}


def luminance(pixels: Tensor) -> Tensor:
    """Compute grey pictures (B, 1, H, W) from one or three channels, by the ITU-R BT.601 weights of Pillow's "L".

    Written as differences from green: three equal channels give exactly that channel, to the last bit.
    """
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = pixels.split(1, dim=1)
    return green + 0.299 * (red - green) + 0.114 * (blue - green)


class CovidCnn(nn.Module):
    """A network of the family, with the methods and attributes timm and transformers' TimmWrapper expect.

    The documented single sigmoid unit z gives the two logits (0, z): softmax of them is (1 - sigmoid(z),
    sigmoid(z)). More than two classes keep the first as the reference, with one unit for each other class.
    Pixels are 0..1.

    Args:
        cfg: The row of VARIANTS.
        num_classes: 2; 0 leaves the hidden dense output, 1 gives z itself.
        in_chans: 1 or 3. It changes no weight: either number of channels may be fed at any time.
        img_size: 224 or (224, 224).
        drop_rate: Dropout before the last layer; the documented networks have none.
        global_pool: Empty; the feature map is flattened, not pooled.

    Raises:
        ValueError: For another number of channels, another size, or a pooling.
    """

    def __init__(
        self,
        cfg: Variant,
        num_classes: int = 2,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = IMAGE_SIZE,
        drop_rate: float = 0.0,
        global_pool: str = "",
    ) -> None:
        super().__init__()
        if in_chans not in (1, 3):
            raise ValueError(
                f"in_chans={in_chans}: a covid_cnn reads luminance from 1 or 3 channels; pass 1 or 3."
            )
        if img_size not in (IMAGE_SIZE, (IMAGE_SIZE, IMAGE_SIZE), [IMAGE_SIZE, IMAGE_SIZE]):
            raise ValueError(_wrong_size(f"img_size={img_size}"))
        if global_pool:
            raise ValueError(
                f"global_pool={global_pool!r}: a covid_cnn flattens its feature map; leave it out."
            )
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.feature_info = []
        self.blocks = nn.Sequential()
        channels, side, reduction = 1, IMAGE_SIZE, 1
        for index, filters in enumerate(cfg.convs):
            block = OrderedDict(conv=nn.Conv2d(channels, filters, kernel_size=3))
            channels, side = filters, side - 2
            if index in cfg.pools_after:  # before the ReLU: the same values for a quarter of the work
                block["pool"] = nn.MaxPool2d(2)
                side, reduction = side // 2, reduction * 2
            block["act"] = nn.ReLU(inplace=True)
            self.blocks.append(nn.Sequential(block))
            self.feature_info.append(dict(num_chs=channels, reduction=reduction, module=f"blocks.{index}"))
        self.num_features = channels
        self.hidden = nn.Sequential()
        width = channels * side * side
        for index, units in enumerate(cfg.dense, start=1):
            self.hidden.add_module(f"fc{index}", nn.Linear(width, units))
            self.hidden.add_module(f"act{index}", nn.ReLU(inplace=True))
            width = units
        self.head_hidden_size = width
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes)
        self.apply(_init_like_keras)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer by a new one for `num_classes` classes; 0 removes it."""
        if global_pool:
            raise ValueError(
                f"global_pool={global_pool!r}: a covid_cnn flattens its feature map; leave it out."
            )
        self.num_classes = num_classes
        like = self.hidden.fc1.weight
        self.classifier = (
            nn.Linear(self.head_hidden_size, max(1, num_classes - 1), device=like.device, dtype=like.dtype)
            if num_classes
            else nn.Identity()
        )
        _init_like_keras(self.classifier)

    def get_classifier(self) -> nn.Module:
        """Return the last layer. Dividing its weight and bias by T divides both logits (0, z) by T."""
        return self.classifier

    def group_matcher(self, coarse: bool = False) -> dict:
        """Return which parameters belong together, first to last, for timm's layer-wise learning rates."""
        return dict(stem=r"^blocks\.0", blocks=r"^blocks\.(\d+)", hidden=r"^hidden\.fc(\d+)")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Refuse activation checkpointing: a network of three layers would save nothing by it."""
        assert not enable, "gradient checkpointing not supported"

    def forward_features(self, pixels: Tensor) -> Tensor:
        """Compute the feature map (B, C, h, w) of pixels (B, 1 or 3, 224, 224).

        Raises:
            ValueError: For another size or number of channels, naming the right one.
        """
        return self.blocks(_checked(pixels))

    def forward_intermediates(
        self,
        pixels: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Compute the outputs of the chosen blocks (all, the last n, or by index), in timm's calling convention.

        `norm` is accepted and does nothing: the family has no normalisation.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r}: feature maps are NCHW here.")
        wanted, last = feature_take_indices(len(self.blocks), indices)
        taken, x = [], _checked(pixels)
        for index, block in enumerate(self.blocks):
            if stop_early and index > last:
                break
            x = block(x)
            if index in wanted:
                taken.append(x)
        return taken if intermediates_only else (x, taken)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Compute logits (B, num_classes) of a feature map, or with `pre_logits` the hidden dense output."""
        x = self.head_drop(self.hidden(features.flatten(1)))
        if pre_logits or self.num_classes == 0:
            return x
        units = self.classifier(x)
        return units if self.num_classes == 1 else F.pad(units, (1, 0))  # (0, z)

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute logits (B, num_classes) of pixels (B, 1 or 3, 224, 224) in 0..1."""
        return self.forward_head(self.forward_features(pixels))


def _checked(pixels: Tensor) -> Tensor:
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        raise ValueError(
            f"A covid_cnn reads a batch of pictures with 1 or 3 channels, (B, 1 or 3, {IMAGE_SIZE}, "
            f"{IMAGE_SIZE}); got {tuple(pixels.shape)}. Put channels second and add the batch dimension."
        )
    if pixels.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(_wrong_size(f"{pixels.shape[-2]} x {pixels.shape[-1]} pixels"))
    return luminance(pixels)


def _wrong_size(what: str) -> str:
    return (
        f"{what}: a covid_cnn reads {IMAGE_SIZE} x {IMAGE_SIZE} pixels, no other size fits its dense layer. "
        f"Resize the picture to {IMAGE_SIZE} x {IMAGE_SIZE}, as the transform of its pretrained_cfg does."
    )


def _init_like_keras(module: nn.Module) -> None:
    """Set Glorot-uniform kernels and zero biases, the defaults of Keras' Conv2D and Dense (Glorot & Bengio 2010)."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


default_cfgs = generate_default_cfgs(
    {
        name: dict(
            num_classes=2,
            input_size=(3, IMAGE_SIZE, IMAGE_SIZE),
            fixed_input_size=True,
            interpolation="bicubic",
            crop_pct=1.0,
            crop_mode="squash",
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            first_conv=None,  # one channel whatever the input has: timm must not adapt it
            classifier="classifier",
        )
        for name in VARIANTS
    }
)


def _entrypoint(name: str) -> Callable[..., CovidCnn]:
    def build(pretrained: bool = False, **kwargs: Any) -> CovidCnn:
        features = dict(feature_cls="getter", out_indices=tuple(range(len(VARIANTS[name].convs))))
        return build_model_with_cfg(
            CovidCnn, name, pretrained, model_cfg=VARIANTS[name], feature_cfg=features, **kwargs
        )

    build.__name__ = build.__qualname__ = name
    build.__doc__ = VARIANTS[name].reading
    return build


for _name in VARIANTS:  # a copy of this file that travelled in a hub folder may have registered them already
    if not timm.is_model(_name):
        register_model(_entrypoint(_name))


def config_extras(architecture: str) -> dict:
    """Return the keys of config.json beyond timm's for a network of the family; none for any other architecture.

    With it `trust_remote_code=True` opens the folder where this package is absent.
    """
    if architecture not in VARIANTS:
        return {}
    remote = "modeling_covid_cnn.TimmWrapperForImageClassification"
    return {"auto_map": {"AutoModelForImageClassification": remote}}


def remote_code_files(architecture: str) -> tuple[Path, ...]:
    """List the files of code that travel in the hub folder of such a network; none for any other architecture."""
    here = Path(__file__).parent
    names = ("covid_cnn.py", "modeling_covid_cnn.py") if architecture in VARIANTS else ()
    return tuple(here / name for name in names)
