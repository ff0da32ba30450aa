"""What the Hub reads of a card: its YAML block, and the result file beside it."""

from typing import Any

import yaml

LICENCE = "cc-by-nc-sa-4.0"
"""Of the weights: most of the pictures are for non-commercial research, some under share-alike. The code is
Apache-2.0."""
SUBJECTS = {"xray": "chest-x-ray", "ct": "chest-ct"}
"""Tag of the card by modality."""


def metadata(known: dict[str, Any]) -> str:
    """Write the YAML block of the card from the facts of `card.facts`."""
    from huggingface_hub import EvalResult, ModelCardData

    test, point = known["evaluation"]["test"], known["default_point"]
    measured = {
        "accuracy": test["at"][point]["accuracy"],
        "recall": test["at"][point]["sensitivity"],
        "specificity": test["at"][point]["specificity"],
        "f1": test["at"][point]["f1"],
        "roc_auc": test["auroc"],
    }
    name = f"covid-xct-{known['modality']}-{known['config']['architecture']}"
    found = [
        EvalResult(
            task_type="image-classification",
            dataset_type=known["dataset"] or _local_name(known),
            metric_type=metric,
            dataset_split="test",
            dataset_name=f"{', '.join(_tested(known))} ({known['evaluation']['data']['split']} split)",
            metric_value=record["value"],
            metric_name=f"{metric}, 95 % interval {record['low']} to {record['high']}, n = {record['n']}",
        )
        for metric, record in measured.items()
        if record["value"] is not None
    ]
    data = ModelCardData(
        license=LICENCE,
        library_name="timm",
        pipeline_tag="image-classification",
        language="en",
        datasets=[known["dataset"]] if known["dataset"] else None,
        metrics=list(measured),
        base_model=known["base_model"],
        tags=[
            "covid-xct",
            "covid-19",
            "medical",
            "radiology",
            SUBJECTS[known["modality"]],
            "screening",
            "transformers",
            *(["onnx"] if known["onnx"] else []),
        ],
        model_name=name,
        eval_results=found,
    )
    return data.to_yaml()


def results(known: dict[str, Any]) -> str:
    """Write `.eval_results/*.yaml` from the same facts: one entry a figure, its interval in the notes."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    evaluation, point = known["evaluation"], known["default_point"]
    at = evaluation["test"]["at"][point]
    measured = {
        "auroc": (evaluation["test"]["auroc"], ""),
        "sensitivity": (at["sensitivity"], f", threshold {at['threshold']:.4f} ({point})"),
        "specificity": (at["specificity"], f", threshold {at['threshold']:.4f} ({point})"),
    }
    sources = "" if known["dataset"] else f"pictures of {', '.join(_tested(known))}, not on the Hub; "
    entries = [
        EvalResultEntry(
            dataset_id=known["dataset"] or _local_name(known), task_id=name, value=record["value"],
            notes=f"test split, 95 % interval {record['low']} to {record['high']}, n = {record['n']}, "
            f"families resampled{where}; {sources}weights {evaluation['weights_sha256'][:12]}, data "
            f"{evaluation['data']['data_sha256'][:12]}",
        )
        for name, (record, where) in measured.items()
    ]  # fmt: skip
    return yaml.safe_dump(
        eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True, width=110
    )


def _tested(known: dict[str, Any]) -> list[str]:
    """Name the collections of the test split; others may have pictures in train alone."""
    return [name for name in known["collections"] if name in known["evaluation"]["test_by_source"]]


def _local_name(known: dict[str, Any]) -> str:
    """Name data that have no name on the Hub, where one is asked for: without an owner."""
    return f"covid-xct-{known['modality']}"
