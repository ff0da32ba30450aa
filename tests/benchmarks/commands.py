"""Do the commands that README and docs give work as they stand, one after the other, on phantoms?

    python -m tests.benchmarks.commands

Reads the commands out of the pages, runs them in a new folder that holds `archive.zip` (phantoms) and `scans/`, in the
order in which a run comes about, and stops at the first that fails. Prints the seconds of each; writes no table.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.readme import ROOT, pages

ORDER = (
    "prepare",
    "explore",
    "fit",
    "evaluate",
    "audit",
    "faithfulness",
    "export",
    "card",
    "publish",
    "info",
    "score",
)
"""Verbs, in the order in which each finds what it needs."""
COMMAND = re.compile(r"(?:python -m train|covid-xct) (?P<verb>[a-z-]+)[^`\n#]*")
GIVEN = {"archive.zip", "data", "scans", "runs/ct"}
"""What a command may read to be run here; commands about other files are examples of other data."""
PICTURES = 80
SHOWN = 400  # letters of the output of a command that failed


def commands(texts: list[str]) -> dict[str, str]:
    """Find, for each verb of `ORDER`, the first command of the pages that reads what is given."""
    found: dict[str, str] = {}
    for text in texts:
        for match in COMMAND.finditer(text):
            command = match[0].strip()
            words = {word.rstrip("/") for word in command.split()}
            if match["verb"] in ORDER and (words & GIVEN or match["verb"] == "info"):
                found.setdefault(match["verb"], command)
    if missing := [verb for verb in ORDER if verb not in found]:
        raise SystemExit(f"No page gives a command for {', '.join(missing)} on {', '.join(sorted(GIVEN))}.")
    return {verb: found[verb] for verb in ORDER}


def run(command: str, folder: Path) -> float:
    """Run a command as a user would; returns its seconds.

    Raises:
        SystemExit: it failed.
    """
    words = shlex.split(command)
    words = (
        [sys.executable, "-m", "hub_model", *words[1:]]
        if words[0] == "covid-xct"
        else [sys.executable, *words[1:]]
    )
    began = time.monotonic()
    settings = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    done = subprocess.run(
        words, cwd=folder, env=os.environ | settings, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{command}\nended with {done.returncode}: {(done.stdout + done.stderr)[-SHOWN:]}")
    return round(time.monotonic() - began, 1)


def main() -> None:
    chosen = commands([page.read_text("utf-8") for page in pages()])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(f"python -m train phantom --out phantoms --n {PICTURES} --modality ct", folder)
        shutil.make_archive(str(folder / "archive"), "zip", folder / "phantoms")
        (folder / "phantoms").rename(folder / "scans")
        for command in chosen.values():
            print(f"{run(command, folder):7.1f} s  {command}", flush=True)


if __name__ == "__main__":
    main()
