"""The rules of the house: folders are small and explained in a line, functions take few values."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "development.md").read_text(encoding="utf-8")
MOST_FILES = 13
MOST_PARAMETERS = 6
Function = ast.FunctionDef | ast.AsyncFunctionDef


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


def parameters(function: Function) -> list[str]:
    of = function.args
    names = [argument.arg for argument in (*of.posonlyargs, *of.args, *of.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def is_kernels(of: ast.ClassDef) -> bool:
    """Of an autograd function; or its `forward` goes with a `backward`, which no module has."""
    methods = {method.name for method in of.body if isinstance(method, Function)}
    return {"forward", "backward"} <= methods


def ruled_elsewhere(tree: ast.Module) -> Iterator[Function]:
    """Functions whose parameters are not ours to choose: a command's are its flags, a kernel's its
    tensors, and what transformers calls as its attention takes what transformers gives."""
    registered = {
        ast.unparse(call.args[1])
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "AttentionInterface.register"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and is_kernels(node):
            for method in node.body:
                if isinstance(method, Function) and method.name in ("forward", "backward"):
                    yield method
        elif isinstance(node, Function):
            decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
            is_ours = not any(re.match(r"click\.command\b|triton\.jit\b", at) for at in decorators)
            if not is_ours or node.name in registered:
                yield node


def test_no_function_of_ours_has_more_than_six_parameters() -> None:
    for folder in folders():
        for file in folder.glob("*.py"):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            others = set(ruled_elsewhere(tree))
            for node in ast.walk(tree):
                if isinstance(node, Function) and node not in others:
                    assert len(parameters(node)) <= MOST_PARAMETERS, (
                        f"{file}:{node.lineno} {node.name}: give it a value type"
                    )


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
