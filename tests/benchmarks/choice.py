"""Attempts of a search, one JSON object a line, into a table: what was tried, by which rule, and what each gave.

`python -m tests.benchmarks.choice ATTEMPTS.jsonl RULE.md NAME` writes docs/measured/NAME.json and NAME.md; NAME is one
of the sets of columns in `COLUMNS`. The rule is prose; a figure of the table is not typed into it but named, as
`{attempt | column}`. With NAME alone the page is written anew from docs/measured/NAME.json.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from .measured import FOLDER, table, write

Row = dict
FIGURE = re.compile(r"\{([^{}|]+(?:\{[^{}|]*\})?\s*)\|([^{}|]+)\}")
"""A figure of the table, named in the rule by attempt, which may end in settings in braces, and column."""


def number(*keys: str, percent: bool = False) -> Callable[[Row], str]:
    """What stands under the first of the keys that the row has; what was not measured is a dash."""

    def shown(row: Row) -> str:
        value = next((row[key] for key in keys if row.get(key) is not None), None)
        return "-" if value is None else f"{100 * value:.1f} %" if percent else f"{value:.3f}"

    return shown


def worst_flip(row: Row) -> str:
    flips = {
        name: flip[0] if isinstance(flip, list) else flip for name, flip in (row.get("flips") or {}).items()
    }
    if not flips:
        return "-"
    worst = max(flips, key=flips.get)
    return f"{100 * flips[worst]:.1f} % ({worst})"


COLUMNS: dict[str, dict[str, Callable[[Row], str]]] = {
    "choice_xray": {
        "attempt": lambda row: row["name"],
        "cxnet unseen": number("A_cxnet"),
        "hannover unseen": number("A_hannover"),
        "ieee8023 unseen": number("A_ieee8023"),
        "inside ieee8023": number("ieee"),
        "home": number("home"),
        "flips, mean": number("flips_all", percent=True),
        "flips, worst": worst_flip,
        "false alarms tb-qatar": number("C_tb", "tb", percent=True),
        "score": number("score"),
    },
    "tune_xray": {
        "trial": lambda row: row["name"],
        "penalty on what copies move": number("steady"),
        "on what tells sources apart": number("source_penalty"),
        "ridge": number("ridge"),
        "cxnet unseen": number("unseen cxnet"),
        "hannover unseen": number("unseen hannover"),
        "ieee8023 unseen": number("unseen ieee8023"),
        "inside ieee8023": number("inside ieee8023"),
        "home": number("home"),
        "flips": number("flips", percent=True),
        "score": number("score"),
    },
    "choice_ct": {
        "attempt": lambda row: row["name"],
        "soares-ct unseen": number("ucsd>soares", "soares"),
        "ucsd-ct unseen": number("soares>ucsd"),
        "folds, both sources learnt": number("folds", "with_soares"),
        "folds, ucsd-ct alone": number("ucsd_only_folds", "ucsd_only"),
        "validation": number("val"),
        "flips, mean": number("mean_flip", "flips_strong_copies", percent=True),
        "flips, worst": worst_flip,
        "border only": number("border_only"),
        "score": number("S"),
    },
    "choice_family": {
        "attempt": lambda row: row["name"],
        "validation": number("val"),
        "soares-ct unseen": number("soares"),
        "inside ieee8023": number("inside_ieee"),
        "false alarms tb-qatar": number("tb_alarms", percent=True),
        "flips, mean": number("mean_flips", percent=True),
        "flips, worst": worst_flip,
        "score": number("score"),
    },
}


def told(rule: str, rows: list[Row], name: str) -> str:
    """Put the named figures into the rule, and the table under it.

    Raises:
        KeyError: the rule names an attempt or a column that there is not.
    """
    columns, attempts = COLUMNS[name], {row["name"]: row for row in rows}

    def figure(place: re.Match) -> str:
        attempt, column = (part.strip() for part in place.groups())
        return columns[column](attempts[attempt])

    cells = [[shown(row) for shown in columns.values()] for row in rows]
    return f"{FIGURE.sub(figure, rule.strip())}\n\n{table(list(columns), cells)}"


def main(name: str, attempts: Path | None = None, rule: Path | None = None) -> None:
    """Write the page of a choice, from a file of attempts and a rule, or anew from what was written before."""
    if attempts and rule:
        lines = attempts.read_text("utf-8").splitlines()
        result = {
            "rule": rule.read_text("utf-8"),
            "rows": [json.loads(line) for line in lines if line.strip()],
        }
    else:
        result = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    write(name, result, told(result["rule"], result["rows"], name))


if __name__ == "__main__":
    *files, last = sys.argv[1:]
    main(last, *map(Path, files))
