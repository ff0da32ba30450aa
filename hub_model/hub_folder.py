"""The hub folder: the one checkpoint format, read and written here and nowhere else.

A hub folder is what ``timm`` and transformers' ``TimmWrapper`` already understand (``config.json`` and
``model.safetensors`` under timm's parameter names), so stock loaders open it without this package. Beside
those lie our own files: ``screening.json`` (modality, operating points, abstain bands, provenance) and
``guard.safetensors`` (what the training images looked like to the network).
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import safetensors
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from . import covid_cnn
from .refused import Refused

LABELS = ("Non-COVID", "COVID")
COVID = LABELS.index("COVID")
MODALITIES = ("xray", "ct")

CONFIG, WEIGHTS, SCREENING, GUARD = "config.json", "model.safetensors", "screening.json", "guard.safetensors"
EVALUATION = "evaluation.json"
FORMAT = 1

# Arguments of timm.create_model that would make it fetch or unpickle something, or that the folder states elsewhere.
_FORBIDDEN_ARGS = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir",
                   "num_classes", "in_chans", "features_only"}  # fmt: skip
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class FolderRefused(Refused):
    """A hub folder that is missing, damaged, of another layout, or that cannot be trusted."""


@dataclass(frozen=True)
class HubFolder:
    """An opened hub folder.

    Attributes:
        path: where the files lie.
        model: the timm network in float32 and evaluation mode; takes (N, 3, H, W), gives (N, 2) calibrated logits.
        config: ``config.json``.
        screening: ``screening.json``.
        guard: tensors of ``guard.safetensors``, or None where the folder has none.
        transform: grey 8-bit picture (PIL mode "L") -> float tensor (3, H, W).
    """

    path: Path
    model: torch.nn.Module
    config: dict
    screening: dict
    guard: dict[str, torch.Tensor] | None
    transform: Callable[[Image.Image], torch.Tensor]

    @property
    def modality(self) -> str:
        return self.screening["modality"]


def embedded() -> dict[str, Path]:
    """Checkpoints that ship inside the package, by name."""
    root = Path(str(resources.files(__package__) / "checkpoints"))
    return {name: root / name for name in MODALITIES if (root / name / CONFIG).is_file()}


def resolve(name: str | os.PathLike, revision: str | None = None) -> Path:
    """Find the folder behind a name.

    Args:
        name: ``"xray"`` or ``"ct"`` (embedded), the path of a folder, or a Hub id ``"org/name"``.
        revision: branch, tag or commit; only for a Hub id.

    Returns:
        The path of a local folder; a Hub id is downloaded to the Hub cache (or found there when offline).

    Raises:
        FolderRefused: nothing by that name, or the Hub did not give it.
    """
    ours = embedded()
    if str(name) in ours and revision is None:
        return ours[str(name)]
    path = Path(name)
    if path.is_dir():
        if revision is not None:
            raise FolderRefused(
                f"{name} is a local folder and has no revision {revision!r}; leave revision out."
            )
        return path
    if not _HUB_ID.fullmatch(str(name)) or path.exists():
        raise FolderRefused(
            f"{str(name)!r} is neither an embedded model ({', '.join(ours) or 'none in this installation'}), nor a "
            "folder, nor a Hub id such as 'org/name'. Give one of these."
        )
    return _download(str(name), revision)


def _download(repo_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [CONFIG, WEIGHTS, SCREENING, GUARD, EVALUATION, "README.md", "plots/*"]
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns))
    except LocalEntryNotFoundError as error:
        raise FolderRefused(
            f"{repo_id} is not in the local Hub cache and the Hub cannot be reached. Connect once, or copy the model "
            "folder by hand and give its path."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        at = f" at revision {revision!r}" if revision else ""
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FolderRefused(
            f"The Hub did not give {repo_id}{at}: {reason} Check the id and the revision, and that your token may "
            "read it."
        ) from error


def load(name: str | os.PathLike, revision: str | None = None) -> HubFolder:
    """Open a hub folder, or refuse it whole: nothing is ever loaded in part.

    Args:
        name: as for `resolve`.
        revision: as for `resolve`.

    Raises:
        FolderRefused: a file is missing or damaged, weights are missing, renamed, extra, misshapen or not finite,
            labels are in another order, the architecture is unknown, or the weights are not those that the operating
            points were chosen for.
    """
    path = resolve(name, revision)
    config, screening = _read_config(path), _read_screening(path)
    model = build(config, path)
    _load_weights(model, path, screening.get("weights_sha256"))
    guard = _read_tensors(path / GUARD) if (path / GUARD).is_file() else None
    return HubFolder(path, model.eval(), config, screening, guard, transform_of(config))


def transform_of(config: dict) -> Callable[[Image.Image], torch.Tensor]:
    """The one preprocessing: timm's evaluation transform as ``config.json`` describes it, on the grey picture as RGB.

    It is built exactly as transformers' ``TimmWrapperImageProcessor`` builds its own, so the two cannot differ.
    """
    from timm.data import create_transform, resolve_data_config

    data_config = resolve_data_config(dict(config["pretrained_cfg"]), model=None, verbose=False)
    stock = create_transform(**data_config, is_training=False)
    return lambda image: stock(image.convert("RGB"))


def fold_temperature(model: torch.nn.Module, temperature: float) -> None:
    """Divide all logits by ``temperature``, in place, by scaling the last linear layer (Guo et al. 2017,
    arXiv:1706.04599): every loader then gives the calibrated probability without knowing of calibration."""
    if not temperature > 0:
        raise ValueError(f"A temperature is a positive number; got {temperature}.")
    head = model.get_classifier()
    with torch.no_grad():
        head.weight.div_(temperature)
        if head.bias is not None:
            head.bias.div_(temperature)


def build(config: dict, path: Path | str = "config") -> torch.nn.Module:
    """The untrained network that ``config`` names.

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
            f"{path}: unknown architecture {architecture!r}.{code} Known are timm's models and "
            f"{', '.join(covid_cnn.VARIANTS)}; a newer timm may know it."
        )
    if forbidden := sorted(_FORBIDDEN_ARGS & args.keys()):
        raise FolderRefused(
            f"{path}: model_args may not set {', '.join(forbidden)}. Remove it from {CONFIG}."
        )
    try:
        return timm.create_model(architecture, pretrained=False, num_classes=len(LABELS), **args)
    except Exception as error:  # timm passes wrong arguments on to whatever layer chokes on them
        raise FolderRefused(f"{path}: timm cannot build {architecture} with {args}: {error}") from error


def save(
    path: str | os.PathLike,
    model: torch.nn.Module,
    *,
    architecture: str,
    model_args: dict,
    pretrained_cfg: dict,
    screening: dict,
    guard: dict[str, torch.Tensor] | None = None,
    half: bool = False,
) -> Path:
    """Write a hub folder. Files of other makers in it stay; ours are all written before the first is replaced.

    Args:
        path: the folder; made where absent.
        model: the timm network; its classifier gives two logits in the order of `LABELS`.
        architecture: timm name.
        model_args: further arguments of ``timm.create_model`` (without num_classes).
        pretrained_cfg: input_size, mean, std, interpolation, crop_pct, crop_mode as timm spells them.
        screening: contents of ``screening.json``; ``format``, ``labels`` and ``weights_sha256`` are added.
        guard: tensors for ``guard.safetensors``.
        half: store floating tensors as float16 (loaders still compute in float32).

    Raises:
        OSError: the folder cannot be written; then the previous files are untouched.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    config = make_config(architecture, model_args, pretrained_cfg, num_features=model.num_features)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=path) as temporary:
        new = Path(temporary)
        _write_tensors(_storable(model.state_dict(), half), new / WEIGHTS, metadata={"format": "pt"})
        stamped = {
            "format": FORMAT,
            "labels": list(LABELS),
            **screening,
            "weights_sha256": sha256(new / WEIGHTS),
        }
        write_json(new / CONFIG, config)
        write_json(new / SCREENING, stamped)
        if guard is not None:
            _write_tensors({name: tensor.contiguous() for name, tensor in guard.items()}, new / GUARD)
        for file in covid_cnn.remote_code_files(architecture):
            (new / file.name).write_bytes(file.read_bytes())
        for file in new.iterdir():
            file.chmod(
                0o644
            )  # safetensors writes for its owner alone; an installed package is read by everybody
            os.replace(file, path / file.name)
    if guard is None:
        (path / GUARD).unlink(missing_ok=True)
    return path


def _write_tensors(tensors: dict[str, torch.Tensor], file: Path, **further) -> None:
    try:
        save_file(tensors, file, **further)
    except safetensors.SafetensorError as error:  # its own words for a full disk
        raise OSError(f"{file.name} could not be written: {error}") from error


def make_config(architecture: str, model_args: dict, pretrained_cfg: dict, num_features: int) -> dict:
    """``config.json`` as timm and TimmWrapper read it.

    ``dtype`` keeps transformers computing in float32 when the file stores halves; ``model_args`` must not repeat
    num_classes, which TimmWrapper passes by itself (transformers 5.23 with timm 1.0.31).
    """
    size = list(pretrained_cfg["input_size"])
    return {
        "architecture": architecture,
        "num_classes": len(LABELS),
        "num_features": num_features,
        "label_names": list(LABELS),
        "model_args": model_args,
        "dtype": "float32",
        "pretrained_cfg": {"custom_load": False, "fixed_input_size": False, "interpolation": "bicubic",
                           "crop_pct": 1.0, "crop_mode": "squash", **pretrained_cfg,
                           "input_size": size, "num_classes": len(LABELS)},
        **covid_cnn.config_extras(architecture),
    }  # fmt: skip


def sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, content: dict) -> None:
    """Write ``content`` whole or not at all."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _storable(state: dict[str, torch.Tensor], half: bool) -> dict[str, torch.Tensor]:
    stored = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        if half and tensor.is_floating_point():
            tensor = tensor.half()
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{name} does not fit half precision; save with half=False.")
        stored[name] = tensor.contiguous().clone()
    return stored


def read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FolderRefused(
            f"{path.parent} has no {path.name}. A hub folder holds at least {CONFIG}, {WEIGHTS} and {SCREENING}; "
            "`python -m train fit` writes one."
        ) from None
    except (OSError, ValueError) as error:
        raise FolderRefused(f"{path} cannot be read: {error}. Fetch or train the model again.") from error
    if not isinstance(content, dict):
        raise FolderRefused(
            f"{path} holds a {type(content).__name__}, not an object. Fetch or train the model again."
        )
    return content


def _read_config(path: Path) -> dict:
    config = read_json(path / CONFIG)
    for key in ("architecture", "pretrained_cfg"):
        if key not in config:
            raise FolderRefused(f"{path / CONFIG} has no {key!r}; this is no timm-style hub folder.")
    if list(config.get("label_names") or ()) != list(LABELS):
        raise FolderRefused(
            f"{path / CONFIG} has label_names {config.get('label_names')}; expected {list(LABELS)}, COVID being class "
            "1. Probabilities under another order would mean something else."
        )
    return config


def _read_screening(path: Path) -> dict:
    screening = read_json(path / SCREENING)
    if screening.get("format") != FORMAT or screening.get("modality") not in MODALITIES:
        raise FolderRefused(
            f"{path / SCREENING} has format {screening.get('format')!r} and modality {screening.get('modality')!r}; "
            f"expected format {FORMAT} and a modality of {MODALITIES}. A newer covid-xct may read it."
        )
    return screening


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise FolderRefused(
            f"{path} is no readable safetensors file ({error}). Fetch or train the model again."
        ) from error


def _load_weights(model: torch.nn.Module, path: Path, expected_sha256: str | None) -> None:
    file = path / WEIGHTS
    if not file.is_file():
        pickles = sorted(
            p.name for p in path.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt"}
        )
        found = (
            f" It has {', '.join(pickles)}, but pickles can run code and are never opened." if pickles else ""
        )
        raise FolderRefused(f"{path} has no {WEIGHTS}.{found} Convert or train the model to safetensors.")
    state, own = _read_tensors(file), model.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        raise FolderRefused(
            f"{file} does not fit its architecture: {len(missing)} tensors missing {missing[:3]}, {len(extra)} "
            f"unexpected {extra[:3]}. Nothing was loaded. Is {CONFIG} the one saved with these weights?"
        )
    if wrong := [name for name in own if own[name].shape != state[name].shape]:
        name = wrong[0]
        raise FolderRefused(
            f"{file}: {len(wrong)} tensors have another shape, first {name}: {tuple(state[name].shape)}, expected "
            f"{tuple(own[name].shape)}. Nothing was loaded."
        )
    if bad := [
        name for name in state if state[name].is_floating_point() and not torch.isfinite(state[name]).all()
    ]:
        raise FolderRefused(
            f"{file}: NaN or infinite values in {bad[:3]}. Nothing was loaded; train or fetch it again."
        )
    if expected_sha256 and sha256(file) != expected_sha256:
        raise FolderRefused(
            f"{file} is not the file that the operating points in {SCREENING} were chosen for (SHA-256 differs). "
            "Evaluate the new weights again (`python -m train evaluate`), or fetch the folder again."
        )
    model.load_state_dict(state, strict=True)
