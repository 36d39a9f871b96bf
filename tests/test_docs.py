"""README and docs/: links lead somewhere, and commands take the flags that are shown."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from specpipe.pipeline.cli import specpipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target or target.startswith("mailto:"):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), f"{page.name}: {target}"
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked), f"{page.name}: {target}"


def commands(text: str) -> Iterator[list[str]]:
    """The words behind `specpipe` of each command in the blocks of code."""
    for block in re.findall(r"```(?:sh|bash)?\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip().startswith("specpipe "):
                yield line.split("#")[0].split()[1:]


def test_commands_take_the_flags_that_are_shown() -> None:
    num_flags = 0
    for page in PAGES:
        for words in commands(page.read_text(encoding="utf-8")):
            command = specpipe.commands.get(words[0])
            assert command is not None, f"{page.name}: specpipe {words[0]}"
            known = set()
            for option in command.params:
                assert isinstance(option, click.Parameter)
                known |= {*option.opts, *option.secondary_opts}
            flags = {word.partition("=")[0] for word in words if word.startswith("--")}
            num_flags += len(flags)
            assert flags <= known | {"--help"}, f"{page.name}: {' '.join(words)}"
    assert num_flags > 50
