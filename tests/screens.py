"""Take the pictures of the page that the documentation shows.

    python tests/screens.py [--model FOLDER]... [--out docs]

What is uploaded is synthetic: the page's examples, and a CT series of a phantom. No patient is shown.
"""

import argparse
import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.served import ROOT, served

EXAMPLES = ROOT / "demo" / "examples"
PATIENCE = 240_000  # milliseconds
ANSWER = "#answer [data-answer]"
TALLEST = 1500  # pixels of a picture; what a page shows below says no more


def visit(browser: Browser, url: str, query: str = "", phone: bool = False, dark: bool = False) -> Page:
    size = {"width": 390, "height": 844} if phone else {"width": 1180, "height": 860}
    page = browser.new_page(viewport=size, color_scheme="dark" if dark else "light")
    page.set_default_timeout(PATIENCE)
    page.goto(f"{url}/{query}")
    page.wait_for_selector("#answer .message")
    return page


def try_example(page: Page, name: str) -> None:
    page.locator(f'[data-example="{name}"]').click()
    page.wait_for_selector(ANSWER)


def open_tab(page: Page, number: int, ready: str) -> None:
    before = page.wait_for_selector('[role="tabpanel"]:visible')
    page.get_by_role("tab").nth(number).click()
    before.wait_for_element_state("hidden")
    page.wait_for_selector(ready)


def run_tab(page: Page, number: int, files: list[Path]) -> None:
    open_tab(page, number, "button.primary:visible")
    page.locator('.drop:visible input[type="file"]').set_input_files(files)
    page.wait_for_selector(f'.file-preview:visible .filename[aria-label="{files[0].name}"]')
    page.locator("button.primary:visible").click()
    page.wait_for_selector("text=/^Done/")


def shoot(page: Page, path: Path, full: bool = True) -> None:
    """Save what the page shows in 256 colours, which is a third of the bytes and looks the same."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(800)  # the fade of the tabs
    taken = Image.open(io.BytesIO(page.screenshot(full_page=full))).convert("RGB")
    shown = taken.crop((0, 0, taken.width, min(taken.height, TALLEST)))
    shown.quantize(256, kmeans=8, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path} {path.stat().st_size / 1000:.0f} kB", flush=True)
    page.close()


def series(folder: Path) -> Path:
    """A synthetic CT series as NIfTI."""
    from train.phantom.phantom import phantom

    return next(phantom(folder / "phantoms", n=2, modality="ct", dicom=True).glob("series_nifti/*"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Render docs/*.png.")
    parser.add_argument(
        "--model", type=Path, action="append", help="hub folder (default: the embedded models)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with (
        tempfile.TemporaryDirectory() as made,
        tempfile.TemporaryDirectory() as uploads,
        served(Path(uploads), models=chosen.model or ()) as server,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        take_answers(browser, server.url, chosen.out)
        take_tabs(browser, server.url, series(Path(made)), chosen.out)
        browser.close()


def take_answers(browser: Browser, url: str, out: Path) -> None:
    for name, example, options in (
        ("screen", "phantom_ct_1", {}),
        ("screen-dark", "phantom_xray_1", {"dark": True}),
        ("screen-arabic", "phantom_ct_1", {"query": "?lang=ar"}),
        ("refused", "drawn_hand_refused", {}),
        ("screen-phone", "phantom_ct_1", {"phone": True}),
    ):
        page = visit(browser, url, **options)
        try_example(page, example)
        if options.get("phone"):
            page.locator(ANSWER).evaluate("element => element.scrollIntoView({ behavior: 'instant' })")
        shoot(page, out / f"{name}.png", full="phone" not in options)


def take_tabs(browser: Browser, url: str, scan: Path, out: Path) -> None:
    examples = sorted(EXAMPLES.glob("*.png"))
    for number, name, files in ((1, "batch", examples), (2, "series", [scan])):
        page = visit(browser, url)
        run_tab(page, number, files)
        shoot(page, out / f"{name}.png")
    for number, name, ready in ((3, "model", ".model table.figures"), (4, "code", ".snippet")):
        page = visit(browser, url)
        open_tab(page, number, ready)
        shoot(page, out / f"{name}.png")


if __name__ == "__main__":
    main()
