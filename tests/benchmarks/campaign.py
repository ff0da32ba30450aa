"""Attack the product as strangers and failing machines would, count what holds, and fail on anything that does not.

    python -m tests.benchmarks.campaign [SECTION ...] [--mutants 20000] [--uploads 1000] [--kills 20] [--first 0]
                                                    [--verbs NAME ...]

Sections: mutants, inputs, bombs, folders, http, kills, troubles; all by default. --verbs names some of those that are
killed; others keep their earlier figures. Everything is a function of numbers, so a
finding can be had again (--first N --mutants 1). Writes docs/measured/security.json and security.md, which
`python -m tests.benchmarks.readme` renders into SECURITY.md; a section that was not run keeps its earlier figures.
"""

import argparse
import io
import json
import os
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

from tests.attacks import bombs, faults, inputs, mutants, server
from tests.benchmarks.measured import FOLDER, environment, table, write

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "demo" / "examples" / "phantom_ct_1.png"
VERSIONS = (
    "gradio",
    "imagecodecs",
    "nibabel",
    "numpy",
    "onnxruntime",
    "pillow",
    "pydicom",
    "safetensors",
    "torch",
)


def attack_mutants(folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Broken files of every accepted format."""
    return mutants.attack(range(chosen.first, chosen.first + chosen.mutants), folder)


def attack_inputs(folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Broken JSON of hub folders and sites, broken tables of a check, broken prepared data: a tenth of the mutants."""
    return inputs.attack(range(chosen.first, chosen.first + chosen.mutants // 10), folder)


def attack_bombs(folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Small files that would become large or long."""
    found = {}
    for number, name in enumerate(bombs.BOMBS):
        place = folder / str(number)
        place.mkdir()
        found[name] = bombs.explode(name, place)
        shutil.rmtree(place)
    wrong = [f"{name}: {told}" for name, told in found.items() if not told["held"]]
    return {"count": len(found), "bombs": found, "wrong": wrong}


def attack_folders(folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Hub folders as strangers might make them."""
    import re

    from hub_model import FolderRefused, hub_folder
    from tests.bad_folders import DAMAGES, save

    good, wrong = save(folder / "good"), []
    for number, (name, (damage, words)) in enumerate(DAMAGES.items()):
        place = Path(shutil.copytree(good, folder / str(number)))
        damage(place)
        try:
            hub_folder.open_folder(place).model  # noqa: B018 - builds the network
            wrong.append(f"{name}: it was opened")
        except FolderRefused as refusal:
            if not re.search(words, str(refusal)):
                wrong.append(f"{name}: refused for another reason")
        except BaseException as error:
            wrong.append(f"{name}: {type(error).__name__}")
    return {"count": len(DAMAGES), "wrong": wrong}


def attack_http(folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """The page: addresses, the server's files, foreign origins, parallel and half-open uploads, a greedy visitor."""
    stream, picture = io.BytesIO(), EXAMPLE.read_bytes()
    with zipfile.ZipFile(stream, "w") as archive:
        for number in range(100):
            archive.writestr(f"CANARY_Doe_Jane_{number}.png", picture)
    with server.attacked(folder) as page:
        requests, wrong = server.matrix(page.url, EXAMPLE)
        began = time.monotonic()
        wrong += server.races(page, chosen.uploads)
        swept = time.monotonic() - began
        wrong += server.half_open(page)
        waited, unfair = server.fairness(page, stream.getvalue(), picture)
        wrong += [*unfair, *server.quiet(page)]
        hooked = page.hooked
    return {"requests": requests, "uploads": chosen.uploads, "swept_s": swept, "half_open": 20, "waited_s": waited,
            "hooked_in_c": hooked, "wrong": wrong}  # fmt: skip


def attack_kills(folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Verbs and `score` killed at random times."""
    found = {}
    for name in chosen.verbs or faults.VERBS:
        place = folder / name.replace(" ", "_")
        place.mkdir()
        found[name] = faults.kills(name, chosen.kills, place, chosen.first)
        shutil.rmtree(place)
    return {"verbs": found, "wrong": [text for told in found.values() for text in told["wrong"]]}


def attack_troubles(folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Full disks, closed folders, two processes at once."""
    found = {}
    for name in chosen.verbs or faults.VERBS:
        place = folder / name.replace(" ", "_")
        place.mkdir()
        found[name] = {"wrong": faults.troubles(name, place)}
        shutil.rmtree(place)
    return {"verbs": found, "wrong": [text for told in found.values() for text in told["wrong"]]}


SECTIONS: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "mutants": attack_mutants,
    "inputs": attack_inputs,
    "bombs": attack_bombs,
    "folders": attack_folders,
    "http": attack_http,
    "kills": attack_kills,
    "troubles": attack_troubles,
}


def run(names: list[str], chosen: argparse.Namespace) -> dict[str, Any]:
    """Run sections, each in a folder of its own."""
    found = {}
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            began = time.monotonic()
            found[name] = SECTIONS[name](Path(scratch), chosen)
        found[name]["seconds"] = round(time.monotonic() - began, 1)
        wrong = found[name]["wrong"]
        lines = [f"{key}: {text}" for key, text in wrong.items()] if isinstance(wrong, dict) else wrong
        for line in lines[:20]:
            print(f"WRONG {name}: {line}", file=sys.stderr)
        print(f"{name}: {found[name]['seconds']:.0f} s, {len(wrong)} wrong", file=sys.stderr, flush=True)
    return found


def told(result: dict[str, Any]) -> str:
    """The table of SECURITY.md."""
    sections, rows = result["sections"], []
    if found := sections.get("mutants"):
        outcomes = ", ".join(f"{count:,} {name}" for name, count in sorted(found["outcomes"].items()))
        rows.append([f"broken files of {found['formats']} formats", f"{found['count']:,}",
                     f"{outcomes}; slowest {found['slowest_s']:.1f} s, at most {found['peak_mb']:,.0f} MB",
                     found])  # fmt: skip
    if found := sections.get("inputs"):
        outcomes = ", ".join(f"{count:,} {name}" for name, count in sorted(found["outcomes"].items()))
        rows.append([f"broken settings, hub folders, tables and prepared data ({found['kinds']} kinds of files)",
                     f"{found['count']:,}", f"{outcomes}; slowest {found['slowest_s']:.1f} s", found])  # fmt: skip
    if found := sections.get("bombs"):
        seconds = max(one["seconds"] for one in found["bombs"].values())
        memory = max(one["mb"] for one in found["bombs"].values())
        rows.append(["files that would become large or long", str(found["count"]),
                     f"refused; slowest {seconds:.1f} s, at most {memory:,.0f} MB more", found])  # fmt: skip
    if found := sections.get("folders"):
        rows.append(["hub folders of strangers", str(found["count"]), "refused in words", found])
    if found := sections.get("http"):
        places = "Python and C" if found["hooked_in_c"] else "Python"
        rows.append([f"requests for addresses, files and by foreign origins; hooks in {places}",
                     f"{found['requests']:,}", "none fetched, none answered", found])  # fmt: skip
        rows.append(["parallel uploads", f"{found['uploads']:,}", "all deleted", found])
        rows.append(["half-open uploads", str(found["half_open"]), "all ended and deleted", found])
        rows.append(["batches of one greedy visitor", "110",
                     f"another visitor had his answers after {found['waited_s']:.0f} s", found])  # fmt: skip
    if found := sections.get("kills"):
        for name in (name for name in faults.VERBS if name in found["verbs"]):
            one = found["verbs"][name]
            states = ", ".join(f"{count} {state}" for state, count in sorted(one["states"].items()))
            rows.append(
                [f"kills of {name}", str(one["kills"]), f"afterwards {states}; run again: whole", one]
            )
    if found := sections.get("troubles"):
        rows.append(["full disks, closed folders and two processes at once, by verb", str(len(found["verbs"])),
                     "whole or nothing, and said", found])  # fmt: skip
    lines = [
        [*row[:3], "holds" if not row[3]["wrong"] else f"**{len(row[3]['wrong'])} do not hold**"]
        for row in rows
    ]
    env = result["environment"]
    versions = ", ".join(f"{name} {env[name]}" for name in ("python", *VERSIONS))
    return f"{table(['attack', 'count', 'outcome', ''], lines)}\n\n{versions}; {env['cpu']}, {env['cores']} cores."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", choices=[[], *SECTIONS], help="by default all")
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--uploads", type=int, default=1_000)
    parser.add_argument("--kills", type=int, default=20, help="of each verb")
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first mutant, and seed of the kills"
    )
    parser.add_argument(
        "--verbs", nargs="+", choices=list(faults.VERBS), metavar="VERB", help="to kill and trouble"
    )
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:  # data opened meanwhile leave nothing in the user's cache
        os.environ["HF_DATASETS_CACHE"] = cache
        found = run(chosen.sections or list(SECTIONS), chosen)
    earlier = FOLDER / "security.json"
    known = json.loads(earlier.read_text("utf-8"))["sections"] if earlier.is_file() else {}
    for name in {"kills", "troubles"} & found.keys() & known.keys():
        verbs = {verb: told for verb, told in known[name]["verbs"].items() if verb in faults.VERBS}
        verbs |= found[name]["verbs"]
        found[name] |= {"verbs": verbs, "wrong": [text for told in verbs.values() for text in told["wrong"]]}
    result = {"environment": environment(*VERSIONS), "sections": {**known, **found}}
    write("security", result, told(result))
    sys.exit(any(one["wrong"] for one in found.values()))


if __name__ == "__main__":
    main()
