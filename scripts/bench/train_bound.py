"""The most memory that our training takes on a CPU in float32, by arithmetic.

Legend: P trained parameters, T tokens of a pack, N starts, K heads, L auxiliary layers, H hidden
size, Q width of all query heads, G width of all key heads, I intermediate size, V vocabulary,
D draft vocabulary.
"""

from dataclasses import dataclass

import torch

from scripts.bench.train_material import TargetShape
from scripts.bench.train_sides import Setup, config_of
from specpipe.stages.acceptance.loss.row_block import block_rows
from specpipe.stages.storage.dump import Dump

MIB = 2**20
FLOAT, HALF = 4, 2
FIXED = 128 * MIB
"""Code that is loaded once the run has begun (transformers, zarr), threads, and what the allocator
keeps."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Bytes, by what they are for."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def bound_of(setup: Setup) -> Bound:
    """For one pack a step, half of its tokens supervised."""
    shape, config = setup.shape, config_of(setup, "kl")
    H, D, K, T = shape.hidden, setup.draft_vocab, setup.num_heads, setup.pack_tokens
    dump = Dump.open(config.dump)
    # A span has a start before its first token and none at its last two; half of T is in spans.
    N = T // 2
    of_tokens = HALF * len(shape.aux) * H + 3 * 8
    of_rows = HALF * H + 4 * 8
    batch = T * of_tokens + T // 2 * of_rows
    return Bound(
        {
            # Weights, gradients, and AdamW's two moments.
            "weights and optimiser": 4 * FLOAT * num_parameters(shape, D),
            # The embedding as it is stored, and the verifier's rows of the draft vocabulary.
            "target": HALF * shape.vocab * H + FLOAT * D * H,
            # Two [rows, D], three blocks as they are walked, and the lm_head's gradient before
            # it is scaled.
            "loss": 2 * config.loss_chunk_mib * MIB
            + 3 * FLOAT * D * block_rows(D, torch.device("cpu"))
            + FLOAT * D * H,
            "activations": FLOAT * (T * of_position(shape) + K * N * of_start(shape)),
            # Shards in memory, and three batches: in use, ready, being made.
            "data": min(config.prefetch_mib * MIB, dump.num_bytes) + 3 * batch,
            "rest": FIXED,
        }
    )


def num_parameters(shape: TargetShape, draft_vocab: int) -> int:
    """P of a drafter of one layer: fc, attention over 2H, MLP, four norms and the lm_head."""
    H, (Q, G) = shape.hidden, _widths(shape)
    attention = 2 * H * (Q + 2 * G) + Q * H
    return len(shape.aux) * H * H + attention + 3 * H * shape.intermediate + 4 * H + draft_vocab * H


def of_position(shape: TargetShape) -> int:
    """Numbers that the first draft step keeps of each position: features, h0, embedding, their
    norms, [embedding; hidden] and keys and values, before and after rope."""
    H, (_, G) = shape.hidden, _widths(shape)
    return (len(shape.aux) + 8) * H + 4 * G


def of_start(shape: TargetShape) -> int:
    """Numbers that a draft step keeps of each start, and that its backward pass holds at once."""
    H, (Q, G) = shape.hidden, _widths(shape)
    return 14 * H + 3 * Q + 4 * G + 4 * shape.intermediate


def _widths(shape: TargetShape) -> tuple[int, int]:
    head = shape.hidden // shape.heads
    return shape.heads * head, shape.kv_heads * head
