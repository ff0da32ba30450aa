"""Attempts of a search, one JSON object a line, into a table: what was tried, by which rule, and what each gave.

`python -m tests.benchmarks.choice ATTEMPTS.jsonl RULE.md NAME` writes docs/measured/NAME.json and NAME.md; NAME begins
with the modality's column set (`choice_xray`, `choice_ct`).
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from .measured import table, write

Row = dict


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
}


def main(attempts: Path, rule: Path, name: str) -> None:
    rows = [json.loads(line) for line in attempts.read_text("utf-8").splitlines() if line.strip()]
    columns = COLUMNS[name]
    text = f"{rule.read_text('utf-8').strip()}\n\n"
    text += table(list(columns), [[shown(row) for shown in columns.values()] for row in rows])
    write(name, {"rule": rule.read_text("utf-8"), "rows": rows}, text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
