"""Speculative sampling with a DSpark drafter, token by token, against the replay of its texts.

The target is a table over the last two tokens; its auxiliary states are random vectors of these.

Legend: V vocabulary, H hidden size, L aux layers, T tokens, K draft tokens.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from specpipe.stages.acceptance.replay import expected_rounds
from specpipe.stages.drafters.artifact_format import Drafter
from specpipe.stages.drafters.dspark.architecture import ARCHITECTURE
from specpipe.stages.drafters.dspark.proposal import PlainDSpark
from specpipe.stages.validate.drafted_text import TargetText, text_spans
from tests.drafters.blocks import H, weights_of
from tests.drafters.dspark.test_forward import make_shape
from tests.drafters.toys import Given

V, K, PROMPT, LENGTH, TEXTS = 7, 3, 2, 30, 45


class World:
    """A target and a drafter that has something of its logits."""

    def __init__(self, folder: Path) -> None:
        shape = make_shape(vocab_size=V, draft_vocab_size=V, mask_token=0, num_layers=1)
        generator = torch.Generator().manual_seed(0)
        head_VH = torch.randn(V, H, generator=generator).bfloat16().float()
        target = Given(torch.randn(V, H, generator=generator).bfloat16().float(), head_VH)
        weights = weights_of(ARCHITECTURE, shape, generator)
        weights["markov_head.markov_w2.weight"] *= 3  # a bias that counts
        tensors = ARCHITECTURE.artifact_tensors(shape, weights, {}, target)
        format = ARCHITECTURE.formats["speculators"]
        format.write(folder, format.config(Drafter(shape, "target", "X", K)), tensors)
        self.drafter: PlainDSpark = ARCHITECTURE.proposal(folder, target)
        # Next to a plain table, some of the drafter's own bias: drafts are then accepted.
        bias_VV = (
            weights["markov_head.markov_w1.weight"] @ weights["markov_head.markov_w2.weight"].T
        )
        self.logp_VVV = (torch.randn(V, V, V, generator=generator) + bias_VV).log_softmax(-1)
        self.states_VVLH = torch.randn(V, V, 3, H, generator=generator).bfloat16()

    def aux(self, ids_T: Tensor) -> Tensor:
        before_T = torch.cat([ids_T[:1], ids_T[:-1]])
        return self.states_VVLH[before_T, ids_T]

    def p(self, ids: list[int]) -> npt.NDArray[np.float64]:
        """The target's next token."""
        p_V: npt.NDArray[np.float64] = self.logp_VVV[ids[-2], ids[-1]].double().exp().numpy()
        out: npt.NDArray[np.float64] = p_V / p_V.sum()
        return out

    def drafts(self, ids: list[int], rng: np.random.Generator, *, greedy: bool) -> "_Drafts":
        """K tokens after a text whose last token the target has just emitted, each by the one that
        was drafted before."""
        ids_T = torch.tensor([*ids, 0])
        start = len(ids) - 2
        slots_1KH = self.drafter.slots(ids_T, self.aux(ids_T), start, start + 1, K)
        hidden_KH = self.drafter._norm("norm", slots_1KH)[0]
        found: _Drafts = []
        before = ids[-1]
        for hidden_H in hidden_KH:
            output_1X = torch.cat([hidden_H, self.drafter.table(torch.tensor(before))])[None]
            q_V = self.drafter.logits(output_1X, 1)[0].double().softmax(-1).numpy()
            before = int(q_V.argmax()) if greedy else int(rng.choice(V, p=q_V / q_V.sum()))
            found.append((before, np.eye(V)[before] if greedy else q_V))
        return found


_Drafts = list[tuple[int, npt.NDArray[np.float64]]]


def simulate(
    world: World, rng: np.random.Generator, *, greedy: bool
) -> tuple[list[int], list[int]]:
    """A text of LENGTH tokens, and how many drafts each whole round of it had accepted."""
    ids = rng.integers(0, V, PROMPT).tolist()
    ids.append(int(rng.choice(V, p=world.p(ids))))
    accepted = []
    while len(ids) < LENGTH:
        begin = len(ids)
        for token, q_V in world.drafts(ids, rng, greedy=greedy):
            p_V = world.p(ids)
            if rng.random() < min(1.0, p_V[token] / q_V[token]):
                ids.append(token)
                continue
            rest_V = np.maximum(p_V - q_V, 0)
            ids.append(int(rng.choice(V, p=rest_V / rest_V.sum())))
            break
        else:
            ids.append(int(rng.choice(V, p=world.p(ids))))
        # Those that a text of this length has room for whatever is accepted, as in the replay.
        if begin + K + 1 <= LENGTH:
            accepted.append(len(ids) - begin - 1)
    return ids[:LENGTH], accepted


def text_of(world: World, ids: list[int]) -> TargetText:
    ids_T = torch.tensor(ids)
    logprob_T = torch.zeros(len(ids))
    logprob_T[2:] = world.logp_VVV[ids_T[:-2], ids_T[1:-1], ids_T[2:]]
    return TargetText(ids_T, [(PROMPT, len(ids))], world.aux(ids_T), logprob_T)


@pytest.mark.slow
@pytest.mark.parametrize("greedy", [False, True])
def test_the_replayed_tau_is_the_simulated_one(greedy: bool, tmp_path: Path) -> None:
    world, rng = World(tmp_path), np.random.default_rng(0)
    runs = [simulate(world, rng, greedy=greedy) for _ in range(TEXTS)]
    spans = text_spans(world.drafter, [text_of(world, ids) for ids, _ in runs], K)
    found = expected_rounds(spans.greedy if greedy else spans.sampled, K)
    tau = found.tokens_B.sum() / found.rounds_B.sum()
    rounds = np.array([len(accepted) for _, accepted in runs])
    tokens = np.array([sum(accepted) + len(accepted) for _, accepted in runs])
    simulated = tokens.sum() / rounds.sum()
    # What both have in common, the text, is no part of the error.
    residuals = (tokens - found.tokens_B) - simulated * (rounds - found.rounds_B)
    error = float(np.sqrt((residuals**2).sum())) / rounds.sum()
    assert simulated > 1.15
    assert error < 0.06
    assert tau == pytest.approx(simulated, abs=3.5 * error)
