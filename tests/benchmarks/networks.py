"""All trained networks side by side, from the evaluation.json of their runs.

    python -m tests.benchmarks.networks RUNS [--data DATA ...]

RUNS holds hub folders as `fit` and `evaluate` leave them. Writes docs/measured/documented.* (the documented networks
beside what their authors published), stock.* (all others that were evaluated) and tried.* (every stock network that was
trained, evaluated or not, by its validation figure). Rows of earlier calls stay; a run of the same name and modality
replaces its row. Nothing is trained or scored here; with DATA, as `fit` was given it, the harmless changes are measured
of documented networks that were evaluated and not audited.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from hub_model import hub_folder
from hub_model.check.harmless import worst
from hub_model.covid_cnn import VARIANTS
from tests.benchmarks import measured
from train.fit.recipes import RECIPES
from train.measure.harmless import measure_changes
from train.measure.provenance import parts_of

# Accuracy, and sensitivity / specificity for COVID. Its class names were encoded in alphabetical order, COVID as 0, so
# that the precision and recall it reports are those of Non-COVID; from them and the class counts of its test splits (CT
# 1,059 COVID and 552 Non-COVID, X-ray 821 and 1,088) the figures for COVID follow. None: not derivable or not reported.
PUBLISHED = {
    ("ct", "covid_cnn_baseline"): (0.657, 1.000, 0.000),
    ("ct", "covid_cnn_1"): (0.917, None, None),
    ("ct", "covid_cnn_2"): (0.857, 0.802, 0.964),
    ("ct", "covid_cnn_5"): (0.903, 0.947, 0.817),
    ("xray", "covid_cnn_baseline"): (0.430, 1.000, 0.000),
    ("xray", "covid_cnn_1"): (0.908, 0.918, 0.901),
    ("xray", "covid_cnn_2"): (0.840, 0.822, 0.853),
    ("xray", "covid_cnn_4"): (0.570, 0.000, 1.000),
    ("xray", "covid_cnn_5"): (0.832, 0.797, 0.858),
}
NAMES = {"ct": "CT", "xray": "X-ray"}
POINT = "balanced"
"""The operating point of all these tables: the two classes count alike, as the accuracy that was published has them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--data", action="append", default=[])
    told = parser.parse_args()
    runs = sorted(path.parent for path in told.runs.glob(f"*/{hub_folder.SCREENING}"))
    for run in runs if told.data else ():
        audit_changes(run, told.data)
    found = [row for row in map(read, runs) if not set(row["without_source"]) & set(row.get("sources", ()))]
    if not found:
        sys.exit(f"No finished run in {told.runs}.")
    rows = list({(row["modality"], row["name"]): row for row in [*earlier(), *found]}.values())
    rows.sort(key=lambda row: (row["modality"], row["architecture"], row["name"]))
    documented = [row for row in rows if row["architecture"] in VARIANTS and "auroc" in row]
    stock = [row for row in rows if row["architecture"] not in VARIANTS]
    write_documented(documented)
    write_stock([row for row in stock if "auroc" in row])
    write_tried(stock)


def audit_changes(run: Path, data: list[str]) -> None:
    """Measure the harmless changes of a documented network on test, unless that was done, and keep the figures."""
    file = run / hub_folder.EVALUATION
    folder = hub_folder.open_folder(run)
    if folder.config["architecture"] not in VARIANTS or not file.is_file():
        return
    evaluation = hub_folder.read_json(file)
    audits = evaluation.setdefault("audits", {})
    if "harmless" not in audits:
        audits["harmless"] = measure_changes(folder, parts_of(folder, data)["test"])
        hub_folder.write_json(file, evaluation)


def earlier() -> list[dict]:
    """The rows that earlier calls wrote, those of the longest list last; what is embedded may have changed since."""
    rows = [
        row
        for name in ("documented", "stock", "tried")
        for row in json.loads((measured.FOLDER / f"{name}.json").read_text())["rows"]
    ]
    return [row | {"embedded": row.get("weights_sha256") in embedded_weights()} for row in rows]


def write_documented(rows: list[dict]) -> None:
    head = ["network", "recipe", "learnt from", "published: accuracy", "its COVID sensitivity / specificity",
            "ours: accuracy", "sensitivity", "specificity", "AUROC", "flips, mean", "flips, worst change"]  # fmt: skip
    lines = [
        [
            label(r),
            by(r),
            f"{r.get('learnt_from', r['images']['train']):,}",
            *published(r),
            *ours(r),
            *flips(r),
        ]
        for r in rows
    ]
    precision = " in bfloat16" if all(row["bf16"] for row in rows) else ""
    text = (
        "The documented networks by their own recipes and by one for the whole family (`family` in "
        f"`train/fit/recipes.py`), trained{precision} on splits that no family of copies crosses, decided at the "
        f"*{POINT}* operating point chosen on validation; test splits of {counts(rows)} pictures. What was "
        "published came from a random split of augmented pictures, and is read here for COVID (its 'recall' was that "
        "of Non-COVID); another collection, so no figure is to be subtracted from another. *Learnt from* counts "
        "training pictures with labels; *flips* are answers that a harmless change turns, on at most 100 test "
        "pictures. By the one recipe `covid_cnn_1`, `_2` and `_4` are the same network, for they have the same layers. "
        "Bold is embedded. 95 % intervals resample families (`python -m tests.benchmarks.networks RUNS --data DATA`). "
        "On the X-ray side collection and label coincide, so those figures count collections rather than disease."
        f"\n\n{measured.table(head, lines)}"
    )
    measured.write("documented", {"rows": rows}, text)


def by(row: dict) -> str:
    """The recipe in the table of documented networks: its own, or the family's with what was changed in it."""
    words = ["its own" if row["recipe"]["name"] == row["architecture"] else how(row)]
    words += ["cut to the lungs"] if row.get("view") == "lungs" else []
    return ", ".join(words)


def flips(row: dict) -> list[str]:
    """Mean share of answers that flip over all harmless changes, and the worst change with its interval."""
    if not (found := row.get("flips")):
        return ["not measured", ""]
    most = f"{measured.interval(found['worst'], 0, percent=True)}, {found['change']}"
    return [f"{100 * found['mean']:.1f} %", most]


def write_stock(rows: list[dict]) -> None:
    inside = sorted({name for row in rows for name in row["inside"]})
    head = ["network", "trained by", "validation AUROC", "test: AUROC", *(f"AUROC inside {name}" for name in inside),
            "accuracy", "sensitivity", "specificity"]  # fmt: skip
    lines = []
    for row in rows:
        accuracy, sensitivity, specificity, auroc = ours(row)
        within = [measured.interval(row["inside"][n]) if n in row["inside"] else "" for n in inside]
        lines.append(
            [label(row), how(row), validation(row), auroc, *within, accuracy, sensitivity, specificity]
        )
    text = (
        "Stock timm networks on the same splits, at the balanced operating point; *scratch* began at random weights, "
        "the others at ImageNet's. What is embedded (bold) was chosen inside train and validation, never by test.\n\n"
        + measured.table(head, lines)
    )
    measured.write("stock", {"rows": rows}, text)


def write_tried(rows: list[dict]) -> None:
    rows = sorted(rows, key=lambda row: (row["modality"], -row["validation_auroc"]))
    lines = [
        [
            label(row),
            how(row),
            f"{row['seconds'] / 60:.0f}",
            validation(row),
            "yes" if "auroc" in row else "no",
        ]
        for row in rows
    ]
    text = (
        "Every stock network whose training was finished for this version, by what it reached on validation (best "
        f"first): {measured_on(rows)}. What was not scored on test was never looked at there.\n\n"
        + measured.table(["network", "trained by", "minutes", "validation AUROC", "scored on test"], lines)
    )
    measured.write("tried", {"rows": rows}, text)


def read(run: Path) -> dict:
    screening = hub_folder.read_json(run / hub_folder.SCREENING)
    config = hub_folder.read_json(run / hub_folder.CONFIG)
    provenance = screening["provenance"]
    row = {
        "name": run.name,
        "modality": screening["modality"],
        "architecture": config["architecture"],
        "model_args": config.get("model_args") or {},
        "recipe": provenance["recipe"],
        "seed": provenance["settings"]["seed"],
        "soup": len(provenance.get("soup") or []),
        "teachers": provenance["settings"].get("teacher") or [],
        "bf16": provenance["training"].get("bf16", provenance["settings"].get("bf16")),
        "images": provenance["images"],
        "seconds": provenance["training"]["seconds"],
        "without_source": provenance["without_source"],
        "view": screening.get("view") or "whole",
        "weights_sha256": screening["weights_sha256"],
        "embedded": screening["weights_sha256"] in embedded_weights(),
    }
    if not (run / hub_folder.EVALUATION).is_file():
        history = [
            epoch["validation_auroc"]
            for epoch in provenance.get("history", [])
            if "validation_auroc" in epoch
        ]
        return {**row, "validation_auroc": provenance.get("validation_auroc") or history[-1]}
    evaluation = hub_folder.read_json(run / hub_folder.EVALUATION)
    at = evaluation["test"]["at"][POINT]
    return {
        **row,
        "learnt_from": sum(evaluation["data"]["counts"]["train"][label] for label in hub_folder.LABELS),
        "sources": sorted(evaluation["test_by_source"]),
        "flips": turned(evaluation.get("audits", {}).get("harmless")),
        "validation_auroc": evaluation["validation"]["auroc"]["value"],
        "n": evaluation["test"]["n"],
        "auroc": evaluation["test"]["auroc"],
        "inside": {
            name: found["auroc"]
            for name, found in evaluation["test_by_source"].items()
            if 0 < found["positives"] < found["n"] < evaluation["test"]["n"]
        },
        **{name: at[name] for name in ("accuracy", "sensitivity", "specificity")},
    }


def turned(harmless: dict | None) -> dict | None:
    """What of an audit's harmless changes stands in the table."""
    if not harmless:
        return None
    every = [row["flips"][POINT]["value"] for row in harmless["rows"]]
    most = worst(harmless, POINT)
    return {"mean": sum(every) / len(every), "worst": most["flips"][POINT], "change": most["change"]}


def embedded_weights() -> set[str]:
    """SHA-256 of the weights of every embedded network."""
    screenings = (path / hub_folder.SCREENING for path in hub_folder.embedded().values())
    return {hub_folder.read_json(file)["weights_sha256"] for file in screenings}


def how(row: dict) -> str:
    """The recipe: its row in `train/fit/recipes.py`, or the one that it shares most with, then what differs from it."""
    name = row["recipe"]["name"]
    bases = [name] if name in RECIPES else [key for key in RECIPES if key not in VARIANTS]
    base, changes = min(
        ((base, differences(row["recipe"], base)) for base in bases), key=lambda pair: len(pair[1])
    )
    words = [base, *changes]
    words += [f"seed {row['seed']}"] if row.get("seed") else []
    words += [f"mean of the weights of {row['soup']} runs"] if row["soup"] else []
    words += ["distilled"] if row["teachers"] else []
    return ", ".join(words)


def differences(recipe: dict, base: str) -> list[str]:
    usual = json.loads(json.dumps(asdict(RECIPES[base])))  # tuples as lists, as they were stored
    return [
        f"{key.replace('_', ' ')} {recipe[key]}"
        for key in usual
        if key in recipe and recipe[key] != usual[key]
    ]


def validation(row: dict) -> str:
    return f"{row['validation_auroc']:.3f}"


def measured_on(rows: list[dict]) -> str:
    sizes = {NAMES[row["modality"]]: row["images"]["validation"] for row in rows}
    return " and ".join(f"{n:,} {name} pictures" for name, n in sizes.items())


def label(row: dict) -> str:
    args = row["model_args"]
    detail = f" {'-'.join(map(str, args['layers']))}" if "layers" in args else ""
    detail += ", average and maximum pooled" if args.get("global_pool") == "fastcatavgmax" else ""
    name = f"{NAMES[row['modality']]} `{row['architecture']}`{detail}"
    return f"**{name}**" if row["embedded"] else name


def published(row: dict) -> list[str]:
    if row["recipe"]["name"] != row["architecture"]:
        return ["", ""]
    figures = PUBLISHED.get((row["modality"], row["architecture"]))
    if figures is None:
        return ["not reported", ""]
    accuracy, sensitivity, specificity = figures
    read_as = "not derivable" if sensitivity is None else f"{sensitivity:.3f} / {specificity:.3f}"
    return [f"{accuracy:.3f}", read_as]


def ours(row: dict) -> list[str]:
    return [measured.interval(row[name]) for name in ("accuracy", "sensitivity", "specificity", "auroc")]


def counts(rows: list[dict]) -> str:
    found = {NAMES[row["modality"]]: row["n"] for row in rows}
    return " and ".join(f"{n:,} {name}" for name, n in found.items())


if __name__ == "__main__":
    main()
