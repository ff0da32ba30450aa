"""The door: findings on pictures, decisions at operating points, refusals, and the command."""

import csv
import io
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from hub_model import AutoScreener, BackendRefused, Finding, FolderRefused, Frame, Screener, hub_folder, lungs
from hub_model.backends import View, _single_precision
from hub_model.evidence import view
from hub_model.guard import BLANK_DEVIATION, Guard, Statistics, is_blank
from hub_model.lung_net import LungNet
from hub_model.refused import Reason
from hub_model.screener import WORKERS, chosen, decide
from tests import made_run
from tests.bad_folders import ARCHITECTURE, CFG

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "demo" / "examples"
POINTS = {
    "sensitivity": {"threshold": 0.3, "target": "t", "abstain": [0.29, 0.31]},
    "specificity": {"threshold": 0.9, "target": "t"},
}


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (80, 90), dtype=np.uint8).astype(np.uint8)) for _ in range(12)
    ]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, pictures):
    """A folder with a guard fitted on noise pictures."""
    torch.manual_seed(0)
    model = timm.create_model(ARCHITECTURE, num_classes=2).eval()
    transform = hub_folder.transform_of(hub_folder.make_config(ARCHITECTURE, {}, CFG, 1))
    with torch.inference_mode():
        features = view(model, torch.stack([transform(p) for p in pictures]))[2]
    z = (features - features.mean(0)) / features.std(0).clamp_min(1e-4)
    _, singular, basis = torch.linalg.svd(z, full_matrices=False)
    tensors = {
        "mean": features.mean(0),
        "scale": features.std(0).clamp_min(1e-4),
        "basis": basis[:4],
        "deviation": singular[:4] / len(z) ** 0.5,
        "foreign": torch.zeros(len(features[0])),
        "bias": torch.tensor(-4.0),
    }
    screening = {
        "modality": "xray",
        "operating_points": POINTS,
        "guard": {"limits": {"distance": 1.5, "residual": 1.5, "foreign": 0.5}},
    }
    path = tmp_path_factory.mktemp("hub") / "guarded"
    return hub_folder.save(path, model, architecture=ARCHITECTURE, model_args={}, pretrained_cfg=CFG,
                           screening=screening, guard=tensors)  # fmt: skip


@pytest.fixture(scope="module")
def screener(guarded):
    return Screener.from_pretrained(guarded)


def test_probability_is_the_networks(screener, pictures):
    finding = screener.screen(pictures[0])
    with torch.inference_mode():
        expected = screener.model(torch.from_numpy(screener.preprocess(pictures[0]))[None]).softmax(1)[0, 1]
    assert finding.probability == pytest.approx(float(expected), abs=1e-5)
    assert (finding.operating_point, finding.threshold, finding.modality) == ("sensitivity", 0.3, "xray")
    assert finding.heat_map is None and finding.image.mode == "L"


def test_heat_map_on_request(screener, pictures):
    shown = screener.screen(pictures[0], heat_map=True).heat_map
    assert shown.dtype == np.float32 and shown.ndim == 2 and 0 <= shown.min() <= shown.max() <= 1


def test_every_kind_of_source_gives_the_same(screener, pictures, tmp_path):
    file = tmp_path / "p.png"
    pictures[0].save(file)
    sources = [
        pictures[0],
        file,
        str(file),
        file.read_bytes(),
        io.BytesIO(file.read_bytes()),
        np.asarray(pictures[0]),
    ]
    assert len({screener.screen(source).probability for source in sources}) == 1


@pytest.mark.parametrize(
    ("probability", "decision"),
    [
        (0.28, "negative"),
        (0.29, "inconclusive"),
        (0.30, "inconclusive"),
        (0.31, "positive"),
        (0.95, "positive"),
    ],
)
def test_decision_and_abstain_band(probability, decision):
    found, reasons = decide(probability, POINTS["sensitivity"])
    assert found == decision and bool(reasons) == (decision == "inconclusive")


def test_threshold_itself_is_positive():
    assert decide(0.9, POINTS["specificity"])[0] == "positive"
    assert decide(np.nextafter(0.9, 0), POINTS["specificity"])[0] == "negative"


def test_unknown_operating_point_names_the_known(screener, pictures):
    with pytest.raises(ValueError, match="this model has sensitivity, specificity"):
        screener.screen(pictures[0], operating_point="youden")


def test_unreadable_blank_and_foreign_pictures_are_refused_with_a_reason(screener):
    ramp = Image.fromarray(np.add.outer(np.arange(128), np.arange(128)).astype(np.uint8))
    cases = [
        (b"no picture", "no picture"),
        (Image.new("L", (90, 90), 40), "blank"),
        (ramp, "does not look like"),
    ]
    for source, words in cases:
        finding = screener.screen(source)
        assert finding.decision == "refused" and finding.probability is None
        assert words in finding.reasons[0]


def test_guard_scores_by_hand():
    """Two features; the basis is the first axis: distance |z1| / deviation, residual rms of the rest."""
    arrays = (
        np.zeros(2),
        np.ones(2),
        np.array([[1.0, 0.0]]),
        np.array([2.0]),
        np.array([0.0, 1.0]),
        np.array(0.0),
    )
    guard = Guard(Statistics(*arrays), {"distance": 1.0, "residual": 4.0, "foreign": 2.0}, "ct")
    scores = guard.statistics.scores(np.array([[6.0, 4.0]]))
    assert float(scores["distance"][0]) == 3.0
    assert float(scores["residual"][0]) == pytest.approx(4 / 2**0.5)
    assert float(scores["foreign"][0]) == pytest.approx(1 / (1 + np.exp(-4)))
    assert float(guard.out_of_distribution(np.array([[6.0, 4.0]]))[0]) == 3.0
    assert guard.out_of_distribution(np.array([[np.nan, 0.0]]))[0] == np.inf


def test_blank_is_flat_but_for_its_edge():
    grey = np.full((100, 100), 90, np.uint8)
    grey[:1] = 255
    assert is_blank(Image.fromarray(grey))
    grey[:, ::2] = 120
    assert not is_blank(Image.fromarray(grey))


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "hub_model", *map(str, arguments)], capture_output=True, text=True
    )


def test_score_writes_a_row_a_file_and_drops_none(guarded, pictures, tmp_path):
    scans = tmp_path / "scans" / "deep"
    scans.mkdir(parents=True)
    pictures[0].save(scans / "ä b.png")
    (scans / "notes.txt").write_text("no picture")
    out = tmp_path / "findings.csv"
    done = command("score", tmp_path / "scans", "--model", guarded, "--out", out)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(out.open(encoding="utf-8")))
    assert [row["decision"] == "refused" for row in rows] == [True, False]
    assert Finding(rows[1]["decision"], float(rows[1]["probability"]), "", 0, "").probability > 0
    assert not list(tmp_path.glob(".*partial"))


def test_score_says_what_is_wrong_in_one_paragraph(guarded, tmp_path):
    for arguments, words in (
        (("score", tmp_path, "--model", guarded), "no picture under"),
        (("score", tmp_path, "--model", tmp_path), "has no config.json"),
        (("score", __file__, "--model", guarded, "--operating-point", "x"), "this model has sensitivity"),
    ):
        done = command(*arguments)
        assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_info_is_json(guarded):
    shown = json.loads(command("info", guarded).stdout)
    assert shown["modality"] == "xray" and set(shown["operating_points"]) == set(POINTS)


@pytest.fixture(scope="module")
def both() -> AutoScreener:
    return AutoScreener.from_pretrained()


class TestAuto:
    """A picture goes to the model that knows its kind."""

    @pytest.mark.parametrize("kind", hub_folder.MODALITIES)
    def test_each_kind_of_picture_finds_its_model(self, both, kind):
        examples = sorted(EXAMPLES.glob(f"phantom_{kind}_*.png"))
        assert examples
        assert {both.screen(example).modality for example in examples} == {kind}

    def test_the_finding_is_the_models_own(self, both):
        example = next(EXAMPLES.glob("phantom_ct_*.png"))
        with open(example, "rb") as stream:
            found = both.screen(stream, "specificity")
        assert found == both.choose(example).screen(example, "specificity")

    def test_open_files_are_read_from_their_beginning_every_time(self, both, tmp_path):
        example = next(EXAMPLES.glob("phantom_ct_*.png"))
        with open(example, "rb") as stream:
            stream.read(16)
            assert both.screen(stream) == both.screen(stream) == both.screen(example)
        (tmp_path / "secret.txt").write_text("patient: Jane Doe")
        with open(tmp_path / "secret.txt") as stream:
            reasons = " ".join(both.screen(stream).reasons)
        assert "TextIOWrapper" in reasons and "Jane" not in reasons

    def test_nonsense_is_refused_and_not_guessed(self, both):
        assert both.screen(b"no picture").decision == "refused"
        noise = np.random.default_rng(0).integers(0, 256, (200, 200)).astype(np.uint8)
        assert both.screen(noise).decision == "refused"

    def test_many_give_what_one_by_one_gives(self, both):
        sources = [*sorted(EXAMPLES.glob("*.png")), b"no picture", np.zeros((90, 90), np.uint8)]
        together = list(both.screen_many(sources, heat_map=True, batch_size=3))
        for alone, found in zip(map(both.screen, sources), together, strict=True):
            assert (found.decision, found.modality, found.reasons) == (
                alone.decision,
                alone.modality,
                alone.reasons,
            )
            assert found.probability == pytest.approx(alone.probability, abs=1e-6)
            assert (found.heat_map is None) == (found.decision == "refused")


def finding(modality="ct", decision="positive", score=0.5, reasons=()):
    return Finding(decision, None, "a", 0.5, modality, reasons, score)


def test_which_of_several_models_answers():
    """Accepted by one: that one. By both: the nearer. By none: the reasons of all, but for 'wrong kind of file'."""
    taken, foreign = finding("ct"), finding("xray", "refused", 3.0, (Reason("far off", "foreign"),))
    assert chosen([foreign, taken]) == taken and chosen([foreign, taken]).also_fits == ()
    nearer = finding("xray", "negative", 0.4)
    assert chosen([taken, nearer]) == nearer and chosen([taken, nearer]).also_fits == ("ct",)
    other = finding("xray", "refused", None, (Reason("says it is CT", "other_modality"),))
    blank = finding("ct", "refused", None, (Reason("blank", "blank"),))
    assert chosen([other, blank]) == blank
    assert chosen([foreign, blank]).reasons == ("far off", "blank")
    unguarded = finding("xray", "negative", None)
    assert chosen([taken, unguarded]).decision == "refused" and chosen([taken, unguarded]).codes == (
        "ambiguous",
    )


class TestMany:
    """Batches: every finding as `screen` gives it, in order, with bounded memory, whatever comes."""

    def test_as_one_by_one_and_in_order(self, screener, pictures):
        sources = [*pictures, b"no picture", *pictures[::-1]]
        found = list(screener.screen_many(sources, heat_map=True, batch_size=4, workers=3))
        for one, source in zip(found, sources, strict=True):
            alone = screener.screen(source, heat_map=True)
            assert (one.decision, one.reasons) == (alone.decision, alone.reasons)
            assert one.probability == pytest.approx(alone.probability, abs=1e-6)
            if alone.heat_map is not None:
                np.testing.assert_allclose(one.heat_map, alone.heat_map, atol=1e-5)

    def test_functions_frames_and_failures(self, screener, pictures, caplog):
        name = "/home/visitor/" + "ja" + "ne.png"

        def broken():
            raise RuntimeError(name)

        sources = [lambda: pictures[0], Frame(pictures[1]), broken, 7, Frame(pictures[2], 5)]
        found = list(screener.screen_many(sources))
        assert [one.codes for one in found[2:]] == [("failed",), ("no_picture",), ("no_frame",)]
        assert found[0].probability and found[1].probability
        assert "RuntimeError" in caplog.text and "jane" not in caplog.text

    def test_one_that_the_network_chokes_on_is_alone(self, screener, pictures, monkeypatch, caplog):
        run = type(screener._network).run

        def choking(self, pixels, *, heat_maps):
            if (abs(pixels - screener.preprocess(pictures[1])) < 1e-6).all((1, 2, 3)).any():
                raise MemoryError
            return run(self, pixels, heat_maps=heat_maps)

        monkeypatch.setattr(type(screener._network), "run", choking)
        codes = [one.codes for one in screener.screen_many(pictures[:4])]
        assert codes.count(("failed",)) == 1 and codes[1] == ("failed",)

    def test_sources_are_read_as_they_are_needed(self, screener, pictures):
        asked = []

        def endless():
            for number in itertools.count():
                asked.append(number)
                yield pictures[0]

        found = screener.screen_many(endless(), batch_size=2, workers=2)
        assert not asked
        next(found)
        assert len(asked) <= 2 * 2 + 2 + 2
        found.close()

    def test_wrong_arguments_are_said_at_once(self, screener):
        with pytest.raises(ValueError, match="1 or more"):
            screener.screen_many([], batch_size=0)
        with pytest.raises(ValueError, match="this model has sensitivity"):
            screener.screen_many([], "youden")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1.1])
def test_no_decision_from_what_is_no_probability(value):
    with pytest.raises(ValueError, match="number from 0 to 1"):
        decide(value, {"threshold": 0.5})
    with pytest.raises(ValueError, match="number from 0 to 1"):
        decide(0.5, {"threshold": value})
    with pytest.raises(ValueError, match="number from 0 to 1"):
        decide(0.5, {"threshold": 0.5, "abstain": [0.1, value]})


def test_a_network_that_gives_no_number_decides_nothing(screener, pictures, monkeypatch):
    monkeypatch.setattr(screener, "_guard", None)
    nothing = View(np.full((1, 2), np.nan, np.float32), np.zeros((1, 0, 0)), np.zeros((1, 4)))
    monkeypatch.setattr(screener, "_network", SimpleNamespace(run=lambda pixels, heat_maps: nothing))
    assert screener.screen(pictures[0]).codes == ("no_number",)


class TestFindingShown:
    def test_as_json(self, screener, pictures):
        found = screener.screen(pictures[0], heat_map=True)
        told = json.loads(found.to_json(heat_map=True))
        assert told["probability"] == found.probability and told["decision"] == found.decision
        np.testing.assert_allclose(told["heat_map"], found.heat_map, atol=1e-4)
        assert "heat_map" not in found.to_dict()
        assert json.loads(screener.screen(b"x").to_json(heat_map=True))["heat_map"] is None

    def test_in_a_notebook(self, screener, pictures):
        shown = screener.screen(pictures[0], heat_map=True)._repr_html_()
        assert "data:image/png;base64," in shown
        nasty = Finding(
            "refused", None, "<script>", 0.5, "ct", ("<img src=x onerror=alert(1)>",)
        )._repr_html_()
        assert "<script>" not in nasty and "<img src=x" not in nasty


def in_a_process(screener, picture, queue):
    queue.put(screener.screen(picture).probability)


class TestProcesses:
    """A screener may be pickled, shared by threads, sent to a new process and carried through a fork."""

    def test_a_pickle_holds_the_place_and_not_the_weights(self, screener, pictures):
        stored = pickle.dumps(screener)
        assert len(stored) < 1000
        assert pickle.loads(stored).screen(pictures[0]) == screener.screen(pictures[0])

    def test_a_pickle_of_other_weights_is_refused(self, guarded, tmp_path):
        folder = shutil.copytree(guarded, tmp_path / "copy")
        stored = pickle.dumps(Screener.from_pretrained(folder))
        told = json.loads((folder / "screening.json").read_text())
        (folder / "screening.json").write_text(json.dumps(told | {"weights_sha256": None}))
        with pytest.raises(FolderRefused, match="other weights"):
            pickle.loads(stored)

    def test_threads(self, screener, pictures):
        alone = [screener.screen(picture).probability for picture in pictures]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda picture: screener.screen(picture).probability, pictures))
        assert together == pytest.approx(alone, abs=1e-6)

    @pytest.mark.parametrize("how", ["fork", "spawn"])
    def test_processes(self, screener, pictures, how):
        expected = screener.screen(pictures[0]).probability
        context = multiprocessing.get_context(how)
        queue = context.Queue()
        process = context.Process(target=in_a_process, args=(screener, pictures[0], queue))
        process.start()
        try:
            assert queue.get(timeout=120) == pytest.approx(expected, abs=1e-6)
        finally:
            process.kill()


class TestBackends:
    def test_torch_gives_the_same(self, guarded, screener, pictures):
        other = Screener.from_pretrained(guarded, backend="torch")
        for picture in pictures:
            ours, theirs = (one.screen(picture, heat_map=True) for one in (screener, other))
            assert ours.decision == theirs.decision
            assert ours.probability == pytest.approx(theirs.probability, abs=1e-5)
            if ours.heat_map is not None:
                np.testing.assert_allclose(ours.heat_map, theirs.heat_map, atol=1e-4)

    @pytest.mark.parametrize(
        ("choice", "words"),
        [
            ({"backend": "tensorrt"}, "no backend 'tensorrt'; accepted are onnx, torch"),
            ({"device": "tpu"}, "no device 'tpu'; it knows cpu, cuda"),
            ({"device": "cuda:x"}, "no device 'cuda:x'"),
            ({"backend": "torch", "device": "nonsense"}, "torch has no device 'nonsense' here"),
        ],
    )
    def test_what_is_not_there_is_said(self, guarded, choice, words):
        with pytest.raises(BackendRefused, match=words):
            Screener.from_pretrained(guarded, **choice)

    def test_a_folder_of_an_older_version_gets_its_graph_on_the_fly(self, guarded, pictures, tmp_path):
        folder = shutil.copytree(guarded, tmp_path / "old")
        (folder / "model.onnx").unlink()
        with pytest.raises(FolderRefused, match=r"model\.onnx cannot be read"):
            Screener.from_pretrained(folder)  # its screening.json says that there was one
        told = json.loads((folder / "screening.json").read_text())
        (folder / "screening.json").write_text(json.dumps(told | {"graph_sha256": None}))
        found = Screener.from_pretrained(folder).screen(pictures[0])
        assert found == Screener.from_pretrained(guarded).screen(pictures[0])

    def test_a_revision_of_what_is_embedded_is_refused(self):
        with pytest.raises(FolderRefused, match="'ct' is embedded in this package, in one version"):
            Screener.from_pretrained("ct", revision="main")


@pytest.fixture(scope="module")
def cut_run(tmp_path_factory):
    """A made run whose network is shown pictures cut to their lungs, and its lung network."""
    torch.manual_seed(0)
    network = LungNet().eval()
    run = made_run.make_run(tmp_path_factory.mktemp("cut") / "ct")
    screening = json.loads((run / "screening.json").read_text())
    (run / "screening.json").write_text(json.dumps(screening | {"view": lungs.LUNGS}))
    return run, network


def with_bias(run, network, bias: float):
    """The run, its lung network seeing lung everywhere (a large bias) or nowhere."""
    with torch.no_grad():
        network.head.bias.fill_(bias)
    lungs.save(run, network, {"modality": "ct"})
    return Screener.from_pretrained(run)


@pytest.mark.parametrize("gone", [lungs.GRAPH, lungs.WEIGHTS])
def test_a_damaged_lung_network_is_said_when_the_model_is_opened(tmp_path, gone):
    """Not of each picture of an archive, as an error of this program."""
    copied = shutil.copytree(hub_folder.embedded()["xray-covid_cnn_3"], tmp_path / "run")
    (copied / gone).unlink()
    with pytest.raises(FolderRefused, match="the lung network cannot be opened"):
        Screener.from_pretrained(copied)


@pytest.mark.parametrize(
    ("given", "words"),
    [({"threads": 0}, "threads is a whole number"), ({"threads": "2"}, "threads is a whole number"),
     ({"device": 0}, "has no device 0"), ({"device": None}, "has no device None")],
)  # fmt: skip
def test_odd_threads_and_devices_are_said(given, words):
    with pytest.raises(BackendRefused, match=words):
        Screener.from_pretrained("xray-covid_cnn_3", **given)


def test_where_no_lung_is_found_nothing_is_answered(cut_run):
    finding = with_bias(*cut_run, -50).screen(next(made_run.pictures(1)))
    assert finding.decision == "refused" and finding.probability is None
    assert finding.codes == ("no_lung",)


def test_the_heat_map_of_a_cut_picture_lies_over_the_whole_one(cut_run):
    picture = next(made_run.pictures(1))
    screener = with_bias(*cut_run, 50)
    screener._guard = None  # it was fitted on pictures as they came
    finding = screener.screen(picture, heat_map=True)
    assert finding.decision != "refused"
    assert finding.heat_map.shape == (lungs.SIDE, lungs.SIDE)
    assert np.array_equal(
        screener.preprocess(picture), screener._pixels(lungs.load(screener.path).view(picture))
    )


def test_a_view_without_its_lung_network_is_refused(cut_run, tmp_path):
    run = shutil.copytree(cut_run[0], tmp_path / "run")
    for name in lungs.FILES:
        (run / name).unlink(missing_ok=True)
    with pytest.raises(hub_folder.FolderRefused, match="cut to their lungs"):
        Screener.from_pretrained(run)


@pytest.mark.parametrize(("device", "inside"), [("cuda", "ieee"), ("cpu", "tf32")])
def test_a_gpu_computes_in_single_precision_and_the_process_stays_as_it_was(device, inside):
    """The setting is there without a GPU, too."""
    convolutions = torch.backends.cudnn.conv
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "tf32"
    try:
        with pytest.raises(KeyError), _single_precision(torch, torch.device(device)):
            assert convolutions.fp32_precision == inside
            raise KeyError
        assert convolutions.fp32_precision == "tf32"
    finally:
        convolutions.fp32_precision = before


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system gives processes no cores of their own"
)
def test_a_reading_thread_a_core_and_two_at_least():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from hub_model.screener import WORKERS"
    told = subprocess.run(
        [sys.executable, "-c", f"{code}; print(WORKERS)"], capture_output=True, text=True, cwd=ROOT
    )
    assert told.stdout.strip() == "2", told.stderr
    assert min(16, max(2, len(os.sched_getaffinity(0)))) == WORKERS


def test_blank_pictures_are_told_by_their_levels_as_by_their_pixels():
    random = np.random.default_rng(0)
    for _ in range(60):
        side, spread = int(random.integers(33, 90)), float(random.uniform(0, 6))
        grey = np.clip(random.normal(random.uniform(0, 255), spread, (side, side)), 0, 255).astype(np.uint8)
        grey[: int(random.integers(0, 3))] = 255
        low, high = np.percentile(grey.astype(float), [1, 99])
        assert is_blank(Image.fromarray(grey)) == (np.clip(grey, low, high).std() < BLANK_DEVIATION)
