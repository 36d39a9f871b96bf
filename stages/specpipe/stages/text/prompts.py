"""Input files -> prompts that the target is to answer, in order."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from specpipe.schemas.errors import InputError
from specpipe.schemas.records.prompt import PromptSample, make_prompt, prompt_from_pretokenized
from specpipe.schemas.records.sample import Ids, Source, checked_ids
from specpipe.schemas.settings.stages import GenerateConfig
from specpipe.stages.text.chat.messages import conversation_of
from specpipe.stages.text.chat.row import MESSAGES, PROMPT
from specpipe.stages.text.conversation import ChatTemplate
from specpipe.stages.text.dialogue import Dialogue
from specpipe.stages.text.input.rows import Row, kind_of, read_rows
from specpipe.stages.text.plain_text import TEXT, prompt_ids
from specpipe.stages.text.rejected import Rejections

_SOME_ANSWER = "x"
"""Stands for an answer where only what the template writes around it is of interest."""


@dataclass(frozen=True, slots=True)
class _Request:
    """A row of the input as a request to the target."""

    input_ids: Ids
    later_tokens: int = 0
    """What the template writes between its turns."""
    dialogue: Dialogue | None = None
    """None where there is one turn."""


def read_prompts(
    urls: Sequence[str],
    template: ChatTemplate,
    vocab_size: int,
    context_length: int,
    settings: GenerateConfig,
    rejections: Rejections,
) -> list[PromptSample]:
    """Every prompt in input order, as often as it is to be answered.

    A prompt that occurs again is answered again: its ordinals go on. One that leaves no room
    within the context length is left out. Raises InputError for a file without rows, where no
    prompt is left, and as soon as too many rows are refused.
    """
    prompts: list[PromptSample] = []
    num_answers: Counter[str] = Counter()
    for source, row in read_rows(urls, rejections):
        try:
            request = _request(row, source, template, vocab_size)
        except InputError as error:
            rejections.refuse(source, str(error))
            continue
        first = _prompt(request, source, context_length, settings)
        if first.max_new_tokens < 1:
            rejections.leave_out(
                source,
                f"{source}: the prompt has {first.num_tokens} tokens, which leaves no room within "
                f"the context length {context_length}: left out",
            )
            continue
        # With the ordinal 0, the hash is that of the prompt and the settings.
        begin = num_answers[first.sample_id]
        num_answers[first.sample_id] += settings.samples_per_prompt
        ordinals = range(begin, begin + settings.samples_per_prompt)
        prompts += [replace(first, ordinal=ordinal) for ordinal in ordinals]
    if not prompts:
        raise rejections.nothing_left("prompt", urls)
    return prompts


def _request(row: Row, source: Source, template: ChatTemplate, vocab_size: int) -> _Request:
    kind = kind_of(row)
    if kind == MESSAGES:
        return _conversation(row, source, template, vocab_size)
    if kind in (TEXT, PROMPT):
        ids = prompt_ids(row, kind, source, template.tokenizer)
        return _Request(_checked(ids, source, vocab_size))
    return _Request(prompt_from_pretokenized(row, source, vocab_size))


def _conversation(row: Row, source: Source, template: ChatTemplate, vocab_size: int) -> _Request:
    conversation = conversation_of(row, source)
    try:
        dialogue = Dialogue.of(conversation)
        text = dialogue.prompt(template)
        if dialogue.num_turns > 1:  # Later messages must have a place, too.
            dialogue.prompt(template, [_SOME_ANSWER] * (dialogue.num_turns - 1))
        ids = template.tokenize(text)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    ids_T = _checked(ids, source, vocab_size)
    if dialogue.num_turns == 1:
        return _Request(ids_T)
    return _Request(ids_T, _later_tokens(dialogue, template, text), dialogue)


def _later_tokens(dialogue: Dialogue, template: ChatTemplate, text: str) -> int:
    """Tokens that the template writes between the turns, wherever these end."""
    num_tokens = 0
    for num_answers in range(1, dialogue.num_turns):
        answers = [_SOME_ANSWER] * num_answers
        between = dialogue.following(template, text, answers, end="")
        if between is None:
            break  # The conversation will end here.
        num_tokens += len(template.tokenize(between))
        text = f"{text}{_SOME_ANSWER}{between}"
    return num_tokens


def _checked(ids: Sequence[int], source: Source, vocab_size: int) -> Ids:
    if len(ids) == 0:
        raise InputError(f"{source}: the prompt has no tokens: there is nothing to go on from")
    return checked_ids(ids, source, vocab_size)


def _prompt(
    request: _Request, source: Source, context_length: int, settings: GenerateConfig
) -> PromptSample:
    num_turns = 1 if request.dialogue is None else request.dialogue.num_turns
    return make_prompt(
        request.input_ids,
        source,
        settings=settings.model_dump_json(),
        max_new_tokens=min(
            num_turns * settings.max_tokens + request.later_tokens,
            context_length - len(request.input_ids),
        ),
        metadata={} if request.dialogue is None else request.dialogue.metadata,
    )
