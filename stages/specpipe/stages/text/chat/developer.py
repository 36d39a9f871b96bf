"""Messages of the role `developer` for templates that do not know it, as vLLM writes them.

The template then never sees the role: they become system messages, and all system messages one
that comes first, since many templates take no other.
"""

from dataclasses import dataclass

from specpipe.stages.text.chat.messages import Message

_ROLE = "developer"


@dataclass(frozen=True, slots=True)
class ServedMessages:
    """The messages that an engine gives to the template."""

    messages: list[Message]
    places: list[int]
    """The index that each had."""

    @classmethod
    def of(cls, messages: list[Message], template: str) -> "ServedMessages":
        places = list(range(len(messages)))
        is_known = f'"{_ROLE}"' in template or f"'{_ROLE}'" in template
        if is_known or all(message["role"] != _ROLE for message in messages):
            return cls(messages, places)
        messages = [
            {**message, "role": "system"} if message["role"] == _ROLE else message
            for message in messages
        ]
        first = [at for at in places if messages[at]["role"] == "system"]
        if first == [0]:
            return cls(messages, places)
        text = "\n\n".join(messages[at]["content"] for at in first if messages[at]["content"])
        others = [at for at in places if at not in first]
        merged: Message = {"role": "system", "content": text}
        return cls([merged, *(messages[at] for at in others)], [first[0], *others])
