"""A conversation as its chat template writes it, in the first form that the template can take."""

from dataclasses import dataclass
from typing import Any

from specpipe.schemas.errors import InputError
from specpipe.stages.text.chat.forms import Form, forms_for
from specpipe.stages.text.chat.messages import Message
from specpipe.stages.text.chat.omissions import Tools, omission
from specpipe.stages.text.mask.tokens import Span
from specpipe.stages.untrusted.templates import render_template


@dataclass(frozen=True, slots=True)
class Rendered:
    """A whole conversation as text."""

    text: str
    marked: list[Span]
    """The characters between the template's generation markers."""
    form: Form


@dataclass(frozen=True, slots=True)
class Rendering:
    """How one template writes conversations with these tools."""

    template: str
    tools: Tools
    variables: dict[str, Any]
    """The special tokens, and what else the template reads."""
    places: list[int]
    """The indices that the data give to the messages."""

    def whole(self, messages: list[Message], *, add_generation_prompt: bool = False) -> Rendered:
        """The conversation in the form of which nothing is lost.

        Raises InputError where the template refuses the messages, leaves something of them out,
        or writes the calls of tools as Python would.
        """
        refusals = []
        for form in forms_for(messages):

            def render(
                messages: list[Message], tools: Tools, form: Form = form
            ) -> tuple[str, list[Span]]:
                return self._render(messages, tools, form, add_generation_prompt)

            try:
                text, marked = render(messages, self.tools)
            except InputError as error:
                refusals.append(str(error))
                continue
            left_out = omission(messages, self.tools, text, lambda *other: render(*other)[0])
            if left_out is not None:
                named = left_out.named(messages, self.places)
                refusals.append(
                    f"the chat template leaves {named} out: it has no place for that; take it "
                    "away from the data, or tokenise the conversation yourself"
                )
            elif _prints_python(form.of(messages), text):
                refusals.append("the chat template writes parts of the messages as Python does")
            else:
                return Rendered(text, marked, form)
        raise InputError(refusals[0])

    def text(self, messages: list[Message], form: Form, *, add_generation_prompt: bool) -> str:
        """The text of a part of a conversation that is known to be taken in this form."""
        return self._render(messages, self.tools, form, add_generation_prompt)[0]

    def _render(
        self, messages: list[Message], tools: Tools, form: Form, add_generation_prompt: bool
    ) -> tuple[str, list[Span]]:
        return render_template(
            self.template,
            {
                "documents": None,
                **self.variables,
                "messages": form.of(messages),
                "tools": tools,
                "add_generation_prompt": add_generation_prompt,
            },
        )


def _prints_python(messages: list[Message], text: str) -> bool:
    """Whether content in parts, or arguments that are objects, stand in the text as in Python."""
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    functions = [call.get("function", call) for call in calls]
    objects = [
        function["arguments"]
        for function in functions
        if isinstance(function, dict) and isinstance(function.get("arguments"), dict)
    ]
    objects += [
        part
        for message in messages
        if isinstance(message.get("content"), list)
        for part in message["content"]
    ]
    printed = [str(value) for value in objects]
    return any("'" in value and value in text for value in printed)
