"""How closely the static page agrees with the package, over real pictures, in Chromium with the network cut.

    python -m tests.benchmarks.static_agreement RUN [RUN] --data DATA [--count 120] [--runtime DIR] [--shot
    FILE]

RUN is a hub folder with onnx/model.onnx (one for each modality), DATA is what `fit` takes. Pictures of all
classes and sources are given to the page as files, and so are pictures it should refuse; the table goes to
standard output.
"""

import argparse
import io
import random
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from hub_model import Screener
from tests import static_page
from train import foreign, space

KINDS = ("photograph", "drawing", "document", "screenshot", "noise", "negative")


def samples(folder: Path, modality: str, count: int) -> list[tuple[str, str, bytes]]:
    """Kind, name and bytes of real files, both classes alike, and of made foreign pictures (a fifth as
    many).
    """
    draw = random.Random(0)
    found = []
    for label in ("COVID", "Non-COVID"):
        files = sorted((folder / modality / label).glob("*.jpg"))
        found += [("real", f.name, f.read_bytes()) for f in draw.sample(files, min(count // 2, len(files)))]
    reals = [Image.open(io.BytesIO(content)).convert("L") for _, _, content in found[:20]]
    made = foreign.foreign_pictures(reals, modality, max(1, count // 30), seed=7, teaching=False)
    for kind in KINDS:
        for number, picture in enumerate(made[kind]):
            stream = io.BytesIO()
            picture.save(stream, "PNG")
            found.append(("foreign", f"{kind}{number}.png", stream.getvalue()))
    return found


def measure(page, screener: Screener, pictures: list[tuple[str, str, bytes]]) -> dict[str, dict]:
    """By kind of picture: number, decisions that agree, largest difference of probability, decisions of
    the package.
    """
    page.check(f"input[name=kind][value={screener.modality}]")
    rows = {}
    for kind, name, content in pictures:
        shown = static_page.ask(page, {"name": name, "mimeType": "image/png", "buffer": content})
        ours = screener.screen(content)
        row = rows.setdefault(kind, {"n": 0, "agree": 0, "difference": [], "decisions": Counter()})
        row["n"] += 1
        row["agree"] += shown["decision"] == ours.decision
        row["decisions"][ours.decision] += 1
        if ours.probability is not None and shown["probability"] is not None:
            row["difference"].append(abs(ours.probability - shown["probability"]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--count", type=int, default=120, help="real pictures for each model")
    parser.add_argument("--runtime", type=Path, default=static_page.runtime())
    parser.add_argument("--shot", type=Path, help="save a picture of the page here")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "page"
        space.write_static(
            "org/page", [space.pin(str(run), local=True) for run in chosen.run], out, chosen.runtime
        )
        with (
            static_page.served(out) as server,
            static_page.browser(viewport={"width": 1200, "height": 900}) as context,
        ):
            page = context.new_page()
            static_page.visit(page, server)
            server.shutdown()
            server.server_close()
            context.set_offline(True)
            page.reload()
            page.wait_for_selector("#state[data-state=offline]")
            print("| model | pictures | n | same decision | largest difference | decisions |")
            print("| --- | --- | ---: | ---: | ---: | --- |")
            for run in chosen.run:
                screener = Screener.from_pretrained(run)
                found = measure(page, screener, samples(chosen.data, screener.modality, chosen.count))
                for kind, row in found.items():
                    difference = f"{np.max(row['difference']):.1e}" if row["difference"] else "none judged"
                    decisions = ", ".join(
                        f"{number} {name}" for name, number in row["decisions"].most_common()
                    )
                    cells = (screener.modality, kind, row["n"], row["agree"], difference, decisions)
                    print("|", " | ".join(map(str, cells)), "|")
            if chosen.shot:
                page.screenshot(path=chosen.shot, full_page=True)


if __name__ == "__main__":
    main()
