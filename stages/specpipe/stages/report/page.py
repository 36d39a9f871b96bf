"""The page as HTML: one template, everything from files escaped, no script and no network."""

from functools import cache

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from specpipe.schemas.printable import printable
from specpipe.stages.report.blocks import Page

_TEMPLATES = __file__.removesuffix("page.py") + "templates"


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(page: Page) -> bytes:
    """UTF-8. Control characters and lone surrogates, which HTML cannot hold, are spelled out."""
    html = _environment().get_template("report.html").render(page=page)
    return printable(html).encode("utf-8", "backslashreplace")
