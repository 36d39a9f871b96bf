"""Conversations and plain text -> tokens and loss mask, by the target's tokenizer and template."""

import json
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from specpipe.schemas.errors import ConfigError, InputError
from specpipe.schemas.sample import Sample, Source, make_sample
from specpipe.stages.dump.messages import (
    Conversation,
    Message,
    conversation_of,
    reasoning_of,
    with_arguments,
)
from specpipe.stages.dump.rejected import Rejections
from specpipe.stages.dump.tokens import Span, Tokens
from specpipe.stages.dump.turns import TurnFinder
from specpipe.stages.target.location import CONFIG_FILE, tokenizer_files

LossMask = Literal["auto", "markers", "boundaries"]

_render_jinja: Any = render_jinja_template  # its declared result is a str

_DAY_OF_RENDERING = datetime(2024, 7, 26)
"""Templates that print the date get this one: a dump does not depend on the day it is made."""

_REFUSALS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


class ChatTemplate:
    """The target's tokenizer with its chat template, loaded when the first row needs it."""

    def __init__(
        self, folder: Path, *, loss_mask: LossMask = "auto", trust_remote_code: bool = False
    ) -> None:
        self._folder = folder
        self._loss_mask = loss_mask
        self._trust_remote_code = trust_remote_code

    def sample(
        self, row: dict[str, Any], source: Source, vocab_size: int, rejections: Rejections
    ) -> Sample:
        """The tokens of a conversation; supervised is what the assistant wrote.

        Turns that cannot be found in what the template renders are not supervised, which
        `rejections` gets to know. Raises InputError where the messages do not fit the template or
        no turn can be found.
        """
        conversation = conversation_of(row, source)
        try:
            if self._marks(conversation.tools):
                text, spans = self._render(conversation.messages, conversation.tools, marked=True)
                tokens = Tokens.of(self.tokenizer, text)
            else:
                tokens = Tokens.of(self.tokenizer, self.render(*_parts(conversation)))
                spans = self._turns(conversation, tokens, source, rejections)
            _check_shown(conversation.messages, tokens.text)
        except InputError as error:
            raise InputError(f"{source}: {error}") from error
        return make_sample(tokens.ids, tokens.mask(spans), source, vocab_size)

    def text_sample(self, row: dict[str, Any], source: Source, vocab_size: int) -> Sample:
        """A plain text with the tokenizer's usual special tokens, supervised but for the first."""
        text = row["text"]
        if not isinstance(text, str):
            raise InputError(f"{source}: 'text' must be a string")
        ids = self.tokenizer(text, verbose=False)["input_ids"]
        mask_T = np.ones(len(ids), np.uint8)
        mask_T[:1] = 0
        return make_sample(ids, mask_T, source, vocab_size)

    def render(
        self,
        messages: list[Message],
        tools: list[dict[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """The text of a (checked) conversation; raises InputError where the template refuses it."""
        return self._render(messages, tools, add_generation_prompt=add_generation_prompt)[0]

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a rendered text, in which the special tokens stand already."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        if not tokenizer_files(self._folder):
            raise ConfigError(
                f"target {self._folder} has no tokenizer files: conversations and texts need them "
                "(pretokenised data does not)"
            )
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            self._folder, trust_remote_code=self._trust_remote_code
        )
        return tokenizer

    def _render(
        self,
        messages: list[Message],
        tools: list[dict[str, Any]] | None,
        *,
        add_generation_prompt: bool = False,
        marked: bool = False,
    ) -> tuple[str, list[Span]]:
        """The text, and the characters between the template's generation markers if asked for."""
        template = self._template(tools)
        calls = any(message.get("tool_calls") for message in messages)
        refusal: Exception | None = None
        for as_text in (False, True) if calls else (False,):
            form = with_arguments(messages, as_text=as_text)
            try:
                texts, spans = _render_jinja(
                    [form],
                    tools=tools,
                    chat_template=template,
                    return_assistant_tokens_mask=marked,
                    add_generation_prompt=add_generation_prompt,
                    strftime_now=_DAY_OF_RENDERING.strftime,
                    **self.tokenizer.special_tokens_map,
                )
            except _REFUSALS as error:
                refusal = error
                continue
            if as_text or not calls or not _prints_python(form, texts[0]):
                return str(texts[0]), [(start, stop) for start, stop in (spans or [[]])[0]]
        raise InputError(f"the chat template refuses it: {refusal}") from refusal

    def _turns(
        self,
        conversation: Conversation,
        tokens: Tokens,
        source: Source,
        rejections: Rejections,
    ) -> list[Span]:
        messages, tools = _parts(conversation)

        def render(messages: list[Message], *, add_generation_prompt: bool) -> str:
            return self.render(messages, tools, add_generation_prompt=add_generation_prompt)

        finder = TurnFinder(
            render, lambda text: Tokens.of(self.tokenizer, text), self._special, self._stops
        )
        turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        found = finder.find(messages, tokens)
        lost = [f"messages[{at}]" for at, span in zip(turns, found, strict=True) if span is None]
        if lost:
            reason = (
                f"the chat template does not write {', '.join(lost)} in the whole conversation as "
                "when it is the last turn, so what the assistant wrote cannot be told"
            )
            if len(lost) == len(turns):
                raise InputError(f"{reason}; tokenise it yourself, or add markers to the template")
            rejections.mask(source, f"{source}: {reason}; not supervised")
        return [span for span in found if span is not None]

    def _marks(self, tools: list[dict[str, Any]] | None) -> bool:
        """Whether the mask comes from generation markers."""
        if not self.tokenizer.is_fast:
            raise ConfigError(f"target {self._folder}: the loss mask needs a fast tokenizer")
        if self._loss_mask == "boundaries":
            return False
        has_markers = _has_markers(self._template(tools))
        if self._loss_mask == "markers" and not has_markers:
            raise ConfigError(
                f"the chat template of target {self._folder} does not mark what the assistant "
                "generates ({% generation %} ... {% endgeneration %}): add them, or use "
                "--loss-mask boundaries"
            )
        return has_markers

    def _template(self, tools: list[dict[str, Any]] | None) -> str:
        try:
            return self.tokenizer.get_chat_template(tools=tools)
        except ValueError as error:
            raise ConfigError(
                f"target {self._folder} has no chat template: tokenise the conversations yourself "
                "(input_ids, attention_mask, labels)"
            ) from error

    @cached_property
    def _special(self) -> frozenset[int]:
        added: dict[int, Any] = self.tokenizer.added_tokens_decoder
        special = [token_id for token_id, token in added.items() if token.special]
        return frozenset([*special, *self.tokenizer.all_special_ids])

    @cached_property
    def _stops(self) -> frozenset[int]:
        """What the tokenizer and the target's own settings call an end of sequence."""
        found = [self.tokenizer.eos_token_id]
        for name in (CONFIG_FILE, "generation_config.json"):
            path = self._folder / name
            ids = json.loads(path.read_bytes()).get("eos_token_id") if path.is_file() else None
            found += ids if isinstance(ids, list) else [ids]
        return frozenset(token_id for token_id in found if isinstance(token_id, int))


def _parts(conversation: Conversation) -> tuple[list[Message], list[dict[str, Any]] | None]:
    return conversation.messages, conversation.tools


def _has_markers(template: str) -> bool:
    parts = [
        value
        for _, kind, value in jinja2.Environment().lex(template)
        if kind not in ("whitespace", "data")
    ]
    return any(before.startswith("{%") and word == "generation" for before, word in pairwise(parts))


def _prints_python(messages: list[Message], text: str) -> bool:
    """Whether arguments that are objects stand in the text as Python prints them."""
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    functions = [call.get("function", call) for call in calls]
    return any(
        isinstance(function, dict)
        and isinstance(function.get("arguments"), dict)
        and "'" in (printed := str(function["arguments"]))
        and printed in text
        for function in functions
    )


def _check_shown(messages: list[Message], text: str) -> None:
    """Raise InputError where the template leaves something out of an answer that comes last.

    White space does not count. From earlier answers templates drop the reasoning on purpose.
    """
    last = messages[-1]
    if last["role"] != "assistant" or last.get("tool_calls"):
        return
    shown = "".join(text.split())
    for what, value in (("reasoning", reasoning_of(last)), ("content", last["content"])):
        if "".join(value.split()) not in shown:
            raise InputError(
                f"the chat template leaves the {what} of messages[{len(messages) - 1}] out, or a "
                "part of it; take it away from the data, or tokenise the conversation yourself"
            )
