"""Put the measured tables of docs/measured/ where the README names them.

    python -m tests.benchmarks.readme

A place is a pair of comments, `<!-- measured: NAME -->` and `<!-- /measured -->`; what stands between them becomes
docs/measured/NAME.md.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README, MEASURED = ROOT / "README.md", ROOT / "docs" / "measured"
PLACE = re.compile(r"(<!-- measured: ([\w-]+) -->\n).*?(<!-- /measured -->)", re.DOTALL)


def rendered(text: str) -> str:
    """The text with every named table as it was measured last.

    Raises:
        FileNotFoundError: a named table was never measured.
    """

    def table(place: re.Match) -> str:
        return f"{place[1]}{(MEASURED / f'{place[2]}.md').read_text('utf-8').strip()}\n{place[3]}"

    return PLACE.sub(table, text)


if __name__ == "__main__":
    README.write_text(rendered(README.read_text("utf-8")), "utf-8")
