"""The page in a real Chromium: what a clinician does with it, and what they might do by mistake."""

import base64
import contextlib
import csv
import io
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hub_model import hub_folder
from tests.bad_files import png, write_dicom
from tests.made_run import make_run, patients, pictures
from tests.served import Server, served

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
if CHROMIUM is None:
    pytest.skip("needs a Chromium browser", allow_module_level=True)

QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
# A starved machine can lose a browser's event; an assertion that fails is never asked again.
pytestmark = pytest.mark.flaky(reruns=1, only_rerun=["TimeoutError"])
PATIENCE = 60_000  # milliseconds; the machine may be busy
ANSWER = "#answer [data-answer]"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("page")
    models = [make_run(folder / name, name) for name in hub_folder.MODALITIES]
    uploads = folder / "uploads"
    uploads.mkdir()
    with served(uploads, models=models) as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    """A fresh visit. Whatever the page asks of another origin, or fails at, fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    page, foreign, failures = context.new_page(), [], []
    context.on(
        "request", lambda request: foreign.append(request.url) if _foreign(request.url, server) else None
    )
    page.on("pageerror", lambda error: failures.append(str(error)))
    visit(page, server)
    yield page
    context.close()
    assert not foreign
    assert not failures


def _foreign(url: str, server: Server) -> bool:
    return not url.startswith((server.url + "/", "data:", "blob:"))


def visit(page, server: Server, query: str = "") -> None:
    page.set_default_timeout(PATIENCE)
    page.goto(f"{server.url}/{query}")
    page.wait_for_selector("#answer .message")


@pytest.fixture(scope="module")
def chest(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("chest") / "Mrs Example.png"
    next(pictures(1)).save(path)
    return path


def choose(page, path: Path | list[Path]) -> None:
    page.locator('.drop:visible input[type="file"]').set_input_files(path)


def choose_and_wait(page, paths: list[Path]) -> None:
    """Choose files where they stay listed, and wait until all are on the server: before that, nothing is chosen."""
    choose(page, paths)
    uploaded(page, paths[0].name)


def uploaded(page, name: str) -> None:
    page.wait_for_selector(f'.file-preview:visible .filename[aria-label="{name}"]')


def start(page) -> None:
    page.locator("button.primary:visible").click()


def say_kind(page, kind: str) -> None:
    page.locator(f'input[type="radio"][value="{kind}"]:visible').check()


def screened(page, path: Path, kind: str = "xray"):
    say_kind(page, kind)
    choose(page, path)
    page.wait_for_selector(ANSWER)
    return page.locator(ANSWER)


def open_tab(page, number: int) -> None:
    """Show another tab and wait until the one before is gone: two have a place to drop files on."""
    before = page.wait_for_selector('[role="tabpanel"]:visible')
    page.get_by_role("tab").nth(number).click()
    before.wait_for_element_state("hidden")


def given_by_hand(page, path: Path, event: str) -> None:
    """Let the page receive a file as from the clipboard or from a drag, which playwright has no verb for."""
    page.evaluate(
        """([name, content, event]) => {
          const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
          const data = new DataTransfer();
          data.items.add(new File([bytes], name, { type: "image/png" }));
          const init = { bubbles: true, cancelable: true };
          document.body.dispatchEvent(event === "paste"
            ? new ClipboardEvent("paste", { ...init, clipboardData: data })
            : new DragEvent("drop", { ...init, dataTransfer: data }));
        }""",
        [path.name, base64.b64encode(path.read_bytes()).decode(), event],
    )


SETTLED = """() => document.getAnimations().every(
    a => a.playState !== "running" || a.effect.getComputedTiming().iterations === Infinity)"""
"""No colour is on its way to another."""


class TestOnePicture:
    def test_picker(self, page, chest):
        answer = screened(page, chest)
        words = answer.inner_text()
        assert answer.locator("h2").inner_text().strip() in {
            "COVID-19 suspected",
            "COVID-19 not suspected",
            "Inconclusive",
        }
        assert re.search(r"\d+% Calibrated probability", words)
        assert re.search(
            r"Miss few cases: finds \d+ of 100 COVID-19 cases, falsely flags \d+ of 100 others", words
        )
        assert "Never tested in a clinical trial." in words
        assert answer.locator(".layers img").count() == 2

    def test_the_slider_fades_the_heat_map(self, page, chest):
        answer = screened(page, chest)
        opacity = "element => getComputedStyle(element).opacity"
        answer.locator("[data-heat]").fill("0")
        assert answer.locator(".overlay").evaluate(opacity) == "0"
        answer.locator("[data-heat]").press("End")
        assert answer.locator(".overlay").evaluate(opacity) == "1"

    @pytest.mark.parametrize("event", ["paste", "drop"])
    def test_paste_and_drop_anywhere(self, page, chest, event):
        say_kind(page, "xray")
        given_by_hand(page, chest, event)
        page.wait_for_selector(ANSWER)

    def test_dicom_says_what_it_is(self, page, tmp_path):
        path = write_dicom(tmp_path / "IM0001", np.asarray(next(pictures(1))), Modality="CT")
        choose(page, path)  # left on 'detect'
        page.wait_for_selector(f"{ANSWER} .probability")
        assert "looks like the CT slices" in page.inner_text(ANSWER)

    def test_a_dicom_of_another_kind_is_refused_in_the_visitors_language(self, page, server, tmp_path):
        path = write_dicom(tmp_path / "IM0002", np.asarray(next(pictures(1))), Modality="MR")
        visit(page, server, "?lang=es")
        choose(page, path)
        page.wait_for_selector(ANSWER)
        (reason,) = page.locator(".reasons li").all_inner_texts()
        assert reason.startswith("Según su cabecera DICOM es de tipo MR")

    def test_nonsense_is_an_answer_and_the_next_picture_is_served(self, page, chest, tmp_path):
        (tmp_path / "letter.png").write_text("Dear colleague")
        answer = screened(page, tmp_path / "letter.png")
        assert answer.locator("h2").inner_text().strip() == "Not judged"
        assert "Accepted is one grey chest picture" in answer.locator(".reasons").inner_text()
        assert "%" not in answer.inner_text()
        choose(page, chest)
        page.wait_for_selector(f"{ANSWER} .probability")

    def test_twenty_thousand_pixels_are_refused(self, page, tmp_path):
        (tmp_path / "huge.png").write_bytes(png(20_000, 20_000))
        assert "pixels" in screened(page, tmp_path / "huge.png").inner_text()

    def test_fifty_megabytes_of_noise_are_refused(self, page, tmp_path):
        (tmp_path / "noise.dcm").write_bytes(np.random.default_rng(0).bytes(50 * 2**20))
        assert "Not judged" in screened(page, tmp_path / "noise.dcm").inner_text()

    def test_another_operating_point_gives_another_sentence(self, page, chest):
        first = screened(page, chest).locator(".point").inner_text()
        page.locator('input[value="specificity"]:visible').check()
        page.wait_for_selector(f'{ANSWER} .point:has-text("Few false alarms")')
        assert page.locator(f"{ANSWER} .point").inner_text() != first

    def test_examples_are_one_click_away(self, page):
        assert page.locator("[data-example]").count() == 5
        page.locator('[data-example="phantom_ct_1"]').click()
        page.wait_for_selector(ANSWER)

    def test_report_stands_alone_and_holds_what_was_typed(self, page, chest, browser, tmp_path):
        answer = screened(page, chest)
        answer.locator("summary").click()
        page.locator("[data-reference]").fill("Bed 7 <b>")
        with page.expect_download() as download:
            page.locator("[data-save-report]").click()
        download.value.save_as(tmp_path / "report.html")
        report = browser.new_page()
        report.goto((tmp_path / "report.html").as_uri())
        words = report.inner_text("body")
        assert "Bed 7 <b>" in words and "Calibrated probability" in words
        assert chest.stem not in report.content()
        pages = report.pdf(format="A4").count(b"/Type /Page\n")
        report.close()
        assert pages == 1


class TestManyPictures:
    @pytest.fixture
    def many(self, tmp_path) -> list[Path]:
        paths = [tmp_path / f"chest{number}.png" for number in range(12)]
        for path, picture in zip(paths, pictures(12), strict=True):
            picture.save(path)
        return paths

    def start(self, page, paths: list[Path]) -> None:
        open_tab(page, 1)
        say_kind(page, "xray")
        choose_and_wait(page, paths)
        start(page)

    def test_one_broken_file_spoils_nothing(self, page, many, tmp_path):
        name = '=cmd()"><img src=x onerror=alert(1)>.png'.replace("/", "")
        broken = tmp_path / name
        broken.write_text("no picture")
        self.start(page, [*many[:3], broken])
        page.wait_for_selector("text=Done: 4 of 4.")
        assert page.locator("table.findings tbody tr").count() == 4
        assert "It is not a picture, whatever its name says." in page.inner_text(".failures")
        assert page.locator("table.findings img[src='x']").count() == 0
        self.sorts(page)
        with page.expect_download() as download:
            page.locator("[data-save-table]").click()
        rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text("utf-8-sig"))))
        assert len(rows) == 4
        assert not any(value.startswith("=") for row in rows for value in row.values())
        assert sum(row["decision"] == "refused" for row in rows) == 1

    def sorts(self, page) -> None:
        head = page.locator('[data-sort-by="3"]')

        def column() -> list[float]:
            cells = page.locator("table.findings tbody td:nth-child(4)")
            return [float(cell.get_attribute("data-sort")) for cell in cells.all()]

        head.click()
        assert column() == sorted(column())
        head.click()
        assert column() == sorted(column(), reverse=True)
        assert head.locator("xpath=..").get_attribute("aria-sort") == "descending"

    def test_stop_keeps_what_is_done(self, page, many, tmp_path):
        large = tmp_path / "large.jpg"  # takes the server longer than its row takes the browser
        next(pictures(1)).resize((5000, 5000)).save(large, quality=10)
        self.start(page, [*many, *[large] * 488])  # 500, the most that are taken
        page.wait_for_selector("table.findings tbody tr")
        page.locator("button.stop:visible").click()
        said = page.wait_for_selector("text=/Stopped after \\d+ of \\d+/").inner_text()
        done, total = map(int, re.search(r"(\d+) of (\d+)", said).groups())
        assert 0 < done < total == 500
        assert page.locator("table.findings tbody tr").count() == done

    def test_two_clicks_at_once_make_one_table(self, page, many):
        open_tab(page, 1)
        say_kind(page, "xray")
        choose_and_wait(page, many[:4])
        page.locator("button.primary:visible").dblclick()
        page.wait_for_selector("text=Done: 4 of 4.")
        assert page.locator("table.findings tbody tr").count() == 4

    def test_a_browser_closed_midway_leaves_the_server_free(self, page, many, chest, browser, server):
        self.start(page, many * 15)
        page.wait_for_selector("table.findings tbody tr")
        page.close()
        other = browser.new_page()
        visit(other, server)
        screened(other, chest)
        other.close()

    def press_for_files(self, page, button: str):
        """Press Enter on a button, once more where the list was drawn anew just then, and give the file chooser."""
        for _ in range(3):
            with contextlib.suppress(playwright_api.TimeoutError):
                with page.expect_file_chooser(timeout=8_000) as chooser:
                    page.locator(button).press("Enter")
                return chooser.value
        raise AssertionError(f"Enter on {button} opens no file chooser")

    def test_more_files_can_be_added_with_the_keyboard(self, page, many):
        open_tab(page, 1)
        choose_and_wait(page, many[:1])
        self.press_for_files(page, '.drop:visible button[aria-label="Add files"]').set_files(many[1])
        uploaded(page, many[1].name)
        assert page.locator(".file-preview:visible tr").count() == 2

    @pytest.mark.parametrize(
        "members, claimed, sentence",
        [(501, None, "501 pictures are too many"), (1, 3 * 2**30, "unpacks to more than 1000 MB")],
    )
    def test_a_zip_of_too_much_is_refused_in_words(self, page, many, tmp_path, members, claimed, sentence):
        path = tmp_path / "bomb.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for number in range(members):
                archive.writestr(f"{number}.png", b"x")
        if claimed:  # the size that its directory claims for the one file
            content = path.read_bytes()
            at = content.index(b"PK\x01\x02") + 24
            path.write_bytes(content[:at] + claimed.to_bytes(4, "little") + content[at + 4 :])
        self.start(page, [path])
        assert sentence in page.wait_for_selector(".message.problem:visible").inner_text()
        page.locator('.drop:visible button[aria-label="Clear"]').click()
        choose_and_wait(page, many[:1])  # the next run is served
        start(page)
        page.wait_for_selector("table.findings tbody tr")

    def test_nothing_chosen_is_said(self, page):
        open_tab(page, 1)
        start(page)
        page.wait_for_selector("text=choose files first")


def test_series(page, tmp_path):
    frames = np.stack([np.asarray(picture.resize((96, 96))) for picture in pictures(6)])
    open_tab(page, 2)
    choose_and_wait(page, [write_dicom(tmp_path / "series.dcm", frames, Modality="CT")])
    start(page)
    page.wait_for_selector("text=Done: 6 of 6.")
    assert page.locator(".strip li").count() == 6
    first, second = (
        int(re.search(r"(\d+)%", tile.inner_text())[1]) for tile in page.locator(".tiles li").all()[:2]
    )
    assert first >= second
    assert "not a validated test of the patient" in page.inner_text(".series")


def test_a_folder_of_slices(page, tmp_path):
    (tmp_path / "scan").mkdir()
    for number, picture in enumerate(pictures(4)):
        place = {"SeriesInstanceUID": "1.2.3", "ImagePositionPatient": [0, 0, -7.5 * number]}
        pixels = np.asarray(picture.resize((96, 96)))
        write_dicom(tmp_path / "scan" / f"{9 - number}.dcm", pixels, Modality="CT", **place)
    (tmp_path / "scan" / "DICOMDIR").write_text("a directory")
    open_tab(page, 2)
    page.locator('[role="tabpanel"]:visible input[webkitdirectory]').set_input_files(tmp_path / "scan")
    uploaded(page, "9.dcm")
    start(page)
    page.wait_for_selector("text=Done: 4 of 4.")
    assert page.locator(".strip li").count() == 4


def test_model_and_code(page, server):
    open_tab(page, 3)
    page.wait_for_selector(".model table.figures")
    words = page.inner_text(".model")
    assert "AUROC" in words and "Sensitivity" in words and "Audits" in words
    page.locator(".model summary").last.click()
    assert page.locator(".plots img").first.evaluate("image => image.decode().then(() => image.naturalWidth)")
    open_tab(page, 4)
    page.wait_for_selector(".snippet")
    assert server.url in page.inner_text(".code")


class TestLooks:
    def test_language_switch(self, page, server, chest):
        page.locator("[data-language]").select_option("ar")
        page.wait_for_selector('html[dir="rtl"] #answer .message')
        assert "فرز" in page.inner_text("h1")
        answer = screened(page, chest)
        assert answer.evaluate("element => getComputedStyle(element).direction") == "rtl"
        assert not re.search(r"[A-Za-z]{4,}", answer.locator(".verdict").inner_text())
        page.locator("[data-language]").select_option("es")
        page.wait_for_selector('html[lang="es"][dir="ltr"] h1:has-text("Cribado")')

    def test_dark(self, page):
        light = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.locator("[data-theme-switch]").click()
        page.wait_for_selector("body.dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light

    def test_phone(self, page, server, chest):
        page.set_viewport_size({"width": 360, "height": 740})
        visit(page, server)
        screened(page, chest)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.wait_for_function(
            "document.querySelector('[data-answer] h2').getBoundingClientRect().top < innerHeight"
        )

    def test_keyboard(self, page, chest):
        screened(page, chest)
        page.locator("[data-language]").focus()
        reached = set()
        for _ in range(40):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement?.getAttribute('value') ?? ''"))
        assert {"xray", "sensitivity", "60"} <= reached  # both questions, and the heat-map slider

    @pytest.mark.parametrize("language, theme", [("en", "light"), ("ar", "dark")])
    def test_accessible(self, page, server, chest, tmp_path, language, theme):
        """Every screen with something on it, by axe's rules for WCAG 2.1 AA."""
        axe = pytest.importorskip(
            "axe_playwright_python.sync_playwright", reason="needs axe-playwright-python"
        )
        page.emulate_media(color_scheme=theme)
        visit(page, server, f"?lang={language}")
        problems = {}

        def check(name: str) -> None:
            page.mouse.move(0, 0)  # off whatever it lay on: colours fade when a mouse comes and goes
            page.wait_for_function(SETTLED)
            found = axe.Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]})
            for violation in found.response["violations"]:
                nodes = [node["html"][:160] for node in violation["nodes"]]
                problems[f"{name}: {violation['id']}"] = nodes

        check("nothing yet")
        letter = tmp_path / "letter.png"
        letter.write_text("Dear colleague")
        screened(page, letter)
        check("refused")
        choose(page, chest)
        page.wait_for_selector(f"{ANSWER} .probability")
        page.locator("[data-report] summary").click()
        check("answer")
        for tab, name, *parts in (
            (1, "batch", "table.findings", ".failures"),
            (2, "series", ".refused", ".strip"),
        ):
            open_tab(page, tab)
            choose_and_wait(page, [chest, letter])
            start(page)
            for part in parts:
                page.wait_for_selector(f'[role="tabpanel"]:visible {part}', state="attached")
            check(name)
        open_tab(page, 3)
        page.wait_for_selector(".model table.figures")
        for summary in page.locator(".model summary").all()[1:]:
            summary.click()
        check("model")
        open_tab(page, 4)
        page.wait_for_selector(".snippet")
        check("code")
        open_tab(page, 5)
        choose_and_wait(page, [labelled(tmp_path)])
        start(page)
        page.wait_for_selector("iframe.check")
        check("check")
        report = tmp_path / "report.html"
        report.write_text(page.locator("iframe.check").get_attribute("srcdoc"), "utf-8")
        visitor, page = page, page.context.browser.new_page(color_scheme=theme)
        page.goto(report.as_uri())  # by itself: axe does not look into a frame without scripts
        check("report")
        page.close()
        visitor.bring_to_front()
        assert not problems


def labelled(folder: Path) -> Path:
    """A zip with two folders of drawn chests, as the tab Check takes it."""
    path = folder / "labelled.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number, picture in enumerate(patients(44, seed=8)):
            stream = io.BytesIO()
            picture.save(stream, "PNG")
            archive.writestr(f"{('Non-COVID', 'COVID')[number % 2]}/{number}.png", stream.getvalue())
    return path


def test_a_restart_under_an_open_page_and_a_clean_end(server, browser, chest, tmp_path):
    """Runs last: it stops the server, and reads what it had printed."""
    page = browser.new_page()
    visit(page, server)
    screened(page, chest)
    server.stop()
    assert not list(server.uploads.glob("covid-xct-*"))  # the folder that held all uploads
    log = "".join(server.said)
    names = (
        chest.stem,
        "chest0",
        "series.dcm",
        "IM0001",
        "IM0002",
        "letter.png",
        "noise.dcm",
        "bomb.zip",
        "onerror",
    )
    for secret in (*names, "Synthetic^Patient", "Traceback"):
        assert secret not in log
    port = int(server.url.rpartition(":")[2])
    with served(tmp_path, models=server.models, port=port):
        (tmp_path / "letter.png").write_text("Dear colleague")
        choose(page, tmp_path / "letter.png")
        page.wait_for_selector(f'{ANSWER} h2:has-text("Not judged")')
    page.close()
