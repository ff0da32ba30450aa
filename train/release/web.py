"""A run for transformers.js: one ONNX file that holds its weights and takes a picture of any size.

JavaScript resizes otherwise than Pillow (canvas smoothing, sharp), which moves probabilities by hundredths; so the
resize is in the graph and the caller hands over the picture as it is. transformers.js does not read weights from a
safetensors file, which is why this one file repeats those of ``model.safetensors``, in the precision they have there.

There are no int8 files. With int8 weights alone, two ResNet-50 v2 cut short (X-ray, CT; 40 pictures each) took as long
as with the half precision they come in (66 against 51 ms of CPU, 143 against 145), were half as large (3.2 and 6.6 MB),
moved P(COVID) by up to 0.13 and 0.03, and changed 7.5 % and 2.5 % of the decisions; with int8 arithmetic they took half
the time and changed 17.5 % and 2.5 %.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import onnx
import torch
import typer
from rich.progress import track
from scipy.special import expit

from hub_model import hub_folder
from hub_model.backends import runtime
from hub_model.refused import Failed
from hub_model.whole import whole_folder

from ..measure.provenance import parts_of

if TYPE_CHECKING:
    from datasets import Dataset

FOLDER, GRAPH, REPORT = "web", "onnx/model.onnx", "export.json"
MAX_DIFFERENCE = 0.02
"""Of P(COVID) from torch, at most; one pixel in 1,000 is resized to the next grey level."""
IMAGES = 100


def export(
    run: Annotated[Path, typer.Argument(help="hub folder written by fit and evaluate")],
    data: Annotated[
        list[str], typer.Option(help="what fit was given: folder, zip, prepared dataset; may repeat")
    ],
) -> dict[str, Any]:
    """Write RUN/web for transformers.js; it must agree with RUN on validation pictures of DATA.

    Returns:
        The contents of ``web/export.json``: the file's size and its measured differences.

    Raises:
        FolderRefused: RUN is no hub folder.
        Refused: DATA is not what RUN was trained on, so that its validation split may hold other images.
        Failed: the file disagrees with the network; then RUN/web stays as it was.
        OSError: the folder cannot be written.
    """
    folder = hub_folder.open_folder(run)
    validation = parts_of(folder, data)["validation"]
    with whole_folder(folder.path / FOLDER) as new:
        write_web(folder, new)
        report = {
            "format": hub_folder.FORMAT,
            "weights_sha256": folder.screening["weights_sha256"],
            "bytes": (new / GRAPH).stat().st_size,
            **check_web(folder, new, validation),
        }
        hub_folder.write_json(new / REPORT, report)
    return report


def write_web(folder: hub_folder.HubFolder, web: Path) -> None:
    """Write the files that transformers.js reads into the folder ``web``."""
    (web / GRAPH).parent.mkdir(parents=True, exist_ok=True)
    model = with_resize(with_weights(folder), folder.config["pretrained_cfg"])
    onnx.save(model, web / GRAPH)
    onnx.checker.check_model(web / GRAPH)
    for name, content in CONFIGS.items():
        hub_folder.write_json(web / name, content)


def with_weights(folder: hub_folder.HubFolder) -> onnx.ModelProto:
    """Read the graph of a hub folder with the tensors inside that it refers to in ``model.safetensors``."""
    model, content = onnx.load_from_string(folder.graph()), folder.weights().content
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        told = {entry.key: entry.value for entry in tensor.external_data}
        begin = int(told["offset"])
        tensor.raw_data = content[begin : begin + int(told["length"])]
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    return model


def check_web(folder: hub_folder.HubFolder, web: Path, validation: "Dataset") -> dict[str, Any]:
    """Measure differences of P(COVID) from torch on at most `IMAGES` pictures, handed over as they are.

    Raises:
        Failed: one is above `MAX_DIFFERENCE`.
    """
    rows = np.unique(np.linspace(0, len(validation) - 1, IMAGES, dtype=int))
    onnxruntime = runtime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of constants that it could not fold ahead
    session = onnxruntime.InferenceSession(web / GRAPH, options, providers=["CPUExecutionProvider"])
    differences = []
    for row in track(rows, "checking the web folder", transient=True):
        image = validation[int(row)]["image"].convert("L")
        pixels = np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1)[None] / 255
        with torch.inference_mode():
            expected = folder.model(hub_folder.transform_of(folder.config)(image)[None]).numpy()
        found = session.run(["logits"], {"pixel_values": pixels})[0]
        differences.append(abs(probability(found)[0] - probability(expected)[0]))
    largest = float(np.max(differences))
    if not largest <= MAX_DIFFERENCE:  # so is NaN refused
        raise Failed(
            f"With the resize in the graph the probabilities differ from the network's by {largest:.2g} on real "
            f"pictures; at most {MAX_DIFFERENCE:g} is accepted. Nothing was written. Please report this with the "
            "versions of torch and onnxruntime."
        )
    return {"images": len(rows), "largest": largest, "mean": float(np.mean(differences))}


def probability(logits: np.ndarray) -> np.ndarray:
    """Compute P(COVID) (N,) from logits (N, 2)."""
    return expit(np.diff(logits.astype(np.float64), axis=1)[:, 0])


def with_resize(model: onnx.ModelProto, pretrained_cfg: dict[str, Any]) -> onnx.ModelProto:
    """Put the one preprocessing before the network: it then takes (1, 3, height, width) of any size, in 0..1.

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
CONFIGS = {
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
