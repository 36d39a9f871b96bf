"""Conversations -> tokens and loss mask, by the target's own chat template."""

import re
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from specpipe.schemas.errors import ConfigError, InputError
from specpipe.schemas.sample import Sample, Source, make_sample
from specpipe.stages.target.location import tokenizer_files

_GENERATION_MARKER = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


class ChatTemplate:
    """The target's tokenizer with its chat template, loaded at the first conversation.

    The supervised tokens are those between the template's `{% generation %}` markers.
    """

    def __init__(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        self._folder = folder
        self._trust_remote_code = trust_remote_code
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def sample(self, row: dict[str, Any], source: Source, vocab_size: int) -> Sample:
        """Raises InputError where the messages do not fit the template."""
        messages, tools = row["messages"], row.get("tools")
        if not isinstance(messages, list) or not messages:
            raise InputError(f"{source}: 'messages' must be a list of messages")
        messages = [
            _checked(message, f"{source}: messages[{at}]") for at, message in enumerate(messages)
        ]
        if tools is not None and not isinstance(tools, list):
            raise InputError(f"{source}: 'tools' must be a list")
        tokenizer = self._load(tools)
        try:
            encoded: Any = tokenizer.apply_chat_template(
                messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise InputError(f"{source}: the chat template refuses it: {error}") from error
        return make_sample(encoded["input_ids"], encoded["assistant_masks"], source, vocab_size)

    def _load(self, tools: list[Any] | None) -> PreTrainedTokenizerBase:
        if self._tokenizer is not None:
            return self._tokenizer
        if not tokenizer_files(self._folder):
            raise ConfigError(
                f"target {self._folder} has no tokenizer files: conversations need them "
                "(pretokenised data does not)"
            )
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            self._folder, trust_remote_code=self._trust_remote_code
        )
        try:
            template = tokenizer.get_chat_template(tools=tools)
        except ValueError as error:
            raise ConfigError(
                f"target {self._folder} has no chat template: tokenise the conversations yourself "
                "(input_ids, attention_mask, labels)"
            ) from error
        if not _GENERATION_MARKER.search(template):
            raise ConfigError(
                f"the chat template of target {self._folder} does not mark what the assistant "
                "generates ({% generation %} ... {% endgeneration %}): add them, or tokenise "
                "the conversations yourself (input_ids, attention_mask, labels)"
            )
        if not tokenizer.is_fast:
            raise ConfigError(f"target {self._folder}: the loss mask needs a fast tokenizer")
        self._tokenizer = tokenizer
        return tokenizer


def _checked(message: Any, where: str) -> dict[str, Any]:
    """The message with its content as one string; only a call of tools may go without.

    Templates render a missing content as nothing and one of another type as Python prints it.
    """
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise InputError(f"{where} must be an object with a 'role'")
    role, content, calls = (message.get(key) for key in ("role", "content", "tool_calls"))
    if calls and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise InputError(f"{where}: 'tool_calls' must be a list of objects")
    if content is None:
        if role == "assistant" and calls:
            return message
        lacks = "neither 'content' nor 'tool_calls'" if role == "assistant" else "no 'content'"
        raise InputError(f"{where} ({role}) has {lacks}")
    if isinstance(content, str):
        return message
    if not isinstance(content, list) or not content:
        raise InputError(f"{where}: 'content' must be a string or a list of text parts")
    texts = [_text(part, f"{where}.content[{at}]") for at, part in enumerate(content)]
    return {**message, "content": "".join(texts)}


def _text(part: Any, where: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, dict) else part
        raise InputError(f"{where} is of type {kind!r}; only parts of type 'text' can be dumped")
    text = part.get("text")
    if not isinstance(text, str):
        raise InputError(f"{where}: 'text' must be a string")
    return text
