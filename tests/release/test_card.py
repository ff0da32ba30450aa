"""The card: a letter whose every figure comes from the files of the run, or that is not written."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub._eval_results import parse_eval_result_entries
from PIL import Image

from hub_model import lungs
from hub_model.hub_folder import embedded
from hub_model.lung_net import LungNet
from hub_model.refused import Refused
from tests.made_run import make_run
from train.release import card, origins, wording

ROOT = card.TEMPLATE.parent


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("runs") / "ct")
    card.card(run)
    return run


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def evaluation(run):
    return json.loads((run / "evaluation.json").read_text())


def test_the_letter_says_what_was_measured(finished):
    text, found = (finished / "README.md").read_text(), evaluation(finished)
    for record in (
        found["test"]["auroc"],
        found["validation"]["brier"],
        found["test"]["at"]["balanced"]["f1"],
    ):
        assert (
            f"{record['value']:.3f} ({record['low']:.3f} to {record['high']:.3f}; n = {record['n']})" in text
        )
    sensitivity = found["test"]["at"]["sensitivity"]["sensitivity"]
    assert f"{sensitivity['value']:.1%}".replace("%", " %") in text
    for section in (
        "What it is for",
        "What it is not for",
        "What goes in, what comes out",
        "The pictures it was made from",
        "How training and test are kept apart, and what that cannot do",
        "By source",
        "Audits",
        "What it refuses",
        "Where it fails",
        "Heat maps are not evidence",
        "How to cite",
        "How to report a problem",
    ):
        assert re.search(rf"^###? {section}", text, re.MULTILINE), section
    assert "plots/worst_errors.png" in text and "kWh" in text and found["weights_sha256"] in text
    assert (
        "{{" not in text.replace("{{The covid-xct developers}}", "")
        and "{%" not in text
        and "None" not in text
    )


def test_the_metadata_is_complete_for_the_hub(finished):
    data = ModelCard.load(finished / "README.md").data
    found = evaluation(finished)["test"]
    assert (data.license, data.pipeline_tag, data.library_name) == (
        "cc-by-nc-sa-4.0",
        "image-classification",
        "timm",
    )
    assert data.metrics and "covid-19" in data.tags and "chest-ct" in data.tags
    assert data.datasets is None and data.base_model is None, "neither is on the Hub, so neither is named"
    text = (finished / "README.md").read_text()
    assert "names no data set" in text and "These collections live outside the Hub" in text
    measured = {result.metric_type: result.metric_value for result in data.eval_results}
    assert measured["roc_auc"] == found["auroc"]["value"]
    assert measured["recall"] == found["at"]["sensitivity"]["sensitivity"]["value"]


def test_the_result_file_is_what_the_hub_reads(finished):
    entries = parse_eval_result_entries(yaml.safe_load((finished / card.RESULTS).read_text()))
    assert [entry.task_id for entry in entries] == ["auroc", "sensitivity", "specificity"]
    found = evaluation(finished)["test"]
    assert entries[0].value == found["auroc"]["value"]
    assert str(found["auroc"]["low"]) in entries[0].notes and "n = 120" in entries[0].notes
    assert "/" not in entries[0].dataset_id and "pictures of phantom, not on the Hub" in entries[0].notes


def test_the_prose_holds_no_figure():
    """Digits in the template stand in names, years and addresses, never in a result."""
    prose = re.sub(r"\{[{%].*?[%}]\}|```.*?```", "", card.TEMPLATE.read_text("utf-8"), flags=re.DOTALL)
    prose = re.sub(
        r"COVID-19|covid-19|SHA-256|F1|Apache-2\.0|95 %|arXiv:\S+|doi \S+|\b20\d\d\b|2021\)", "", prose
    )
    assert not re.findall(r"\d+(?:\.\d+)?", prose)


@pytest.mark.parametrize(
    "hole",
    [
        lambda e: e["test"].pop("auprc"),
        lambda e: e["test"]["at"]["balanced"].pop("f1"),
        lambda e: e["test"]["auroc"].pop("low"),
        lambda e: e["guard"].pop("caught"),
        lambda e: e["data"]["counts"].pop("test"),
        lambda e: e.pop("temperature"),
        lambda e: e.pop("test_by_source"),
        lambda e: e["test"].pop("abstained"),
    ],
)
def test_a_missing_figure_stops_the_rendering(run, hole):
    before = (run / "README.md").read_text()
    edit(run / "evaluation.json", hole)
    with pytest.raises(Refused, match="lacks"):
        card.card(run)
    assert (run / "README.md").read_text() == before


def test_figures_of_other_weights_are_not_written(run):
    edit(run / "evaluation.json", lambda e: e.update(weights_sha256="0" * 64))
    with pytest.raises(Refused, match="other weights"):
        card.card(run)


def test_a_run_nobody_evaluated(run):
    (run / "evaluation.json").unlink()
    with pytest.raises(Refused, match="python -m train evaluate"):
        card.card(run)


def test_what_was_not_done_is_said(run):
    edit(run / "screening.json", lambda s: s["provenance"].pop("training"))
    shutil.rmtree(run / "plots")
    text = card.render(run)["README.md"]
    assert "This model has not been audited." in text
    assert "The time and the energy of training were not recorded" in text
    assert "worst errors are not in this folder" in text and "plots/" not in text


def test_a_mean_of_runs_says_what_they_differ_in(run):
    members = [
        {"settings": {"learning_rate": rate, "seed": seed}} for rate, seed in ((0.0003, 0), (0.001, 1))
    ]
    edit(run / "screening.json", lambda s: s["provenance"].update(soup=members))
    text = card.render(run)["README.md"]
    assert "the mean of those of 2 runs" in text and "of these runs only" in text
    assert "(1) learning rate 0.0003, seed 0; (2) learning rate 0.001, seed 1." in text


def record(value, low, high, **more):
    return {"metric": "auroc", "value": value, "low": low, "high": high, "n": 120, **more}


def test_audits_are_shown_with_their_meaning(run):
    audits = {
        "changed": {"borders_only": record(0.81, 0.7, 0.9), "coarse_only": record(0.71, 0.6, 0.8)},
        "thumbnail": {
            "all": record(0.86, 0.8, 0.9, advantage=record(0.04, 0.01, 0.07)),
            "clinic": record(0.6, 0.4, 0.7, advantage=record(-0.02, -0.1, 0.06)) | {"n": 60},
        },
        "source": {"COVID": record(0.9, 0.8, 1.0, largest_source=0.4)},
        "unseen_source": {"clinic": record(0.55, 0.45, 0.65, thumbnail=record(0.52, 0.42, 0.62))},
        "moon_phase": {"full": record(0.5, 0.4, 0.6)},
    }
    edit(run / "evaluation.json", lambda e: e.update(audits=audits))
    text = card.render(run)["README.md"]
    assert "| its border alone, the middle blacked out | 0.810 (0.700 to 0.900; n = 120) |" in text
    assert "Over all of them the network does better than the thumbnail." in text
    assert "Within clinic **the network has not been shown to do better than a thumbnail**." in text
    assert "| 0.600 (0.400 to 0.700; n = 60) | -0.020 (-0.100 to 0.060; n = 120) |" in text
    assert "| COVID | 90.0 % (80.0 % to 100.0 %; n = 120) | 40.0 % |" in text
    assert "| clinic | 0.550 (0.450 to 0.650; n = 120) | 0.520 (0.420 to 0.620; n = 120) |" in text
    assert "**moon phase**" in text and "has not been audited" not in text
    edit(
        run / "evaluation.json",
        lambda e: e.update(audits={"changed": audits["changed"], "unseen_source": {}}),
    )
    assert "No collection was left out" in card.render(run)["README.md"]


def with_sources(run, **sources):
    """Deal the test figures out to sources; a value is the AUROC record of one with both labels, or None."""
    found = evaluation(run)["test"]
    rows = {
        name: found | ({"auroc": auroc} if auroc else {"positives": 0, "auroc": record(None, None, None)})
        for name, auroc in sources.items()
    }
    edit(run / "evaluation.json", lambda e: e.update(test_by_source=rows))
    return card.render(run)["README.md"]


def test_a_model_at_chance_within_a_collection_says_so_first(run):
    text = with_sources(run, mixed=record(0.53, 0.34, 0.73), hospital=None, papers=None)
    said = text.index(
        "Within mixed, a collection that holds both labels, this model is not shown to do better"
    )
    assert said < text.index("In one look") < text.index("**no better than chance**")
    assert "telling the collections apart: hospital, papers" in text
    assert "mixed, where the model is not shown to do better than chance." in text


def test_a_model_above_chance_within_a_collection_is_not_run_down(run):
    text = with_sources(run, mixed=record(0.8, 0.7, 0.9), hospital=None)
    assert "than chance" not in text and "| AUROC within mixed | 0.800 (0.700 to 0.900; n = 120) |" in text
    assert "Believe those of a source\nthat holds both: mixed." in text
    assert "than chance" not in with_sources(run, mixed=record(0.8, 0.7, 0.9))


def test_a_collection_kept_out_of_training_is_told(run):
    said = "No collection was left out of training to be tested on."
    edit(run / "evaluation.json", lambda e: e.update(audits={"changed": {}, "kept_out": {}}))
    assert said in card.render(run)["README.md"]
    figures = {name: record(0.61, 0.55, 0.67) for name in ("auroc", "sensitivity", "specificity", "answered")}
    edit(run / "evaluation.json", lambda e: e["audits"].update(kept_out={"clinic": figures}))
    text = card.render(run)["README.md"]
    assert said not in text
    assert "| clinic | 0.610 (0.550 to 0.670; n = 120) | 61.0 % (55.0 % to 67.0 %; n = 120) |" in text


def test_a_rule_for_series_is_told_where_it_was_measured(run):
    said = "It has never been tested as an answer about a whole series"
    assert said in card.render(run)["README.md"]
    measured = {"rule": "mean", "most_slices": 6, "test": {"auroc": record(0.9, 0.8, 0.95)}}
    edit(run / "evaluation.json", lambda e: e.update(patients=measured))
    text = card.render(run)["README.md"]
    assert (
        said not in text
        and "*mean* of its slices: AUROC 0.900 (0.800 to 0.950; n = 120) over patients" in text
    )


def test_pictures_missing_from_a_published_split_are_counted(run, monkeypatch):
    described = origins.Collection("t", "l", "k", published={"train": 120, "validation": 120, "test": 123})
    monkeypatch.setitem(origins.COLLECTIONS, "phantom", described)
    edit(run / "evaluation.json", lambda e: e["data"].update(split="official"))
    assert "120 of the 123 pictures of its test split;" in card.render(run)["README.md"]
    edit(run / "evaluation.json", lambda e: e["data"].update(split="family"))
    assert "of the 123 pictures" not in card.render(run)["README.md"]


def test_points_at_one_threshold_are_said_to_agree(run):
    assert "came out at one threshold" not in card.render(run)["README.md"]

    def join(figures):
        at = figures["test"]["at"]
        at["balanced"] = at["sensitivity"]

    edit(run / "evaluation.json", join)
    screening = json.loads((run / "screening.json").read_text())
    threshold = screening["operating_points"]["sensitivity"]["threshold"]
    edit(run / "screening.json", lambda s: s["operating_points"]["balanced"].update(threshold=threshold))
    assert "*sensitivity* and *balanced* came out at one threshold" in card.render(run)["README.md"]


def test_the_examples_open_what_the_card_lies_in(run):
    assert 'Screener.from_pretrained("path/to/this/folder")' in card.render(run)["README.md"]
    text = card.render(run, repo_id="org/ct")["README.md"]
    assert 'from_pretrained("org/ct")' in text and "huggingface.co/org/ct/discussions" in text
    assert "huggingface.co" not in re.sub("huggingface.co/datasets", "", card.render(run)["README.md"])
    for name, path in embedded().items():
        text = card.render(path)["README.md"]
        assert f'Screener.from_pretrained("{name}")' in text and "path/to" in text


def test_a_leaking_split_is_said_first(run):
    edit(run / "evaluation.json", lambda e: e["data"].update(split="random"))
    text = card.render(run)["README.md"]
    assert text.index("tested on a leaking split") < text.index("In one look")


def test_a_collection_nobody_described(run):
    share = evaluation(run)["guard"]["false_refusals"]
    edit(run / "evaluation.json", lambda e: e["guard"]["false_refusals_by_source"].update(clinic=share))
    with pytest.raises(Refused, match=r"clinic.*collections\.json"):
        card.render(run)
    row = {"title": "Films of our clinic", "licence": "ours", "leak": "one scanner"}
    (run / "collections.json").write_text(json.dumps({"clinic": row}))
    assert "| clinic | Films of our clinic | ours | one scanner |" in card.render(run)["README.md"]


@pytest.mark.parametrize(
    ("settings", "said", "base"),
    [
        ({"init": None, "pretrained": False}, "random numbers", None),
        ({"init": "mobilenetv2_100.imagenet_tf.safetensors"}, "MobileNetV2 trained on ImageNet", None),
        ({"init": "resnetv2_50_4.safetensors"}, "4 blocks of the third of a ResNet-50 v2 trained", None),
        ({"init": "own.safetensors"}, "of whose origin nothing else is recorded", None),
        ({"pretrained": True, "variant": "resnet18"}, "timm's published weights", "timm/resnet18.a1_in1k"),
    ],
)
def test_where_the_weights_started(run, settings, said, base):
    edit(run / "screening.json", lambda s: s["provenance"].update(settings=settings))
    text = card.render(run)["README.md"]
    assert said in text
    assert ModelCard(text).data.base_model == base
    assert ("names no base model" in text) == (base is None and said != "random numbers")


def test_the_data_set_stays_named_when_the_card_is_written_again(run):
    card.card(run, dataset="org/chest")
    card.card(run)
    assert ModelCard.load(run / "README.md").data.datasets == ["org/chest"]
    assert "id: org/chest" in (run / card.RESULTS).read_text()


def test_a_figure_that_is_not_defined_is_said_to_be_so():
    assert wording.figure({"value": None, "low": None, "high": None, "n": 4}) == "not defined (n = 4)"


def test_none_and_all_have_an_interval_although_resampling_gives_none():
    """Against scipy's Clopper-Pearson."""
    from scipy.stats import binomtest

    for hits, n in ((0, 92), (60, 60)):
        exact = binomtest(hits, n).proportion_ci(method="exact")
        found = wording.bounded({"value": hits / n, "low": hits / n, "high": hits / n, "n": n}, n)
        assert (found["low"], found["high"]) == pytest.approx((exact.low, exact.high))
    measured = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 60}
    assert wording.bounded(measured, 60) == measured
    assert (
        wording.percent({"value": 1.0, "low": 0.94, "high": 1.0, "n": 60})
        == "100.0 % (94.0 % to 100.0 %; n = 60)"
    )


def test_energy_follows_the_cited_method():
    told = card._training({"seconds": 7200, "device": "cpu", "cores": 2})
    assert told["kwh"] == pytest.approx(2 * 24 * 1.67 / 1000)


def test_predictive_values_follow_bayes():
    at = {"sensitivity": {"value": 0.9, "low": 0.8, "high": 1.0}}
    at["specificity"] = {"value": 0.8, "low": 0.7, "high": 0.9}
    rows = card._predictive({"test": {"at": {"here": at}}}, "here")
    tenth = next(row for row in rows if row["prevalence"] == 0.1)
    assert tenth["ppv"] == pytest.approx(
        {"value": 0.09 / (0.09 + 0.18), "low": 0.08 / (0.08 + 0.27), "high": 0.1 / (0.1 + 0.09)}
    )
    assert tenth["npv"] == pytest.approx({"value": 0.72 / 0.73, "low": 0.63 / 0.65, "high": 1.0})


def test_a_time_is_said_in_its_unit():
    assert [wording.duration(hours) for hours in (3.25, 0.5, 0.01)] == [
        "3.2 hours",
        "30 minutes",
        "36 seconds",
    ]


@pytest.mark.parametrize("name", sorted(embedded()))
def test_the_embedded_models_have_the_card_of_their_figures(name):
    folder = embedded()[name]
    for file, text in card.render(folder).items():
        assert (folder / file).read_text("utf-8") == text, f"python -m train card {folder.relative_to(ROOT)}"
    assert not (folder / "plots" / "worst_errors.png").exists(), "patients are not passed on"


def test_the_card_cuts_to_the_lungs_as_the_package_does(run, monkeypatch):
    """Its own lines of Python, run on a drawn chest, against `LungFinder.view`; a card of another view has none."""
    torch.manual_seed(0)
    assert "cut_to_lungs" not in card.render(run)["README.md"]
    edit(run / "screening.json", lambda screening: screening.update(view="lungs"))
    lungs.save(run, LungNet().eval(), {"modality": "ct"})
    text = card.render(run)["README.md"]
    lines = re.search(r"```python\n(import os\n[^`]*import onnxruntime.*?)```", text, re.DOTALL).group(1)
    given: dict = {}
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "1")  # the lines set it; afterwards it is as before
    exec(lines.replace("path/to/this/folder", str(run)), given)
    outline = np.zeros((1, 1, lungs.SIDE, lungs.SIDE), np.float32)
    outline[..., 20:100, 30:110] = 0.95
    given["finder"] = SimpleNamespace(run=lambda names, pictures: [outline])
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (301, 257)).astype(np.uint8))
    ours = lungs.LungFinder(lambda pictures: outline, "ct").view(picture)
    theirs = given["cut_to_lungs"](picture)
    assert ours.size == theirs.size
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))
