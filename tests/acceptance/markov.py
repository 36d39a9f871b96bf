"""A toy target and drafter that are Markov chains, and real speculative decoding with them.

The target is P[x, y]; draft step k is Q[k, x, y]. Easy and hard states are sticky, so that rounds
do not start uniformly over the text.

Legend: V states, K draft steps, B texts, n tokens of a text.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Markov:
    target_VV: Array
    draft_KVV: Array

    @property
    def stationary_V(self) -> Array:
        values, vectors = np.linalg.eig(self.target_VV.T)
        vector: Array = np.real(vectors[:, np.argmax(np.real(values))])
        vector /= vector.sum()
        return vector

    def accept(self, texts_Bn: Tokens) -> Array:
        """w of draft step k at start r, for token r + k: [B, n-1, K]; ones beyond the text."""
        num_texts, num_tokens = texts_Bn.shape
        out = np.ones((num_texts, num_tokens - 1, len(self.draft_KVV)))
        for k, draft_VV in enumerate(self.draft_KVV, start=1):
            before, token = texts_Bn[:, k - 1 : -1], texts_Bn[:, k:]
            ratio = draft_VV[before, token] / self.target_VV[before, token]
            out[:, : num_tokens - k, k - 1] = np.minimum(1.0, ratio)
        return out


def sticky_toy() -> Markov:
    """Five states: 0 and 1 are easy and lead to each other, 2, 3 and 4 are hard."""
    target = np.array(
        [
            [0.45, 0.45, 0.04, 0.03, 0.03],
            [0.50, 0.40, 0.02, 0.03, 0.05],
            [0.03, 0.03, 0.24, 0.40, 0.30],
            [0.05, 0.02, 0.43, 0.20, 0.30],
            [0.02, 0.06, 0.32, 0.30, 0.30],
        ]
    )
    wrong = np.array([0.05, 0.05, 0.05, 0.05, 0.80])
    error_KV = np.array(
        [
            [0.02, 0.05, 0.60, 0.70, 0.50],
            [0.05, 0.08, 0.65, 0.75, 0.60],
            [0.10, 0.10, 0.80, 0.80, 0.70],
            [0.15, 0.20, 0.80, 0.90, 0.80],
        ]
    )
    draft = (1 - error_KV)[:, :, None] * target + error_KV[:, :, None] * wrong
    return Markov(target, draft)


def _draw(rng: np.random.Generator, probabilities_BV: Array) -> Tokens:
    cumulative = np.cumsum(probabilities_BV, axis=1)
    cumulative /= cumulative[:, -1:]
    drawn: Tokens = (rng.random((len(cumulative), 1)) > cumulative).sum(axis=1)
    return drawn


def write_texts(toy: Markov, rng: np.random.Generator, num_texts: int, num_tokens: int) -> Tokens:
    """Texts by the target alone."""
    tokens = [_draw(rng, np.tile(toy.stationary_V, (num_texts, 1)))]
    for _ in range(num_tokens - 1):
        tokens.append(_draw(rng, toy.target_VV[tokens[-1]]))
    return np.stack(tokens, axis=1)


@dataclass(frozen=True)
class Decoded:
    rounds_B: Array
    accepted_BK: Array
    """Rounds whose first k drafts were accepted."""
    texts_Bn: Tokens


def decode(
    toy: Markov, rng: np.random.Generator, num_texts: int, num_tokens: int, num_drafts: int
) -> Decoded:
    """Rejection-sampling decoding; rounds count whose drafts all lie inside the text."""
    texts = np.zeros((num_texts, num_tokens + num_drafts + 1), dtype=np.int64)
    texts[:, 0] = write_texts(toy, rng, num_texts, 1)[:, 0]
    at = np.zeros(num_texts, dtype=np.int64)
    rounds, accepted = np.zeros(num_texts), np.zeros((num_texts, num_drafts))
    while (active := np.flatnonzero(at < num_tokens - 1)).size:
        whole = at[active] + num_drafts <= num_tokens - 1
        rounds[active] += whole
        alive, counted = active, whole
        for k in range(num_drafts):
            last = texts[alive, at[alive]]
            p, q = toy.target_VV[last], toy.draft_KVV[k][last]
            drafted = _draw(rng, q)
            picked = np.arange(len(alive))
            keep = rng.random(len(alive)) < p[picked, drafted] / q[picked, drafted]
            residual = np.maximum(p - q, 0.0) + 1e-300
            at[alive] += 1
            texts[alive, at[alive]] = np.where(keep, drafted, _draw(rng, residual))
            alive, counted = alive[keep], counted[keep]
            accepted[alive, k] += counted
        texts[alive, at[alive] + 1] = _draw(rng, toy.target_VV[texts[alive, at[alive]]])
        at[alive] += 1
    return Decoded(rounds, accepted, texts[:, :num_tokens])
