"""A Qwen3.5 for text, drafted for by its MTP layer: it needs two repairs and the stand-in."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Qwen3_5TextConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from specpipe.stages.target.vllm.repairs.register import ENVIRONMENT
from specpipe.stages.target.vllm.repairs.torchvision import with_stand_in

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = [pytest.mark.vllm, pytest.mark.slow]

HIDDEN, VOCAB, DRAFTS, WRITTEN = 64, 96, 3, 24

ENGINE = """
import json, sys, vllm
from vllm.v1.spec_decode.llm_base_proposer import SpecDecodeBaseProposer
target, prompts, num_drafts, written = sys.argv[1], *map(json.loads, sys.argv[2:])
drafts, propose = [], SpecDecodeBaseProposer.propose

def recorded(*arguments, **named):
    found = propose(*arguments, **named)
    drafts.append(found.tolist())
    return found

SpecDecodeBaseProposer.propose = recorded
llm = vllm.LLM(
    model=target, dtype="float32", skip_tokenizer_init=True, enforce_eager=True, max_model_len=96,
    kv_cache_memory_bytes=2**26, enable_prefix_caching=False,
    speculative_config={"method": "mtp", "model": target, "num_speculative_tokens": num_drafts},
)
sampling = vllm.SamplingParams(
    temperature=0.0, max_tokens=written, ignore_eos=True, detokenize=False
)
found = []
for prompt in prompts:
    drafts.clear()
    (output,) = llm.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
    found.append([list(output.outputs[0].token_ids), [row for (row,) in drafts]])
print(json.dumps(found))
"""


def save_target(folder: Path) -> tuple[Any, dict[str, Tensor]]:
    """A random Qwen3.5, and its MTP layer in the same file; the model, for the reference."""
    torch.manual_seed(7)
    layers: dict[str, Any] = {"num_hidden_layers": 4, "mtp_num_hidden_layers": 1}
    config = Qwen3_5TextConfig(
        **layers,
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        layer_types=["full_attention"] * 4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        intermediate_size=128,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.5,
            "mrope_section": [3, 3, 2],
            "mrope_interleaved": True,
        },
    )
    model = AutoModelForCausalLM.from_config(config).float().eval()
    model.save_pretrained(folder)
    layer = {
        name.removeprefix("model.layers.3."): value
        for name, value in model.state_dict().items()
        if name.startswith("model.layers.3.")
    }
    mtp = {f"mtp.layers.0.{name}": 0.1 * torch.randn_like(value) for name, value in layer.items()}
    mtp["mtp.fc.weight"] = torch.randn(HIDDEN, 2 * HIDDEN) / HIDDEN**0.5
    for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"):
        mtp[f"mtp.{name}.weight"] = 0.3 * torch.randn(HIDDEN)
    file = folder / "model.safetensors"
    save_file(load_file(file) | mtp, file, metadata={"format": "pt"})
    return model, mtp


class Reference(nn.Module):
    """What the MTP layer drafts, row by row: [embedding of the next token ; the target's state]."""

    def __init__(self, model: Any, mtp: dict[str, Tensor]) -> None:
        super().__init__()
        self.model = model
        self.layer = copy.deepcopy(model.model.layers[3])
        own = "mtp.layers.0."
        self.layer.load_state_dict(
            {k.removeprefix(own): v for k, v in mtp.items() if k.startswith(own)}
        )
        self.fc_H2H = mtp["mtp.fc.weight"]
        self.norms = {}
        for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"):
            self.norms[name] = copy.deepcopy(model.model.norm)
            self.norms[name].load_state_dict({"weight": mtp[f"mtp.{name}.weight"]})

    def drafts(self, ids: list[int]) -> list[int]:
        """After the target has written the last of `ids`, which it has not yet read."""
        state_1TH = self.model.model(torch.tensor([ids[:-1]])).last_hidden_state
        found: list[int] = []
        for _ in range(DRAFTS):
            tokens_1T = torch.tensor([[*ids[1:], *found]])
            embedded_1TH = self.norms["pre_fc_norm_embedding"](
                self.model.model.embed_tokens(tokens_1T)
            )
            hidden_1TH = self.norms["pre_fc_norm_hidden"](state_1TH)
            out_1TH = self.norms["norm"](self._layer(torch.cat([embedded_1TH, hidden_1TH], -1)))
            found.append(int(self.model.lm_head(out_1TH[0, -1]).argmax()))
            state_1TH = torch.cat([state_1TH, out_1TH[:, -1:]], 1)
        return found

    def _layer(self, rows_1TX: Tensor) -> Tensor:
        hidden_1TH = rows_1TX @ self.fc_H2H.T
        length = hidden_1TH.shape[1]
        positions = torch.arange(length)[None]
        mask = torch.full((length, length), -torch.inf).triu(1)[None, None]
        rope = self.model.model.rotary_emb(hidden_1TH, positions[None].expand(3, 1, -1))
        found = self.layer(hidden_1TH, position_embeddings=rope, attention_mask=mask)
        return found if isinstance(found, Tensor) else found[0]


@torch.no_grad()
def test_qwen35_is_loaded_and_drafted_for_by_its_mtp_layer(tmp_path: Path) -> None:
    model, mtp = save_target(tmp_path)
    rng = np.random.default_rng(2)
    prompts = [rng.integers(3, VOCAB, length).tolist() for length in (5, 17, 40)]
    environment = {
        **{"OMP_WAIT_POLICY": "PASSIVE", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        **{"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"},
    }
    numbers = map(json.dumps, (prompts, DRAFTS, WRITTEN))
    done = subprocess.run(
        [sys.executable, "-c", ENGINE, str(tmp_path), *numbers],
        env=with_stand_in(os.environ | environment | {ENVIRONMENT: "1"}),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reference = Reference(model, mtp)
    compared = 0
    for prompt, (text, rounds) in zip(
        prompts, json.loads(done.stdout.splitlines()[-1]), strict=True
    ):
        assert len(text) == WRITTEN
        logits = model(torch.tensor([prompt + text])).logits[0]
        assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == text
        known = 1
        for drafts in rounds:
            # Near the end of the text vLLM drafts for what is no longer written.
            if known + DRAFTS >= WRITTEN:
                break
            assert drafts == reference.drafts(prompt + text[:known])
            compared += 1
            pairs = zip(drafts, text[known:], strict=False)
            known += 1 + next((i for i, (a, b) in enumerate(pairs) if a != b), DRAFTS)
    assert compared > 2 * len(prompts)
