"""The static page, in a real browser where there is one: same answers as the package, also without a
network.
"""

import io
import json
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hub_model import Screener, hub_folder, lungs
from hub_model.refused import Refused
from tests import static_page
from tests.made_run import make_run, pictures
from train.release import space

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
TEXT = re.compile(r'(?:say|state|Refused)\("(\w+)"|data-say="(\w+)"')
SAME = 1e-5
"""Largest difference of a probability between the page and the package (float32 sums in another order)."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "ct")


@pytest.fixture(scope="module")
def page_folder(run, tmp_path_factory):
    if static_page.runtime() is None:
        pytest.skip(static_page.NEEDED)
    out = tmp_path_factory.mktemp("space") / "page"
    return space.space(
        "org/page", [str(run)], static=True, out=out, runtime=static_page.runtime(), dry_run=True
    )


@pytest.fixture(scope="module")
def visited(page_folder):
    """The page, opened once and then cut off: the server is gone and the browser is offline."""
    if static_page.chromium() is None:
        pytest.skip("needs Chromium (make browser)")
    asked = []
    with static_page.served(page_folder) as server, static_page.browser() as context:
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: asked.append(f"error: {error}"))
        static_page.visit(page, server)
        server.shutdown()
        server.server_close()
        context.set_offline(True)
        page.reload()
        page.wait_for_selector("#state[data-state=offline]", timeout=60_000)
        yield page, asked, f"http://127.0.0.1:{server.server_port}/"


@pytest.fixture(scope="module")
def screener(run):
    return Screener.from_pretrained(run)


def upload(name, content):
    return {"name": name, "mimeType": "application/octet-stream", "buffer": content}


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_the_page_answers_as_the_package_does(visited, screener):
    page, _, _ = visited
    decisions = set()
    for number, picture in enumerate(pictures(10, seed=9)):
        content = encoded(picture, "JPEG", quality=92) if number % 2 else encoded(picture)
        shown, ours = static_page.ask(page, upload(f"{number}.bin", content)), screener.screen(content)
        assert shown["decision"] == ours.decision
        if ours.probability is not None:
            assert abs(shown["probability"] - ours.probability) < SAME
        decisions.add(ours.decision)
    assert {"positive", "negative"} <= decisions


def test_colour_transparency_and_orientation_are_read_as_the_package_does(visited, screener):
    page, _, _ = visited
    picture = next(pictures(1, seed=9)).resize((200, 150))
    see_through = picture.convert("LA")
    ImageDraw.Draw(see_through).rectangle((0, 0, 60, 150), fill=(255, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # lying on its side
    tinted = Image.merge("RGB", (picture.point(lambda v: min(255, v + 20)), picture, picture))
    files = {
        "transparent.png": encoded(see_through),
        "turned.jpg": encoded(picture, "JPEG", quality=92, exif=exif),
        "tinted.png": encoded(tinted),
        "lossless.webp": encoded(picture.convert("RGB"), "WEBP", lossless=True),
        "old.bmp": encoded(picture.convert("RGB"), "BMP"),
    }
    for name, content in files.items():
        shown, ours = static_page.ask(page, upload(name, content)), screener.screen(content)
        assert (shown["decision"], shown["probability"] is None) == (
            ours.decision,
            ours.probability is None,
        ), name
        if ours.probability is not None:
            assert abs(shown["probability"] - ours.probability) < SAME, name


def deep_png():
    """A 16-bit grey PNG, by hand."""
    rows = b"".join(b"\0" + bytes(128) for _ in range(64))
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", 64, 64, 16, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    chunks = (struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def colourful():
    return encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3)).astype(np.uint8)))


REFUSED = {
    "deep.png": (deep_png, "16 bits"),
    "scan.dcm": (lambda: bytes(128) + b"DICM" + bytes(100), "DICOM"),
    "scan.tif": (lambda: encoded(Image.new("L", (90, 90)), "TIFF"), "no PNG, JPEG, WebP or BMP"),
    "empty.png": (lambda: b"", "empty"),
    "cut.jpg": (lambda: encoded(next(pictures(1)), "JPEG")[:40], "damaged"),
    "colour.png": (colourful, "in colour"),
    "blank.png": (lambda: encoded(Image.new("L", (200, 200), 90)), "blank"),
    "thumb.png": (lambda: encoded(Image.new("L", (20, 400), 90)), "20 × 400"),
    "print.jpg": (lambda: encoded(Image.new("CMYK", (90, 90)), "JPEG"), "CMYK"),
    "moving.png": (
        lambda: encoded(
            Image.new("L", (90, 90)), save_all=True, append_images=[Image.new("L", (90, 90), 255)]
        ),
        "animated",
    ),
    "noise.png": (
        lambda: encoded(
            Image.fromarray(np.random.default_rng(1).integers(0, 256, (96, 96)).astype(np.uint8))
        ),
        "does not look like",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_page_cannot_judge_it_refuses_in_words(visited, name):
    make, said = REFUSED[name]
    shown = static_page.ask(visited[0], upload(name, make()))
    assert shown["decision"] == "refused" and shown["probability"] is None
    assert said in shown["words"]


def test_the_operating_point_is_the_visitors_choice(visited, screener):
    page, _, _ = visited
    content = encoded(next(pictures(1, seed=9)))
    static_page.ask(page, upload("point.png", content))
    for point in reversed(screener.operating_points):
        page.evaluate("delete document.getElementById('answer').dataset.decision")
        page.check(f"input[name=point][value={point}]")
        assert static_page.read(page)["decision"] == screener.screen(content, operating_point=point).decision


def test_every_language_and_right_to_left(visited):
    page, _, _ = visited
    static_page.ask(page, upload("again.png", encoded(next(pictures(1, seed=9)))))
    headings = set()
    for code in page.eval_on_selector_all("#language option", "all => all.map(o => o.value)"):
        page.evaluate("delete document.getElementById('answer').dataset.decision")
        page.select_option("#language", code)
        static_page.read(page)
        assert page.get_attribute("html", "lang") == code
        assert page.get_attribute("html", "dir") == ("rtl" if code == "ar" else "ltr")
        headings.add(page.inner_text("#answer h2"))
    page.select_option("#language", "en")
    assert len(headings) >= 7


def test_nothing_is_asked_of_anybody_else(visited):
    _, asked, home = visited
    assert len(asked) > 8
    assert not [url for url in asked if not url.startswith((home, "data:", f"blob:{home}"))]


def test_the_page_has_words_for_all_it_says(page_folder):
    """Half of the texts are the demo's; one that is renamed there must not leave a hole here."""
    told = json.loads((page_folder / "space.json").read_text())
    sources = "".join((page_folder / name).read_text() for name in ("app.js", "judge.js", "index.html"))
    wanted = {name for found in TEXT.findall(sources) for name in found if name}
    wanted |= {
        "xray",
        "ct",
        "xrays",
        "cts",
        "above",
        "below",
        "within",
        "point_sensitivity",
        "probability_note",
    }
    wanted |= {
        f"{decision}{more}"
        for decision in ("positive", "negative", "inconclusive", "refused")
        for more in ("", "_next")
    }
    wanted |= {
        "limit_sources",
        "limit_disease",
        "limit_trial",
        "heat_low",
        "heat_mid",
        "heat_high",
        "figures",
        "figures_tuned",
    }
    assert len(wanted) > 30 and set(told["languages"]) == {"en", "es", "fr", "pt-BR", "ar", "zh-CN", "hi"}
    for code in told["languages"]:
        known = (
            json.loads((page_folder / "languages" / f"{code}.json").read_text()).keys()
            | told["texts"][code].keys()
        )
        assert wanted <= known, (code, wanted - known)


def test_what_the_folder_holds(page_folder):
    files = {file.relative_to(page_folder).as_posix() for file in page_folder.rglob("*") if file.is_file()}
    told = json.loads((page_folder / "space.json").read_text())
    assert files == {*told["files"], "space.json", "README.md"}
    readme = (page_folder / "README.md").read_text()
    assert "sdk: static" in readme and "never leaves your device" in readme
    assert "provenance" not in json.loads((page_folder / "models" / "ct" / "screening.json").read_text())


def test_the_page_takes_the_graph_and_the_weights_of_the_folder(run):
    files = space._browser_files(space.pin(str(run), local=True))
    assert files["model.onnx"] == (run / "model.onnx").read_bytes()
    assert files["model.safetensors"].read_bytes() == (run / "model.safetensors").read_bytes()


def test_a_model_that_finds_the_lungs_brings_what_the_page_needs_for_it():
    files = space._browser_files(space.Pinned("xray", None, hub_folder.embedded()["xray"]))
    screening = json.loads(files["screening.json"])
    assert screening["view"] == "lungs" and screening["lungs"]["side"] == lungs.SIDE
    assert {lungs.GRAPH, lungs.WEIGHTS} <= files.keys()


def test_another_runtime_is_refused(tmp_path):
    (tmp_path / "package.json").write_text('{"version": "0.0.1"}')
    with pytest.raises(Refused, match="npm install"):
        space._runtime(tmp_path)
    with pytest.raises(Refused, match="No onnxruntime-web"):
        space._runtime(tmp_path / "nowhere")


def test_files_of_others_are_not_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(Refused, match="other files"):
        space._write(tmp_path, {"index.html": b""})
    assert (tmp_path / "thesis.tex").read_text() == "mine"
