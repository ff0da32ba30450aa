"""Attempts of a search, one JSON object a line, into a table: what was tried, by which rule, and what each gave.

`python -m tests.benchmarks.choice ATTEMPTS.jsonl RULE.md NAME` writes docs/measured/NAME.json and NAME.md.
"""

import json
import sys
from pathlib import Path

from .measured import table, write

UNSEEN = ("A_cxnet", "A_hannover", "A_ieee8023")
HEAD = [
    "attempt", "cxnet unseen", "hannover unseen", "ieee8023 unseen", "inside ieee8023", "home", "flips, mean",
    "flips, worst", "false alarms tb-qatar", "score",
]  # fmt: skip


def shown(row: dict) -> list[str]:
    """One line of the table; what was not measured is a dash."""

    def number(key: str, percent: bool = False) -> str:
        value = row.get(key)
        return "-" if value is None else f"{100 * value:.1f} %" if percent else f"{value:.3f}"

    worst = max(row["flips"], key=row["flips"].get) if row.get("flips") else None
    return [
        row["name"],
        *(number(key) for key in UNSEEN),
        number("ieee"),
        number("home"),
        number("flips_all", percent=True),
        f"{100 * row['flips'][worst]:.1f} % ({worst})" if worst else "-",
        number("C_tb" if "C_tb" in row else "tb", percent=True),
        number("score"),
    ]


def main(attempts: Path, rule: Path, name: str) -> None:
    rows = [json.loads(line) for line in attempts.read_text("utf-8").splitlines() if line.strip()]
    text = f"{rule.read_text('utf-8').strip()}\n\n{table(HEAD, [shown(row) for row in rows])}"
    write(name, {"rule": rule.read_text("utf-8"), "rows": rows}, text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
