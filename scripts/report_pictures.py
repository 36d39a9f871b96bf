"""The pictures of docs/report.md, from a report in a real browser.

.venv/bin/python -m scripts.report_pictures report.html docs/images
"""

import io
from pathlib import Path
from typing import Literal, NamedTuple

import click
from PIL import Image
from playwright.sync_api import sync_playwright

from tests.report.browser import BROWSERS, browser_path

HEIGHT = 1450
MARGIN = 16


class Picture(NamedTuple):
    width: int
    scheme: Literal["light", "dark"]
    section: str | None
    """Id of the section at its top; None: the page's own."""


PICTURES = {
    "laptop-light": Picture(1200, "light", "tau"),
    "laptop-dark": Picture(1200, "dark", "texts"),
    "phone-light": Picture(390, "light", None),
    "phone-dark": Picture(390, "dark", "tau"),
}


@click.command()
@click.argument("report", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(report: Path, out: Path) -> None:
    """Write OUT/report-*.png."""
    path = browser_path()
    if path is None:
        raise click.ClickException(f"none of {', '.join(BROWSERS)} is installed")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for name, (width, scheme, section) in PICTURES.items():
            page = browser.new_page(
                viewport={"width": width, "height": HEIGHT}, color_scheme=scheme
            )
            page.goto(report.resolve().as_uri())
            whole = Image.open(io.BytesIO(page.screenshot(full_page=True)))
            top = "id => document.getElementById(id).getBoundingClientRect().top + scrollY"
            first = 0 if section is None else int(page.evaluate(top, section)) - MARGIN
            picture = whole.crop((0, first, width, first + HEIGHT))
            # Flat colours: a palette loses nothing to see, and two thirds of the bytes.
            picture.quantize(256).save(out / f"report-{name}.png", optimize=True)
            page.close()


if __name__ == "__main__":
    main()
