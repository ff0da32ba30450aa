"""ONNX files: what the network answers, or nothing is written."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from PIL import Image, ImageOps

from hub_model import covid_cnn, hub_folder  # noqa: F401 - registers the family
from tests.loaders import node_is_ready, transformers_js
from tests.made_run import pictures
from train.release import export
from train.release.export import ExportRefused

# a head that pools and is linear, one that pools and is not, one with a norm after pooling, one that flattens
HEADS = {"resnet10t": 64, "mobilenetv3_small_050": 64, "convnext_atto": 64, "covid_cnn_3": 224}


class Part(list):
    """As much of a `datasets.Dataset` as the export reads: rows, and columns by name."""

    def __getitem__(self, key):
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


def part(number, seed):
    """Drawn chests; those of the second class inverted, so that a network can tell."""
    drawn = enumerate(pictures(number, seed))
    return Part({"image": ImageOps.invert(p) if i % 2 else p, "label": i % 2} for i, p in drawn)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose network learnt for a moment to tell the two classes of `part`."""
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv2_035", num_classes=2)
    cfg = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.25] * 3}
    transform = hub_folder.transform_of(hub_folder.make_config("mobilenetv2_035", {}, cfg, 1))
    rows = part(32, 3)
    pixels, labels = torch.stack([transform(row["image"]) for row in rows]), torch.tensor(rows["label"])
    learning = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(25):
        learning.zero_grad()
        torch.nn.functional.cross_entropy(model(pixels), labels).backward()
        learning.step()
    with torch.no_grad():
        hub_folder.fold_temperature(model, float(model.eval()(pixels).diff().std()) / 3)
    return hub_folder.save(
        tmp_path_factory.mktemp("made") / "run",
        model,
        architecture="mobilenetv2_035",
        model_args={},
        pretrained_cfg=cfg,
        screening={"modality": "ct", "operating_points": {"balanced": {"threshold": 0.5}}},
    )


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """A finished run to export, and drawn pictures as its data."""
    parts = {"train": part(12, 1), "validation": part(16, 2)}
    monkeypatch.setattr(export, "parts_of", lambda *_: parts)
    return Path(shutil.copytree(finished, tmp_path / "run"))


def files(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


@pytest.fixture(scope="module", params=HEADS)
def file(request, tmp_path_factory):
    torch.manual_seed(0)
    model = timm.create_model(request.param, num_classes=2).eval()
    with torch.no_grad():
        model.get_classifier().weight.mul_(5)
    pixels = torch.rand(5, 3, *[HEADS[request.param]] * 2)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export.write_fp32(model, pixels[:2], path)
    return SimpleNamespace(path=path, model=model, pixels=pixels, name=request.param)


def test_every_kind_of_head_is_exported_with_its_heat_map(file):
    truth = export.run_torch(file.model, file.pixels)
    export.check_fp32(file.path, file.pixels, truth)
    assert truth[1].std() > 1e-3


def test_any_batch_and_one_file(file):
    session = onnxruntime.InferenceSession(file.path, providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["pixel_values"]
    assert [entry.name for entry in session.get_outputs()] == ["logits", "heatmap", "features"]
    together = session.run(None, {"pixel_values": file.pixels.numpy()})
    alone = [session.run(None, {"pixel_values": one[None].numpy()}) for one in file.pixels]
    for index, output in enumerate(together):
        np.testing.assert_allclose(
            np.concatenate([row[index] for row in alone]), output, atol=1e-4, rtol=1e-4
        )
    assert files(file.path.parent) == ["model.onnx"]


QUANTIZERS = {
    "static": export._static,
    "weights only": lambda fp32, file, _: export._weights_only(fp32, file),
}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_quantized_files_are_small_and_still_answer(file, name, tmp_path):
    """A weight that the heat map's gradient reads too is stored once."""
    small = tmp_path / "small.onnx"
    QUANTIZERS[name](file.path, small, file.pixels)
    onnx.checker.check_model(small)
    bytes_of_large = 4 * sum(
        np.prod(w.dims) for w in export._large_weights(onnx.load(file.path).graph).values()
    )
    assert small.stat().st_size < file.path.stat().st_size - 0.65 * bytes_of_large
    weights = onnx.load(small).graph.initializer
    large = [w.name for w in weights if w.data_type == onnx.TensorProto.FLOAT and np.prod(w.dims) > 20_000]
    assert not large
    truth, found = export.run_torch(file.model, file.pixels), export.run_onnx(small, file.pixels)
    assert [output.shape for output in found] == [output.shape for output in truth]
    assert np.abs(export.probability(found[0]) - export.probability(truth[0])).max() < 0.2


def test_a_run_is_exported_whole(run):
    before = files(run)
    report = export.export(run, ["data"])
    web = [f"web/{name}" for name in ("config.json", "preprocessor_config.json", export.FP32, export.INT8)]
    assert files(run) == sorted([*before, export.FP32, export.INT8, export.REPORT, *web])
    assert json.loads((run / export.REPORT).read_text()) == report
    assert report["weights_sha256"] == hub_folder.load(run).screening["weights_sha256"]
    assert report["fp32"]["largest_difference"]["probability"] <= 1e-4
    assert abs(report["int8"]["auroc_change"]) <= 0.005
    assert report["int8"]["decisions_changed"] <= 0.01
    assert report["int8"]["bytes"] == (run / export.INT8).stat().st_size < 0.6 * report["fp32"]["bytes"]
    assert report["web"]["fp32"]["largest"] <= 1e-3


def test_a_file_that_disagrees_is_not_written(run, monkeypatch):
    before, true = files(run), export.run_torch

    def off_by_a_little(model, pixels):
        logits, heat, features = true(model, pixels)
        return [logits + np.array([0, 0.002]), heat, features]

    monkeypatch.setattr(export, "run_torch", off_by_a_little)
    with pytest.raises(ExportRefused, match=r"differs from the network .* probability 0.000\d+"):
        export.export(run, ["data"])
    assert files(run) == before


def test_int8_that_changes_decisions_is_not_written(run, monkeypatch):
    before = files(run)
    monkeypatch.setattr(export, "changed", lambda *_: 0.02)
    with pytest.raises(
        ExportRefused, match=r"all but 1% of the decisions of 16 validation images .*weights only"
    ):
        export.export(run, ["data"])
    assert files(run) == before


def test_without_int8_the_other_files_are_written_and_old_ones_go(run, monkeypatch):
    before = files(run)
    for name in (export.INT8, f"web/{export.INT8}"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(b"of other weights")
    monkeypatch.setattr(export, "changed", lambda *_: 0.02)
    report = export.export(run, ["data"], int8=False)
    web = [f"web/{name}" for name in ("config.json", "preprocessor_config.json", export.FP32)]
    assert files(run) == sorted([*before, export.FP32, export.REPORT, *web])
    assert "int8" not in report and report["web"].keys() == {"folder", "images", "fp32"}


def test_one_class_cannot_show_an_auroc(run, monkeypatch):
    parts = {"train": part(4, 1), "validation": Part(row for row in part(8, 2) if row["label"])}
    monkeypatch.setattr(export, "parts_of", lambda *_: parts)
    with pytest.raises(ExportRefused, match="one class only"):
        export.export(run, ["data"])


def test_decisions_are_counted_at_the_worst_operating_point():
    before, after = np.array([0.1, 0.35, 0.6, 0.9]), np.array([0.1, 0.45, 0.6, 0.8])
    points = {"calm": {"threshold": 0.5}, "strict": {"threshold": 0.4, "abstain": [0.3, 0.4]}}
    assert export.changed({"calm": points["calm"]}, before, after) == 0
    assert export.changed(points, before, after) == 0.25
    points["strict"]["threshold"] = 0.85
    points["strict"]["abstain"] = None
    assert export.changed(points, before, after) == 0.25


def test_a_picture_on_an_edge_is_decided_by_rounding_and_not_counted():
    """The band's edges are themselves probabilities of validation pictures."""
    points = {"calm": {"threshold": 0.5, "abstain": [0.4, 0.6]}}
    on_edge, after = np.array([0.4, 0.2, 0.9, 0.7]), np.array([0.3999, 0.2, 0.9, 0.7])
    assert export.changed(points, on_edge, after) == 0
    assert export.changed(points, on_edge + np.array([0.01, 0, 0, 0]), after) == 0.25


def test_what_int8_shifts_is_taken_up_by_the_logits(file, tmp_path):
    """The heat map, whose mean is the log-odds, moves along."""
    moved = shutil.copy(file.path, tmp_path / "moved.onnx")
    export.take_up_shift(moved, 0.25)
    onnx.checker.check_model(moved)
    before, after = export.run_onnx(file.path, file.pixels), export.run_onnx(moved, file.pixels)
    np.testing.assert_allclose(export.log_odds(after[0]) - export.log_odds(before[0]), 0.25, atol=1e-4)
    odds = [np.log(heat.astype(float) / (1 - heat)).mean((1, 2)) for heat in (before[1], after[1])]
    np.testing.assert_allclose(odds[1] - odds[0], 0.25, atol=5e-3)


def test_the_weights_that_suffer_most_stay_in_float(file, tmp_path):
    """The ranking imitates int8; here the first and the last of it are rounded alone, in earnest."""
    large = export._large_weights(onnx.load(file.path).graph)
    ranked, small = export._by_sensitivity(file.path, file.pixels), tmp_path / "small.onnx"
    assert sorted(ranked) == sorted(large)
    expected = export.log_odds(export.run_onnx(file.path, file.pixels)[0])
    scatter = []
    for name in (ranked[0], ranked[-1]):
        others = [other for other in ranked if other != name]
        export._weights_only(file.path, small, others)
        assert sorted(export._large_weights(onnx.load(small).graph)) == sorted(others)
        scatter.append(np.std(export.log_odds(export.run_onnx(small, file.pixels)[0]) - expected))
    assert scatter[0] > scatter[1]


@pytest.mark.parametrize("size", [(300, 260), (150, 97), (64, 64), (96, 700), (1000, 40)])
def test_the_web_graph_resizes_as_pillow_does(size):
    """To the byte, but for one level where ONNX Runtime's sums round otherwise."""
    identity = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> agraph (float[batch,3,96,96] pixel_values) => '
        "(float[batch,3,96,96] logits) { logits = Identity(pixel_values) }"
    )
    cfg = {"input_size": [3, 96, 96], "mean": [0.5] * 3, "std": [0.25] * 3}
    blocks = np.random.default_rng(1).integers(0, 256, (size[1] // 7 + 1, size[0] // 7 + 1), dtype=np.uint8)
    picture = Image.fromarray(blocks.repeat(7, 0).repeat(7, 1)[: size[1], : size[0]])
    expected = hub_folder.transform_of(hub_folder.make_config("resnet18", {}, cfg, 1))(picture).numpy()
    graph = export.with_resize(identity, cfg).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    pixels = np.asarray(picture.convert("RGB"), np.float32).transpose(2, 0, 1)[None] / 255
    resized = session.run(None, {"pixel_values": pixels})[0][0]
    levels = np.abs(resized - expected) * 0.25 * 255
    assert levels.max() < 1.01
    assert (levels > 0.01).mean() < 0.02


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-3), ("q8", 0.05)])
def test_transformers_js_in_node(run, tmp_path, dtype, tolerance):
    if not node_is_ready():
        pytest.skip("needs Node and `npm install --prefix tests/node --ignore-scripts`")
    export.export(run, ["data"])
    folder = hub_folder.load(run)
    shown = list(pictures(4, 5))
    paths = [tmp_path / f"{index}.png" for index in range(4)]
    for picture, path in zip(shown, paths, strict=True):
        picture.save(path)
    scores = transformers_js(run / "web", dtype, paths)
    with torch.no_grad():
        logits = folder.model(torch.stack([folder.transform(picture) for picture in shown]))
    assert scores == pytest.approx(logits.softmax(1)[:, 1].tolist(), abs=tolerance)
