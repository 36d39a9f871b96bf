"""One shard: its planned samples through the target, and out to the store.

Legend: T tokens, S verifier rows, K kept logits, L aux layers, H hidden size, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from specpipe.schemas.records.dump import DumpIdentity, GenerationCounts, ShardManifest
from specpipe.schemas.records.sample import verifier_rows
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.dump.generate import generated_texts
from specpipe.stages.dump.score import score
from specpipe.stages.dump.target_text import TextWithStates
from specpipe.stages.dump_plan.prepared import Prepared
from specpipe.stages.storage.shard.samples import PlannedSample
from specpipe.stages.storage.shard.scales import AuxScales
from specpipe.stages.storage.shard.states import SampleStates
from specpipe.stages.storage.shard.writer import ShardAttempt, ShardWriter
from specpipe.stages.storage.vocab import VocabStatistics
from specpipe.stages.target.backend import Backend, bfloat16_bits
from specpipe.stages.target.head.verifier_head import VerifierHead
from specpipe.stages.text.conversation import ChatTemplate

NON_FINITE = "the target's states or logits are not finite"
NOT_WRITTEN = "the target wrote nothing, or its states or logits are not finite"
"""Of planned prompts, which of the two a sample is refused for is not kept."""


@dataclass(frozen=True, slots=True)
class LoadedTarget:
    """The target, with all that its states and the text that it writes are read by."""

    backend: Backend
    head: VerifierHead
    scales: AuxScales | None
    """Of a dump of int8 states."""
    template: ChatTemplate
    """For text that the target writes."""


def write_shard(
    prepared: Prepared,
    shard_id: int,
    target: LoadedTarget,
    config: DumpConfig,
    refuse: Callable[[PlannedSample, str], None],
    progress: Callable[[int], None],
) -> ShardManifest:
    """Capture, score and commit a shard; returns the manifest that counts.

    Samples with states or logits that are not finite go to `refuse` instead, which may raise.
    `progress` takes the planned tokens of each sample that is done.
    """
    identity, samples = prepared.identity, prepared.plan[shard_id]
    num_tokens = sum(sample.size for sample in samples)
    num_rows = sum(sample.most_rows for sample in samples)
    writer = ShardWriter(
        ShardAttempt(prepared.folder, shard_id),
        identity,
        num_tokens,
        num_rows,
        scales=target.scales,
        write_buffer_bytes=config.write_buffer_mib * 2**20,
    )
    vocab = VocabStatistics.zeros(identity.target.vocab_size)
    counts = GenerationCounts()
    texts = _texts(target, samples, config)
    for sample, text in zip(samples, texts, strict=True):
        if not _append(writer, vocab, identity, target.head, text):
            refuse(sample, NOT_WRITTEN if identity.text.is_planned else NON_FINITE)
        elif text.counts is not None:
            counts = counts.plus(text.counts)
        progress(sample.size)
    return writer.commit(vocab, counts if identity.text.is_planned else None)


def _texts(
    target: LoadedTarget, samples: Sequence[PlannedSample], config: DumpConfig
) -> Iterator[TextWithStates]:
    if config.generate is not None:
        return generated_texts(target.backend, samples, config.generate, target.template)
    return map(TextWithStates, samples, target.backend.capture(samples))


def _append(
    writer: ShardWriter,
    vocab: VocabStatistics,
    identity: DumpIdentity,
    head: VerifierHead,
    text: TextWithStates,
) -> bool:
    """Add a text to the shard; False, and nothing is added, where its states are not finite or
    none of it is supervised."""
    sample, states = text.sample, text.states
    if sample.num_rows == 0:
        return False
    device = head.lm_head_VH.device
    rows_S = torch.from_numpy(verifier_rows(sample.loss_mask))
    next_S = torch.from_numpy(sample.input_ids).long()[rows_S + 1]
    final_SH = states.final_TH[rows_S.to(states.final_TH.device)]
    scores = score(head, final_SH.to(device), next_S.to(device), identity)
    if not bool(states.aux_TLH.isfinite().all()) or not bool(scores.logz_S.isfinite().all()):
        return False
    ids_SK, topk_SK = scores.topk_ids_SK, scores.topk_logits_SK
    logits_SV = scores.logits_SV
    writer.append(
        sample,
        SampleStates(
            aux_TLH=bfloat16_bits(states.aux_TLH),
            logz_S=scores.logz_S.cpu().numpy(),
            token_logprob_S=scores.token_logprob_S.cpu().numpy(),
            argmax_S=scores.argmax_S.cpu().numpy(),
            final_SH=bfloat16_bits(final_SH) if identity.logits == "final" else None,
            topk_ids_SK=None if ids_SK is None else ids_SK.cpu().numpy(),
            topk_logits_SK=None if topk_SK is None else bfloat16_bits(topk_SK),
            logits_SV=None if logits_SV is None else bfloat16_bits(logits_SV),
        ),
    )
    vocab.count_V[:] += sample.multiplicity * np.bincount(
        next_S.numpy(), minlength=len(vocab.count_V)
    )
    vocab.mass_V[:] += sample.multiplicity * scores.mass_V.cpu().numpy()
    return True
