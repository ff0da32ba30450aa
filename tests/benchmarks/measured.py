"""Where benchmarks leave their figures: docs/measured/NAME.json (all) and NAME.md (for the README)."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "measured"


def environment(*packages: str) -> dict:
    """What figures were measured with: processor, cores, Python and the versions of packages."""
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def write(name: str, result: dict, text: str, folder: Path = FOLDER) -> None:
    """Write NAME.json and NAME.md, each whole or not at all; prints the text."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, content in ((".json", json.dumps(result, indent=2)), (".md", text.strip())):
        partial = folder / f"{name}{suffix}.{os.getpid()}"
        partial.write_text(content + "\n", "utf-8")
        os.replace(partial, folder / f"{name}{suffix}")
    print(text.strip())


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are set to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def interval(figure: dict, digits: int = 2, percent: bool = False) -> str:
    """A record as '0.91 (0.88 to 0.94)', or in percent."""
    times, unit = (100, " %") if percent else (1, "")
    value, low, high = (f"{times * figure[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value}{unit} ({low} to {high})"


def _processor() -> str:
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
