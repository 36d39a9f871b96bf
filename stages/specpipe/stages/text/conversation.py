"""Conversations and plain text -> tokens and loss mask, by the target's tokenizer and template."""

from collections.abc import Mapping
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from specpipe.schemas.errors import ConfigError, InputError
from specpipe.schemas.records.sample import Sample, Source, make_sample
from specpipe.stages.target.files.location import TEKKEN_FILE, tokenizer_files
from specpipe.stages.target.files.tokenizer import encode, load_tokenizer
from specpipe.stages.target.files.turn_end import end_token_ids
from specpipe.stages.text.chat.developer import ServedMessages
from specpipe.stages.text.chat.messages import Conversation, Message, conversation_of
from specpipe.stages.text.chat.omissions import Tools, cut_from_answer
from specpipe.stages.text.chat.rendering import Rendering
from specpipe.stages.text.chat.roles import check_roles
from specpipe.stages.text.mask.tokens import Span, TextTokens, check_length
from specpipe.stages.text.mask.turn_end_tokens import TurnEndTokens
from specpipe.stages.text.mask.turns import TurnFinder
from specpipe.stages.text.rejected import Rejections
from specpipe.stages.untrusted.templates import markers_of

LossMask = Literal["auto", "markers", "boundaries"]


class ChatTemplate:
    """The target's tokenizer with its chat template, loaded when the first row needs it."""

    def __init__(
        self,
        folder: Path,
        *,
        loss_mask: LossMask = "auto",
        settings: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """`settings` are variables of the template; those of a conversation go before them."""
        self._folder = folder
        self._settings = dict(settings or {})
        self._loss_mask = loss_mask
        self._trust_remote_code = trust_remote_code

    def sample(
        self, row: dict[str, Any], source: Source, vocab_size: int, rejections: Rejections
    ) -> Sample:
        """The tokens of a conversation; supervised is what an engine would have generated.

        Turns that cannot be found in what the template renders are not supervised, which
        `rejections` gets to know. Raises InputError where the messages do not fit the template or
        no turn can be found.
        """
        conversation = conversation_of(row, source)
        try:
            tokens, spans = self._masked(conversation, source, rejections)
            if not spans:
                raise InputError(_nothing_to_learn(conversation))
        except InputError as error:
            raise InputError(f"{source}: {error}") from error
        if conversation.num_left_out:
            rejections.mask(
                source,
                f"{source}: left out the first {conversation.num_left_out} messages, which answer "
                "what the row does not hold",
            )
        return make_sample(tokens.ids, tokens.mask(spans), source, vocab_size)

    def render(
        self,
        messages: list[Message],
        tools: Tools = None,
        settings: Mapping[str, Any] | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """The text of a (checked) conversation; raises InputError where the template refuses it,
        or leaves something of it out."""
        served = ServedMessages.of(messages, self._template(tools))
        rendering = self._rendering(tools, settings or {}, served)
        whole = rendering.whole(served.messages, add_generation_prompt=add_generation_prompt)
        check_roles(messages, self._template(tools))
        return whole.text

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a rendered text, in which the special tokens stand already.

        Raises InputError for a text that is too long for it, or that the tokenizer fails at.
        """
        check_length(text)
        ids: list[int] = encode(self.tokenizer, text, add_special_tokens=False)["input_ids"]
        return ids

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        if not tokenizer_files(self._folder):
            raise ConfigError(
                f"target {self._folder} has no tokenizer files: conversations and texts need them "
                "(pretokenised data does not)"
            )
        return load_tokenizer(self._folder, trust_remote_code=self._trust_remote_code)

    def _rendering(
        self, tools: Tools, settings: Mapping[str, Any], served: ServedMessages
    ) -> Rendering:
        variables = {**self.tokenizer.special_tokens_map, **self._settings, **settings}
        return Rendering(self._template(tools), tools, variables, served.places)

    def _masked(
        self, conversation: Conversation, source: Source, rejections: Rejections
    ) -> tuple[TextTokens, list[Span]]:
        """The conversation's tokens, and the characters that are supervised."""
        tools = conversation.tools
        served = ServedMessages.of(conversation.messages, self._template(tools))
        messages = served.messages
        rendering = self._rendering(tools, conversation.template_settings, served)
        whole = rendering.whole(messages)
        check_roles(conversation.messages, self._template(tools))

        def render(messages: list[Message], *, add_generation_prompt: bool) -> str:
            return rendering.text(messages, whole.form, add_generation_prompt=add_generation_prompt)

        def tokenize(text: str) -> TextTokens:
            return TextTokens.of(self.tokenizer, text)

        if cut := cut_from_answer(messages, whole.text):
            raise InputError(
                f"the chat template leaves {cut} out, or a part of it; take it away from the "
                "data, or tokenise the conversation yourself"
            )
        finder = TurnFinder(render, tokenize, self._turn_ends)
        tokens = tokenize(whole.text)
        turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        trained = [served.places[at] not in conversation.context for at in turns]
        if self._uses_markers(tools):
            spans = finder.generated(messages, tokens, whole.marked)
            if all(trained):
                return tokens, spans
            if len(spans) == len(turns):
                return tokens, list(compress(spans, trained))
            if self._loss_mask == "markers":
                raise InputError(
                    f"the chat template marks {len(spans)} pieces of {len(turns)} answers, so that "
                    "those which are not to be trained on cannot be told; use --loss-mask "
                    "boundaries"
                )
        found = list(compress(finder.find(messages, tokens), trained))
        turns = list(compress(turns, trained))
        lost = [
            f"messages[{served.places[at]}]"
            for at, span in zip(turns, found, strict=True)
            if span is None
        ]
        if lost:
            reason = (
                f"the chat template does not write {', '.join(lost)} in the whole conversation as "
                "when it is the last turn, so what the assistant wrote cannot be told"
            )
            if len(lost) == len(turns):
                raise InputError(f"{reason}; tokenise it yourself, or add markers to the template")
            rejections.mask(source, f"{source}: {reason}; not supervised")
        return tokens, [span for span in found if span is not None]

    def _uses_markers(self, tools: Tools) -> bool:
        if not self.tokenizer.is_fast:
            raise ConfigError(f"target {self._folder}: the loss mask needs a fast tokenizer")
        if self._loss_mask == "boundaries":
            return False
        markers = markers_of(self._template(tools))
        if self._loss_mask == "markers" and markers != "sound":
            does = (
                "does not mark what the assistant generates ({% generation %} ... "
                "{% endgeneration %}): add markers"
                if markers == "none"
                else "has its generation markers inside a macro, a set, a filter or a call block, "
                "where their places cannot be told: move them out"
            )
            raise ConfigError(
                f"the chat template of target {self._folder} {does}, or use --loss-mask boundaries"
            )
        return markers == "sound"

    def _template(self, tools: Tools) -> str:
        tokenizer = self.tokenizer
        try:
            return tokenizer.get_chat_template(tools=tools)
        except ValueError as error:
            made = ""
            if self._folder / TEKKEN_FILE in tokenizer_files(self._folder):
                made = f"install mistral-common, which makes one of {TEKKEN_FILE}, or "
            raise ConfigError(
                f"target {self._folder} has no chat template: {made}tokenise the conversations "
                "yourself (input_ids, attention_mask, labels)"
            ) from error

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """What the target's settings, and its tokenizer if it has one, call an end of sequence."""
        has_tokenizer = bool(tokenizer_files(self._folder))
        return end_token_ids(self._folder, self.tokenizer if has_tokenizer else None)

    @cached_property
    def _turn_ends(self) -> TurnEndTokens:
        added: dict[int, Any] = self.tokenizer.added_tokens_decoder
        special = [token_id for token_id, token in added.items() if token.special]
        return TurnEndTokens(
            special=frozenset([*special, *self.tokenizer.all_special_ids]),
            stops=self.end_ids,
        )


def _nothing_to_learn(conversation: Conversation) -> str:
    roles = [message["role"] for message in conversation.messages]
    if "assistant" in roles:
        return "no supervised token: the assistant's messages have weight 0, or are in the prompt"
    named = ", ".join(map(repr, dict.fromkeys(roles)))
    return (
        f"no supervised token: no message has the role 'assistant'; the roles are {named}; "
        "`specpipe dump --generate` lets the target write the answers"
    )
