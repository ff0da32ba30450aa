"""What `python -m train faithfulness` found of runs, as one table.

    python -m tests.benchmarks.faithfulness RUN ...

Measures nothing by itself. Writes docs/measured/faithfulness.json and faithfulness.md.
"""

import sys
from pathlib import Path

from hub_model import hub_folder
from tests.benchmarks import measured
from train.measure.faithfulness import CURVES, REPORT


def main() -> None:
    runs = [Path(name) for name in sys.argv[1:]]
    if not runs:
        sys.exit("Name runs that `python -m train faithfulness` has been through.")
    reports = {run.name: hub_folder.read_json(run / REPORT) for run in runs}
    cells = [
        [f"`{name}`", kind, f"{report['images']} ({report['families']})",
         *(measured.interval(report[kind][what], 3) for what in ("heat map", "random map", "difference")),
         measured.interval(report[kind]["better_on"], 0, percent=True)]
        for name, report in reports.items() for kind in CURVES
    ]  # fmt: skip
    head = [
        "model",
        "curve",
        "test images (families)",
        "heat map",
        "random map",
        "difference",
        "map better on",
    ]
    text = (
        "Area under the probability of the network's own answer while the places that its heat map ranks highest are "
        "deleted (small is faithful) or inserted into a blurred picture (large is faithful), against a random map of "
        "the same grain on the same pictures; Petsiuk et al. 2018, 95 % intervals resample families "
        f"(`python -m train faithfulness RUN --data DATA`). {verdict(reports)}\n\n{measured.table(head, cells)}"
    )
    measured.write("faithfulness", reports, text)


def verdict(reports: dict) -> str:
    """In words, what the intervals of the differences say."""
    said = {"better than": [], "no better than": [], "worse than": []}
    for name, report in reports.items():
        for kind in CURVES:
            gain = report[kind]["difference"]
            low, high = (gain["low"], gain["high"]) if kind == "insertion" else (-gain["high"], -gain["low"])
            word = "better than" if low > 0 else "worse than" if high < 0 else "no better than"
            said[word].append(f"{kind} on `{name}`")
    parts = [f"{word} chance by {', '.join(where)}" for word, where in said.items() if where]
    return f"The heat map is {'; '.join(parts)}."


if __name__ == "__main__":
    main()
