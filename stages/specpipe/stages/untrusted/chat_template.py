"""A chat template in the sandbox and with the functions that transformers gives it.

The environment is that of `transformers.utils.chat_template_utils`, without its import. Of several
versions of transformers it takes what they have in common, and the date does not pass.
"""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Literal, NoReturn

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

Markers = Literal["none", "sound", "displaced"]
Span = tuple[int, int]

_DAY_OF_RENDERING = datetime(2024, 7, 26)
"""Templates that print the date get this one: a dump does not depend on the day it is made."""

_MOST_CHARACTERS = 2**28

# What stands in these is rendered apart from the text around it, so that the characters before a
# marker cannot be counted.
_RENDERED_APART = (nodes.Macro, nodes.AssignBlock, nodes.FilterBlock, nodes.CallBlock)


class _Generation(jinja2.ext.Extension):
    """Notes where `{% generation %} ... {% endgeneration %}` stands in the text."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # declared as a set, which changes

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.num_written = 0
        """Characters of the text so far."""
        self.spans: list[Span] = []

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Macro) -> str:
        text: str = caller()
        self.spans.append((self.num_written, self.num_written + len(text)))
        return text


class SandboxedTemplate:
    """A compiled template; raises jinja2.TemplateSyntaxError for a text that is none."""

    def __init__(self, source: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _DAY_OF_RENDERING.strftime
        (self._tracker,) = (
            extension
            for extension in environment.extensions.values()
            if isinstance(extension, _Generation)
        )
        self.markers = _markers(environment.parse(source))
        """`displaced` where their places cannot be told (inside a macro, say)."""
        self._template = environment.from_string(source)

    def render(self, variables: dict[str, Any]) -> tuple[str, list[Span]]:
        """The text, and the characters between its generation markers."""
        tracker = self._tracker
        tracker.num_written, tracker.spans = 0, []
        return "".join(self._pieces(variables)), tracker.spans

    def _pieces(self, variables: dict[str, Any]) -> Iterator[str]:
        for piece in self._template.generate(variables):
            self._tracker.num_written += len(piece)
            if self._tracker.num_written > _MOST_CHARACTERS:
                raise MemoryError
            yield piece


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes the characters of HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _markers(tree: nodes.Template) -> Markers:
    if not _has_markers(tree):
        return "none"
    apart: list[nodes.Node] = [*tree.find_all(_RENDERED_APART)]
    apart += [loop for loop in tree.find_all(nodes.For) if loop.recursive]
    return "displaced" if any(map(_has_markers, apart)) else "sound"


def _has_markers(within: nodes.Node) -> bool:
    calls = within.find_all(nodes.CallBlock)
    return any(isinstance(call.call.node, nodes.ExtensionAttribute) for call in calls)
