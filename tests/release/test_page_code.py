"""The static page's own code in Node, without a browser: lungs are found, cut out and put back as Python does it."""

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from hub_model import Screener, hub_folder, lungs
from tests import static_page
from train.release import space

ROOT = Path(__file__).resolve().parents[2]
SIZES = ((128, 128), (129, 31), (390, 300), (767, 790), (1021, 769), (40, 1153))
"""Up to 767 pixels a side nothing is averaged first; beyond, in one direction or both, with and without a rest."""


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Ask the page's code a list of questions; gives the list of answers."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js")
    judge = tmp_path_factory.mktemp("page") / "judge.mjs"
    shutil.copyfile(space.PAGE / "judge.js", judge)

    def asked(questions: list[dict[str, Any]]) -> list[Any]:
        command = [node, str(ROOT / "tests" / "node" / "page.mjs"), str(judge)]
        if static_page.runtime():
            command.append(str(static_page.runtime().resolve()))
        lines = "\n".join(map(json.dumps, questions))
        done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    return asked


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Two dark ovals on a bright, grainy ground."""
    rng = np.random.default_rng(seed)
    drawn = Image.new("L", size, 190)
    for left, right in ((0.14, 0.44), (0.56, 0.87)):
        box = (left * size[0], 0.21 * size[1], right * size[0], 0.83 * size[1])
        ImageDraw.Draw(drawn).ellipse(box, fill=60)
    grain = rng.normal(0, 12, size[::-1])
    smooth = np.asarray(drawn.filter(ImageFilter.GaussianBlur(min(size) / 40)))
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def decoded(answer: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(answer), np.float32)


def told(image: Image.Image) -> dict[str, Any]:
    return {
        "data": base64.b64encode(image.tobytes()).decode(),
        "width": image.width,
        "height": image.height,
    }


def outlines() -> dict[str, np.ndarray]:
    """Outlines as a lung network gives them: two lungs, one at the very edge, specks, uncertain ones, nothing."""
    y, x = np.mgrid[:128, :128] / 127
    both = np.exp(-(((np.abs(x - 0.5) - 0.22) / 0.14) ** 4) - ((y - 0.52) / 0.33) ** 4)
    edge = np.exp(-((x / 0.2) ** 4) - ((y - 0.9) / 0.3) ** 4)
    specks = both.copy()
    specks[2:4, 120:124] = 0.9
    found = {"both": both, "edge": edge, "specks": specks, "uncertain": 0.7 * both, "nothing": 0 * both}
    return {name: outline.astype(np.float32) for name, outline in found.items()}


def test_blocks_are_averaged_as_pillow_does(ask):
    images = [picture(size) for size in SIZES[:3]]
    factors = [(1, 2), (3, 1), (2, 2), (3, 5), (7, 2)]
    questions = [
        {"asked": "reduce", "picture": told(image), "across": across, "down": down}
        for image in images
        for across, down in factors
    ]
    answers = iter(ask(questions))
    for image in images:
        for factor in factors:
            assert base64.b64decode(next(answers)) == image.reduce(factor).tobytes(), (image.size, factor)


def test_the_lung_network_is_shown_the_same(ask):
    images = [*(picture(size) for size in SIZES), Image.new("L", (300, 200), 7)]
    questions = [{"asked": "input", "picture": told(image), "rules": space.LUNG_RULES} for image in images]
    for image, answer in zip(images, ask(questions), strict=True):
        np.testing.assert_array_equal(decoded(answer), lungs.network_input(image).ravel(), str(image.size))


def test_an_outline_is_read_the_same(ask):
    known = outlines()
    questions = [
        {"asked": "box", "outline": outline.ravel().tolist(), "rules": space.LUNG_RULES}
        for outline in known.values()
    ]
    boxes = dict(zip(known, ask(questions), strict=True))
    assert boxes["uncertain"] is None and boxes["nothing"] is None
    for name, outline in known.items():
        assert boxes[name] == (lungs.lungs_of(outline).box and pytest.approx(lungs.lungs_of(outline).box)), (
            name
        )


def test_the_view_is_cut_and_levelled_the_same(ask):
    found = [lungs.lungs_of(outlines()[name]) for name in ("both", "edge", "specks")]
    cases = [(picture(size, number), one) for number, size in enumerate(SIZES) for one in found]
    questions = [
        {"asked": "view", "picture": told(image), "outline": one.outline.ravel().tolist(), "box": one.box,
         "rules": space.LUNG_RULES} for image, one in cases
    ]  # fmt: skip
    for (image, one), answer in zip(cases, ask(questions), strict=True):
        ours = lungs.seen(image, one)
        assert (answer["width"], answer["height"]) == ours.size
        assert base64.b64decode(answer["data"]) == ours.tobytes(), image.size


def test_a_heat_map_is_put_back_the_same(ask):
    heat = np.random.default_rng(0).random((7, 5), np.float32)
    boxes = [(0.1, 0.2, 0.6, 0.9), (0.0, 0.0, 1.0, 1.0), (0.98, 0.5, 0.985, 0.503)]
    questions = [
        {"asked": "placed", "heat": {"data": heat.ravel().tolist(), "width": 5, "height": 7}, "box": box,
         "rules": space.LUNG_RULES} for box in boxes
    ]  # fmt: skip
    for box, answer in zip(boxes, ask(questions), strict=True):
        np.testing.assert_allclose(decoded(answer), lungs.placed(heat, box).ravel(), atol=1e-6)


def test_a_model_that_cuts_to_the_lungs_answers_as_in_python(ask, tmp_path):
    if static_page.runtime() is None:
        pytest.skip(static_page.NEEDED)
    run = hub_folder.embedded()["xray"]
    folder = tmp_path / "xray"
    folder.mkdir()
    for name, content in space._browser_files(space.Pinned("xray", None, run)).items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    film = Image.open(ROOT / "demo" / "examples" / "phantom_xray_1.png").convert("L")
    images = {
        "film": film,
        "cropped": film.crop((20, 10, film.width - 15, film.height - 25)),
        "large": film.resize((film.width * 4, film.height * 4)),
        "hand": Image.open(ROOT / "demo" / "examples" / "drawn_hand_refused.png").convert("L"),
    }
    screener = Screener.from_pretrained(run)
    limits = {"blank_deviation": space.BLANK_DEVIATION}
    questions = [
        {"asked": "judge", "picture": told(image), "folder": f"{folder}/", "limits": limits}
        for image in images.values()
    ]
    answers = dict(zip(images, ask(questions), strict=True))
    for name, image in images.items():
        ours, shown = screener.screen(image, heat_map=True), answers[name]
        if ours.probability is None:
            assert shown["refused"] == f"reason_{ours.codes[0]}" and shown["probability"] is None, name
        else:
            assert shown["probability"] == pytest.approx(ours.probability, abs=1e-4), name
            np.testing.assert_allclose(decoded(shown["heat"]), np.ravel(ours.heat_map), atol=1e-3)
    assert any(answer["probability"] is not None for answer in answers.values())
    assert any(answer["refused"] == "reason_no_lung" for answer in answers.values())
