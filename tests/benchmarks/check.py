"""The site check on real collections, each treated as somebody else's hospital; and the plan's table.

    python -m tests.benchmarks.check ../shared/data ../shared/data3 --model xray --model ct [--model RUN ...]

Every collection of every kind that a model reads is checked by itself: what is refused, how many are copies of the
model's own pictures, the figures of the rest, and the verdict. Collections with one label are joined to no other. Where
there are patients enough, local settings are fitted on one part and measured on the other. Writes
docs/measured/check.json and check.md; it keeps no picture and no name.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from hub_model import Refused, Screener
from hub_model.check import planning, report
from hub_model.check.adapt import adapt
from hub_model.check.cases import judge_rows
from hub_model.check.labels import Row
from hub_model.check.sources import open_sources
from tests.benchmarks import measured

MOST = 150
"""Pictures of a label of a collection at most, drawn at random."""
PLAN = {"sensitivity": 0.9, "width": 0.1, "prevalence": 0.2}


def hospitals(data: list[str], modality: str, most: int) -> dict[str, list[Row]]:
    """Rows by collection, at most so many of each label."""
    rng, found = np.random.default_rng(0), defaultdict(list)
    rows = [row for row in open_sources(data, modality) if row.skipped is None]
    for place in rng.permutation(len(rows)):
        row = rows[place]
        if sum(other.label == row.label for other in found[row.source]) < most:
            found[row.source].append(row)
    return dict(sorted(found.items()))


def checked(screener: Screener, rows: list[Row], changes: int) -> dict[str, Any]:
    """The check of one collection, or why there is none."""
    with Progress(transient=True) as progress:
        task = progress.add_task("judging", total=len(rows))
        material = judge_rows(rows, screener, lambda done, _: progress.update(task, completed=done))
    result: dict[str, Any] = {"pictures": len(rows), "refused": len(material.refused)}
    result["own"] = sum(case.seen is not None for case in material.counted)
    try:
        told = report.examine(material, screener, report.Settings(changes=changes))
        keep = ("data", "figures", "against_card", "promises", "first", "verdict", "refused")
        result["report"] = {key: told[key] for key in keep}
    except Refused as refusal:
        return {**result, "refusal": str(refusal)}
    try:
        site, _ = adapt(material, screener)
        result["site"] = {key: site[key] for key in ("temperature", "bias", "data", "figures")}
    except Refused as refusal:
        result["site_refusal"] = str(refusal)
    return result


def row_of(model: str, name: str, found: dict[str, Any]) -> list[str]:
    """A line of the table of checks."""
    start = [f"`{model}` on {name}", str(found["pictures"]), str(found["refused"]), str(found["own"])]
    if "refusal" in found:
        return [*start, "", "", "", found["refusal"].split(". ")[0].rstrip(".") + "."]
    figures = found["report"]["figures"]
    at = next(iter(figures["at"].values()))
    spans = [
        measured.interval(one) if one["value"] is not None else "–"
        for one in (figures["auroc"], at["sensitivity"], at["specificity"])
    ]
    worse = [row["words"] for row in found["report"]["against_card"] if row["difference"]["more_than_chance"]]
    return [*start, *spans, f"*{found['report']['verdict']['word']}*. {' '.join(worse)}"]


def adapted_rows(results: dict[str, dict]) -> list[list[str]]:
    """Before and after, on the part kept out."""
    rows = []
    for model, by_name in results.items():
        for name, found in by_name.items():
            if "site" not in found:
                continue
            figures, data = found["site"]["figures"], found["site"]["data"]
            before, after = figures["before"], figures["after"]
            spans = [measured.interval(part[key]) for key in ("ece", "brier") for part in (before, after)]
            at = [measured.interval(part["at"]["sensitivity"][key])
                  for key in ("sensitivity", "specificity") for part in (before, after)]  # fmt: skip
            rows.append([f"`{model}` on {name}", f"{data['fitted_on']} / {data['measured_on']}", *spans, *at])
    return rows


def text_of(results: dict[str, dict], plan: dict[str, Any], most: int) -> str:
    """Three tables."""
    head = ["model and collection", "pictures", "refused", "the model's own", "AUROC", "sensitivity", "specificity",
            "verdict, and what differs from the card"]  # fmt: skip
    lines = [
        row_of(model, name, found) for model, by_name in results.items() for name, found in by_name.items()
    ]
    text = (
        "Each collection treated as somebody else's hospital, at most "
        f"{most} pictures of a label, at the operating point *sensitivity*; copies of the model's own training "
        "pictures "
        "do not count where others are left (`python -m tests.benchmarks.check DATA --model ...`).\n\n"
        + measured.table(head, lines)
    )
    if rows := adapted_rows(results):
        head = ["model and collection", "fitted on / measured on", "calibration error before", "after",
                "Brier before", "after", "sensitivity before", "after", "specificity before", "after"]  # fmt: skip
        text += "\n\nLocal settings, measured on patients kept out:\n\n" + measured.table(head, rows)
    rows = [
        [f"{row['share']:g}", f"{row['n']:,}", f"{row['low']:.3f} to {row['high']:.3f}"]
        for row in plan["rows"]
    ]
    return text + (
        f"\n\nPatients of a class for a 95 % interval {plan['width']:g} wide (`covid-xct check --plan`); at a "
        "prevalence "
        f"of {plan['prevalence']:g} a sensitivity and specificity of {plan['sensitivity']:g} take about "
        f"{plan['consecutive']:,} patients in a row:\n\n"
        + measured.table(["share expected", "patients", "interval"], rows)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="The site check on real collections.")
    parser.add_argument("data", nargs="+", help="collections with a metadata.csv")
    parser.add_argument("--model", action="append", default=[], help="xray, ct, or a hub folder; may repeat")
    parser.add_argument("--most", type=int, default=MOST, help="pictures of a label of a collection")
    parser.add_argument("--changes", type=int, default=0, help="pictures on which harmless changes are tried")
    parser.add_argument("--out", type=Path, default=measured.FOLDER)
    chosen = parser.parse_args()
    results: dict[str, dict] = {}
    for model in chosen.model or ["xray", "ct"]:
        screener = Screener.from_pretrained(model)
        places = hospitals(chosen.data, screener.modality, chosen.most)
        results[Path(model).name] = {
            name: checked(screener, rows, chosen.changes) for name, rows in places.items()
        }
    plan = planning.plan(**PLAN)
    result = {
        "environment": measured.environment("numpy", "scipy", "onnxruntime"),
        "plan": plan,
        "checks": results,
    }
    measured.write("check", result, text_of(results, plan, chosen.most), chosen.out)


if __name__ == "__main__":
    main()
