"""What runs the network: a table of backends, each from pixels to logits, heat map and guard features in numpy."""

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from .graph_check import check_graph
from .layout import COVID, WEIGHTS, FolderRefused, Tensors
from .refused import Refused

if TYPE_CHECKING:
    import onnxruntime
    import torch


class BackendRefused(Refused):
    """A backend or device that is unknown, or that this machine does not have."""


class View(NamedTuple):
    """What the network saw of N pictures.

    Attributes:
        logits: (N, 2) float32, calibrated.
        heat_maps: (N, h, w) float32 in 0..1; (N, 0, 0) where they were not asked for.
        features: (N, D) float32, for the input guard.
    """

    logits: np.ndarray
    heat_maps: np.ndarray
    features: np.ndarray


class Backend(Protocol):
    """Runs one network; safe to share between threads."""

    def run(self, pixels: np.ndarray, *, heat_maps: bool) -> View:
        """Run the network on pixels (N, 3, H, W), float32, as the preprocessing gives them."""


_PRECISION = threading.Lock()
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""What ONNX Runtime calls a device."""


class Session:
    """A session of ONNX Runtime that survives a fork of the process.

    Args:
        graph: an ONNX graph that `graph_check` has accepted.
        weights: what it refers to; the runtime is handed these bytes and opens no file itself.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: of the processor for one batch; by default all cores.
        file: the name by which the graph refers to the weights.

    Raises:
        BackendRefused: no such device here.
        FolderRefused: ONNX Runtime cannot run the graph.
    """

    def __init__(
        self,
        graph: bytes,
        weights: Tensors,
        device: str = "cpu",
        threads: int | None = None,
        file: str = WEIGHTS,
    ) -> None:
        if threads is not None and not (isinstance(threads, int) and threads >= 1):
            raise BackendRefused(
                f"threads is a whole number from 1 on, or None for all cores; got {threads!r}."
            )
        self._given = (graph, weights, device, threads, file)
        self._session, self._process = self._started(), os.getpid()
        self.shapes = {
            one.name: one.shape for one in (*self._session.get_inputs(), *self._session.get_outputs())
        }

    def _started(self) -> "onnxruntime.InferenceSession":
        onnxruntime = runtime()
        graph, weights, device, threads, file = self._given
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # it warns of constants that it could not fold ahead
        options.intra_op_num_threads = threads or 0
        # waiting threads sleep: others decode the next pictures meanwhile, and laptops keep cool
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        content = weights.content
        options.add_external_initializers_from_files_in_memory([file], [content], [len(content)])
        provider = _provider(device)
        try:
            session = onnxruntime.InferenceSession(graph, options, providers=[provider])
        except Exception as error:  # ONNX Runtime's own have no base in common
            raise FolderRefused(
                f"ONNX Runtime {onnxruntime.__version__} cannot run the graph: {str(error).strip().splitlines()[0]} "
                "Fetch the folder again, or update onnxruntime."
            ) from error
        if session.get_providers()[0] != PROVIDERS[str(device).partition(":")[0]]:
            raise BackendRefused(
                f"ONNX Runtime could not start on {device!r}; its libraries (CUDA and cuDNN) are missing or of another "
                "version. Use device='cpu', or backend='torch' with torch for this device."
            )
        return session

    def run(self, outputs: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Compute the named outputs from the named inputs."""
        if os.getpid() != self._process:  # after a fork the threads of the session are not there
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))  # taking it down would wait for them
            self._session, self._process = self._started(), os.getpid()
        return self._session.run(outputs, feed)


class OnnxRuntime:
    """ONNX Runtime on the graph ``model.onnx`` and the weights it refers to; arguments and refusals of `Session`.

    Raises:
        FolderRefused: the graph is not accepted (`graph_check`).
    """

    def __init__(
        self, graph: bytes, weights: Tensors, device: str = "cpu", threads: int | None = None
    ) -> None:
        check_graph(graph, weights)
        self._session = Session(graph, weights, device, threads)

    def check_shapes(self, size: list[int], features: int | None) -> None:
        """Refuse a graph for pictures of another size, or with another number of guard features than the guard has.

        Raises:
            FolderRefused: as said.
        """
        shapes = {name: list(shape)[1:] for name, shape in self._session.shapes.items()}
        wanted = {"pixel_values": list(size), "logits": [2], "features": [features]}
        if features is None:
            wanted["features"] = shapes.get("features")
        found = {name: shapes.get(name) for name in wanted}
        if found != wanted or len(shapes.get("heatmap", ())) != 2:
            raise FolderRefused(
                f"The graph takes and gives {shapes}; this folder needs {wanted} and a heatmap. Graph, configuration "
                "and guard do not belong together; fetch the folder again."
            )

    def run(self, pixels: np.ndarray, *, heat_maps: bool) -> View:
        """Run the network on pixels; see `Backend`."""
        logits, heat, features = self._session.run(
            ["logits", "heatmap", "features"], {"pixel_values": pixels}
        )
        return View(logits, heat if heat_maps else heat[:, :0, :0], features)


def runtime() -> ModuleType:
    """Import ONNX Runtime with its telemetry switched off.

    From version 1.32 on it reports every session to ``mobile.events.data.microsoft.com``, from C and unasked, unless
    this variable was set before it is imported; `onnxruntime.disable_telemetry_events` comes too late.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def _provider(device: str) -> str | tuple[str, dict[str, str]]:
    onnxruntime = runtime()
    kind, _, number = str(device).partition(":")
    if kind not in PROVIDERS or not (number == "" or (number.isascii() and number.isdigit())):
        raise BackendRefused(
            f"backend='onnx' has no device {device!r}; it knows {', '.join(PROVIDERS)} (cuda:1 is the second GPU). "
            "backend='torch' takes every device of torch."
        )
    if PROVIDERS[kind] not in onnxruntime.get_available_providers():
        raise BackendRefused(
            f"The ONNX Runtime installed here has no support for {device!r}. Install onnxruntime-gpu in place of "
            "onnxruntime, or use backend='torch'."
        )
    return (PROVIDERS[kind], {"device_id": number}) if number else PROVIDERS[kind]


class TorchNetwork:
    """torch on the timm network, in single precision on every device.

    torch lets a GPU round the factors of convolutions to ten bits (TF32) unless it is told otherwise; that moves
    probabilities, and the network is far from being what screening waits for (docs/speed.md has both figures).

    Args:
        model: the network, in evaluation mode.
        device: any device of torch.

    Raises:
        BackendRefused: no such device here.
    """

    def __init__(self, model: "torch.nn.Module", device: str = "cpu") -> None:
        import torch

        from . import evidence

        self._torch, self._evidence = torch, evidence
        try:
            self.model = model.to(torch.empty(0, device=device).device)
        except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BackendRefused(
                f"torch has no device {device!r} here ({reason}). Use device='cpu', or install torch for that device."
            ) from error
        self._process = os.getpid()

    def run(self, pixels: np.ndarray, *, heat_maps: bool) -> View:
        """Run the network on pixels; see `Backend`."""
        torch, evidence = self._torch, self._evidence
        if (
            os.getpid() != self._process
        ):  # after a fork OpenMP's threads are not there, and it would wait for them
            torch.set_num_threads(1)
            self._process = os.getpid()
        device = next(self.model.parameters()).device
        with torch.inference_mode(), _single_precision(torch, device):
            logits, last, features = evidence.view(self.model, torch.from_numpy(pixels).to(device))
            heat = logits.new_empty(len(logits), 0, 0)
            if heat_maps:
                slope = evidence.gradient(self.model, last, COVID)
                local = evidence.local_evidence(last, slope, evidence.log_odds(logits, COVID))
                heat = torch.sigmoid(local)
            return View(*(tensor.float().cpu().numpy() for tensor in (logits, heat, features)))


@contextlib.contextmanager
def _single_precision(torch: ModuleType, device: "torch.device") -> Iterator[None]:
    """Keep convolutions on a GPU from TF32 meanwhile; the setting is the process's, so one thread at a time."""
    if device.type != "cuda":
        yield
        return
    convolutions = torch.backends.cudnn.conv
    with _PRECISION:
        before = convolutions.fp32_precision
        convolutions.fp32_precision = "ieee"
        try:
            yield
        finally:
            convolutions.fp32_precision = before


BACKENDS = {"onnx": OnnxRuntime, "torch": TorchNetwork}
"""By the name a user gives."""
