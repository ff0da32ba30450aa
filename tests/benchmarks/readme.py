"""Put what commands measured, and what the code says of itself, where README.md and docs/*.md name it.

    python -m tests.benchmarks.readme

A place is a pair of comments, `<!-- measured: NAME -->` and `<!-- /measured -->`. What stands between them becomes
docs/measured/NAME.md, or, for a name in `MADE`, what that function gives: the models' table comes from the embedded
evaluation.json files, the reference and the map from the docstrings, the example's output from running it.
"""

import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from hub_model import hub_folder
from tests.benchmarks import reference
from tests.benchmarks.measured import FOLDER as MEASURED
from tests.benchmarks.measured import interval, table

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PLACE = re.compile(r"(<!-- measured: ([\w-]+) -->\n).*?(<!-- /measured -->)", re.DOTALL)
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
PICTURES = {"xray": "chest X-ray", "ct": "CT slice"}
CHANCE = 0.5  # an AUROC


def pages() -> list[Path]:
    """README.md, SECURITY.md and docs/*.md: every page that a reader is led to."""
    return [README, ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


def rendered(text: str) -> str:
    """The text with every named place filled anew.

    Raises:
        FileNotFoundError: a named table was never measured.
    """

    def filled(place: re.Match) -> str:
        name = place[2]
        made = MADE[name]() if name in MADE else (MEASURED / f"{name}.md").read_text("utf-8")
        return f"{place[1]}{made.strip()}\n{place[3]}"

    return PLACE.sub(filled, text)


def models() -> str:
    """The embedded models by their evaluation.json: figures on the test split, and what they are worth."""
    head = ["model", "test pictures (families)", "AUROC", "sensitivity", "specificity"]
    rows, sentences = [], []
    for name, folder in hub_folder.embedded().items():
        evaluation = hub_folder.read_json(folder / hub_folder.EVALUATION)
        test, kind = evaluation["test"], f"{PICTURES[evaluation['modality']]} (`{name}`)"
        point, at = next(iter(test["at"].items()))
        figures = [interval(figure) for figure in (test["auroc"], at["sensitivity"], at["specificity"])]
        rows.append([kind, f"{test['n']} ({test['families']})", *figures])
        sentences.append(f"- {kind}: {' '.join(worth(evaluation))}")
    measured = f"At the operating point *{point}*, on test splits; 95 % intervals resample families."
    return "\n\n".join([measured, table(head, rows), "What these figures are worth:", "\n".join(sentences)])


def worth(evaluation: dict) -> list[str]:
    """Sentences on what else could explain a model's figures, the worst case of each named.

    A collection that holds both labels shows whether the model sees more than which collection a picture is from; a
    thumbnail shows how far one gets without any detail of the lungs.
    """
    sources = evaluation["test_by_source"]
    both = {name: part["auroc"] for name, part in sources.items() if part["auroc"]["value"] is not None}
    audited = evaluation.get("audits", {}).get("kept_out") or {}
    elsewhere = {name: row["auroc"] for name, row in audited.items() if row["auroc"]["value"] is not None}
    found = []
    if len(sources) > 1:
        one_label = ", ".join(name for name in sources if name not in both)
        for name, auroc in both.items():
            answer = "not shown to be better than chance" if auroc["low"] <= CHANCE else "better than chance"
            found.append(
                f"Inside {name}, the collection that holds both labels, AUROC {interval(auroc)}: {answer}. "
                f"The figure over all of them counts collections too ({one_label} hold one label each)."
            )
    elif sources and not elsewhere:
        found.append(f"One collection, {', '.join(sources)}; how it does on another was not measured.")
    for name, auroc in elsewhere.items():
        answer = "not shown to be better than chance" if auroc["low"] <= CHANCE else "better than chance"
        found.append(f"On {name}, which had no part in training, AUROC {interval(auroc)}: {answer}.")
    if not (thumbnail := evaluation.get("audits", {}).get("thumbnail", {}).get("all")):
        return [*found, "Not audited: nothing says what else gave the labels away."]
    advantage = thumbnail["advantage"]
    answer = (
        "no better than a thumbnail, as far as shown" if advantage["low"] <= 0 else "better than a thumbnail"
    )
    found.append(
        f"AUROC of a thumbnail alone {interval(thumbnail)}; difference {interval(advantage)}: {answer}."
    )
    return found


@cache
def example() -> str:
    """What the first Python block of the README prints, run as it stands."""
    code = PYTHON.search(README.read_text("utf-8"))[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the README's example fails:\n{done.stderr}")
    return f"```\n{done.stdout.strip()}\n```"


def verbs() -> str:
    """The commands of `python -m train`, by their lines of help."""
    found = importlib.import_module("train.__main__").VERBS
    return table(
        ["verb", "what it does"], [[f"`{name}`", verb.help] for name, verb in found.items()]
    ).replace("---:", "---")


def patients() -> str:
    """How the embedded CT model's rule for series did on patients; a sentence where nothing was measured."""
    told = hub_folder.read_json(hub_folder.embedded()["ct"] / hub_folder.EVALUATION).get("patients")
    if not told:
        return "Not measured yet for the embedded model: its series get no answer as a whole."
    test, counts = told["test"], told["counts"]["test"]
    rows = [
        [name, f"{at['threshold']:.3f}", interval(at["sensitivity"]), interval(at["specificity"])]
        for name, at in test["at"].items()
    ]
    compared = told["compared"]["train and validation"]
    rules = ", ".join(f"{rule} {one['auroc']:.3f} ± {one['error']:.3f}" for rule, one in compared.items())
    said = (
        f"Rule: {told['rule']} of the slices' probabilities (AUROC over folds of patients, from most of whom the "
        f"network learnt, so that it ranks rules and no more: {rules}). Test split: "
        f"{test['n']} patients of {', '.join(told['sources'])} ({test['positives']} with COVID-19), "
        f"{counts['slices']} slices judged, median {counts['median_slices']:g} a patient, at most "
        f"{counts['most_slices']}; {counts['unanswered']} further patients had no slice that could be judged. AUROC "
        f"{interval(test['auroc'])}. The rule is used for series of up to {told['most_slices']} judged slices."
    )
    return f"{said}\n\n{table(['operating point', 'threshold', 'sensitivity', 'specificity'], rows)}"


MADE: dict[str, Callable[[], str]] = {
    "patients": patients,
    "models": models,
    "example": example,
    "reference": reference.interface,
    "verbs": verbs,
    "map": reference.modules,
}
"""Places that are made from the tree itself."""


if __name__ == "__main__":
    for page in pages():
        page.write_text(rendered(page.read_text("utf-8")), "utf-8")
