"""The folder for transformers.js: what the network answers, or nothing is written."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from PIL import Image, ImageOps

from hub_model import hub_folder
from hub_model.backends import runtime
from hub_model.refused import Failed
from tests.loaders import node_is_ready, transformers_js
from tests.made_run import pictures
from train.release import web


class Split(list):
    """As much of a `datasets.Dataset` as the export reads: rows, and columns by name."""

    def __getitem__(self, key):
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


def split(number, seed):
    """Drawn chests; those of the second class inverted, so that a network can tell."""
    drawn = enumerate(pictures(number, seed))
    return Split({"image": ImageOps.invert(p) if i % 2 else p, "label": i % 2} for i, p in drawn)


@pytest.fixture(scope="module", params=["single", "half"])
def finished(request, tmp_path_factory):
    """A run whose network learnt for a moment to tell the two classes of `split`; its weights in either precision."""
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv2_035", num_classes=2)
    cfg = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.25] * 3}
    transform = hub_folder.transform_of(hub_folder.make_config("mobilenetv2_035", {}, cfg, 1))
    rows = split(32, 3)
    pixels, labels = torch.stack([transform(row["image"]) for row in rows]), torch.tensor(rows["label"])
    learning = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(25):
        learning.zero_grad()
        torch.nn.functional.cross_entropy(model(pixels), labels).backward()
        learning.step()
    return hub_folder.save(
        tmp_path_factory.mktemp("made") / "run",
        model.eval(),
        architecture="mobilenetv2_035",
        model_args={},
        pretrained_cfg=cfg,
        screening={"modality": "ct", "operating_points": {"balanced": {"threshold": 0.5}}},
        half=request.param == "half",
    )


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """A finished run to export, and drawn pictures as its data."""
    monkeypatch.setattr(web, "parts_of", lambda *_: {"validation": split(16, 2)})
    return Path(shutil.copytree(finished, tmp_path / "run"))


def files(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_a_run_is_exported_whole(run):
    before = files(run)
    (run / "web").mkdir()
    (run / "web" / "of_an_earlier_version.onnx").write_bytes(b"")
    report = web.export(run, ["data"])
    names = ("config.json", "preprocessor_config.json", web.GRAPH, web.REPORT)
    assert files(run) == sorted([*before, *(f"web/{name}" for name in names)])
    assert json.loads((run / "web" / web.REPORT).read_text()) == report
    assert report["weights_sha256"] == hub_folder.open_folder(run).screening["weights_sha256"]
    assert report["images"] == 16 and report["mean"] <= report["largest"] <= 1e-3


def test_the_one_file_holds_its_weights_once_and_as_precise_as_they_come(run, tmp_path):
    web.export(run, ["data"])
    alone = shutil.copy(run / "web" / web.GRAPH, tmp_path / "alone.onnx")
    session = runtime().InferenceSession(alone, providers=["CPUExecutionProvider"])
    assert {output.name for output in session.get_outputs()} >= {"logits"}
    size = (run / hub_folder.WEIGHTS).stat().st_size + (run / hub_folder.GRAPH).stat().st_size
    assert Path(alone).stat().st_size < 1.05 * size


def test_a_file_that_disagrees_is_not_written(run, monkeypatch):
    before, true = files(run), web.with_weights

    def off_by_a_little(folder):
        model = true(folder)
        last = next(node for node in model.graph.node if "logits" in node.output)
        last.output[:] = ["true_logits" if name == "logits" else name for name in last.output]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32([[0, 0.5]]), "shift"))
        place = list(model.graph.node).index(last) + 1
        model.graph.node.insert(place, onnx.helper.make_node("Add", ["true_logits", "shift"], ["logits"]))
        return model

    monkeypatch.setattr(web, "with_weights", off_by_a_little)
    with pytest.raises(Failed, match=r"differ from the network's by 0\.\d+ on real pictures"):
        web.export(run, ["data"])
    assert files(run) == before


def test_the_run_is_a_folder_and_not_a_name_of_an_embedded_model(tmp_path, monkeypatch):
    """`export ct` beside a folder ./ct writes there."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(hub_folder.FolderRefused, match="no folder ct"):
        web.export(Path("ct"), ["data"])


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
    graph = web.with_resize(identity, cfg).SerializeToString()
    session = runtime().InferenceSession(graph, providers=["CPUExecutionProvider"])
    pixels = np.asarray(picture.convert("RGB"), np.float32).transpose(2, 0, 1)[None] / 255
    resized = session.run(None, {"pixel_values": pixels})[0][0]
    levels = np.abs(resized - expected) * 0.25 * 255
    assert levels.max() < 1.01
    assert (levels > 0.01).mean() < 0.02


def test_transformers_js_in_node(run, tmp_path):
    if not node_is_ready():
        pytest.skip("needs Node and `npm install --prefix tests/node --ignore-scripts`")
    web.export(run, ["data"])
    folder = hub_folder.open_folder(run)
    shown = list(pictures(4, 5))
    paths = [tmp_path / f"{index}.png" for index in range(4)]
    for picture, path in zip(shown, paths, strict=True):
        picture.save(path)
    scores = transformers_js(run / "web", "fp32", paths)
    with torch.no_grad():
        logits = folder.model(torch.stack([folder.transform(picture) for picture in shown]))
    assert scores == pytest.approx(logits.softmax(1)[:, 1].tolist(), abs=1e-3)
