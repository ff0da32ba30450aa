"""What `fit` may be told. A field of `Settings` is a flag, a keyword and a line of the run's record, declared once."""

import json
from collections.abc import Callable
from dataclasses import MISSING, Field, asdict, dataclass, fields, replace
from functools import cached_property
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from hub_model.hub_folder import MODALITIES
from hub_model.lungs import LUNGS, VIEWS
from hub_model.refused import Refused

from .augment import AUGMENTATIONS
from .recipes import RECIPES, Recipe


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that decides which network a run ends in; two runs with equal settings train the same network.

    The help of each flag says what the field means. Where a field that changes the recipe is None, the recipe's own
    value holds (see `row`).

    Raises:
        Refused: a value that cannot be meant, or two that contradict one another.
    """

    data: Annotated[list[str], typer.Option(help="folder, zip, prepared dataset or Hub id; may repeat")]
    modality: Annotated[str, typer.Option(help="xray or ct")]
    variant: Annotated[str, typer.Option(help="covid_cnn_* or any timm CNN")]
    recipe: Annotated[
        str | None, typer.Option(help="row of train/fit/recipes.py; by default the variant's own")
    ] = None
    init: Annotated[
        Path | None, typer.Option(help="safetensors file, or hub folder, with weights to start from")
    ] = None
    pretrained: Annotated[bool, typer.Option(help="start from timm's weights on the Hub")] = False
    model_args: Annotated[
        str, typer.Option(help='JSON for timm.create_model, as \'{"pad_type": "same"}\'')
    ] = "{}"
    split: Annotated[
        str | None,
        typer.Option(
            help="family, official or random (leaks); by default what prepared data say, else family"
        ),
    ] = None
    families: Annotated[
        str | None,
        typer.Option(
            help="found (look-alikes too) or known (the collection's groups); by default what prepared data say, "
            "else found"
        ),
    ] = None
    seed: Annotated[int, typer.Option(help="of the weights and of the order of the images")] = 0
    split_seed: Annotated[
        int | None, typer.Option(help="of the split; by default what prepared data say, else 0")
    ] = None
    without_source: Annotated[
        list[str] | None, typer.Option(help="source that is kept out of training and validation; may repeat")
    ] = None
    input_size: Annotated[int | None, typer.Option(help="side in pixels, instead of the recipe's")] = None
    augment: Annotated[
        str | None, typer.Option(help="row of train/fit/augment.py, instead of the recipe's")
    ] = None
    epochs: Annotated[int | None, typer.Option(help="instead of the recipe's")] = None
    batch: Annotated[int | None, typer.Option(help="global batch size, instead of the recipe's")] = None
    learning_rate: Annotated[float | None, typer.Option(help="instead of the recipe's")] = None
    teacher: Annotated[
        list[str] | None, typer.Option(help="hub folder whose probabilities are learnt; may repeat")
    ] = None
    unlabelled: Annotated[
        list[Path] | None,
        typer.Option(help="folder of further images that only teachers label; may repeat"),
    ] = None
    distil: Annotated[float, typer.Option(help="share of the teachers in the targets of labelled images")] = (
        0.7
    )
    mean: Annotated[
        float | None, typer.Option(help="of pixels in 0..1, as INIT was trained; by default timm's")
    ] = None
    std: Annotated[
        float | None, typer.Option(help="standard deviation of pixels in 0..1, as INIT was trained")
    ] = None
    lungs: Annotated[
        Path | None,
        typer.Option(help="folder of a lung network: a picture without lungs is refused in use"),
    ] = None
    view: Annotated[
        str,
        typer.Option(
            help="what the network is shown where --lungs is given: lungs (cut to them, in use too) or whole"
        ),
    ] = LUNGS
    expert: Annotated[
        Path | None,
        typer.Option(
            help="safetensors of a chest-CT ResNet-152 that a consistent recipe's teacher listens to besides"
        ),
    ] = None
    bf16: Annotated[
        bool | None, typer.Option(help="compute in bfloat16; by default where this CPU is faster so")
    ] = None

    def __post_init__(self) -> None:
        for name in ("data", "without_source", "teacher", "unlabelled"):  # one, several or none may be given
            given = getattr(self, name)
            several = [given] if isinstance(given, str | Path) else [*(given or ())]
            kind = Path if name == "unlabelled" else str
            object.__setattr__(self, name, [kind(one) for one in several])
        if not self.data:
            raise Refused("No data were given. Give --data FOLDER, a zip, a prepared data set or a Hub id.")
        if self.modality not in MODALITIES:
            raise Refused(f"Modality {self.modality!r}: accepted are {' and '.join(MODALITIES)}.")
        for name in ("input_size", "epochs", "batch", "learning_rate", "std"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise Refused(f"{_flag(name)} {value}: a number above zero is needed.")
        if not 0 <= self.distil <= 1:
            raise Refused(f"--distil {self.distil}: a share between 0 and 1 is needed.")
        if self.view not in VIEWS:
            raise Refused(f"--view {self.view!r}: accepted are {' and '.join(VIEWS)}.")
        if self.unlabelled and not (self.teacher or self.row.consistent):
            raise Refused(
                "--unlabelled images are labelled by teachers, and none was given. Give --teacher FOLDER too, or a "
                "recipe with a teacher of its own such as steady, or leave --unlabelled out."
            )
        if self.expert is not None and (self.modality != "ct" or not self.row.consistent):
            raise Refused(
                f"--expert speaks of CT to a recipe with a teacher of its own, not to {self.recipe_name!r} on "
                f"{self.modality}. Give --modality ct --recipe steady_ct, or leave --expert out."
            )
        if self.row.background and self.lungs is None:
            raise Refused(
                f"Recipe {self.recipe_name!r} exchanges what lies around the lungs, and nothing finds them. Give "
                "--lungs FOLDER of a lung network (`python -m train lungs` makes one), or another --recipe."
            )
        _ = self.network_arguments, self.row  # refused here, before anything is read or written

    @property
    def transfer(self) -> bool:
        """Whether training starts from weights that were learnt before."""
        return self.init is not None or self.pretrained

    @property
    def recipe_name(self) -> str:
        """Key in `RECIPES`."""
        return self.recipe or default_recipe(self.variant, self.transfer)

    @cached_property
    def row(self) -> Recipe:
        """The recipe, with the changes that were asked for."""
        changes = {name: getattr(self, name) for name in CHANGES}
        return choose_recipe(self.recipe, self.variant, self.transfer, **changes)

    @cached_property
    def network_arguments(self) -> dict[str, Any]:
        """``model_args`` as an object."""
        try:
            parsed = json.loads(self.model_args)
        except ValueError as error:
            raise Refused(
                f'--model-args is no JSON ({error}). Write it as \'{{"pad_type": "same"}}\'.'
            ) from error
        if not isinstance(parsed, dict):
            raise Refused(
                f"--model-args is a {type(parsed).__name__}; an object such as '{{\"drop_rate\": 0.2}}' is meant."
            )
        return parsed

    def as_json(self) -> dict[str, Any]:
        """Give every setting by name, in the types that JSON knows."""
        return json.loads(json.dumps({**asdict(self), "model_args": self.network_arguments}, default=str))

    def portable(self) -> dict[str, Any]:
        """Give the settings as `as_json` does, but only the last part of local paths; names on the Hub stay whole."""
        told = self.as_json()
        places = {
            name: [_last_name(place) for place in told[name]]
            if isinstance(told[name], list)
            else told[name] and _last_name(told[name])
            for name in ("data", "expert", "init", "lungs", "teacher", "unlabelled")
        }
        return told | places


CHANGES = ("epochs", "batch", "learning_rate", "input_size", "augment")
"""Settings that take the place of the recipe's own values."""


def default_recipe(variant: str, transfer: bool) -> str:
    """Choose the recipe of a variant that none was named for: its own, or one of the two for stock backbones."""
    return variant if variant in RECIPES else "transfer" if transfer else "scratch"


def choose_recipe(name: str | None, variant: str, transfer: bool, **changes: float | str | None) -> Recipe:
    """Take a row of `RECIPES`, with the changes that are not None.

    Args:
        name: of the row; None takes the variant's own.
        variant: name of the network.
        transfer: whether it starts from weights that were learnt before.
        changes: fields of `Recipe` with other values.

    Raises:
        Refused: no such row, or no such row of augmentations.
    """
    name = name or default_recipe(variant, transfer)
    if name not in RECIPES:
        raise Refused(f"Unknown recipe {name!r}. Known are {', '.join(RECIPES)}.")
    row = replace(RECIPES[name], **{key: value for key, value in changes.items() if value is not None})
    if row.augment not in AUGMENTATIONS:
        raise Refused(f"Unknown augmentation {row.augment!r}. Known are {', '.join(AUGMENTATIONS)}.")
    return row


def with_settings(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Let a verb that ends in ``**knobs`` show the fields of `Settings` as keywords of its own, for help and flags."""
    own = [p for p in signature(verb).parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
    hints = get_type_hints(Settings, include_extras=True)
    knobs = [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=_default(field), annotation=hints[field.name])
        for field in fields(Settings)
    ]
    verb.__signature__ = signature(verb).replace(parameters=[*knobs, *own])
    return verb


def _default(field: Field) -> Any:
    return Parameter.empty if field.default is MISSING else field.default


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _last_name(place: str) -> str:
    name, _, path = place.rpartition("=")
    if not Path(path).expanduser().exists() and not Path(path).is_absolute():
        return place  # an id on the Hub
    last = Path(path).resolve().name
    return f"{name}={last}" if name else last
