"""Take the pictures of the page that the documentation shows.

    python tests/screens.py [--model FOLDER]... [--out docs]

The pictures uploaded are the synthetic examples; no patient is shown.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.served import ROOT, served

EXAMPLES = ROOT / "demo" / "examples"
PATIENCE = 120_000  # milliseconds
ANSWER = "#answer [data-answer]"


def visit(browser: Browser, url: str, query: str = "", phone: bool = False, dark: bool = False) -> Page:
    size = {"width": 390, "height": 844} if phone else {"width": 1280, "height": 900}
    page = browser.new_page(
        viewport=size, color_scheme="dark" if dark else "light", device_scale_factor=2 if phone else 1
    )
    page.set_default_timeout(PATIENCE)
    page.goto(f"{url}/{query}")
    page.wait_for_selector("#answer .message")
    return page


def try_example(page: Page, name: str) -> None:
    page.locator(f'[data-example="{name}"]').click()
    page.wait_for_selector(ANSWER)


def run_tab(page: Page, number: int, files: list[Path], done: str) -> None:
    page.get_by_role("tab").nth(number).click()
    page.locator('.drop:visible input[type="file"]').set_input_files(files)
    page.wait_for_selector(f'.drop:visible :text("{files[0].stem}")')
    page.locator("button.primary:visible").click()
    page.wait_for_selector(done)


def shoot(page: Page, path: Path) -> None:
    page.wait_for_timeout(600)  # the fade of the tabs
    page.screenshot(path=path, full_page=True)
    print(path)
    page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Render docs/*.png.")
    parser.add_argument(
        "--model", type=Path, action="append", help="hub folder (default: the embedded models)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    examples = sorted(EXAMPLES.glob("*.png"))
    with (
        tempfile.TemporaryDirectory() as uploads,
        served(Path(uploads), models=chosen.model or ()) as server,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        take_all(browser, server.url, examples, chosen.out)
        browser.close()


def take_all(browser: Browser, url: str, examples: list[Path], out: Path) -> None:
    by_name = {path.stem: path for path in examples}
    accepted = next(name for name in by_name if "refused" not in name)
    for name, options in {
        "screen": {},
        "screen-dark": {"dark": True},
        "screen-phone": {"phone": True},
        "screen-arabic": {"query": "?lang=ar"},
    }.items():
        page = visit(browser, url, **options)
        try_example(page, accepted)
        shoot(page, out / f"{name}.png")
    if refused := next((name for name in by_name if "refused" in name), None):
        page = visit(browser, url)
        try_example(page, refused)
        shoot(page, out / "refused.png")
    page = visit(browser, url)
    run_tab(page, 1, examples, "text=/^Done/")
    shoot(page, out / "batch.png")
    page = visit(browser, url)
    run_tab(page, 2, sorted(EXAMPLES.glob("phantom_ct_*.png")), "text=/^Done/")
    shoot(page, out / "series.png")
    for number, name, ready in ((3, "model", ".model table.figures"), (4, "code", ".snippet")):
        page = visit(browser, url)
        page.get_by_role("tab").nth(number).click()
        page.wait_for_selector(ready)
        shoot(page, out / f"{name}.png")


if __name__ == "__main__":
    main()
