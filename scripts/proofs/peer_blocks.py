"""speculators' forward of a DFlash or DSpark drafter, in an environment of speculators' own.

    python peer_blocks.py FOLDER

FOLDER holds an artifact in its format, and what scripts/proofs/blocks.py gives.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from speculators.models.dflash import core  # type: ignore[import-not-found]
from speculators.models.dflash.config import DFlashSpeculatorConfig  # type: ignore[import-not-found]
from speculators.models.dspark.config import DSparkSpeculatorConfig  # type: ignore[import-not-found]
from speculators.models.dspark.core import DSparkDraftModel  # type: ignore[import-not-found]


def main(folder: Path) -> None:
    told = json.loads((folder / "kind.json").read_text())
    given = load_file(folder / "given.safetensors")
    values = json.loads((folder / "config.json").read_text())
    is_dspark = told["kind"] == "dspark"
    config_class: Any = DSparkSpeculatorConfig if is_dspark else DFlashSpeculatorConfig
    config = config_class(**values)
    config.transformer_layer_config._attn_implementation = "eager"
    model: Any = (DSparkDraftModel if is_dspark else core.DFlashDraftModel)(config).float()
    weights = load_file(folder / "model.safetensors")
    weights = {name: w.float() if w.is_floating_point() else w for name, w in weights.items()}
    weights |= {"embed_tokens.weight": given["embedding"], "lm_head.weight": given["head"]}
    left = model.load_state_dict(weights, strict=False)
    assert not left.unexpected_keys, left
    assert all("verifier" in name or "2" in name for name in left.missing_keys), left

    anchors = given["anchors"]
    core.select_anchors = lambda *_: (anchors, torch.ones_like(anchors, dtype=torch.bool))
    length = len(given["ids"])
    states = torch.zeros(1, length, model.embed_tokens.weight.shape[1])
    with torch.no_grad():
        hidden, logits, *_, blocks = model._backbone_forward(
            given["aux"][None],
            given["ids"][None],
            torch.ones(1, length),
            states,
            given["documents"][None],
            given["positions"][None],
            max_anchors=len(anchors),
        )
        found = {}
        hidden, logits = (x.view(len(anchors), config.block_size, -1) for x in (hidden, logits))
        if is_dspark:
            before = given["ids"][blocks].view(len(anchors), -1)
            rows = model.markov_head.prev_embeddings(before)
            logits = logits + model.markov_head.block_bias(
                prev_token_ids=before, hidden_states=hidden, prev_emb=rows
            )
            if model.confidence_head is not None:
                confidence = model.confidence_head(torch.cat([hidden, rows], dim=-1))
                found["confidence"] = confidence.T.contiguous()
        found["logits"] = logits[:, -told["num_drafts"] :].transpose(0, 1).contiguous()
    save_file(found, folder / "theirs.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
