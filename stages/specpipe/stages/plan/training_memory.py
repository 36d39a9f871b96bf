"""Device memory of `specpipe train` with default settings, computed from shapes alone.

Legend: T tokens of a batch, N starts, K heads, L aux layers, H hidden size, I width of the MLP,
q and g widths of queries and of keys, D draft vocabulary, V vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from specpipe.schemas.records.dump import DumpIdentity
from specpipe.schemas.settings.train import ResolvedTrainConfig
from specpipe.stages.acceptance.draft_vocab import default_size
from specpipe.stages.drafters.contract import Runtime
from specpipe.stages.drafters.registry import architecture
from specpipe.stages.target.files.identity import load_config
from specpipe.stages.target.head.target_tensors import NoTensors

_FLOAT = 4
_CHUNK_COPIES = 3
"""Of [rows, D] at a time: p, and a head's logits, which become its gradient; and blocks of both."""


@dataclass(frozen=True, slots=True)
class TrainerMemory:
    """Bytes on the trainer's device, for one process with float32 weights.

    P numbers are trained: `fc`, the layer, the norms and the lm_head of D rows.
    """

    num_heads: int
    batch_tokens: int
    """T: of one forward and backward pass."""
    draft_vocab_size: int
    num_trained: int
    """P."""
    weights: int
    """4 P."""
    gradients: int
    """4 P."""
    optimizer: int
    """8 P: AdamW's two moments."""
    frozen: int
    """The embedding V H and the verifier's rows of the lm_head D H, in the target's dtype; on a CPU
    those rows are float32."""
    batch: int
    """2 T H (L + 1): auxiliary and final states of a batch, bfloat16."""
    activations: int
    """Kept for the backward pass."""
    loss: int
    """3 chunks of `loss_chunk_mib`, or of all T rows where that is less, and gradients of the
    heads' outputs and of the lm_head: 4 (K T H + D H)."""

    @property
    def total(self) -> int:
        return (
            self.weights
            + self.gradients
            + self.optimizer
            + self.frozen
            + self.batch
            + self.activations
            + self.loss
        )


def trainer_memory(
    target_folder: Path,
    identity: DumpIdentity,
    settings: ResolvedTrainConfig,
    *,
    trust_remote_code: bool,
) -> TrainerMemory:
    """By the target's config; raises ConfigError where it cannot be read."""
    config = load_config(target_folder, trust_remote_code=trust_remote_code)
    vocab_size = identity.target.vocab_size
    draft_vocab_size = default_size(settings.draft_vocab_size, vocab_size)
    kind = architecture(settings.drafter.kind)
    if not settings.drafter.has_draft_vocab:
        draft_vocab_size = vocab_size
    shape = kind.make_shape(settings, config, identity.layers, vocab_size, draft_vocab_size)
    target = NoTensors(vocab_size, shape.target_hidden_size)
    L, K = shape.num_aux, settings.num_heads
    H = settings.drafter.hidden_size_or(shape.target_hidden_size)
    T = settings.pack_tokens or settings.batch_tokens
    with torch.device("meta"):
        ids_D = torch.arange(draft_vocab_size)
        model = kind.build(shape, target, ids_D, Runtime())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    chunk = min(settings.loss_chunk_mib * 2**20, _FLOAT * T * draft_vocab_size)
    itemsize = getattr(torch, identity.compute_dtype).itemsize
    return TrainerMemory(
        num_heads=K,
        batch_tokens=T,
        draft_vocab_size=draft_vocab_size,
        num_trained=trained,
        weights=_FLOAT * trained,
        gradients=_FLOAT * trained,
        optimizer=2 * _FLOAT * trained,
        frozen=itemsize * (vocab_size + draft_vocab_size) * H,
        batch=2 * T * H * (L + 1),
        activations=_FLOAT * kind.activation_numbers(shape, T, K),
        loss=_CHUNK_COPIES * chunk + _FLOAT * (K * T * H + draft_vocab_size * H),
    )
