"""Which of vLLM's models have an interface, read from vLLM's source without importing it.

vLLM has some 300 architectures, and importing one takes seconds and its packages: their classes'
bases are all that is needed, and they stand in the source.
"""

import ast
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

_MODELS = "model_executor/models"
_TARGETS = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")
"""Of the tables of vLLM's registry: those that a language model stands in."""
_DRAFTERS = ("_SPECULATIVE_DECODING_MODELS",)


@dataclass(frozen=True, slots=True)
class _Module:
    """The classes of one source file."""

    bases: dict[str, list[str]] = field(default_factory=dict)
    """Of each class that it defines."""
    imports: dict[str, list[tuple[Path, str]]] = field(default_factory=dict)
    """Where each name that it imports from vLLM comes from; several where platforms differ."""


class ModelSource:
    """The models of one vLLM, which `package` is the folder of."""

    def __init__(self, package: Path) -> None:
        self._package = package
        self._module = cache(self._read)
        self._registered = cache(self._read_registry)
        self.interface_with = cache(self._find_interface)

    def architectures(self) -> list[str]:
        """Those of language models that vLLM registers."""
        return sorted(self._registered(_TARGETS))

    def drafters(self) -> list[str]:
        """Classes of drafters that vLLM registers."""
        return sorted(self._registered(_DRAFTERS))

    def having(self, interface: str) -> set[str]:
        """Architectures whose class has the interface among its bases, on some platform."""
        return {name for name in self.architectures() if self.has(name, interface)}

    def has(self, architecture: str, interface: str) -> bool:
        """Whether the class of a registered architecture has the interface."""
        module, name = self._registered(_TARGETS)[architecture]
        file = self._of_registry(module)
        return file is not None and self._has(file, name, interface, set())

    def _find_interface(self, method: str) -> str:
        """The name of the interface that defines a method; raises KeyError where none does."""
        for node in _parse(self._package / _MODELS / "interfaces.py").body:
            if isinstance(node, ast.ClassDef) and method in _methods_of(node):
                return node.name
        raise KeyError(method)

    def _read_registry(self, names: tuple[str, ...]) -> dict[str, tuple[str, str]]:
        """Module and class by architecture, of some of the registry's tables."""
        registry = _parse(self._package / _MODELS / "registry.py")
        tables = {
            target.id: node.value
            for node in registry.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        found: dict[str, tuple[str, str]] = {}
        for name in names:
            found |= ast.literal_eval(tables[name])
        return found

    def _has(self, file: Path, name: str, interface: str, seen: set[tuple[Path, str]]) -> bool:
        if name == interface:
            return True
        if (file, name) in seen:
            return False
        seen.add((file, name))
        module = self._module(file)
        return any(
            self._has(where, base, interface, seen)
            for where, base in (
                *((file, base) for base in module.bases.get(name, ())),
                *module.imports.get(name, ()),
            )
        )

    def _read(self, file: Path) -> _Module:
        found = _Module()
        for node in ast.walk(_parse(file)):
            if isinstance(node, ast.ClassDef):
                found.bases.setdefault(node.name, []).extend(_plain_names(node.bases))
            if isinstance(node, ast.ImportFrom) and (source := self._imported(file, node)):
                for alias in node.names:
                    place = (source, alias.name)
                    found.imports.setdefault(alias.asname or alias.name, []).append(place)
        return found

    def _imported(self, file: Path, node: ast.ImportFrom) -> Path | None:
        parts = (node.module or "").split(".") if node.module else []
        if node.level:
            return _file(file.parents[node.level - 1], parts)
        return _file(self._package, parts[1:]) if parts[0] == "vllm" else None

    def _of_registry(self, module: str) -> Path | None:
        parts = module.split(".")
        if parts[0] == "vllm":
            return _file(self._package, parts[1:])
        return _file(self._package / _MODELS, parts)


def _parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _methods_of(node: ast.ClassDef) -> list[str]:
    return [one.name for one in node.body if isinstance(one, ast.FunctionDef)]


def _file(folder: Path, parts: list[str]) -> Path | None:
    """Of the module of these names below a folder."""
    path = folder.joinpath(*parts)
    found = (path.with_name(f"{path.name}.py"), path / "__init__.py")
    return next((one for one in found if one.is_file()), None)


def _plain_names(bases: list[ast.expr]) -> list[str]:
    """`Name` of each base that is written Name, module.Name or Name[...]."""
    names = []
    for base in bases:
        expression = base.value if isinstance(base, ast.Subscript) else base
        if isinstance(expression, ast.Name):
            names.append(expression.id)
        elif isinstance(expression, ast.Attribute):
            names.append(expression.attr)
    return names
