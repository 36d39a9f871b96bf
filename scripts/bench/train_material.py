"""What both sides of the training benchmark train on: one target, the same texts and states.

The target is a random Llama of the asked shape with peaked logits; for MTP a random Qwen3.5 whose
layers all attend, with an MTP layer. Its states over the texts are
captured once for each layout: by the dump stage as a dump, and as the files that speculators
trains from (layout.py says what those are; its Arrow dataset is written from `rows.jsonl` by its
own `datasets`, in its own environment).

Legend: T tokens of a sample, V vocabulary.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3_5ForCausalLM, Qwen3_5TextConfig

from scripts.bench.layout import Row, write_states
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.dump.run import run as run_dump
from specpipe.stages.target.hf.backend import HfBackend

UNSUPERVISED = -100


@dataclass(frozen=True, slots=True)
class TargetShape:
    """Of a Llama; the drafter is as wide."""

    hidden: int
    vocab: int
    intermediate: int
    heads: int
    kv_heads: int
    layers: int = 4
    aux: tuple[int, ...] = (1, 2, 3)
    has_mtp: bool = False

    def describe(self) -> str:
        of = "Qwen3.5, " if self.has_mtp else ""
        return (
            f"{of}H = {self.hidden:,}, intermediate {self.intermediate:,}, {self.heads} query and"
            f" {self.kv_heads} key heads, V = {self.vocab:,}, auxiliary layers {list(self.aux)}"
        )


@dataclass(frozen=True, slots=True)
class Texts:
    """Samples of one length, so that both sides' packs are full and hold the same."""

    number: int
    tokens: int
    """Of each; the last half is supervised."""


def make(root: Path, shape: TargetShape, texts: Texts, *, theirs: bool) -> None:
    """Write `target/`, `dump/`, `eval/` (a dump of one more text) and, with `theirs`, `theirs/`."""
    root.mkdir(parents=True)
    _save_target(root / "target", shape)
    rows = _rows(shape.vocab, texts)
    dumped, evaluated = rows[:-1], rows[-1:]
    config = _dump(root, "dump", dumped, shape)
    _dump(root, "eval", evaluated, shape)
    if theirs:
        _write_theirs(root / "theirs", config, shape, dumped)


def _save_target(folder: Path, shape: TargetShape) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        # Logits of a spread of 2.4 whatever the width: a random target is flat otherwise.
        "initializer_range": 2.4 * shape.hidden**-0.5,
    }
    model: Any = _qwen35(shape, sizes) if shape.has_mtp else LlamaForCausalLM(LlamaConfig(**sizes))
    model.to(torch.bfloat16).save_pretrained(folder)
    if shape.has_mtp:
        _add_mtp_layer(folder, shape)


def _qwen35(shape: TargetShape, sizes: dict[str, Any]) -> Qwen3_5ForCausalLM:
    config = Qwen3_5TextConfig(
        **sizes,
        head_dim=shape.hidden // shape.heads,
        layer_types=["full_attention"] * shape.layers,
        rope_parameters={
            "rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.25,
        },
    )  # fmt: skip
    config.mtp_num_hidden_layers = 1
    return Qwen3_5ForCausalLM(config)


def _add_mtp_layer(folder: Path, shape: TargetShape) -> None:
    """The target's last layer, and random weights for what an MTP layer has beside it."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    last, width = f"model.layers.{shape.layers - 1}.", shape.hidden
    layer = {
        name.replace(last, "mtp.layers.0."): value.clone()
        for name, value in tensors.items()
        if name.startswith(last)
    }
    norms = ("mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden", "mtp.norm")
    layer |= {f"{name}.weight": torch.zeros(width, dtype=torch.bfloat16) for name in norms}
    layer["mtp.fc.weight"] = (torch.randn(width, 2 * width) * width**-0.5).to(torch.bfloat16)
    save_file({**tensors, **layer}, path, metadata={"format": "pt"})


def _rows(vocab: int, texts: Texts) -> list[Row]:
    """Tokens of uneven frequency, as text has them: half fall into an eighth of the vocabulary."""
    rng = np.random.default_rng(0)
    ids_NT = (vocab * rng.random((texts.number + 1, texts.tokens)) ** 3).astype(np.int32)
    mask_T = (np.arange(texts.tokens) >= texts.tokens // 2).astype(np.uint8)
    return [Row(ids_T, mask_T) for ids_T in ids_NT]


def _dump(root: Path, name: str, rows: Sequence[Row], shape: TargetShape) -> DumpConfig:
    data = root / f"{name}.jsonl"
    with data.open("w") as file:
        for row in rows:
            labels_T = np.where(row.loss_mask == 1, row.input_ids, UNSUPERVISED)
            line = {
                "input_ids": row.input_ids.tolist(),
                "attention_mask": [1] * len(row.input_ids),
                "labels": labels_T.tolist(),
            }
            file.write(json.dumps(line) + "\n")
    config = DumpConfig(
        target=str(root / "target"),
        data=(str(data),),
        out=str(root / name),
        backend="hf",
        layers=shape.aux,
        # CPUs without bf16 units take minutes.
        dtype="auto" if torch.cuda.is_available() else "float32",
    )
    run_dump(config)
    return config


def _write_theirs(root: Path, config: DumpConfig, shape: TargetShape, rows: Sequence[Row]) -> None:
    states = root / "hidden_states"
    states.mkdir(parents=True)
    backend = HfBackend(config, shape.aux)
    for number, (row, captured) in enumerate(zip(rows, backend.capture(rows), strict=True)):
        write_states(states / f"hs_{number}.safetensors", row, captured)
    columns = {
        "input_ids": [row.input_ids.tolist() for row in rows],
        "loss_mask": [row.loss_mask.tolist() for row in rows],
        "seq_len": [len(row.input_ids) for row in rows],
    }
    (root / "rows.json").write_text(json.dumps(columns))
    (root / "shape.json").write_text(json.dumps(asdict(shape)))
