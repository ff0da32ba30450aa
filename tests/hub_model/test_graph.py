"""The ONNX graph: the same answers as torch, over the weights file alone, and refused when it asks for more."""

import hashlib
import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hub_model import FolderRefused, Screener, hub_folder, layout
from hub_model import graph as graph_writing
from hub_model.graph_check import check_graph
from tests.made_run import make_run

NAMES = sorted(hub_folder.embedded())


@pytest.fixture(scope="module", params=NAMES)
def folder(request) -> hub_folder.HubFolder:
    return hub_folder.open_folder(hub_folder.embedded()[request.param])


@pytest.fixture
def graph(folder) -> onnx.ModelProto:
    return onnx.load_model_from_string(folder.graph())


def test_the_embedded_graphs_hold_no_weights_and_no_paths(folder, graph):
    onnx.checker.check_model(folder.path / "model.onnx")
    inside = sum(len(tensor.raw_data) for tensor in graph.graph.initializer)
    assert inside < 10_000
    external = [tensor for tensor in graph.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    weights = folder.weights()
    assert {tensor.name.removesuffix(":half") for tensor in external} <= set(weights.header)
    assert not any(node.metadata_props or node.doc_string for node in graph.graph.node)
    assert b"site-packages" not in folder.graph() and b"/home" not in folder.graph()


@pytest.mark.parametrize("name", ["model.onnx", "lungs.onnx"])
def test_nothing_keeps_norms_from_being_joined_with_convolutions(folder, name):
    """ONNX Runtime computes no CastLike ahead, and a convolution whose bias comes from one takes twice as long."""
    nodes = onnx.load(folder.path / name, load_external_data=False).graph.node
    assert {"Conv", "Cast"} <= {node.op_type for node in nodes}
    assert "CastLike" not in {node.op_type for node in nodes}


def test_norms_stay_apart_where_joining_them_would_change_answers(monkeypatch, tmp_path):
    """An untrained EfficientNet-B0 is such a network on some seeds; here the first check is told to fail."""
    run = hub_folder.open_folder(make_run(tmp_path / "run", "ct"))
    weights, tried = layout.read_tensors(run.path / hub_folder.WEIGHTS), []
    check = graph_writing.check_answers

    def fails_first(*given):
        tried.append(check(*given))
        if len(tried) == 1:
            raise FolderRefused("other answers")

    monkeypatch.setattr(graph_writing, "check_answers", fails_first)
    slower = onnx.load_from_string(graph_writing.write_graph(run.config, weights))
    usual = onnx.load(run.path / hub_folder.GRAPH, load_external_data=False)
    assert "CastLike" in {node.op_type for node in slower.graph.node}
    assert "CastLike" not in {node.op_type for node in usual.graph.node}
    assert len(tried) == 2


def test_screening_json_vouches_for_graph_and_guard(folder):
    for key, name in (("graph_sha256", "model.onnx"), ("guard_sha256", "guard.safetensors")):
        assert folder.screening[key] == hashlib.sha256((folder.path / name).read_bytes()).hexdigest()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_decisions_as_torch_on_real_pictures(shared_data, name):
    ours, truth = (Screener.from_pretrained(name, backend=backend) for backend in ("onnx", "torch"))
    files = [file for file in sorted((shared_data / ours.modality).rglob("*")) if file.is_file()]
    chosen = [files[int(index)] for index in np.linspace(0, len(files) - 1, 6)]
    compared = 0
    for file, one, other in zip(
        chosen, ours.screen_many(chosen, heat_map=True), truth.screen_many(chosen, heat_map=True), strict=True
    ):
        assert (one.decision, one.codes) == (other.decision, other.codes), file
        if one.probability is not None:
            assert one.probability == pytest.approx(other.probability, abs=1e-5)
            np.testing.assert_allclose(one.heat_map, other.heat_map, atol=1e-3)
            compared += 1
        if one.out_of_distribution is not None:
            assert one.out_of_distribution == pytest.approx(other.out_of_distribution, rel=1e-3)
    assert compared


def external(graph):
    return next(tensor for tensor in graph.graph.initializer if tensor.data_location == TensorProto.EXTERNAL)


def told(tensor, **changes):
    for entry in tensor.external_data:
        if entry.key in changes:
            entry.value = str(changes[entry.key])


def another_file(graph):
    told(external(graph), location="../../../../etc/passwd")


def a_second_place(graph):
    external(graph).external_data.add(key="location", value="/etc/passwd")


def beyond_the_file(graph):
    told(external(graph), offset=10**12)


def the_header(graph):
    told(external(graph), offset=8)


def another_length(graph):
    told(external(graph), length=2)


def no_number(graph):
    told(external(graph), offset="٣")


def another_shape(graph):
    external(graph).dims[0] += 1


def an_attribute_that_reads(graph):
    tensor = TensorProto(name="x", dims=[1], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="model.safetensors")
    graph.graph.node.append(helper.make_node("Constant", [], ["x"], value=tensor))


def another_domain(graph):
    graph.graph.node[0].domain = "com.microsoft"


def operators_of_others(graph):
    graph.opset_import.add(domain="evil", version=1)


def functions(graph):
    graph.functions.add(name="f", domain="")


def a_loop(graph):
    body = helper.make_graph([], "body", [], [])
    graph.graph.node.append(helper.make_node("Loop", ["", ""], [], body=body))


def sparse(graph):
    graph.graph.sparse_initializer.add()


BAD = {
    another_file: "wants its values from '../../../../etc/passwd'",
    a_second_place: "says twice",
    beyond_the_file: "do not belong together",
    the_header: "do not belong together",
    another_length: "do not belong together",
    no_number: "do not belong together",
    another_shape: "do not belong together",
    an_attribute_that_reads: "with offset and length",
    another_domain: "domain 'com.microsoft'",
    operators_of_others: "domain 'evil'",
    functions: "functions",
    a_loop: "inner graph",
    sparse: "sparse",
}


@pytest.mark.parametrize("damage", BAD, ids=lambda damage: damage.__name__)
def test_a_graph_that_asks_for_more_is_refused(folder, graph, damage):
    damage(graph)
    with pytest.raises(FolderRefused, match=BAD[damage]):
        check_graph(graph.SerializeToString(), folder.weights())


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 50, b"\x3a\xff\xff\xff\xff\x0f", b"\x0b\x0c", b"no graph at all"]
)
def test_what_is_no_graph_is_refused(folder, content):
    with pytest.raises(FolderRefused, match="is not accepted"):
        check_graph(content, folder.weights())


def test_every_cut_of_a_graph_is_refused_or_harmless(folder):
    """No damage makes the check itself fail."""
    whole, weights = folder.graph(), folder.weights()
    rng = np.random.default_rng(0)
    for cut in rng.integers(0, len(whole), 20):
        damaged = bytearray(whole[:cut] if cut % 2 else whole)
        if damaged:
            damaged[int(cut) % len(damaged)] ^= 1 << (int(cut) % 8)
        try:
            check_graph(bytes(damaged), weights)
        except FolderRefused:
            continue


def test_graph_and_weights_of_two_models_do_not_go_together(tmp_path):
    ours, other = (hub_folder.embedded()[name] for name in hub_folder.MODALITIES)
    folder = shutil.copytree(ours, tmp_path / "mixed")
    shutil.copy(other / "model.onnx", folder / "model.onnx")
    with pytest.raises(FolderRefused, match=r"not the graph that screening\.json was written with"):
        Screener.from_pretrained(folder)
    screening = json.loads((folder / "screening.json").read_text())
    screening["graph_sha256"] = hashlib.sha256((other / "model.onnx").read_bytes()).hexdigest()
    (folder / "screening.json").write_text(json.dumps(screening))
    with pytest.raises(FolderRefused, match="do not belong together"):
        Screener.from_pretrained(folder)
