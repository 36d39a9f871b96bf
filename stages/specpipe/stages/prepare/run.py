"""`specpipe prepare`: any input that a dump takes -> one file of pretokenised samples.

The file holds the samples that a dump of the original holds, so both have the same sample ids.
Beside it stand the inputs that were refused or truncated, and how it was made.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specpipe.schemas.errors import ConfigError, IdentityError
from specpipe.schemas.records.sample import Sample
from specpipe.schemas.settings.stages import PrepareConfig
from specpipe.stages.dump_plan.prepared import context_length_of
from specpipe.stages.dump_plan.stamp import make_stamp
from specpipe.stages.prepare.file import check_suffix, write_samples
from specpipe.stages.prepare.record import PreparedCounts, PreparedRecord, read_record, write_record
from specpipe.stages.storage.store.folder import Folder, place_of_file
from specpipe.stages.target.files.identity import load_config
from specpipe.stages.target.files.location import local_folder, tokenizer_files
from specpipe.stages.text.conversation import ChatTemplate
from specpipe.stages.text.input.files import REJECTED_SUFFIX, is_input
from specpipe.stages.text.mask.shown import Pieces, masked_text
from specpipe.stages.text.rejected import Rejections, to_jsonl
from specpipe.stages.text.samples import iterate_samples


@dataclass(frozen=True, slots=True)
class ShownExample:
    source: str
    num_tokens: int
    num_supervised: int
    pieces: Pieces


@dataclass(frozen=True, slots=True)
class PreparedData:
    out: str
    rejected: str
    """Where the inputs stand that were refused or truncated."""
    counts: PreparedCounts
    num_bytes: int
    seconds: float
    did_nothing: bool
    """The file was there already, of the same inputs."""
    example: ShownExample | None
    """The first sample; None where nothing was done."""


def prepare_data(
    config: PrepareConfig,
    about: dict[str, Any],
    progress: Callable[[int], None] = lambda num_samples: None,
) -> PreparedData:
    """Write `config.out`, all or nothing, unless it is there and its inputs have not changed.

    `about` goes into the provenance beside it; `progress` takes the samples so far. Raises
    InputError for refused inputs, as a dump does, IdentityError where `out` is a file that
    `prepare` did not write, ConfigError where it is one of the inputs itself.
    """
    started = time.monotonic()
    check_suffix(config.out)
    folder, name = place_of_file(config.out)
    if is_input(config.out, config.data):
        raise ConfigError(
            f"{folder.where(name)} is part of --data itself: choose an --out outside of it"
        )
    stamp = make_stamp(config, with_weights=False)
    record = read_record(folder, name)
    if record is not None and record.stamp == stamp and folder.size(name) == record.num_bytes:
        return _result(folder, name, record, started, example=None)
    if record is None and folder.exists(name) and not folder.exists(name + REJECTED_SUFFIX):
        raise IdentityError(
            f"{folder.where(name)} is there, and specpipe prepare did not write it: choose another "
            "--out, or remove it"
        )
    folder.check_writable()

    target_folder = local_folder(
        config.target, config.revision, with_weights=False, with_code=config.trust_remote_code
    )
    trust = config.trust_remote_code
    model = load_config(target_folder, trust_remote_code=trust).get_text_config(decoder=True)
    template = ChatTemplate(
        target_folder,
        loss_mask=config.loss_mask,
        settings=config.chat_template_kwargs,
        trust_remote_code=trust,
    )
    rejections = Rejections(config.max_rejected)
    samples = iterate_samples(
        config.data,
        template,
        model.vocab_size,
        context_length_of(config.context_length, getattr(model, "max_position_embeddings", None)),
        rejections,
    )
    counting = _Counting(samples, progress)
    with folder.scratch() as scratch:
        made = write_samples(Path(scratch) / name, counting)
        num_bytes = made.stat().st_size
        # A file with this one beside it is known as ours, also after a kill.
        folder.write(name + REJECTED_SUFFIX, to_jsonl(rejections.of_input))
        folder.move_in(name, str(made))
    kinds: Counter[str] = Counter(rejection.kind for rejection in rejections.of_input)
    record = PreparedRecord(stamp=stamp, num_bytes=num_bytes, counts=counting.counts(kinds))
    write_record(folder, name, record, about)
    example = _example(counting.first, template if tokenizer_files(target_folder) else None)
    return _result(folder, name, record, started, example=example)


class _Counting:
    """Passes samples on and counts them."""

    def __init__(self, samples: Iterator[Sample], progress: Callable[[int], None]) -> None:
        self._samples = samples
        self._progress = progress
        self._num_samples = self._num_tokens = self._num_supervised = 0
        self.first: Sample | None = None

    def __iter__(self) -> Iterator[Sample]:
        for sample in self._samples:
            self.first = self.first or sample
            self._num_samples += 1
            self._num_tokens += sample.num_tokens
            self._num_supervised += sample.num_supervised
            yield sample
            self._progress(self._num_samples)

    def counts(self, kinds: Counter[str]) -> PreparedCounts:
        return PreparedCounts(
            num_samples=self._num_samples,
            num_tokens=self._num_tokens,
            num_supervised=self._num_supervised,
            num_rejected=kinds["refused"],
            num_truncated=kinds["truncated"],
            num_left_out=kinds["left_out"],
            num_partly_masked=kinds["partly_masked"],
        )


def _example(sample: Sample | None, template: ChatTemplate | None) -> ShownExample | None:
    if sample is None:
        return None
    tokenizer = template.tokenizer if template else None
    decode = (lambda ids: str(tokenizer.decode(ids))) if tokenizer else None
    return ShownExample(
        source=str(sample.source),
        num_tokens=sample.num_tokens,
        num_supervised=sample.num_supervised,
        pieces=masked_text(sample.input_ids, sample.loss_mask, decode),
    )


def _result(
    folder: Folder,
    name: str,
    record: PreparedRecord,
    started: float,
    *,
    example: ShownExample | None,
) -> PreparedData:
    return PreparedData(
        out=folder.where(name),
        rejected=folder.where(name + REJECTED_SUFFIX),
        counts=record.counts,
        num_bytes=record.num_bytes,
        seconds=time.monotonic() - started,
        did_nothing=example is None,
        example=example,
    )
