"""The columns of a shard that come from the verifier's logits.

Legend: S verifier rows, C rows of a chunk, K kept logits, V vocabulary, H hidden size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from specpipe.schemas.records.dump import DumpIdentity
from specpipe.stages.target.head.verifier_head import VerifierHead

LOGITS_BYTES = 64 * 2**20
"""Most bytes of one [C, V] chunk of fp32 logits; two or three of them live at a time."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The verifier's columns at a sample's rows. `logits` are shifted by log Z to
    log-probabilities, which bfloat16 resolves better than logits."""

    logz_S: Tensor
    """float32: log-sum-exp of the logits."""
    token_logprob_S: Tensor
    """float32"""
    argmax_S: Tensor
    """int32"""
    mass_V: Tensor
    """float64: probability of each token, summed over the rows."""
    topk_ids_SK: Tensor | None
    """int32, the most likely first; in logits mode topk."""
    topk_logits_SK: Tensor | None
    """bfloat16"""
    logits_SV: Tensor | None
    """bfloat16; in logits mode full."""


@torch.no_grad()
def score(head: VerifierHead, final_SH: Tensor, next_S: Tensor, identity: DumpIdentity) -> Scores:
    """Walk the rows in chunks: no more than a bounded [C, V] of fp32 logits exists at a time.

    `final_SH` holds states before the final norm, `next_S` the tokens that follow (int64).
    """
    vocab_size = len(head.lm_head_VH)
    chunk = max(1, LOGITS_BYTES // (4 * vocab_size))
    mass_V = torch.zeros(vocab_size, dtype=torch.float64, device=final_SH.device)
    columns: dict[str, list[Tensor]] = {}
    for final_CH, next_C in zip(final_SH.split(chunk), next_S.split(chunk), strict=True):
        logits_CV = head.logits(final_CH)
        logz_C = logits_CV.logsumexp(1)
        logits_CV.sub_(logz_C[:, None])
        found = {
            "logz": logz_C,
            "token": logits_CV.gather(1, next_C[:, None])[:, 0],
            "argmax": logits_CV.argmax(1).int(),
        }
        if identity.topk is not None:
            top = logits_CV.topk(identity.topk, dim=1)
            found |= {"topk_ids": top.indices.int(), "topk_logits": top.values.bfloat16()}
        if identity.logits == "full":
            found["logits"] = logits_CV.bfloat16()
        mass_V += logits_CV.exp_().sum(0, dtype=torch.float64)
        for name, column in found.items():
            columns.setdefault(name, []).append(column)
    whole = {name: torch.cat(parts) for name, parts in columns.items()}
    return Scores(
        logz_S=whole["logz"],
        token_logprob_S=whole["token"],
        argmax_S=whole["argmax"],
        mass_V=mass_V,
        topk_ids_SK=whole.get("topk_ids"),
        topk_logits_SK=whole.get("topk_logits"),
        logits_SV=whole.get("logits"),
    )
