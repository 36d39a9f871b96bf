"""Input files -> checked samples, in order, duplicates merged."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from specpipe.schemas.errors import InputError
from specpipe.schemas.records.sample import Sample, Source, make_sample, sample_from_pretokenized
from specpipe.stages.text.chat.row import MESSAGES, PROMPT
from specpipe.stages.text.conversation import ChatTemplate
from specpipe.stages.text.input.rows import Row, kind_of, read_rows
from specpipe.stages.text.plain_text import TEXT, completion_sample, text_sample
from specpipe.stages.text.rejected import Rejections


def read_samples(
    urls: Sequence[str],
    template: ChatTemplate,
    vocab_size: int,
    context_length: int,
    rejections: Rejections,
) -> list[Sample]:
    """All accepted samples in input order; a sample that occurs again adds to the multiplicity.

    Raises InputError for a file without rows, where no sample is left, and as soon as too many
    rows are refused.
    """
    merged: dict[str, Sample] = {}
    multiplicity: dict[str, int] = {}
    for sample in iterate_samples(urls, template, vocab_size, context_length, rejections):
        sample_id = sample.sample_id
        merged.setdefault(sample_id, sample)
        multiplicity[sample_id] = multiplicity.get(sample_id, 0) + 1
    return [
        replace(sample, multiplicity=multiplicity[sample_id])
        for sample_id, sample in merged.items()
    ]


def iterate_samples(
    urls: Sequence[str],
    template: ChatTemplate,
    vocab_size: int,
    context_length: int,
    rejections: Rejections,
) -> Iterator[Sample]:
    """The accepted samples one by one, those that occur again included; raises as read_samples."""
    is_empty = True
    for source, row in read_rows(urls, rejections):
        try:
            sample = _sample(row, source, template, vocab_size, context_length, rejections)
        except InputError as error:
            rejections.refuse(source, str(error))
            continue
        kept = _truncated(sample, vocab_size, context_length, rejections)
        if kept is not None:
            is_empty = False
            yield kept
    if is_empty:
        raise rejections.nothing_left("sample", urls)


def _sample(
    row: Row,
    source: Source,
    template: ChatTemplate,
    vocab_size: int,
    context_length: int,
    rejections: Rejections,
) -> Sample:
    kind = kind_of(row)
    if kind == MESSAGES:
        return template.sample(row, source, vocab_size, rejections)
    if kind == TEXT:
        return text_sample(row, source, template.tokenizer, vocab_size, context_length)
    if kind == PROMPT:
        return completion_sample(row, source, template.tokenizer, vocab_size)
    return sample_from_pretokenized(row, source, vocab_size)


def _truncated(
    sample: Sample, vocab_size: int, context_length: int, rejections: Rejections
) -> Sample | None:
    """The sample within the context length; None if nothing supervised is left of it."""
    if sample.num_tokens <= context_length:
        return sample
    cut = f"{sample.source}: {sample.num_tokens} tokens cut to the context length {context_length}"
    ids, mask = sample.input_ids[:context_length], sample.loss_mask[:context_length]
    if not mask[1:].any():
        rejections.leave_out(sample.source, f"{cut}: nothing supervised is left, left out")
        return None
    rejections.truncate(sample.source, cut)
    return make_sample(ids, mask, sample.source, vocab_size, sample.metadata)
