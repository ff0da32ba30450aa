"""The card: a letter whose every figure comes from the files of the run, or that is not written."""

import json
import re
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub._eval_results import parse_eval_result_entries
from made_run import make_run

from train import card


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
    assert data.datasets and data.metrics and "covid-19" in data.tags and "chest-ct" in data.tags
    measured = {result.metric_type: result.metric_value for result in data.eval_results}
    assert measured["roc_auc"] == found["auroc"]["value"]
    assert measured["recall"] == found["at"]["sensitivity"]["sensitivity"]["value"]


def test_the_result_file_is_what_the_hub_reads(finished):
    entries = parse_eval_result_entries(yaml.safe_load((finished / card.RESULTS).read_text()))
    assert [entry.task_id for entry in entries] == ["auroc", "sensitivity", "specificity"]
    found = evaluation(finished)["test"]
    assert entries[0].value == found["auroc"]["value"]
    assert str(found["auroc"]["low"]) in entries[0].notes and "n = 120" in entries[0].notes


def test_the_prose_holds_no_figure():
    """Digits in the template stand in names, years and addresses, never in a result."""
    prose = re.sub(r"\{[{%].*?[%}]\}", "", card.TEMPLATE.read_text("utf-8"), flags=re.DOTALL)
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
    with pytest.raises(card.CardRefused, match="lacks"):
        card.card(run)
    assert (run / "README.md").read_text() == before


def test_figures_of_other_weights_are_not_written(run):
    edit(run / "evaluation.json", lambda e: e.update(weights_sha256="0" * 64))
    with pytest.raises(card.CardRefused, match="other weights"):
        card.card(run)


def test_a_run_nobody_evaluated(run):
    (run / "evaluation.json").unlink()
    with pytest.raises(card.CardRefused, match="python -m train evaluate"):
        card.card(run)


def test_what_was_not_done_is_said(run):
    edit(run / "screening.json", lambda s: s["provenance"].pop("training"))
    shutil.rmtree(run / "plots")
    text = card.render(run)["README.md"]
    assert "This model has not been audited." in text
    assert "The time and the energy of training were not recorded" in text
    assert "worst errors are not in this folder" in text and "plots/" not in text


def test_audits_are_shown_with_their_meaning(run):
    record = {"metric": "auroc", "value": 0.81, "low": 0.7, "high": 0.9, "n": 120, "resampled": "family"}
    edit(
        run / "evaluation.json",
        lambda e: e.update(audits={"borders_only": {"test": record}, "leave_one_source_out": record}),
    )
    text = card.render(run)["README.md"]
    assert "0.810 (0.700 to 0.900; n = 120)" in text and "the middle of the picture blacked out" in text
    assert "has not been audited" not in text


def test_a_leaking_split_is_said_first(run):
    edit(run / "evaluation.json", lambda e: e["data"].update(split="random"))
    text = card.render(run)["README.md"]
    assert text.index("tested on a leaking split") < text.index("In one look")


def test_a_collection_nobody_described(run):
    share = evaluation(run)["guard"]["false_refusals"]
    edit(run / "evaluation.json", lambda e: e["guard"]["false_refusals_by_source"].update(clinic=share))
    with pytest.raises(card.CardRefused, match=r"clinic.*collections\.json"):
        card.render(run)
    row = {"title": "Films of our clinic", "licence": "ours", "leak": "one scanner"}
    (run / "collections.json").write_text(json.dumps({"clinic": row}))
    assert "| clinic | Films of our clinic | ours | one scanner |" in card.render(run)["README.md"]


@pytest.mark.parametrize(
    ("settings", "said", "base"),
    [
        ({"init": "None", "pretrained": "False"}, "random numbers", None),
        (
            {"init": "mobilenetv2_100.imagenet_tf.safetensors"},
            "MobileNetV2 trained on ImageNet",
            "mobilenetv2_100.imagenet_tf",
        ),
        ({"init": "own.safetensors"}, "of whose origin nothing else is recorded", "own"),
        (
            {"pretrained": "True", "variant": "resnet18.a1_in1k"},
            "timm's published weights",
            "timm/resnet18.a1_in1k",
        ),
    ],
)
def test_where_the_weights_started(run, settings, said, base):
    edit(run / "screening.json", lambda s: s["provenance"].update(settings=settings))
    text = card.render(run)["README.md"]
    assert said in text
    assert ModelCard(text).data.base_model == base


def test_the_data_set_stays_named_when_the_card_is_written_again(run):
    card.card(run, dataset="org/chest")
    card.card(run)
    assert ModelCard.load(run / "README.md").data.datasets == ["org/chest"]
    assert "id: org/chest" in (run / card.RESULTS).read_text()


def test_a_figure_that_is_not_defined_is_said_to_be_so():
    assert card.figure({"value": None, "low": None, "high": None, "n": 4}) == "not defined (n = 4)"


def test_none_and_all_are_counted_where_resampling_gives_no_interval():
    assert card.percent({"value": 0.0, "low": 0.0, "high": 0.0, "n": 201}) == "0.0 % (0 of 201)"
    assert card.percent({"value": 1.0, "low": 1.0, "high": 1.0, "n": 60}) == "100.0 % (60 of 60)"


def test_energy_follows_the_cited_method():
    told = card._training({"seconds": 7200, "device": "cpu", "cores": 2})
    assert told["kwh"] == pytest.approx(2 * 24 * 1.67 / 1000)


def test_predictive_values_follow_bayes():
    at = {"sensitivity": {"value": 0.9}, "specificity": {"value": 0.8}}
    rows = card._predictive({"test": {"at": {"here": at}}}, "here")
    tenth = next(row for row in rows if row["prevalence"] == 0.1)
    assert tenth["ppv"] == pytest.approx(0.09 / (0.09 + 0.18)) and tenth["npv"] == pytest.approx(0.72 / 0.73)
