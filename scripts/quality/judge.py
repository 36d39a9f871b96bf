"""What a drafter's files are worth: the replayed tau on held-out text, apart for two halves of it.

Settings are chosen by one half of the prompts and reported by the other. The replay is the plain
one of export, which reads the artifact alone, so that drafters of other trainers are judged alike.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from specpipe.schemas.base import Frozen
from specpipe.schemas.records.metrics import ReplayCurve
from specpipe.stages.acceptance.replay import replay
from specpipe.stages.drafters.artifact import read_files
from specpipe.stages.drafters.registry import recognised
from specpipe.stages.samples.batch import DrafterSample
from specpipe.stages.samples.read_ahead import read_samples
from specpipe.stages.samples.reader import SampleReader, SampleRef
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.head.target_tensors import StoredTarget
from specpipe.stages.validate.drafted_text import TextSpans
from specpipe.stages.validate.replay.run import text_of

Half = Literal["choose", "report"]
HALVES: tuple[Half, ...] = ("choose", "report")

Mode = Literal["temperature_1", "greedy_draft", "greedy"]
MODES: dict[Mode, str] = {
    "temperature_1": "temperature 1",
    "greedy_draft": "temperature 1, greedy drafts",
    "greedy": "greedy",
}
"""How is decoded, and drafted; in words."""
JUDGED_BY: tuple[Mode, ...] = ("temperature_1", "greedy")
"""What our own drafters are compared by."""


class Judged(Frozen):
    """Replays by mode and half."""

    curves: dict[Mode, dict[Half, ReplayCurve]]

    def tau(self, mode: Mode, half: Half) -> float:
        """With all draft tokens."""
        return self.curves[mode][half].tau[-1]


def half_of(prompt_id: str) -> Half:
    """By the prompt's hash; its last digit, as its first ones decide what is held out."""
    return HALVES[int(prompt_id[-1], 16) % 2]


def judge(
    artifact: Path,
    held_out: str,
    greedy: str,
    num_draft_tokens: int,
    halves: Sequence[Half] = HALVES,
) -> Judged:
    """Replay the artifact on a dump of text of temperature 1 and on one of greedy text.

    Blocks that depend on their length are drafted for `num_draft_tokens` alone: of theirs, the
    curve's last entry counts.
    """
    curves: dict[Mode, dict[Half, ReplayCurve]] = {mode: {} for mode in MODES}
    for half, spans in _halves(artifact, held_out, num_draft_tokens, halves):
        curves["temperature_1"][half] = replay(spans.sampled, num_draft_tokens, exact=True)
        curves["greedy_draft"][half] = replay(spans.greedy, num_draft_tokens, exact=True)
    for half, spans in _halves(artifact, greedy, num_draft_tokens, halves):
        curves["greedy"][half] = replay(spans.greedy, num_draft_tokens, exact=True)
    return Judged(curves=curves)


def samples_of(
    dump: Dump, layers: Sequence[int] | None = None
) -> Iterator[tuple[SampleRef, DrafterSample]]:
    """Every sample that has something to draft, with these of the dump's layers; default: all."""
    reader = SampleReader(dump, None, layers=layers)
    refs = sorted(reader.refs())
    yield from zip(refs, read_samples(reader, refs), strict=True)


def _halves(
    artifact: Path, url: str, num_draft_tokens: int, halves: Sequence[Half]
) -> Iterator[tuple[Half, TextSpans]]:
    dump = Dump.open(url)
    kind = recognised(read_files(str(artifact)))
    plain = kind.proposal(artifact, StoredTarget(dump.target_file))
    stored = {*dump.identity.layers, dump.identity.target.num_layers}
    assert stored.issuperset(plain.aux_layers), "the drafter is of other layers"
    samples_drafts = kind.settings.samples_drafts
    spans = {half: TextSpans(samples_drafts=samples_drafts) for half in halves}
    for ref, sample in samples_of(dump, plain.aux_layers):
        if (half := half_of(ref.prompt_id)) in spans:
            spans[half].add(plain, text_of(sample), num_draft_tokens)
    yield from spans.items()
