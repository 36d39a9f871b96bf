"""Whether a chat template marks what the assistant generates, in a way that can be relied on."""

from functools import lru_cache
from typing import Literal

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser

from specpipe.schemas.errors import ConfigError

Markers = Literal["none", "sound", "displaced"]

# What stands in these is rendered apart from the text around it, so transformers, which counts the
# characters before a marker, counts too few.
_RENDERED_APART = (nodes.Macro, nodes.AssignBlock, nodes.FilterBlock, nodes.CallBlock)


class _Generation(jinja2.ext.Extension):
    """Lets `{% generation %} ... {% endgeneration %}` be parsed."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # declared as a set, which changes

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method(""), [], [], body).set_lineno(line)


@lru_cache(maxsize=8)
def markers_of(template: str) -> Markers:
    """`displaced` where transformers would tell their places wrongly (inside a macro, say).

    Raises ConfigError for a template that is no Jinja template.
    """
    environment = jinja2.Environment(extensions=[_Generation, jinja2.ext.loopcontrols])
    try:
        tree = environment.parse(template)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"the chat template is wrong in line {error.lineno}: {error}") from error
    if not _has_markers(tree):
        return "none"
    apart: list[nodes.Node] = [*tree.find_all(_RENDERED_APART)]
    apart += [loop for loop in tree.find_all(nodes.For) if loop.recursive]
    return "displaced" if any(map(_has_markers, apart)) else "sound"


def _has_markers(within: nodes.Node) -> bool:
    calls = within.find_all(nodes.CallBlock)
    return any(isinstance(call.call.node, nodes.ExtensionAttribute) for call in calls)
