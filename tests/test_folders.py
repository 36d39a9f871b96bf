"""Each folder is small, and explained in one line: in its __init__ and in docs/development.md."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "development.md").read_text(encoding="utf-8")
MOST_FILES = 13


def folders() -> Iterator[Path]:
    for root in ("schemas", "stages", "pipeline"):
        for file in sorted((ROOT / root / "specpipe" / root).rglob("__init__.py")):
            yield file.parent


def test_each_folder_says_in_a_line_what_it_holds_and_the_page_says_the_same() -> None:
    for folder in folders():
        text = (folder / "__init__.py").read_text(encoding="utf-8")
        docstring = ast.get_docstring(ast.parse(text))
        assert docstring, f"{folder} has no line"
        line = docstring.splitlines()[0]
        assert f"{folder.name}/" in PAGE, f"docs/development.md lacks {folder}"
        assert any(
            at.strip().startswith(f"{folder.name}/") and at.endswith(f" {line}")
            for at in PAGE.splitlines()
        ), f"docs/development.md says something else of {folder}"


def test_no_folder_holds_more_than_a_dozen_files() -> None:
    for folder in folders():
        files = [f for f in folder.glob("*.py") if f.name != "__init__.py"]
        assert len(files) <= MOST_FILES, folder


def test_the_places_that_the_page_sends_to_are_there() -> None:
    """`a/b.py` in "To change X, go to Y" is below one of the source roots, or the repository."""
    table = PAGE.partition("## To change X")[2].partition("\n## ")[0]
    bases = [
        ROOT,
        ROOT / "stages/specpipe/stages",
        *(ROOT / name / "specpipe" for name in ("schemas", "pipeline")),
    ]
    paths = re.findall(r"`([\w.-]+/[\w./-]*)`", table)
    assert len(paths) > 50
    for path in paths:
        assert any((base / path).exists() for base in bases), f"docs/development.md: no {path}"
