"""Each dump proves itself: what is captured must give the target's own log-probabilities.

Legend: T tokens, L aux layers, H hidden size, S verifier rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from specpipe.schemas.errors import ValidationError
from specpipe.schemas.records.sample import Ids, Mask, verifier_rows
from specpipe.schemas.settings.stages import GenerateConfig
from specpipe.stages.target.backend import Backend, Prompt
from specpipe.stages.target.head.verifier_head import VerifierHead

MEAN_TOLERANCE = 2e-2
"""Nats, mean absolute difference; rounding the final state to bf16 costs about 1e-3."""
MAX_TOLERANCE = 0.5
"""Nats, at any one token."""
AUX_TOLERANCE = 2e-2
"""Norm of the difference over norm of the states."""

_MOST_ROWS = 64
_MOST_NEW_TOKENS = 16


@dataclass(frozen=True, slots=True)
class ProofSample:
    """A sample, cut behind its first verifier rows: input_ids [T], loss_mask [T]."""

    sample_id: str
    input_ids: Ids
    loss_mask: Mask

    @classmethod
    def cut(cls, sample_id: str, input_ids: Ids, loss_mask: Mask) -> "ProofSample":
        last = int(verifier_rows(loss_mask)[:_MOST_ROWS][-1])
        return cls(sample_id, input_ids[: last + 2], loss_mask[: last + 2])


def prove(backend: Backend, head: VerifierHead, samples: Sequence[ProofSample]) -> None:
    """Compare captured states with a full forward pass of the target, sample by sample.

    Raises ValidationError where the emitted tokens' log-probabilities, from the stored head over
    the captured final states, or the aux states are not the target's own. Samples whose states
    are not finite are left to the dump's own refusal.
    """
    differences: list[torch.Tensor] = []
    roundings: list[torch.Tensor] = []
    for sample in samples:
        rows_S = torch.from_numpy(verifier_rows(sample.loss_mask))
        next_S = torch.from_numpy(sample.input_ids).long()[rows_S + 1]
        first = int(rows_S[0])
        logprobs, own_states = backend.own_logprobs(sample, first)
        own_S = logprobs.cpu()[rows_S - first]
        states = next(iter(backend.capture([sample])))
        logits_SV = head.logits(states.final_TH[rows_S.to(states.final_TH.device)]).cpu()
        ours_S = logits_SV.log_softmax(-1).gather(1, next_S[:, None])[:, 0]
        logit_S = logits_SV.gather(1, next_S[:, None])[:, 0]
        if not own_S.isfinite().all():
            continue
        differences.append((ours_S - own_S).abs())
        roundings.append(backend.logits_rounding * logit_S.abs())
        for at, layer in enumerate(backend.layers):
            if layer in own_states:
                _check_aux(sample, layer, states.aux_TLH[:, at].float(), own_states[layer].float())
    if not differences:
        return
    all_S, rounding_S = torch.cat(differences), torch.cat(roundings)
    mean, worst = float(all_S.mean()), float(all_S.max())
    most_mean = MEAN_TOLERANCE + float(rounding_S.mean())
    most = MAX_TOLERANCE + float(rounding_S.max())
    if not (mean <= most_mean and worst <= most):
        raise ValidationError(
            "the captured final states do not give the target's own log-probabilities: mean "
            f"absolute difference {mean:.3g} nats (at most {most_mean:.3g}), largest {worst:.3g} "
            f"(at most {most:.3g}), over {len(all_S)} tokens of {len(differences)} samples. "
            "The final state may be of another layer, or already normed, or the stored head may be "
            "of another checkpoint. Nothing of this run was committed"
        )


def prove_generation(backend: Backend, prompts: Sequence[Prompt], settings: GenerateConfig) -> None:
    """Compare the states that come with a generated text with those of the text when it is given.

    They differ where an architecture does not bear what generation does to it: prompts of several
    lengths in one batch, a cache. Raises ValidationError there.
    """
    short = [
        replace(prompt, max_new_tokens=min(prompt.max_new_tokens, _MOST_NEW_TOKENS))
        for prompt in prompts
    ]
    turns = list(backend.generate(short, settings))
    texts = [
        _Whole(np.concatenate([prompt.input_ids, turn.new_ids]))
        for prompt, turn in zip(short, turns, strict=True)
    ]
    for turn, given in zip(turns, backend.capture(texts), strict=True):
        num_tokens = len(turn.states.aux_TLH)
        for ours, own in (
            (turn.states.aux_TLH, given.aux_TLH),
            (turn.states.final_TH, given.final_TH),
        ):
            difference = _relative(ours, own[:num_tokens])
            if bool(own.isfinite().all()) and not difference <= AUX_TOLERANCE:
                raise ValidationError(
                    "the states that the target has when it generates a text differ by "
                    f"{difference:.3g} of their norm (at most {AUX_TOLERANCE}) from those of the "
                    "same text when it is given: this backend cannot generate with this target. "
                    "Nothing of this run was committed"
                )


@dataclass(frozen=True, slots=True)
class _Whole:
    input_ids: Ids


def _relative(ours: torch.Tensor, own: torch.Tensor) -> float:
    ours, own = ours.float(), own.to(ours.device).float()
    return float((ours - own).norm() / own.norm().clamp_min(1e-30))


def _check_aux(
    sample: ProofSample, layer: int, ours_TH: torch.Tensor, own_TH: torch.Tensor
) -> None:
    difference = _relative(ours_TH, own_TH)
    if not difference <= AUX_TOLERANCE:
        raise ValidationError(
            f"sample {sample.sample_id}: the states captured at layer id {layer} differ from the "
            f"target's own hidden_states[{layer}] by {difference:.3g} of their norm (at most "
            f"{AUX_TOLERANCE}): the hook may be on another layer. Nothing of this run was committed"
        )
