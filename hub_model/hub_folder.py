"""The hub folder: the one checkpoint format, found, opened and written here and nowhere else.

A hub folder is what ``timm`` and transformers' ``TimmWrapper`` already understand (``config.json`` and
``model.safetensors`` under timm's parameter names), so stock loaders open it without this package. Beside
those lie our own files: ``model.onnx`` (the network as a graph over the same weights, for screening without torch),
``screening.json`` (modality, operating points, abstain bands, provenance) and ``guard.safetensors`` (what the
training images looked like to the network).

Opening and screening need no torch; `HubFolder.model`, `HubFolder.transform` and `save` do, and import it then.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from . import lungs
from .graph_check import MAX_GRAPH
from .layout import (
    CONFIG,
    COVID,
    EVALUATION,
    FORMAT,
    GRAPH,
    GUARD,
    LABELS,
    MODALITIES,
    SCREENING,
    SEEN,
    WEIGHTS,
    FolderRefused,
    Tensors,
    member,
    read_config,
    read_evaluation,
    read_json,
    read_screening,
    read_tensors,
    tensors_written,
)
from .preprocess import preprocessing
from .whole import partial_folder, whole_file

if TYPE_CHECKING:
    import torch

__all__ = ["CONFIG", "COVID", "EMBEDDED", "EVALUATION", "FORMAT", "GRAPH", "GUARD", "LABELS", "MODALITIES",
           "SCREENING", "SEEN", "WEIGHTS", "FolderRefused", "HubFolder", "embedded", "load", "make_config",
           "open_folder", "read_evaluation", "read_json", "resolve", "save", "sha256", "transform_of",
           "write_json"]  # fmt: skip

EMBEDDED = (*MODALITIES, "xray-covid_cnn_3", "ct-covid_cnn_3")
"""Names of the checkpoints that ship inside the package: the default for each modality, which has its name, then others
to choose. Each has a folder of its name."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_READY = ".ready"  # folder of files that are whole and only need to be moved into place
_FILES = (WEIGHTS, GUARD, GRAPH, CONFIG, SCREENING)
_HASHES = ("weights_sha256", "graph_sha256", "guard_sha256")
_GUARD_TENSORS = ("mean", "scale", "basis", "deviation", "foreign", "bias")


@dataclass(frozen=True)
class HubFolder:
    """An opened hub folder; every file in it has been checked.

    Attributes:
        path: where the files lie.
        config: ``config.json``.
        screening: ``screening.json``.
        guard: arrays of ``guard.safetensors``, or None where the folder has none.
    """

    path: Path
    config: dict
    screening: dict
    guard: dict[str, np.ndarray] | None

    @property
    def modality(self) -> str:
        return self.screening["modality"]

    def weights(self) -> Tensors:
        """Read the tensors of ``model.safetensors``.

        Raises:
            FolderRefused: the file is damaged, or not the one that the operating points were chosen for.
        """
        return _weights(self.path, self.screening)

    def graph(self) -> bytes:
        """Read ``model.onnx``; in a folder of an older version, make it now where torch is installed.

        Raises:
            FolderRefused: there is none and it cannot be made here, or it is not the one that was saved with the
                folder.
        """
        file, expected = member(self.path, GRAPH), self.screening.get("graph_sha256")
        if not file.exists() and not expected:
            return self._made_graph()
        try:
            if file.stat().st_size > MAX_GRAPH:
                raise OSError(f"it has more than {MAX_GRAPH >> 20} MiB")
            content = file.read_bytes()
        except OSError as error:
            raise FolderRefused(f"{file} cannot be read: {error}. Fetch the folder again.") from error
        if hashlib.sha256(content).hexdigest() != expected:
            raise FolderRefused(
                f"{file} is not the graph that {SCREENING} was written with (SHA-256 differs). Fetch the folder again, "
                f"or write the graph anew where torch is installed: `covid-xct graph {self.path}`."
            )
        return content

    def _made_graph(self) -> bytes:
        try:
            return _graph_of(self.config, self.weights(), self.path)
        except ModuleNotFoundError as error:
            raise FolderRefused(
                f"{self.path} has no {GRAPH}: an older version wrote it, or it was written without. Making one needs "
                f"{error.name}, which is not installed here. Where covid-xct[train] is installed, write it once with "
                f"`covid-xct graph {self.path}`; or fetch the folder again."
            ) from error

    @cached_property
    def model(self) -> "torch.nn.Module":
        """The timm network in float32 and evaluation mode: (N, 3, H, W) -> (N, 2) calibrated logits.

        Raises:
            FolderRefused: torch is not installed, or the weights do not fit the architecture.
        """
        try:
            from . import network
        except ModuleNotFoundError as error:
            raise FolderRefused(
                f"The network itself needs {error.name}, which is not installed: pip install 'covid-xct[torch]'. "
                "Screening with backend='onnx' does not need it."
            ) from error
        return network.load(self.config, self.weights(), self.path)

    @cached_property
    def transform(self) -> "Callable[[Image.Image], torch.Tensor]":
        """Grey 8-bit picture (PIL mode "L") -> float32 tensor (3, H, W): what is shown, as pixels.

        The view "lungs" shows the picture cut to its lungs, and all of it where none are found.
        """
        return transform_of(self.config, self.finder if self.view == lungs.LUNGS else None)

    @cached_property
    def finder(self) -> lungs.LungFinder | None:
        """The lung network that travels in the folder; None where there is none.

        Raises:
            FolderRefused: it is damaged or does not fit.
        """
        return lungs.load(self.path)

    @property
    def view(self) -> str:
        """What the classifier is shown of a picture, a name in `lungs.VIEWS`."""
        return self.screening.get("view") or lungs.WHOLE


def embedded() -> dict[str, Path]:
    """List the checkpoints that ship inside the package, by name; the default of each modality first."""
    root = Path(str(resources.files(__package__) / "checkpoints"))
    return {name: root / name for name in EMBEDDED if (root / name / CONFIG).is_file()}


def resolve(
    name: str | os.PathLike,
    revision: str | None = None,
    *,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> Path:
    """Find the folder behind a name.

    Args:
        name: one of `EMBEDDED`, as ``"xray"`` or ``"ct-covid_cnn_3"``, the path of a folder, or a Hub id
            ``"org/name"``.
        revision: branch, tag or commit; only for a Hub id.
        token: for a private Hub repository; by default the one that `hf auth login` stored.
        cache_dir: where downloads are kept; by default the Hub's own cache.

    Returns:
        The path of a local folder; a Hub id is downloaded to the Hub cache (or found there when offline).

    Raises:
        FolderRefused: nothing by that name, or the Hub did not give it.
    """
    ours = embedded()
    if str(name) in ours:
        if revision is not None:
            raise FolderRefused(
                f"{str(name)!r} is embedded in this package, in one version, and has no revision {revision!r}. Leave "
                "revision out, or name the Hub id ('org/name') that has it."
            )
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
    return _download(str(name), revision, token, cache_dir)


def _download(
    repo_id: str, revision: str | None, token: str | bool | None, cache_dir: str | os.PathLike | None
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [
        CONFIG,
        WEIGHTS,
        GRAPH,
        SCREENING,
        GUARD,
        EVALUATION,
        SEEN,
        *lungs.FILES,
        "README.md",
        "plots/*",
    ]
    try:
        return Path(
            snapshot_download(
                repo_id, revision=revision, allow_patterns=patterns, token=token, cache_dir=cache_dir
            )
        )
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


def load(
    name: str | os.PathLike,
    revision: str | None = None,
    *,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> HubFolder:
    """Open the hub folder behind a name; arguments and refusals as for `resolve` and `open_folder`."""
    return open_folder(resolve(name, revision, token=token, cache_dir=cache_dir))


def open_folder(path: str | os.PathLike) -> HubFolder:
    """Open the hub folder at a path, or refuse it whole: nothing is ever loaded in part.

    Args:
        path: of a folder; names of embedded models and Hub ids mean nothing here.

    Raises:
        FolderRefused: a file is missing or damaged, holds a value that is not accepted, leads out of the folder, or
            the weights are not those that the operating points were chosen for.
    """
    path = Path(path)
    if not path.is_dir():
        raise FolderRefused(f"There is no folder {path}. Give one that `python -m train fit` has written.")
    with contextlib.suppress(OSError):  # of a place that may not be written; then it is opened as it is
        _finish(path)
    config, screening = read_config(path), read_screening(path)
    _weights(path, screening)
    _check_view(path, screening)
    read_evaluation(path)
    return HubFolder(path, config, screening, _guard(path, screening))


def _weights(path: Path, screening: dict) -> Tensors:
    file = member(path, WEIGHTS)
    if not file.exists():
        pickles = sorted(
            p.name for p in path.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt"}
        )
        found = (
            f" It has {', '.join(pickles)}, but pickles can run code and are never opened." if pickles else ""
        )
        raise FolderRefused(f"{path} has no {WEIGHTS}.{found} Convert or train the model to safetensors.")
    tensors, expected = read_tensors(file), screening.get("weights_sha256")
    if expected and hashlib.sha256(tensors.content).hexdigest() != expected:
        raise FolderRefused(
            f"{file} is not the file that the operating points in {SCREENING} were chosen for (SHA-256 differs). "
            "Evaluate the new weights again (`python -m train evaluate`), or fetch the folder again."
        )
    return tensors


def _guard(path: Path, screening: dict) -> dict[str, np.ndarray] | None:
    """Read the arrays of ``guard.safetensors``, which must be there exactly where ``screening.json`` has limits."""
    file, limits = member(path, GUARD), (screening.get("guard") or {}).get("limits")
    if not file.exists() and not limits:
        return None
    if not file.exists() or not limits:
        lacking, there = (GUARD, SCREENING) if limits else ("limits of the guard", GUARD)
        raise FolderRefused(
            f"{path} has {there} of an input guard, but no {lacking}: without, every picture would be taken for one of "
            "its own. Fetch the folder again, or evaluate the run again."
        )
    tensors = read_tensors(file)
    if (expected := screening.get("guard_sha256")) and hashlib.sha256(
        tensors.content
    ).hexdigest() != expected:
        raise FolderRefused(
            f"{file} is not the one that {SCREENING} was written with (SHA-256 differs). Fetch the folder again, or "
            "evaluate the run again."
        )
    arrays = {name: tensors.array(name) for name in tensors.header}
    width = arrays["mean"].shape if "mean" in arrays else ()
    depth = arrays["deviation"].shape if "deviation" in arrays else ()
    shapes = dict(zip(_GUARD_TENSORS, (width, width, (*depth, *width), depth, width, ()), strict=True))
    found = {name: array.shape for name, array in arrays.items()}
    if found != shapes or not all(len(shape) == 1 and shape[0] for shape in (width, depth)):
        raise FolderRefused(
            f"{file} has tensors {found}; expected {', '.join(_GUARD_TENSORS)} that fit each other. Fetch it again."
        )
    if not (arrays["scale"] > 0).all() or not (arrays["deviation"] > 0).all():
        raise FolderRefused(f"{file} has a scale or deviation that is not positive. Fetch it again.")
    return arrays


def transform_of(
    config: dict, finder: lungs.LungFinder | None = None
) -> "Callable[[Image.Image], torch.Tensor]":
    """Make the one preprocessing (see `preprocess`) as a function from a grey picture to a tensor (3, H, W).

    With a finder, the picture is cut to its lungs first.
    """
    import torch

    pixels = preprocessing(config)
    return lambda image: torch.from_numpy(pixels(finder.view(image) if finder else image))


def _check_view(path: Path, screening: dict) -> None:
    view = screening.get("view") or lungs.WHOLE
    if view not in lungs.VIEWS:
        raise FolderRefused(
            f"{path} shows its network the picture as {view!r}; known is {', '.join(lungs.VIEWS)}. A newer covid-xct "
            "may know it."
        )
    if view == lungs.LUNGS and not member(path, lungs.SETTINGS).is_file():
        raise FolderRefused(
            f"{path} was trained on pictures cut to their lungs, and the lung network that finds them "
            f"({lungs.SETTINGS}, {lungs.WEIGHTS}) is missing. Fetch the folder again."
        )


def save(
    path: str | os.PathLike,
    model: "torch.nn.Module",
    *,
    architecture: str,
    model_args: dict,
    pretrained_cfg: dict,
    screening: dict,
    guard: Mapping[str, Any] | None = None,
    half: bool = False,
    graph: bool = True,
) -> Path:
    """Write a hub folder. Files of other makers in it stay; ours are all written before the first is replaced.

    Args:
        path: the folder; made where absent.
        model: the timm network; its classifier gives two logits in the order of `LABELS`.
        architecture: timm name.
        model_args: further arguments of ``timm.create_model`` (without num_classes).
        pretrained_cfg: input_size, mean, std, interpolation, crop_pct, crop_mode as timm spells them.
        screening: contents of ``screening.json``; ``format``, ``labels`` and the SHA-256 of the weights, the graph
            and the guard are added.
        guard: arrays or tensors for ``guard.safetensors``.
        half: store floating tensors as float16 (loaders still compute in float32).
        graph: also write ``model.onnx``, compared with torch on made-up pixels; takes some seconds. Without it
            screening needs torch.

    Raises:
        FolderRefused: what would be written could not be opened again; then the previous files are untouched.
        OSError: the folder cannot be written; likewise.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    _finish(path)
    config = make_config(architecture, model_args, pretrained_cfg, num_features=model.num_features)
    with partial_folder(path) as temporary:
        new = temporary / _READY
        new.mkdir()
        _write_tensors(_storable(model.state_dict(), half), new / WEIGHTS)
        weights = read_tensors(new / WEIGHTS)
        written = {"weights_sha256": hashlib.sha256(weights.content).hexdigest()}
        (new / GUARD).touch()  # empty: there is none any more, should the folder have one
        (new / GRAPH).touch()
        if guard is not None:
            _write_tensors({name: _tensor(value) for name, value in guard.items()}, new / GUARD)
            written["guard_sha256"] = sha256(new / GUARD)
        write_json(new / CONFIG, config)
        if graph:
            (new / GRAPH).write_bytes(_graph_of(config, weights, path))
            written["graph_sha256"] = sha256(new / GRAPH)
        kept = {key: value for key, value in screening.items() if key not in _HASHES}
        write_json(new / SCREENING, {"format": FORMAT, "labels": list(LABELS), **kept, **written})
        for file in _remote_code_files(architecture):
            (new / file.name).write_bytes(file.read_bytes())
        read_config(new), read_screening(new)
        os.replace(new, path / _READY)
    _finish(path)
    return path


def add_graph(path: str | os.PathLike) -> Path:
    """Write ``model.onnx`` into a folder that lacks it, as older versions left it, or has one of another version.

    Raises:
        FolderRefused: the folder cannot be opened, or what writing a graph needs is not installed.
    """
    folder = open_folder(path)
    try:
        graph = _graph_of(folder.config, folder.weights(), folder.path)
    except ModuleNotFoundError as error:
        raise FolderRefused(
            f"Writing {GRAPH} needs {error.name}, which is not installed: pip install 'covid-xct[train]'."
        ) from error
    stamped = {**folder.screening, "graph_sha256": hashlib.sha256(graph).hexdigest()}
    if folder.guard is not None:
        stamped["guard_sha256"] = sha256(folder.path / GUARD)
    with partial_folder(folder.path) as temporary:
        new = temporary / _READY
        new.mkdir()
        (new / GRAPH).write_bytes(graph)
        write_json(new / SCREENING, stamped)
        os.replace(new, folder.path / _READY)
    _finish(folder.path)
    return folder.path


def _finish(path: Path) -> None:
    """Move completely written files into place, also those that a killed process had not moved yet."""
    ready = path / _READY
    if ready.is_symlink() or not ready.is_dir():
        return
    for name in (*_FILES, *(file.name for file in ready.glob("*.py"))):
        new = ready / name
        if new.is_symlink() or not new.is_file():
            continue
        if new.stat().st_size == 0:
            (path / name).unlink(missing_ok=True)
            new.unlink()
        else:
            new.chmod(
                0o644
            )  # safetensors writes for its owner alone; an installed package is read by everybody
            os.replace(new, path / name)
    ready.rmdir()


def _graph_of(config: dict, weights: Tensors, place: object) -> bytes:
    from .graph import write_graph

    return write_graph(config, weights, place)


def _config_extras(architecture: str) -> dict:
    from . import covid_cnn

    return covid_cnn.config_extras(architecture)


def _remote_code_files(architecture: str) -> tuple[Path, ...]:
    from . import covid_cnn

    return covid_cnn.remote_code_files(architecture)


def _write_tensors(tensors: "dict[str, torch.Tensor]", file: Path) -> None:
    from safetensors.torch import save_file

    with tensors_written(file):
        save_file(tensors, file, metadata={"format": "pt"})


def _tensor(value: Any) -> "torch.Tensor":
    import torch

    return torch.as_tensor(np.asarray(value)).contiguous()


def _storable(state: "dict[str, torch.Tensor]", half: bool) -> "dict[str, torch.Tensor]":
    import torch

    stored = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.half() if half else tensor.float()
            if half and not torch.isfinite(tensor).all():
                raise ValueError(f"{name} does not fit half precision; save with half=False.")
        stored[name] = tensor.contiguous().clone()
    return stored


def make_config(architecture: str, model_args: dict, pretrained_cfg: dict, num_features: int) -> dict:
    """Make ``config.json`` as timm and TimmWrapper read it.

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
        **_config_extras(architecture),
    }  # fmt: skip


def sha256(path: Path) -> str:
    """Hash a file (SHA-256, hexadecimal)."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, content: dict) -> None:
    """Write ``content`` whole or not at all."""
    with whole_file(path) as new:
        new.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
