"""DFlash and DSpark beside the forward of speculators' own trainer, in float32.

    python -m scripts.proofs.blocks --peer /path/to/python

`--peer` is the Python of an environment with speculators 0.9.0 (scripts/proofs/peer_blocks.py runs
in it). Random drafters, two packed samples, one block at every tenth position; what is compared are
logits, and DSpark's confidence.

Legend: T tokens, L aux layers, H hidden size, N anchors, K draft tokens, D draft vocabulary.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from specpipe.schemas.drafters.block import BlockShape
from specpipe.schemas.drafters.registry import kind_of
from specpipe.stages.acceptance.loss.heads import logits_of
from specpipe.stages.drafters.artifact_format import Drafter
from specpipe.stages.drafters.contract import Runtime
from specpipe.stages.drafters.registry import architecture
from specpipe.stages.samples.batch import Batch, DrafterSample, make_batch
from specpipe.stages.storage.shard.states import SampleStates

H, V, K, LAYERS = 64, 160, 7, (1, 9, 17, 25, 33)
LENGTHS = (61, 90)
BEGIN, EVERY = 11, 10
PEER = Path(__file__).with_name("peer_blocks.py")
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("dflash", {}),
    ("dflash", {"draft_vocab_size": 96}),
    ("dspark", {"markov_rank": 16, "confidence": True}),
    ("dspark", {"markov_rank": 16, "confidence": True, "draft_vocab_size": 96}),
    ("dspark", {"markov_rank": 16, "confidence": False}),
)


class _Target:
    """Random tensors of a target."""

    def __init__(self, generator: torch.Generator) -> None:
        self.embedding_VH, self.lm_head_VH = (
            torch.randn(V, H, generator=generator).bfloat16() for _ in range(2)
        )
        self.final_norm_H = torch.ones(H)
        self.final_norm = torch.nn.Identity()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True, help="Python with speculators 0.9.0.")
    peer = parser.parse_args().peer
    print(
        "| drafter | variant | largest difference of logits | of the largest logit | confidence |"
    )
    print("|---|---|---|---|---|")
    for name, changes in VARIANTS:
        with tempfile.TemporaryDirectory(prefix="specpipe-peer-") as folder:
            ours = _ours(name, changes, Path(folder))
            # There is no such target: nothing is asked of a hub.
            offline = os.environ | {"HF_HUB_OFFLINE": "1"}
            subprocess.run(
                [peer, str(PEER), folder], check=True, stdout=subprocess.DEVNULL, env=offline
            )
            theirs = load_file(Path(folder) / "theirs.safetensors")
        apart = (ours["logits"] - theirs["logits"]).abs().max()
        relative = float(apart / ours["logits"].abs().max())
        confidence = "-"
        if "confidence" in ours:
            apart_of = (ours["confidence"] - theirs["confidence"]).abs().max()
            confidence = f"{float(apart_of):.1e}"
        what = ", ".join(f"{key} {value}" for key, value in changes.items()) or "-"
        print(
            f"| {name} | {what} | {float(apart):.1e} | {relative:.1e} | {confidence} |", flush=True
        )
        if relative > 1e-5:
            raise SystemExit(f"{name} {what}: the two are not one drafter")


def _shape(name: str, changes: dict[str, Any]) -> BlockShape:
    values = {
        "num_layers": 3,
        "hidden_size": H,
        "target_hidden_size": H,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        "max_position_embeddings": 512,
        "vocab_size": V,
        "draft_vocab_size": V,
        "aux_layers": LAYERS,
        "causal": False,
        "block_size": K + (name == "dflash"),
        "mask_token": 5,
        "own_lm_head": False,
    }
    shape = kind_of(name).shape.model_validate(values | changes)
    assert isinstance(shape, BlockShape)
    return shape


def _ours(name: str, changes: dict[str, Any], folder: Path) -> dict[str, torch.Tensor]:
    """Write a random drafter and samples, and compute ours: logits [K, N, D]."""
    generator = torch.Generator().manual_seed(0)
    kind, shape, target = architecture(name), _shape(name, changes), _Target(generator)
    size = shape.draft_vocab_size
    ids_D = torch.randperm(V, generator=generator)[:size].sort().values
    model = kind.build(shape, target, ids_D, Runtime())
    weights = {
        key: (1 + torch.randn(w.shape, generator=generator) * 0.2).bfloat16().float()
        if "norm" in key
        else (torch.randn(w.shape, generator=generator) / max(w.shape[-1], 2) ** 0.5)
        .bfloat16()
        .float()
        for key, w in model.state_dict().items()
    }
    model.load_state_dict(weights)
    vocab = {"d2t": ids_D - torch.arange(size), "t2d": torch.isin(torch.arange(V), ids_D)}
    format = kind.formats["speculators"]
    tensors = kind.artifact_tensors(shape, weights, vocab, target)
    format.write(folder, format.config(Drafter(shape, "target", "Qwen3ForCausalLM", K)), tensors)
    batch = make_batch([_sample(length, generator) for length in LENGTHS], K)
    chosen = _chosen(batch)
    given = {
        "ids": batch.input_ids_T,
        "aux": batch.aux_TLH.float().flatten(1),
        "positions": batch.positions_T,
        "documents": torch.repeat_interleave(torch.arange(2), torch.tensor(LENGTHS)),
        "anchors": batch.starts_N[chosen] + 1,
        "embedding": target.embedding_VH.float(),
        "head": target.lm_head_VH[ids_D].float(),
    }
    save_file(
        {key: value.contiguous() for key, value in given.items()}, folder / "given.safetensors"
    )
    (folder / "kind.json").write_text(json.dumps({"kind": name, "num_drafts": K}))
    with torch.no_grad():
        outputs_KNX = model(batch)[:, chosen]
        heads = model.heads().ready_for(outputs_KNX)
        logits = [logits_of(outputs_NX, heads.of(k)) for k, outputs_NX in enumerate(outputs_KNX)]
        found = {"logits": torch.stack(logits)}
        if getattr(shape, "confidence", False):
            found["confidence"] = model.confidence_head(outputs_KNX)  # type: ignore[operator]
    return found


def _chosen(batch: Batch) -> torch.Tensor:
    """Starts whose blocks lie inside their sample."""
    ends_N = torch.tensor([0, *np.cumsum(LENGTHS).tolist()])
    after_N = ends_N[torch.searchsorted(ends_N, batch.starts_N, right=True)]
    fits_N = batch.starts_N + K + 2 < after_N
    return torch.nonzero(fits_N & (batch.positions_T[batch.starts_N] % EVERY == 0)).flatten()


def _sample(length: int, generator: torch.Generator) -> DrafterSample:
    rows = length - BEGIN
    zeros_S = np.zeros(rows, dtype=np.float32)
    aux_TLH = torch.randn(length, len(LAYERS), H, generator=generator).bfloat16()
    states = SampleStates(
        aux_TLH=aux_TLH.view(torch.uint16).numpy(),
        final_SH=np.zeros((rows, H), dtype=np.uint16),
        logz_S=zeros_S,
        token_logprob_S=zeros_S,
        argmax_S=zeros_S.astype(np.int32),
    )
    ids_T = torch.randint(0, V, (length,), generator=generator).int().numpy()
    return DrafterSample(ids_T, (np.arange(length) >= BEGIN).astype(np.uint8), states)


if __name__ == "__main__":
    main()
