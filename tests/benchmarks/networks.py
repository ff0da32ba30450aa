"""All trained networks side by side, from the evaluation.json of their runs.

    python -m tests.benchmarks.networks RUNS

RUNS holds evaluated hub folders. Writes docs/measured/documented.* (the six documented networks beside what their
authors published) and docs/measured/stock.* (all others). Nothing is trained or scored here.
"""

import sys
from pathlib import Path

from hub_model import hub_folder
from hub_model.covid_cnn import VARIANTS
from tests.benchmarks import measured

# Accuracy, and sensitivity / specificity for COVID. Its class names were encoded in alphabetical order, COVID as 0, so
# that the precision and recall it reports are those of Non-COVID; from them and the class counts of its test parts (CT
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


def main() -> None:
    runs = sorted(path.parent for path in Path(sys.argv[1]).glob(f"*/{hub_folder.EVALUATION}"))
    rows = [row for row in map(read, runs) if not row["without_source"]]
    if not rows:
        sys.exit(f"No evaluated run in {sys.argv[1]}.")
    rows.sort(key=lambda row: (row["modality"], row["architecture"] not in VARIANTS, row["name"]))
    documented = [row for row in rows if row["architecture"] in VARIANTS]
    stock = [row for row in rows if row["architecture"] not in VARIANTS]
    head = ["network", "published: accuracy", "its COVID sensitivity / specificity", "ours: accuracy", "sensitivity",
            "specificity", "AUROC"]  # fmt: skip
    table = measured.table(head, [[label(row), *published(row), *ours(row)] for row in documented])
    text = (
        "The documented networks by their own recipes, on splits that no family of copies crosses, decided at the "
        "balanced operating point chosen on validation; test parts of "
        f"{counts(documented)} pictures. What was published came from a random split of augmented pictures, and is "
        "read here for COVID (its 'recall' was that of Non-COVID); another collection, so no figure is to be "
        "subtracted from another. 95 % intervals resample families (`python -m tests.benchmarks.networks RUNS`)."
        f"\n\n{table}"
    )
    measured.write("documented", {"rows": documented}, text)
    head = ["network", "recipe", "validation AUROC", "test: AUROC", "accuracy", "sensitivity", "specificity"]
    cells = [[label(row), row["recipe"], row["validation_auroc"], *reversed_ours(row)] for row in stock]
    text = (
        "Stock timm networks on the same splits, at the balanced operating point; 'scratch' began at random weights, "
        "the others at ImageNet's. Validation chose what is shipped, test never did.\n\n"
        + measured.table(head, [[str(cell) for cell in line] for line in cells])
    )
    measured.write("stock", {"rows": stock}, text)


def read(run: Path) -> dict:
    evaluation = hub_folder.read_json(run / hub_folder.EVALUATION)
    provenance = hub_folder.read_json(run / hub_folder.SCREENING)["provenance"]
    recipe = provenance["recipe"]
    at = evaluation["test"]["at"]["balanced"]
    return {
        "name": run.name,
        "modality": evaluation["modality"],
        "architecture": evaluation["architecture"],
        "recipe": f"{recipe['name']}, {recipe['epochs']} epochs, {recipe['input_size']} px",
        "parameters": evaluation["parameters"],
        "validation_auroc": f"{evaluation['validation']['auroc']['value']:.3f}",
        "without_source": provenance["without_source"],
        "n": evaluation["test"]["n"],
        "auroc": evaluation["test"]["auroc"],
        **{name: at[name] for name in ("accuracy", "sensitivity", "specificity")},
    }


def label(row: dict) -> str:
    return f"{NAMES[row['modality']]} `{row['name'].split('-', 1)[1]}`"


def published(row: dict) -> list[str]:
    figures = PUBLISHED.get((row["modality"], row["architecture"]))
    if figures is None:
        return ["not reported", ""]
    accuracy, sensitivity, specificity = figures
    read_as = "not derivable" if sensitivity is None else f"{sensitivity:.3f} / {specificity:.3f}"
    return [f"{accuracy:.3f}", read_as]


def ours(row: dict) -> list[str]:
    return [measured.interval(row[name]) for name in ("accuracy", "sensitivity", "specificity", "auroc")]


def reversed_ours(row: dict) -> list[str]:
    accuracy, sensitivity, specificity, auroc = ours(row)
    return [auroc, accuracy, sensitivity, specificity]


def counts(rows: list[dict]) -> str:
    found = {NAMES[row["modality"]]: row["n"] for row in rows}
    return " and ".join(f"{n:,} {name}" for name, n in found.items())


if __name__ == "__main__":
    main()
