"""One shard: its planned samples through the target, and out to the store.

Legend: T tokens, S verifier rows, C rows of a chunk, L aux layers, H hidden size, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specpipe.schemas.dump import DumpIdentity, ShardManifest
from specpipe.schemas.sample import verifier_rows
from specpipe.stages.dump.plan import batches
from specpipe.stages.storage.folder import Folder
from specpipe.stages.storage.samples import PlannedSample
from specpipe.stages.storage.shard_writer import ShardWriter
from specpipe.stages.storage.states import U16, SampleStates
from specpipe.stages.storage.vocab import VocabStatistics
from specpipe.stages.target.head import VerifierHead
from specpipe.stages.target.hf import HfBackend

_LOGITS_BYTES = 64 * 2**20
"""Most bytes of one [C, V] chunk of fp32 logits; two or three of them live at a time."""

NON_FINITE = "the target's states or logits are not finite"


@dataclass(frozen=True, slots=True)
class Scores:
    """What the verifier says at a sample's rows: fp32 [S], fp32 [S], int32 [S], fp64 [V]."""

    logz_S: Tensor
    token_logprob_S: Tensor
    argmax_S: Tensor
    mass_V: Tensor
    """Probability of each token, summed over the rows."""


def write_shard(
    folder: Folder,
    identity: DumpIdentity,
    shard_id: int,
    samples: Sequence[PlannedSample],
    backend: HfBackend,
    head: VerifierHead,
    batch_tokens: int,
    refuse: Callable[[PlannedSample, str], None],
    progress: Callable[[int], None],
) -> ShardManifest:
    """Capture, score and commit a shard; returns the manifest that counts.

    Samples with states or logits that are not finite go to `refuse` instead, which may raise.
    `progress` takes the tokens of each batch that is done.
    """
    num_tokens = sum(sample.num_tokens for sample in samples)
    num_rows = sum(sample.num_rows for sample in samples)
    writer = ShardWriter(folder, identity, shard_id, num_tokens, num_rows)
    vocab = VocabStatistics.zeros(identity.target.vocab_size)
    for batch in batches(samples, batch_tokens):
        for sample, (aux_TLH, final_TH) in zip(batch, backend.capture(batch), strict=True):
            rows_S = torch.from_numpy(verifier_rows(sample.loss_mask)).to(final_TH.device)
            next_S = torch.tensor(sample.input_ids).to(final_TH.device).long()[rows_S + 1]
            final_SH = final_TH[rows_S]
            scores = score(head, final_SH, next_S)
            if not bool(aux_TLH.isfinite().all() & scores.logz_S.isfinite().all()):
                refuse(sample, NON_FINITE)
                continue
            writer.append(
                sample,
                SampleStates(
                    aux_TLH=_bits(aux_TLH),
                    final_SH=_bits(final_SH),
                    logz_S=scores.logz_S.cpu().numpy(),
                    token_logprob_S=scores.token_logprob_S.cpu().numpy(),
                    argmax_S=scores.argmax_S.cpu().numpy(),
                ),
            )
            count_V = np.bincount(next_S.cpu().numpy(), minlength=len(vocab.count_V))
            vocab.count_V[:] += sample.multiplicity * count_V
            vocab.mass_V[:] += sample.multiplicity * scores.mass_V.cpu().numpy()
        progress(sum(sample.num_tokens for sample in batch))
    return writer.commit(vocab)


@torch.no_grad()
def score(head: VerifierHead, final_SH: Tensor, next_S: Tensor) -> Scores:
    """Walk the rows in chunks: no more than a bounded [C, V] of logits exists at a time."""
    vocab_size = len(head.lm_head_VH)
    chunk = max(1, _LOGITS_BYTES // (4 * vocab_size))
    mass_V = torch.zeros(vocab_size, dtype=torch.float64, device=final_SH.device)
    columns: list[tuple[Tensor, Tensor, Tensor]] = []
    for final_CH, next_C in zip(final_SH.split(chunk), next_S.split(chunk), strict=True):
        logits_CV = head.logits(final_CH)
        logz_C = logits_CV.logsumexp(1)
        token_C = logits_CV.gather(1, next_C[:, None])[:, 0] - logz_C
        columns.append((logz_C, token_C, logits_CV.argmax(1).int()))
        mass_V += logits_CV.sub_(logz_C[:, None]).exp_().sum(0, dtype=torch.float64)
    logz_S, token_logprob_S, argmax_S = (torch.cat(column) for column in zip(*columns, strict=True))
    return Scores(logz_S, token_logprob_S, argmax_S, mass_V)


def _bits(states: Tensor) -> U16:
    """bfloat16 values as their bits."""
    bits: U16 = states.contiguous().view(torch.uint16).cpu().numpy()
    return bits
