"""A conversation whose assistant turns the target writes, each fed back for the next one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from specpipe.schemas.errors import InputError
from specpipe.stages.text.chat.messages import Conversation, Message
from specpipe.stages.text.conversation import ChatTemplate

_TOOL_ROLES = ("tool", "function", "ipython", "observation")


@dataclass(frozen=True, slots=True)
class Dialogue:
    """The messages that the target answers."""

    before_turns: list[list[Message]]
    """The messages before each of its turns."""
    tools: list[dict[str, Any]] | None
    template_settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, conversation: Conversation) -> "Dialogue":
        """The conversation without what its assistant said; raises InputError.

        Its answers give way to the target's, one turn for those that follow each other. Those that
        are context for what is said later stay.
        """
        num_said = max(
            (at + 1 for at, m in enumerate(conversation.messages) if m["role"] != "assistant"),
            default=0,
        )
        before_turns: list[list[Message]] = [[]]
        in_answer = False
        for at, message in enumerate(conversation.messages):
            is_context = at in conversation.context and at < num_said
            if message["role"] == "assistant" and not is_context:
                if not before_turns[0]:
                    raise InputError(
                        "the assistant speaks first: there is nothing that the target can answer"
                    )
                in_answer = True
                continue
            if in_answer:
                before_turns.append([])
                in_answer = False
            if len(before_turns) > 1 and message["role"] in _TOOL_ROLES:
                raise InputError(
                    f"messages[{at}] answers a call of a tool that the data's assistant made, and "
                    "the target, which writes the assistant's turns, may not make; leave such "
                    "conversations out, or end them before the call"
                )
            before_turns[-1].append(message)
        return cls(before_turns, conversation.tools, conversation.template_settings)

    @classmethod
    def of_metadata(cls, metadata: dict[str, Any]) -> "Dialogue":
        return cls(**metadata["dialogue"])

    @property
    def metadata(self) -> dict[str, Any]:
        """What a plan keeps of it, beside the first prompt."""
        kept: dict[str, Any] = {"before_turns": self.before_turns, "tools": self.tools}
        if self.template_settings:
            kept["template_settings"] = self.template_settings
        return {"dialogue": kept}

    @property
    def num_turns(self) -> int:
        return len(self.before_turns)

    def prompt(self, template: ChatTemplate, answers: Sequence[str] = ()) -> str:
        """The text of the conversation after these answers, up to where the next one begins.

        Raises InputError where the template refuses it, or leaves a message out.
        """
        messages = [*self.before_turns[0]]
        for answer, following in zip(answers, self.before_turns[1:], strict=False):
            messages += [{"role": "assistant", "content": answer}, *following]
        return template.render(
            messages, self.tools, self.template_settings, add_generation_prompt=True
        )

    def following(
        self, template: ChatTemplate, text: str, answers: Sequence[str], end: str
    ) -> str | None:
        """What the template writes between the last of the answers and the next one.

        `text` is that of the conversation up to the last answer, and `end` that of the token that
        ended this one, if one did. None where the template writes any of it otherwise, such as
        without its reasoning: the next prompt would not go on from what the target has seen.
        """
        try:
            whole = self.prompt(template, answers)
        except InputError:
            return None
        so_far = f"{text}{answers[-1]}{end}"
        return whole[len(so_far) :] or None if whole.startswith(so_far) else None
