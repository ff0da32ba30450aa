"""ONNX files of a run, refused unless they agree with the network on real images.

Each file maps ``pixel_values`` (N, 3, H, W), as the one preprocessing gives them, to ``logits`` (N, 2),
``heatmap`` (N, h, w) in 0..1 and ``features`` (N, D), which the input guard judges. The web folder is for
transformers.js: the same networks behind the preprocessing's resize, as one graph from pixels in 0..1.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import onnxruntime
import torch
import typer
from onnxruntime import quantization
from rich.progress import track
from scipy.special import expit
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from hub_model import evidence, hub_folder
from hub_model.refused import Refused
from hub_model.screener import decide

from ..measure.metrics import threshold_free
from ..measure.provenance import parts_of

OPSET = 20
MAX_DIFFERENCE = {"probability": 1e-4, "features": 1e-4, "heatmap": 1e-3}  # fp32 against torch
MAX_AUROC_CHANGE = 0.005  # int8 against torch, on the validation part
MAX_CHANGED = 0.01  # share of validation images whose decision int8 changes, at the worst operating point
MAX_WEB_DIFFERENCE = 0.02  # probability, fp32; one pixel in 1,000 is resized to the next grey level
SMALL_BATCH = 8  # images; a larger one is no faster on a CPU
CALIBRATION_IMAGES = 128  # of the training part
RANKING_IMAGES = 16  # of these, to tell which weights suffer most from int8
WEB_IMAGES = 100
MIN_QUANTIZED = 1 << 14  # elements; smaller weights, as of stems, heads, most depthwise layers, stay in float
KEPT_IN_FLOAT = (1, 2, 4, 8)  # of the weights that suffer most from int8, tried in turn
OUTPUTS = ("logits", "heatmap", "features")
FP32, INT8, REPORT = "onnx/model.onnx", "onnx/model_quantized.onnx", "onnx/export.json"


class ExportRefused(Refused):
    """An export that does not agree with the network, or data that cannot show whether it does."""


def export(
    run: Annotated[Path, typer.Argument(help="hub folder written by fit and evaluate")],
    data: Annotated[
        list[str], typer.Option(help="what fit was given: folder, zip, prepared dataset; may repeat")
    ],
    int8: Annotated[
        bool, typer.Option(help="write int8 files too; refused where they change decisions")
    ] = True,
) -> dict:
    """Write RUN/onnx (fp32, int8) and RUN/web (transformers.js); each file must agree with RUN on DATA.

    Returns:
        The contents of ``onnx/export.json``: for each file its size and its measured differences.

    Raises:
        FolderRefused: RUN is no hub folder.
        WrongData: DATA is not what RUN was trained on, so that its validation part may hold other images.
        ExportRefused: A file disagrees with the network, or the validation part lacks a class.
    """
    folder = hub_folder.open_folder(run)
    parts = parts_of(folder, data)
    labels = np.array(parts["validation"]["label"])
    if len(set(labels.tolist())) < 2:
        raise ExportRefused(
            "The validation part holds one class only: whether int8 changes the AUROC cannot be said. Give "
            "the data that fit was given."
        )
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.path) as temporary:
        report = _write(folder, parts, labels, Path(temporary), int8)
        if not int8:  # those of an earlier export may be of other weights
            for name in (INT8, Path("web") / INT8):
                (folder.path / name).unlink(missing_ok=True)
        for file in sorted(p for p in Path(temporary).rglob("*") if p.is_file()):
            target = folder.path / file.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
    return report


def _write(folder: hub_folder.HubFolder, parts, labels: np.ndarray, target: Path, int8: bool) -> dict:
    """Writes every file below `target` and returns the report; raises at the first that disagrees."""
    (target / FP32).parent.mkdir(parents=True)
    pixels = read_pixels(folder, parts["validation"], "validation images")
    truth = run_torch(folder.model, pixels)
    write_fp32(folder.model, pixels[:2], target / FP32)
    report = {
        "format": hub_folder.FORMAT,
        "weights_sha256": folder.screening["weights_sha256"],
        "images": len(labels),
        "fp32": check_fp32(target / FP32, pixels, truth),
    }
    if int8:
        calibration = read_pixels(folder, parts["train"], "training images", CALIBRATION_IMAGES)
        report["int8"] = write_int8(
            target / FP32,
            target / INT8,
            calibration,
            pixels,
            truth,
            labels,
            folder.screening["operating_points"],
        )
    write_web(target, folder.config["pretrained_cfg"])
    report["web"] = check_web(target, parts["validation"], truth)
    hub_folder.write_json(target / REPORT, report)
    return report


def read_pixels(folder: hub_folder.HubFolder, part, name: str, limit: int | None = None) -> Tensor:
    """Pictures of a part through the one preprocessing, (N, 3, H, W); at most `limit`, evenly spread."""
    rows = range(len(part)) if limit is None else np.unique(np.linspace(0, len(part) - 1, limit, dtype=int))
    images = (part[int(row)]["image"].convert("L") for row in track(rows, f"reading {name}", transient=True))
    return torch.stack(list(map(folder.transform, images)))


def run_torch(model: nn.Module, pixels: Tensor) -> list[np.ndarray]:
    """Logits (N, 2), heat maps (N, h, w) and guard features (N, D), by torch: what every file must give."""
    rows = []
    for batch in track(pixels.split(SMALL_BATCH), "running the network", transient=True):
        with torch.no_grad():
            logits, last, features = evidence.view(model, batch)
            local = evidence.local_evidence(last, evidence.gradient(model, last), evidence.log_odds(logits))
            rows.append([logits.numpy(), torch.sigmoid(local).numpy(), features.numpy()])
    return [np.concatenate(output) for output in zip(*rows, strict=True)]


def run_onnx(file: Path, pixels: Tensor) -> list[np.ndarray]:
    """The same from a file, by ONNX Runtime on the CPU."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    batches = track(pixels.split(SMALL_BATCH), f"running {file.name}", transient=True)
    rows = [session.run(OUTPUTS, {"pixel_values": batch.numpy()}) for batch in batches]
    return [np.concatenate(output) for output in zip(*rows, strict=True)]


def check_fp32(file: Path, pixels: Tensor, truth: list[np.ndarray]) -> dict:
    """Largest differences from torch: of P(COVID), of features relative to their size, of the heat map.

    Raises:
        ExportRefused: One is above its MAX_DIFFERENCE.
    """
    logits, heat, features = run_onnx(file, pixels)
    differences = {
        "probability": np.abs(probability(logits) - probability(truth[0])),
        "features": np.abs(features - truth[2]) / (1 + np.abs(truth[2])),
        "heatmap": np.abs(heat - truth[1]),
    }
    found = {name: float(difference.max()) for name, difference in differences.items()}
    if not all(found[name] <= limit for name, limit in MAX_DIFFERENCE.items()):  # so is NaN refused
        raise ExportRefused(
            f"The ONNX file differs from the network on real images by {_told(found)}; accepted is at most "
            f"{_told(MAX_DIFFERENCE)}. Nothing was written. Please report this with the versions of torch "
            "and onnxruntime."
        )
    return {"file": FP32, "bytes": file.stat().st_size, "largest_difference": found}


def log_odds(logits: np.ndarray) -> np.ndarray:
    """Log-odds of COVID (N,) from logits (N, 2)."""
    return np.diff(logits.astype(np.float64), axis=1)[:, 0]


def probability(logits: np.ndarray) -> np.ndarray:
    """P(COVID) (N,) from logits (N, 2)."""
    return expit(log_odds(logits))


def _told(numbers: dict) -> str:
    return ", ".join(f"{name} {value:.2g}" for name, value in numbers.items())


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
        logits, last, features = evidence.view(self.model, pixel_values)
        last = last.contiguous()
        local = evidence.local_evidence(last, self.slope(last), evidence.log_odds(logits))
        return logits, torch.sigmoid(local), features


def head_gradient(model: nn.Module, pixels: Tensor) -> nn.Module:
    """`evidence.gradient` as a graph of forward operations, feature map (N, C, h, w) -> the same shape."""

    def convolution_backward(grad, _input, weight, _bias, stride, padding, dilation, *rest):
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
        lambda features: evidence.gradient(model, features),
        decomposition_table=operations,
        tracing_mode="symbolic",
        _allow_non_fake_inputs=True,
    )
    return trace(features)


def write_fp32(model: nn.Module, pixels: Tensor, file: Path) -> None:
    """One file, weights inside, any batch size."""
    torch.onnx.export(
        Scored(model, pixels).eval(),
        (pixels,),
        file,
        dynamo=True,
        external_data=False,
        opset_version=OPSET,
        input_names=["pixel_values"],
        output_names=list(OUTPUTS),
        dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
        verbose=False,
    )
    exported = onnx.load(file)
    for node in exported.graph.node:  # the exporter's stack traces name folders of this machine
        node.ClearField("metadata_props")
    onnx.save(exported, file)
    onnx.checker.check_model(file)


def write_int8(
    fp32: Path,
    file: Path,
    calibration: Tensor,
    pixels: Tensor,
    truth: list[np.ndarray],
    labels: np.ndarray,
    points: dict,
) -> dict:
    """The first of `quantized` that keeps AUROC and decisions on the validation images.

    Raises:
        ExportRefused: None does.
    """
    tried, before = {}, probability(truth[0])
    expected = log_odds(run_onnx(fp32, calibration)[0])
    for name in quantized(fp32, file, calibration):
        take_up_shift(file, float(np.mean(expected - log_odds(run_onnx(file, calibration)[0]))))
        _, heat, _ = found = run_onnx(file, pixels)
        after = probability(found[0])
        auroc = [float(threshold_free(labels, p)["auroc"]) for p in (before, after)]
        tried[name] = {
            "auroc_change": auroc[1] - auroc[0],
            "decisions_changed": changed(points, before, after),
            "probability": float(np.abs(after - before).max()),
            "heatmap_mean": float(np.abs(heat - truth[1]).mean()),
        }
        if (
            abs(tried[name]["auroc_change"]) <= MAX_AUROC_CHANGE
            and tried[name]["decisions_changed"] <= MAX_CHANGED
        ):
            size = file.stat().st_size
            return {"file": INT8, "bytes": size, "quantized": name, **tried[name], "tried": tried}
    lines = "; ".join(f"{name}: {_told(found)}" for name, found in tried.items())
    raise ExportRefused(
        f"No int8 file keeps AUROC within {MAX_AUROC_CHANGE} and all but {MAX_CHANGED:.0%} of the decisions "
        f"of {len(labels)} validation images ({lines}). Nothing was written. A larger validation part, or a "
        "network with a calmer head (more regularisation), may help; --no-int8 writes the other files."
    )


def changed(points: dict, before: np.ndarray, after: np.ndarray) -> float:
    """Share of pictures decided otherwise (positive, negative, inconclusive), at the worst operating point.

    The edges of the band in between are themselves probabilities of validation images. A picture that lies
    on an edge, to within the difference accepted of fp32, is decided by rounding in any case and not counted.
    """
    shares = []
    for point in points.values():
        edges = np.array([point["threshold"], *(point.get("abstain") or ())])
        off_edge = np.abs(before[:, None] - edges).min(1) > MAX_DIFFERENCE["probability"]
        decisions = [[decide(p, point)[0] for p in probabilities] for probabilities in (before, after)]
        shares.append(np.mean(off_edge & np.not_equal(*decisions)))
    return float(max(shares))


def quantized(fp32: Path, file: Path, calibration: Tensor) -> Iterator[str]:
    """Writes `file` in one way after another, fastest first and closest last, and says which it was."""
    _static(fp32, file, calibration)
    yield "static"
    _weights_only(fp32, file)
    yield "weights only"
    ranked = _by_sensitivity(fp32, calibration[:: max(1, len(calibration) // RANKING_IMAGES)])
    for kept in KEPT_IN_FLOAT:
        if kept < len(ranked):
            _weights_only(fp32, file, ranked[:kept])
            yield f"weights only, {kept} of {len(ranked)} in float"


def take_up_shift(file: Path, shift: float) -> None:
    """Adds `shift` to the log-odds of a file, ahead of its heat map.

    Rounding weights moves the mean of what a layer gives; over many layers that is most of what int8 does
    to a probability, and the last bias can take it up (Finkelstein et al. 2019, arXiv:1906.03193).
    """
    model = onnx.load(file)
    nodes = model.graph.node
    last = next(index for index, node in enumerate(nodes) if "logits" in node.output)
    nodes[last].output[:] = ["logits_before" if name == "logits" else name for name in nodes[last].output]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32([[0, shift]]), "logits_shift"))
    nodes.insert(last + 1, onnx.helper.make_node("Add", ["logits_before", "logits_shift"], ["logits"]))
    onnx.save(model, file)


def _static(fp32: Path, file: Path, calibration: Tensor) -> None:
    """Weights and activations of the large convolutions and dense layers, ranges seen on training images.

    Weights use 7 bits, so that the integer sums of processors without VNNI cannot overflow.
    """
    graph = onnx.load(fp32).graph
    large = _large_weights(graph)
    quantized_nodes = [
        node.name for node in graph.node if node.op_type in ("Conv", "Gemm") and node.input[1] in large
    ]

    class Batches(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            batches = calibration.split(SMALL_BATCH)
            self.rest = iter(track(batches, "seeing ranges of activations", transient=True))

        def get_next(self) -> dict | None:
            batch = next(self.rest, None)
            return None if batch is None else {"pixel_values": batch.numpy()}

    quantization.quantize_static(
        fp32,
        file,
        Batches(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        nodes_to_quantize=quantized_nodes,
    )
    _share_weights(file)


def _large_weights(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Float matrices and kernels of at least MIN_QUANTIZED elements, by name."""
    return {
        init.name: init
        for init in graph.initializer
        if init.data_type == onnx.TensorProto.FLOAT
        and len(init.dims) > 1
        and np.prod(init.dims) >= MIN_QUANTIZED
    }


def _share_weights(file: Path) -> None:
    """Lets the heat map's gradient read the int8 copy of a weight, instead of a float copy of its own."""
    model = onnx.load(file)
    graph = model.graph
    int8 = {
        node.input[0].removesuffix("_quantized"): node
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0].endswith("_quantized")
    }
    doubled = [init for init in graph.initializer if init.name in int8]
    for init in doubled:
        graph.initializer.remove(init)
        dequantize = int8[init.name]
        graph.node.remove(dequantize)
        graph.node.insert(0, dequantize)
        for node in graph.node:
            node.input[:] = [dequantize.output[0] if name == init.name else name for name in node.input]
    onnx.save(model, file)


def _weights_only(fp32: Path, file: Path, in_float: Iterable[str] = ()) -> None:
    """Weights alone but those named, one scale for each output channel; the arithmetic stays in float."""
    model = onnx.load(fp32)
    for name, init in _large_weights(model.graph).items():
        if name in in_float:
            continue
        int8, scale = _rounded(onnx.numpy_helper.to_array(init))
        names = [f"{name}_quantized", f"{name}_scale"]
        model.graph.initializer.remove(init)
        model.graph.initializer.extend(map(onnx.numpy_helper.from_array, (int8, scale), names))
        model.graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", names, [name], axis=0))
    onnx.save(model, file)


def _rounded(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A weight (O, ...) as int8 of the same shape and its scales (O,)."""
    scale = np.abs(weight).reshape(len(weight), -1).max(1) / 127
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    return np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8), scale


def _by_sensitivity(fp32: Path, pixels: Tensor) -> list[str]:
    """Names of the large weights, first the one whose rounding alone scatters the log-odds most."""
    model = onnx.load(fp32)
    feed = {"pixel_values": pixels.numpy()}

    def answers() -> np.ndarray:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return log_odds(session.run(["logits"], feed)[0])

    expected, scatter = answers(), {}
    for name, init in track(_large_weights(model.graph).items(), "ranking weights", transient=True):
        own = init.raw_data
        int8, scale = _rounded(onnx.numpy_helper.to_array(init))
        init.raw_data = (int8 * scale.reshape(-1, *[1] * (int8.ndim - 1))).astype(np.float32).tobytes()
        scatter[name] = np.std(answers() - expected)
        init.raw_data = own
    return sorted(scatter, key=scatter.get, reverse=True)


def write_web(target: Path, pretrained_cfg: dict) -> None:
    """Beside the files in TARGET/onnx, TARGET/web for transformers.js: each behind a resize of its own.

    JavaScript resizes otherwise than Pillow (canvas smoothing, sharp), which moves probabilities by
    hundredths; so the resize is in the graph and the caller hands over the picture as it is.
    """
    for name in filter(lambda name: (target / name).is_file(), (FP32, INT8)):
        (target / "web" / name).parent.mkdir(parents=True, exist_ok=True)
        onnx.save(with_resize(onnx.load(target / name), pretrained_cfg), target / "web" / name)
    for name, content in WEB_CONFIGS.items():
        hub_folder.write_json(target / "web" / name, content)


def check_web(target: Path, part, truth: list[np.ndarray]) -> dict:
    """Differences of P(COVID) from torch on WEB_IMAGES pictures, handed over as they are.

    Raises:
        ExportRefused: fp32 differs by more than MAX_WEB_DIFFERENCE.
    """
    rows = np.unique(np.linspace(0, len(part) - 1, WEB_IMAGES, dtype=int))
    sessions = {
        name: onnxruntime.InferenceSession(target / "web" / file, providers=["CPUExecutionProvider"])
        for name, file in (("fp32", FP32), ("int8", INT8))
        if (target / "web" / file).is_file()
    }
    logits = {name: [] for name in sessions}
    for row in track(rows, "checking the web folder", transient=True):
        picture = np.asarray(part[int(row)]["image"].convert("RGB"), np.float32)
        feed = {"pixel_values": picture.transpose(2, 0, 1)[None] / 255}
        for name, session in sessions.items():
            logits[name].append(session.run(["logits"], feed)[0])
    report = {"folder": "web", "images": len(rows)}
    for name, found in logits.items():
        difference = np.abs(probability(np.concatenate(found)) - probability(truth[0][rows]))
        report[name] = {"largest": float(difference.max()), "mean": float(difference.mean())}
    if not report["fp32"]["largest"] <= MAX_WEB_DIFFERENCE:
        raise ExportRefused(
            f"With the resize in the graph the probabilities differ by {_told(report['fp32'])}; at most "
            f"{MAX_WEB_DIFFERENCE:g} is accepted. Nothing was written."
        )
    return report


def with_resize(model: onnx.ModelProto, pretrained_cfg: dict) -> onnx.ModelProto:
    """The network behind the one preprocessing: takes (1, 3, height, width) of any size, 0..1.

    As Pillow does it: antialiased bicubic with a = -0.5, weights normalised at the border, first along rows,
    then along columns, and clipped and rounded to bytes after each.
    """
    height, width = pretrained_cfg["input_size"][1:]
    constants = {
        "web_zero": 0.0,
        "web_half": 0.5,
        "web_one": 1.0,
        "web_bytes": 255.0,
        "web_height": [height],
        "web_width": [width],
    }
    constants |= {f"web_{key}": np.reshape(pretrained_cfg[key], (1, 3, 1, 1)) for key in ("mean", "std")}
    nodes, last = [], "pixel_values"
    for axis, size in ((3, "web_width"), (2, "web_height")):
        steps = [
            ("Resize", ["", "", size], dict(PILLOW, axes=[axis])),
            ("Clip", ["web_zero", "web_one"], {}),
            ("Mul", ["web_bytes"], {}),
            ("Add", ["web_half"], {}),  # Pillow rounds halves up; ONNX' Round would take them to even
            ("Floor", [], {}),
            ("Div", ["web_bytes"], {}),
        ]
        if axis == 2:
            steps += [("Sub", ["web_mean"], {}), ("Div", ["web_std"], {})]
        for kind, inputs, attributes in steps:
            nodes.append(onnx.helper.make_node(kind, [last, *inputs], [f"web_{len(nodes)}"], **attributes))
            last = nodes[-1].output[0]
    for node in model.graph.node:
        node.input[:] = [last if name == "pixel_values" else name for name in node.input]
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    for name, value in constants.items():
        kind = np.int64 if isinstance(value, list) else np.float32
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, kind), name))
    for dimension, name in zip(
        model.graph.input[0].type.tensor_type.shape.dim[2:], ("height", "width"), strict=True
    ):
        dimension.dim_param = name
    return model


PILLOW = {
    "mode": "cubic",
    "cubic_coeff_a": -0.5,
    "antialias": 1,
    "exclude_outside": 1,
    "coordinate_transformation_mode": "half_pixel",
}
WEB_CONFIGS = {
    "config.json": {
        # transformers.js runs any graph from pixel_values to logits under a model type it knows
        "model_type": "resnet",
        "architectures": ["ResNetForImageClassification"],
        "id2label": dict(enumerate(hub_folder.LABELS)),
        "label2id": {label: index for index, label in enumerate(hub_folder.LABELS)},
    },
    "preprocessor_config.json": {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": False,
    },
}
