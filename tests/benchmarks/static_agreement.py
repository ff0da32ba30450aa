"""How closely the static page agrees with the package, over real pictures, in Chromium with the network cut.

    python -m tests.benchmarks.static_agreement DATA [--run RUN]... [--count 120] [--runtime DIR] [--shot PNG]

DATA is a folder with xray|ct / COVID|Non-COVID. The page is made of the embedded models (or of each RUN). Pictures of
both classes are given to it as files, and so are pictures it should refuse. Exits with 1 where a decision differs, or
a probability by more than TOLERANCE. Writes docs/measured/static_agreement.json and static_agreement.md; --shot saves
the page with a synthetic slice.
"""

import argparse
import io
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

from hub_model import ImageRefused, Screener, hub_folder
from hub_model.guard import is_blank
from hub_model.images import read_image
from hub_model.screener import decide
from tests import static_page
from tests.benchmarks.measured import environment, table, write
from train.measure import foreign
from train.release import space

TOLERANCE = 1e-4
"""Largest difference of a probability that is accepted: float32 sums in another order, over all layers."""
FOREIGN = ("photograph", "drawing", "document", "screenshot", "noise", "negative")
PHANTOM = space.ROOT / "demo" / "examples" / "phantom_ct_1.png"


def samples(folder: Path, modality: str, count: int) -> list[tuple[str, str, bytes]]:
    """Kind, name and bytes of real files, both classes alike, and of made foreign pictures (a fifth as
    many).
    """
    draw = random.Random(0)
    found = []
    for label in hub_folder.LABELS:
        files = sorted((folder / modality / label).glob("*.jpg"))
        found += [("real", f.name, f.read_bytes()) for f in draw.sample(files, min(count // 2, len(files)))]
    reals = [Image.open(io.BytesIO(content)).convert("L") for _, _, content in found[:20]]
    made = foreign.foreign_pictures(reals, modality, max(1, count // 30), seed=7, teaching=False)
    for kind in FOREIGN:
        for number, picture in enumerate(made[kind]):
            stream = io.BytesIO()
            picture.save(stream, "PNG")
            found.append(("foreign", f"{kind}{number}.png", stream.getvalue()))
    return found


def guard_score(screener: Screener, content: bytes) -> float | None:
    """The guard's out-of-distribution score by Python; None where the guard is not asked: blank, or without lungs."""
    image = read_image(content)
    if is_blank(image):
        return None
    try:
        return screener.out_of_distribution_score(image)
    except ImageRefused:
        return None


def measure(page: Any, run: Path, pictures: list[tuple[str, str, bytes]]) -> dict[str, dict]:
    """By kind of picture: how often the page decides as the package does, and how far its numbers are off."""
    screener, rows = Screener.from_pretrained(run), {}
    page.check(f"input[name=kind][value={screener.modality}]")
    for kind, name, content in pictures:
        began = time.monotonic()
        shown = static_page.ask(page, {"name": name, "mimeType": "image/png", "buffer": content})
        took = time.monotonic() - began
        ours, far = screener.screen(content), guard_score(screener, content)
        row = rows.setdefault(kind, {"n": 0, "same_decision": 0, "same_at_every_point": 0, "probability": [],
                                     "score": [], "seconds": [], "decisions": Counter()})  # fmt: skip
        row["n"] += 1
        row["seconds"].append(took)
        row["decisions"][ours.decision] += 1
        row["same_decision"] += shown["decision"] == ours.decision
        row["same_at_every_point"] += everywhere(screener, ours.probability, shown["probability"])
        if far is not None and shown["score"] is not None:
            row["score"].append(abs(far - shown["score"]))
        if ours.probability is not None and shown["probability"] is not None:
            row["probability"].append(abs(ours.probability - shown["probability"]))
    return {kind: summed(row) for kind, row in rows.items()}


def everywhere(screener: Screener, ours: float | None, shown: float | None) -> bool:
    """Whether both probabilities lead to the same decision at every operating point; None is a refusal."""
    if ours is None or shown is None:
        return ours is shown
    return all(decide(ours, p)[0] == decide(shown, p)[0] for p in screener.operating_points.values())


def summed(row: dict) -> dict:
    return {
        **row,
        "probability": max(row["probability"], default=None),
        "score": max(row["score"], default=None),
        "seconds": round(statistics.median(row["seconds"]), 2),
        "judged": len(row["probability"]),
    }


def shoot(page: Any, shot: Path) -> str:
    """The page with its answer to a synthetic slice; returns the decision."""
    page.check("input[name=kind][value=ct]")
    decision = static_page.ask(page, PHANTOM)["decision"]
    page.screenshot(path=shot, full_page=True)
    return decision


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of the page by top-level folder; its own files under "page"."""
    found: Counter[str] = Counter()
    for file in folder.rglob("*"):
        if file.is_file():
            parts = file.relative_to(folder).parts
            found["/".join(parts[:2]) if parts[0] == "models" else parts[0] if parts[1:] else "page"] += (
                file.stat().st_size
            )
    return dict(found)


def report(result: dict) -> bool:
    """Write figures and table; whether all of them are within what is accepted."""
    rows, fine = [], True
    for modality, kinds in result["models"].items():
        for kind, row in kinds.items():
            fine &= row["n"] == row["same_at_every_point"] and (row["probability"] or 0) <= TOLERANCE
            decisions = ", ".join(f"{n} {name}" for name, n in Counter(row["decisions"]).most_common())
            rows.append([f"{modality}, {kind}", str(row["n"]), f"{row['same_decision']}",
                         f"{row['same_at_every_point']}", _small(row["probability"]), _small(row["score"]),
                         decisions])  # fmt: skip
    megabytes = {name: size / 2**20 for name, size in result["bytes"].items()}
    total = sum(megabytes.values())
    text = (
        "The static page in Chromium, its server gone and the browser offline, against `Screener` on the same "
        "files (`python -m tests.benchmarks.static_agreement DATA`). Accepted: the same decision at every "
        f"operating point, and probabilities within {TOLERANCE:g}. The page is {total:.0f} MB, "
        f"{megabytes['runtime']:.0f} MB of it ONNX Runtime Web.\n\n"
    )
    head = ["pictures", "n", "same decision", "at every operating point", "largest difference of probability",
            "of the guard's score", "decisions"]  # fmt: skip
    write("static_agreement", result, text + table(head, rows))
    return fine


def _small(value: float | None) -> str:
    return "none judged" if value is None else f"{value:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--run", action="append", type=Path, help="hub folder; by default the embedded ones")
    parser.add_argument("--count", type=int, default=120, help="real pictures for each model")
    parser.add_argument("--runtime", type=Path, default=static_page.runtime())
    parser.add_argument("--shot", type=Path, help="save a picture of the page here")
    chosen = parser.parse_args()
    asked: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        out, runs = (
            Path(name) / "page",
            chosen.run or [hub_folder.embedded()[name] for name in hub_folder.MODALITIES],
        )
        space.write_static("org/page", [space.pin(str(run), local=True) for run in runs], out, chosen.runtime)
        result = {"tolerance": TOLERANCE, "bytes": sizes(out), "models": {}}
        viewport = {"width": 1200, "height": 900}
        with static_page.served(out) as server, static_page.browser(viewport=viewport) as context:
            page = context.new_page()
            page.on("request", lambda request: asked.append(request.url))
            static_page.visit(page, server)
            server.shutdown()
            server.server_close()
            context.set_offline(True)
            page.reload()
            page.wait_for_selector("#state[data-state=offline]")
            for run in runs:
                pictures = samples(chosen.data, hub_folder.load(run).modality, chosen.count)
                result["models"][run.name] = measure(page, run, pictures)
            if chosen.shot:
                result["synthetic_slice"] = shoot(page, chosen.shot)
            result["browser"] = context.browser.version
        home = f"http://127.0.0.1:{server.server_port}/"
        elsewhere = {url for url in asked if not url.startswith((home, "data:", "blob:"))}
        result["requests_elsewhere"] = sorted(elsewhere)
    result["environment"] = environment("torch", "onnxruntime", "pillow")
    if not report(result):
        sys.exit("The page and the package differ by more than is accepted; see the table.")


if __name__ == "__main__":
    main()
