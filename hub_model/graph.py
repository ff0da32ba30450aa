"""Write the network as an ONNX graph over the weights that lie in ``model.safetensors``; nothing else of it is stored.

The graph maps ``pixel_values`` (N, 3, H, W), as the one preprocessing gives them, to ``logits`` (N, 2),
``heatmap`` (N, h, w) in 0..1 and ``features`` (N, D), which the input guard judges. Its weights are ONNX external
data: name, offset and length of each tensor in the safetensors file. Halves are cast to single precision in the
graph, so that it computes as every other loader does. Exported without optimisation: that would fold norms into
convolutions, and the tensors would no longer be those of the file.
"""

import copy
import json
import warnings
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from . import evidence, network
from .backends import OnnxRuntime, Session, TorchNetwork, View
from .layout import COVID, WEIGHTS, FolderRefused, Tensors

OPSET = 20
OUTPUTS = ("logits", "heatmap", "features")
MAX_DIFFERENCE = {"logits": 1e-4, "heatmap": 1e-4, "features": 1e-4}
"""From torch, relative to 1 or the largest number of the output, whichever is larger."""
TYPES = {"F16": onnx.TensorProto.FLOAT16, "F32": onnx.TensorProto.FLOAT, "F64": onnx.TensorProto.DOUBLE,
         "I64": onnx.TensorProto.INT64}  # fmt: skip
INLINE = 1 << 16  # elements of a tensor that is not among the weights, such as positions; more is a mistake

_graphs: dict[str, tuple[list[onnx.ModelProto], dict[str, str | None]]] = {}
"""What `_exported` gave in this process. It holds no weights, so it serves every run of the same network."""


def write_graph(config: dict, weights: Tensors, place: object = "config") -> bytes:
    """Write the graph of the network that ``config`` names, over the tensors of a safetensors file.

    Args:
        config: ``config.json``.
        weights: ``model.safetensors``, as `layout.read_tensors` gives it.
        place: named in refusals.

    Raises:
        FolderRefused: the weights do not fit the network, it has no feature map, or its graph gives other answers
            than torch.
    """
    model = network.load(config, weights, place)
    size = config["pretrained_cfg"]["input_size"]
    key = json.dumps([config["architecture"], config.get("model_args"), size], sort_keys=True)
    pixels = _pictures(3, size)
    if key not in _graphs:
        _graphs[key] = _exported(model, torch.from_numpy(pixels[:2]), place)
    (joined, apart), stored = _graphs[key]
    try:
        return _checked(joined, stored, weights, model, pixels, place)
    except FolderRefused:  # slower, and true
        return _checked(apart, stored, weights, model, pixels, place)


def _checked(
    exported: onnx.ModelProto,
    stored: dict[str, str | None],
    weights: Tensors,
    model: nn.Module,
    pixels: np.ndarray,
    place: object,
) -> bytes:
    """Put the weights into a graph and hold it against torch. Raises FolderRefused as `check_answers`."""
    proto = onnx.ModelProto()
    proto.CopyFrom(exported)
    _refer(proto.graph, stored, weights)
    graph = proto.SerializeToString()
    check_answers(OnnxRuntime(graph, weights), TorchNetwork(model), pixels, place)
    return graph


def plain_graph(
    module: nn.Module, given: str, answer: str, shape: tuple[int, ...], weights: Tensors, file: str
) -> bytes:
    """Write the graph of any module of one input and one output, over the tensors of a safetensors file.

    Args:
        module: in evaluation mode; the file holds its tensors by their own names.
        given, answer: names of the input (N, *shape) and of the output.
        shape: of one input.
        weights: the file.
        file: its name.

    Raises:
        FolderRefused: the graph gives other answers than torch.
    """
    module.load_state_dict(
        {name: torch.from_numpy(weights.array(name).astype(np.float32)) for name in weights.header},
        strict=False,
    )
    some = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own deprecations
        program = torch.onnx.export(
            module,
            (some,),
            dynamo=True,
            optimize=False,
            opset_version=OPSET,
            input_names=[given],
            output_names=[answer],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    proto = program.model_proto
    _plain_casts(proto)
    _strip(proto)
    _refer(proto.graph, {name: name for name in weights.header}, weights, file)
    graph = proto.SerializeToString()
    with torch.no_grad():
        expected = module(some).numpy()
    difference = np.abs(
        Session(graph, weights, file=file).run([answer], {given: some.numpy()})[0] - expected
    ).max()
    if not difference <= max(MAX_DIFFERENCE.values()):
        raise FolderRefused(
            f"The ONNX graph of this network differs from torch by {difference:.2g}. Nothing was written. Please "
            "report this with the versions of torch and onnxruntime."
        )
    return graph


def check_answers(
    ours: OnnxRuntime, truth: TorchNetwork, pixels: np.ndarray, place: object
) -> dict[str, float]:
    """Measure the largest differences of two backends on the same pixels (N, 3, H, W), by output.

    Raises:
        FolderRefused: one is above its MAX_DIFFERENCE.
    """
    expected = truth.run(pixels, heat_maps=True)
    batches = (
        ours.run(some, heat_maps=True) for some in (pixels[:1], pixels[1:])
    )  # of one picture, and of several
    found = View(*map(np.concatenate, zip(*batches, strict=True)))
    differences = _differences(found, expected)
    if _accepted(differences):
        return differences
    # some networks, untrained ones above all, make rounding large whoever computes: then the graph may be as far from
    # the exact answer as twice torch itself
    exact = TorchNetwork(copy.deepcopy(truth.model).double()).run(pixels.astype(np.float64), heat_maps=True)
    rounding, differences = _differences(expected, exact), _differences(found, exact)
    if not _accepted(differences, {name: 2 * value for name, value in rounding.items()}):
        told = ", ".join(f"{name} {value:.2g}" for name, value in differences.items())
        raise FolderRefused(
            f"{place}: the ONNX graph of this network differs from the exact answer by {told}; accepted is at most "
            f"{max(MAX_DIFFERENCE.values()):g}, or twice what torch differs by. Nothing was written. Please report "
            "this with the versions of torch and onnxruntime."
        )
    return differences


def _differences(found: View, expected: View) -> dict[str, float]:
    """Measure the largest difference by output, relative to its largest value or 1.

    A sum is rounded as its largest terms are.
    """
    return {
        name: float(np.abs(a - b).max() / max(1, np.abs(b).max())) if a.shape == b.shape else np.inf
        for name, a, b in zip(OUTPUTS, found, expected, strict=True)
    }


def _accepted(differences: dict[str, float], further: dict[str, float] | None = None) -> bool:
    """Say whether all differences lie within MAX_DIFFERENCE, or within what is accepted besides; NaN never does."""
    further = further or {}
    return all(
        differences[name] <= max(limit, further.get(name, 0)) for name, limit in MAX_DIFFERENCE.items()
    )


def _pictures(count: int, size: list[int]) -> np.ndarray:
    """Make pixels to compare answers on: noise and slopes, the same every time."""
    random = np.random.default_rng(0)
    slope = np.linspace(-1, 1, size[2], dtype=np.float32)
    return (random.standard_normal((count, *size)).astype(np.float32) + slope) / 2


class Scored(nn.Module):
    """A network with its heat map and guard features, in operations that ONNX has.

    Args:
        model: A timm network with two logits, in evaluation mode.
        pixels: (2, 3, H, W), any pictures, to trace the head's gradient with.
    """

    def __init__(self, model: nn.Module, pixels: Tensor) -> None:
        super().__init__()
        self.model = model
        self.slope = head_gradient(model, pixels)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute logits, heat map and guard features of pixels (N, 3, H, W)."""
        logits, last, features = evidence.view(self.model, pixel_values)
        last = last.contiguous()
        local = evidence.local_evidence(last, self.slope(last), evidence.log_odds(logits, COVID))
        return logits, torch.sigmoid(local), features


def head_gradient(model: nn.Module, pixels: Tensor) -> nn.Module:
    """Write `evidence.gradient` as a graph of forward operations, feature map (N, C, h, w) -> the same shape."""

    def convolution_backward(
        grad: Tensor,
        _input: Tensor,
        weight: Tensor,
        _bias: list[int] | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        *rest: Any,
    ) -> tuple[Tensor, None, None]:
        groups = rest[2]  # after transposed and output_padding; only the gradient by the input is wanted
        return (
            nn.functional.conv_transpose2d(grad, weight, None, stride, padding, 0, groups, dilation),
            None,
            None,
        )

    operations = torch.export.default_decompositions().materialize()
    operations[torch.ops.aten.convolution_backward.default] = convolution_backward
    with torch.no_grad():
        features = model.forward_features(pixels).contiguous()
    trace = make_fx(
        lambda features: evidence.gradient(model, features, COVID),
        decomposition_table=operations,
        tracing_mode="symbolic",
        _allow_non_fake_inputs=True,
    )
    return trace(features)


def _exported(
    model: nn.Module, pixels: Tensor, place: object
) -> tuple[list[onnx.ModelProto], dict[str, str | None]]:
    """Export the graph without the values of weights, and say under which name the file holds each tensor.

    Returns:
        Two graphs of the same answers: one whose norms ONNX Runtime joins with convolutions, which takes two thirds of
        the time, and one whose norms stay apart. Joining enlarges rounding where a feature hardly varies between
        pictures, in an untrained EfficientNet-B0 a hundredfold. Then the names of the tensors.
    """
    with torch.no_grad():
        if model.forward_features(pixels[:1]).ndim != 4:
            raise FolderRefused(
                f"{place}: the network has no feature map (N, C, h, w). Choose a convolutional one."
            )
    scored = Scored(model, pixels).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own deprecations
        program = torch.onnx.export(
            scored,
            (pixels,),
            dynamo=True,
            optimize=False,
            opset_version=OPSET,
            input_names=["pixel_values"],
            output_names=list(OUTPUTS),
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    # the head's gradient reads the head's weights under names of its own
    names = {tensor.data_ptr(): name for name, tensor in model.state_dict().items()}
    stored = {name: names.get(tensor.data_ptr()) for name, tensor in scored.state_dict().items()}
    apart = program.model_proto
    for tensor in apart.graph.initializer:
        if stored.get(tensor.name):
            tensor.ClearField("raw_data")
        elif int(np.prod(tensor.dims)) > INLINE:
            raise FolderRefused(
                f"{place}: {tensor.name} of the graph is not among the weights. Please report it."
            )
    joined = onnx.ModelProto()
    joined.CopyFrom(apart)
    _plain_casts(joined)
    for proto in (joined, apart):
        _strip(proto)
    return [joined, apart], stored


def _plain_casts(proto: onnx.ModelProto) -> None:
    """Write each CastLike, which takes its type from another value, as a Cast to that type.

    The exporter gives convolutions without bias zeros that go through one. ONNX Runtime computes a Cast of constants
    once, and joins such a convolution with the norm after it; of a CastLike it makes neither, and takes up to twice as
    long.
    """
    graph = proto.graph
    types = {one.name: one.type.tensor_type.elem_type for one in (*graph.value_info, *graph.input)}
    types |= {one.name: one.data_type for one in graph.initializer}
    for node in graph.node:
        if node.op_type == "CastLike" and types.get(node.input[1]):
            cast = onnx.helper.make_node(
                "Cast", node.input[:1], node.output, node.name, to=types[node.input[1]]
            )
            node.CopyFrom(cast)


def _strip(proto: onnx.ModelProto) -> None:
    """Remove what the exporter writes about this machine: the stack traces name folders."""
    del proto.metadata_props[:]
    proto.doc_string = ""
    for messages in (
        [proto.graph],
        proto.graph.node,
        proto.graph.input,
        proto.graph.output,
        proto.graph.initializer,
    ):
        for message in messages:
            message.ClearField("metadata_props")
            message.ClearField("doc_string")
    del proto.graph.value_info[:]


def _refer(
    graph: onnx.GraphProto, stored: dict[str, str | None], weights: Tensors, file: str = WEIGHTS
) -> None:
    """Point each weight to its place in the file; half-precision weights are cast before everything else."""
    casts, kept, referred, renamed = [], [], {}, {}
    for tensor in graph.initializer:
        name = stored.get(tensor.name)
        if not name:
            kept.append(tensor)
            continue
        renamed[tensor.name], told = name, weights.header[name]
        if name in referred:
            continue
        half = told.kind == "F16"
        reference = onnx.TensorProto(
            name=f"{name}:half" if half else name,
            dims=told.shape,
            data_type=TYPES[told.kind],
            data_location=onnx.TensorProto.EXTERNAL,
        )
        for key, value in (("location", file), ("offset", told.start), ("length", told.stop - told.start)):
            reference.external_data.add(key=key, value=str(value))
        referred[name] = reference
        if half:
            casts.append(onnx.helper.make_node("Cast", [reference.name], [name], to=onnx.TensorProto.FLOAT))
    for node in graph.node:
        node.input[:] = [renamed.get(given, given) for given in node.input]
    nodes = [*casts, *graph.node]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*referred.values(), *kept])
