"""Honest and faulty texts, simulated: how often is an engine said not to be lossless?

Legend: S tokens, V vocabulary.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from scripts.proofs.table import share
from specpipe.stages.validate.drafted_text import TargetText
from specpipe.stages.validate.serve.capture import CapturedText, excess_chance
from specpipe.stages.validate.serve.lossless import check_sampled
from specpipe.stages.validate.serve.near_ties import LEAST_STEPS, near_tie_steps

HEADER = ("temperature 1", "set", "V", "simple limit", "ours")
TIE_HEADER = ("greedy, error of a logit's difference", "set", "simple limit", "ours")
SETS = ((2, 8), (8, 32), (48, 64))
SIMPLE_Z = 3.5
ROWS = 64
ERRORS = (0.45, 1.0, 2.0)
MEAN_LEAD = 20.0
"""Of the first choice over the second, in steps of bfloat16; of a real target it is more."""


def rows(runs: int, temperature: float = 1.0) -> Iterator[tuple[str, ...]]:
    """A row for each kind of set and vocabulary."""
    for prompts, tokens in SETS:
        for size in (200, 262_144):
            if size > 200 and prompts > 2:
                continue
            num = max(20, runs // max(1, prompts * tokens // 256) // (1 if size == 200 else 20))
            # Of few rows, so that a large vocabulary costs no more than it must.
            logits_RV = 2.5 * torch.randn(ROWS, size)
            found = [_failed(logits_RV, prompts, tokens, temperature) for _ in range(num)]
            simple, ours = (sum(column) for column in zip(*found, strict=True))
            yield (
                f"T = {temperature:g}", f"{prompts} x {tokens}", f"{size:,}",
                share(simple, num), share(ours, num),
            )  # fmt: skip


def _failed(logits_RV: Tensor, prompts: int, tokens: int, temperature: float) -> tuple[bool, bool]:
    """Of one pair of runs, with and without a drafter."""
    plain = [_text(logits_RV, tokens, 1.0) for _ in range(prompts)]
    drafted = [_text(logits_RV, tokens, temperature) for _ in range(prompts)]
    check = check_sampled(
        np.array([text.mean_logprob for text in plain]),
        np.array([text.mean_logprob for text in drafted]),
        np.array([text.excess for text in drafted]),
        excess_chance(drafted),
    )
    simple = max(abs(check.z or 0.0), abs(check.excess_z)) > SIMPLE_Z
    return simple, not check.passed


def _text(logits_RV: Tensor, tokens: int, temperature: float) -> CapturedText:
    logits_SV = logits_RV[torch.randint(len(logits_RV), (tokens,))]
    # torch.multinomial takes no more than 2^24 columns, and is exact.
    ids_S = torch.multinomial((logits_SV / temperature).softmax(-1), 1)[:, 0]
    logp_S = logits_SV.log_softmax(-1).gather(1, ids_S[:, None])[:, 0]
    text = TargetText(ids_S, [(0, tokens)], torch.zeros(tokens, 1, 1), logp_S)
    return CapturedText(text, logits_SV)


def tie_rows(runs: int, rng: np.random.Generator) -> Iterator[tuple[str, ...]]:
    """Two engines whose differences of logits have a normal error, against a third's logits."""
    for error in ERRORS:
        for prompts, tokens in SETS:
            simple = ours = 0
            for _ in range(runs):
                lead_S = rng.exponential(MEAN_LEAD, prompts * tokens)
                one_S, other_S = (lead_S + error * rng.normal(size=lead_S.shape) < 0 for _ in "ab")
                differ_S = one_S != other_S
                worst = float(lead_S[differ_S].max(initial=0.0))
                limit = near_tie_steps(lead_S[~differ_S], int(one_S[~differ_S].sum()))
                simple += worst > LEAST_STEPS
                ours += worst > limit
            yield (
                f"{error:g} steps", f"{prompts} x {tokens}", share(simple, runs), share(ours, runs)
            )  # fmt: skip
