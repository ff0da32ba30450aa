"""What lies in a hub folder, and the checks of each file that need no network: JSON by a schema, tensors by header.

Every file may come from a stranger. So nothing is built or allocated by what a file claims before the claim is
compared with the file's own size, links must stay inside the folder, and JSON is checked whole on opening.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .refused import Refused

LABELS = ("Non-COVID", "COVID")
COVID = LABELS.index("COVID")
MODALITIES = ("xray", "ct")

CONFIG, WEIGHTS, GRAPH = "config.json", "model.safetensors", "model.onnx"
SCREENING, GUARD, EVALUATION = "screening.json", "guard.safetensors", "evaluation.json"
SEEN = "seen.safetensors"
FORMAT = 1

MAX_JSON = 16 << 20  # bytes; evaluation.json of the embedded models has 50 kB
DEPTH, DIGITS = 100, 300  # lists and objects in each other, digits of a whole number
MAX_FILE = 4 << 30  # bytes of weights
MAX_HEADER = 16 << 20  # bytes of a safetensors header
SIDES = (32, 1024)  # pixels a side that a network may ask for
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
TYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1",
         "BOOL": "?"}  # fmt: skip
"""Types of safetensors that numpy has, too."""
GUARD_LIMITS = ("distance", "residual", "foreign")

# Arguments of timm.create_model that would make it fetch or unpickle something, or that the folder states elsewhere.
FORBIDDEN_ARGS = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir",
                  "num_classes", "in_chans", "features_only"}  # fmt: skip


class FolderRefused(Refused):
    """A hub folder that is missing, damaged, of another layout, or that cannot be trusted."""


def member(folder: Path, name: str) -> Path:
    """Return the path of a file of the folder, which may be missing.

    A link may point within the folder, or to where the Hub's cache keeps the files of the same repository.

    Raises:
        FolderRefused: a link that leads out of the folder, or something that is no plain file.
    """
    path = folder / name
    home, target = folder.resolve(), path.resolve()
    stored = home.parents[1] / "blobs" if home.parent.name == "snapshots" else home
    if not (target.is_relative_to(home) or target.is_relative_to(stored)):
        raise FolderRefused(
            f"{path} is a link that leads out of the model's folder, and is not followed. Copy the file itself there."
        )
    if target.exists() and not target.is_file():
        raise FolderRefused(f"{path} is no plain file. Fetch or train the model again.")
    return path


def loads(text: str) -> Any:
    """Read JSON that a stranger may have written: no NaN, no infinity, nothing that other JSON could not hold.

    Raises:
        ValueError: no JSON, a number that no float64 holds, or lists and objects in more than `DEPTH` others.
    """

    def no_number(word: str) -> None:
        raise ValueError(f"it holds {word[:20]}, which is no number")

    def real(word: str) -> float:
        return value if math.isfinite(value := float(word)) else no_number(word)

    def whole(word: str) -> int:
        return int(word) if len(word) <= DIGITS else no_number(word)

    try:
        content = json.loads(text, parse_constant=no_number, parse_float=real, parse_int=whole)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [content]
    for _ in range(DEPTH):
        nested = [one for one in level if isinstance(one, dict | list)]
        level = [value for one in nested for value in (one.values() if isinstance(one, dict) else one)]
        if not level:
            return content
    raise ValueError("it is nested too deeply")


def read_json(path: Path) -> dict:
    """Read a JSON object; see `loads`.

    Raises:
        FolderRefused: missing, too large, no JSON, or not an object.
    """
    path = member(path.parent, path.name)
    try:
        if path.stat().st_size > MAX_JSON:
            raise ValueError(f"it has more than {MAX_JSON >> 20} MiB")
        content = loads(path.read_text(encoding="utf-8"))
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


# Schemas. A rule is a function that says what is accepted where the value is not, a dict of rules (a key that
# ends in "?" may be missing or null), or `Each(rule)` for an object with any keys.


@dataclass(frozen=True)
class Each:
    """One rule for every value of an object with any keys."""

    rule: Any


Rule = Callable[[Any], str | None] | Mapping[str, Any] | Each


def is_number(value: Any) -> bool:
    """Say whether a value is a finite number; True and False are not numbers."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(low: float = -math.inf, high: float = math.inf) -> Rule:
    """Make a rule for finite numbers between two bounds."""

    def rule(value: Any) -> str | None:
        right = is_number(value) and low <= value <= high
        return None if right else f"a finite number from {low:g} to {high:g}"

    return rule


def one_of(*values: Any) -> Rule:
    """Make a rule for one of some values."""
    return lambda value: None if value in values else f"one of {', '.join(map(repr, values))}"


def text(value: Any) -> str | None:
    """Check for a text that is not empty; return what was expected, or None where it is right."""
    return None if isinstance(value, str) and value else "a text"


def an_object(value: Any) -> str | None:
    """Check for an object; return what was expected, or None where it is right."""
    return None if isinstance(value, dict) else "an object"


def three(low: float, high: float) -> Rule:
    """Make a rule for three numbers between two bounds."""

    def rule(value: Any) -> str | None:
        right = (
            isinstance(value, list) and len(value) == 3 and all(number(low, high)(v) is None for v in value)
        )
        return None if right else f"three numbers from {low:g} to {high:g}"

    return rule


def _size(value: Any) -> str | None:
    """Check for the size of a network's input; return what was expected, or None where it is right."""
    low, high = SIDES
    right = isinstance(value, list) and len(value) == 3 and all(type(side) is int for side in value)
    right = right and value[0] == 3 and all(low <= side <= high for side in value[1:])
    return None if right else f"[3, height, width] with {low} to {high} pixels a side"


def _labels(value: Any) -> str | None:
    return None if value == list(LABELS) else f"{list(LABELS)}, COVID being class 1"


def _band(value: Any) -> str | None:
    right = isinstance(value, list) and len(value) == 2 and all(number(0, 1)(v) is None for v in value)
    return None if right and value[0] <= value[1] else "[low, high] within 0 to 1"


def _limits(value: Any) -> str | None:
    right = isinstance(value, dict) and (not value or set(value) == set(GUARD_LIMITS))
    right = right and all(is_number(limit) and limit > 0 for limit in value.values())
    return None if right else f"positive finite numbers for {', '.join(GUARD_LIMITS)}"


def sha256_digits(value: Any) -> str | None:
    right = isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
    return None if right else "64 hexadecimal digits"


def _points(value: Any) -> str | None:
    if not isinstance(value, dict) or not value or not all(isinstance(name, str) and name for name in value):
        return "an object of at least one operating point"
    return None


CONFIG_RULES = {
    "architecture": text,
    "label_names": _labels,
    "model_args?": an_object,
    "pretrained_cfg": {
        "input_size": _size,
        "mean": three(-10, 10),
        "std": three(1e-4, 10),
        "interpolation": one_of(*INTERPOLATIONS),
        "crop_pct": number(0.5, 1),
        "crop_mode": one_of("squash"),
    },
}
SCREENING_RULES = {
    "format": one_of(FORMAT),
    "modality": one_of(*MODALITIES),
    "labels?": _labels,
    "operating_points": _points,
    "guard?": {"limits": _limits},
    "provenance?": an_object,
    "view?": text,
    "weights_sha256?": sha256_digits,
    "graph_sha256?": sha256_digits,
    "guard_sha256?": sha256_digits,
    "series?": {
        "rule": text,
        "most_slices": number(1, 1e6),
        "points": _points,
        "weights_sha256": sha256_digits,
    },
}


def _measure(value: Any) -> str | None:
    right = (
        isinstance(value, dict)
        and isinstance(value.get("metric"), str)
        and is_number(value.get("n"))
        and all(value.get(key) is None or is_number(value[key]) for key in ("value", "low", "high"))
        and "value" in value
        and (value.get("low") is None) == (value.get("high") is None)
    )
    return None if right else "a measure: metric (text), value, low and high (numbers or null) and n (number)"


_SPLIT_RULES = {
    "n?": number(0),
    "positives?": number(0),
    "auroc": _measure,
    **dict.fromkeys(("auprc?", "brier?", "ece?"), _measure),
    "at": Each(
        {
            **dict.fromkeys(("sensitivity", "specificity", "accuracy"), _measure),
            **dict.fromkeys(("ppv?", "npv?", "balanced_accuracy?", "f1?", "mcc?"), _measure),
        }
    ),
    "abstained?": Each(number(0)),
}
EVALUATION_RULES = {
    "validation?": _SPLIT_RULES,
    "test?": _SPLIT_RULES,
    "test_by_source?": Each(_SPLIT_RULES),
    "guard?": {"false_refusals?": _measure},
}
POINT_RULES = Each(
    {
        "threshold": number(0, 1),
        "abstain?": _band,
        "target?": text,
        "validation?": dict.fromkeys(("sensitivity?", "specificity?"), _measure),
    }
)


def problem(value: Any, rule: Rule, where: str = "") -> str | None:
    """Describe the first value that breaks the rule; None where there is none."""
    if isinstance(rule, Each):
        rule = dict.fromkeys(value, rule.rule) if isinstance(value, dict) else {}
    if not isinstance(rule, Mapping):
        accepted = rule(value)
        return accepted and f"{where} {_shown(value)}; expected {accepted}"
    if not isinstance(value, dict):
        return f"{where or 'it'} {_shown(value)}; expected an object"
    for key, below in rule.items():
        name, optional = key.removesuffix("?"), key.endswith("?")
        here = f"{where}.{name}" if where else name
        if name not in value:
            if not optional:
                return f"no {here!r}"
        elif not (optional and value[name] is None) and (found := problem(value[name], below, here)):
            return found
    return None


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def read_config(folder: Path) -> dict:
    """Read ``config.json`` and check it.

    Raises:
        FolderRefused: a key is missing or has a value that is not accepted, or labels are in another order.
    """
    config = read_json(folder / CONFIG)
    if found := problem(config, CONFIG_RULES):
        raise FolderRefused(
            f"{folder / CONFIG} has {found}. It is no hub folder of this kind, or damaged; fetch it again."
        )
    if forbidden := sorted(FORBIDDEN_ARGS & (config.get("model_args") or {}).keys()):
        raise FolderRefused(
            f"{folder}: model_args may not set {', '.join(forbidden)}. Remove it from {CONFIG}."
        )
    return config


def read_screening(folder: Path) -> dict:
    """Read ``screening.json`` and check it.

    Raises:
        FolderRefused: another format or modality, or a threshold, band or limit that is no number in its range.
    """
    screening = read_json(folder / SCREENING)
    found = problem(screening, SCREENING_RULES) or problem(
        screening["operating_points"], POINT_RULES, "operating_points"
    )
    if not found and screening.get("series"):
        found = problem(screening["series"]["points"], POINT_RULES, "series.points")
    if found:
        raise FolderRefused(
            f"{folder / SCREENING} has {found}. A newer covid-xct may read it; otherwise fetch or train the model "
            "again."
        )
    return screening


def read_evaluation(folder: Path) -> dict:
    """Read ``evaluation.json`` and check it; {} where there is none.

    Raises:
        FolderRefused: no JSON, or a figure or a place of one that a reader of figures would stumble over.
    """
    if not (folder / EVALUATION).is_file():
        return {}
    evaluation = read_json(folder / EVALUATION)
    if found := problem(evaluation, EVALUATION_RULES) or _ill_measured(evaluation):
        raise FolderRefused(
            f"{folder / EVALUATION} has {found}. Fetch the folder again; or remove this file, and the model opens "
            "without measured figures."
        )
    return evaluation


def _ill_measured(part: Any, where: str = "") -> str | None:
    """Describe the first thing in nested objects and lists that is called a measure and is none."""
    if isinstance(part, dict):
        if "metric" in part and "value" in part:
            return (accepted := _measure(part)) and f"{where} {_shown(part)}; expected {accepted}"
        below = ((f"{where}.{name}" if where else name, value) for name, value in part.items())
    elif isinstance(part, list):
        below = ((f"{where}[{number}]", value) for number, value in enumerate(part))
    else:
        return None
    return next((found for name, value in below if (found := _ill_measured(value, name))), None)


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in a safetensors file: `start` and `stop` in bytes from the file's beginning."""

    kind: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Tensors:
    """A safetensors file in memory, its header checked against its size."""

    content: bytes
    header: dict[str, Tensor]

    @property
    def begin(self) -> int:
        """Where the tensors begin: after eight bytes of length and the header."""
        return 8 + int.from_bytes(self.content[:8], "little")

    def array(self, name: str) -> np.ndarray:
        """Return one tensor as a read-only array on the bytes of the file."""
        place = self.header[name]
        kind = np.dtype(TYPES[place.kind])
        count = (place.stop - place.start) // kind.itemsize
        return np.frombuffer(self.content, kind, count, place.start).reshape(place.shape)


def read_tensors(path: Path) -> Tensors:
    """Read a safetensors file of finite numbers (https://huggingface.co/docs/safetensors, "Format").

    Raises:
        FolderRefused: missing, too large, damaged, of types that numpy lacks, or with NaN or infinite values.
    """
    try:
        if path.stat().st_size > MAX_FILE:
            raise ValueError(f"it has more than {MAX_FILE >> 30} GiB")
        content = path.read_bytes()
        tensors = Tensors(content, _header(content))
        bad = [name for name in tensors.header if not _finite(tensors.array(name))]
    except (OSError, ValueError, RecursionError) as error:
        raise FolderRefused(
            f"{path} is no readable safetensors file ({error or 'nested too deeply'}). Fetch or train the model again."
        ) from error
    if bad:
        raise FolderRefused(
            f"{path}: NaN or infinite values in {bad[:3]}. Nothing was loaded; train or fetch it again."
        )
    return tensors


@contextmanager
def tensors_written(file: Path) -> Iterator[None]:
    """Say an error of safetensors while `file` is written as what it is: its own words for a full disk.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{file.name} could not be written: {error}") from error


def _finite(array: np.ndarray) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _header(content: bytes) -> dict[str, Tensor]:
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(MAX_HEADER, len(content) - 8):
        raise ValueError("its header is longer than the file, or missing")
    told = json.loads(content[8 : 8 + length].decode("utf-8"))
    if not isinstance(told, dict):
        raise ValueError("its header is no object")
    told.pop("__metadata__", None)
    header, end = {}, 8 + length
    for name, entry in sorted(told.items(), key=lambda item: _offsets(item[1])):
        kind, shape, (start, stop) = entry.get("dtype"), entry.get("shape"), _offsets(entry)
        if kind not in TYPES:
            raise ValueError(f"{name} has the type {kind}; known are {', '.join(TYPES)}")
        if not isinstance(shape, list) or not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError(f"{name} has no shape")
        size = math.prod(shape) * np.dtype(TYPES[kind]).itemsize
        place = Tensor(kind, tuple(shape), 8 + length + start, 8 + length + stop)
        if place.start != end or stop - start != size:
            raise ValueError(f"{name} does not lie where the header says")
        header[name], end = place, place.stop
    if end != len(content):
        raise ValueError(f"{len(content) - end} bytes more or less than its header says")
    return header


def _offsets(entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(at) is int for at in offsets)):
        raise ValueError("a tensor has no place in it")
    return offsets[0], offsets[1]
