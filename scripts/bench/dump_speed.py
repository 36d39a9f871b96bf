"""Part a: making shards against the same engine's plain prefill and the verifier's head."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from scripts.bench.child import Values, in_child
from scripts.bench.machine import has_vllm
from scripts.bench.table import heading, note, table, verdict
from scripts.bench.timing import over, with_spread
from specpipe.schemas.settings.stages import DumpConfig
from tests.tiny_llama import save_tiny_llama

TARGET = 1.10
_HEAD_DIM = 64
_LONGEST = 1024


def bench(
    work: Path,
    shape: dict[str, int],
    num_tokens: int,
    engine: dict[str, Any],
    repeats: int,
    num_processes: int,
) -> None:
    """`shape`: hidden, layers, vocab of the target; `engine`: options of vLLM, by its names."""
    heading("a. Dump against plain prefill")
    device = "GPU" if torch.cuda.is_available() else "CPU"
    target = _save_target(work / "target", shape)
    data = _write_data(work / "data.jsonl", num_tokens, shape["vocab"])
    rows: list[Sequence[str]] = []
    verdicts = []
    for backend in ("vllm", "hf"):
        if backend == "vllm" and not has_vllm():
            note("vLLM is not installed: its rows are missing.")
            continue
        config = DumpConfig(
            target=str(target),
            data=(str(data),),
            out=str(work / f"dump-{backend}"),
            backend=backend,
            shard_tokens=min(32_768, max(_LONGEST, num_tokens // 2)),
            engine=engine if backend == "vllm" else {},
        )
        dump, plain = _alternate(config, repeats, num_processes)
        whole = [a + b for a, b in zip(plain["prefill"], plain["head"], strict=True)]
        ratios = over(dump["seconds"], whole)
        verdicts.append((backend, median(ratios)))
        rows.append(
            (
                f"{backend}, {device}",
                f"{dump['num_tokens']} in {dump['num_shards']} shards",
                str(plain["num_rows"]),
                with_spread(dump["seconds"]),
                with_spread(plain["prefill"]),
                with_spread(plain["head"]),
                with_spread(ratios),
                f"{dump['num_tokens'] / median(dump['seconds']):,.0f}",
            )
        )
    note(
        f"A random Llama in bfloat16: hidden {shape['hidden']}, {shape['layers']} layers, "
        f"vocabulary {shape['vocab']}; texts of 128 to {_LONGEST} tokens, half supervised. Dump: "
        "all shards captured, scored, written and synced. Plain: the same tokens through an engine "
        "of the same options that captures nothing (transformers: the decoder without hooks and "
        "without lm_head, in the same batches), and then norm and lm_head over the verifier rows. "
        "Starting the engine, its proof and a first pass are not counted. "
        f"{num_processes} processes of each, in turn, {repeats} passes in each; median (least to "
        "most)."
    )
    table(
        (
            "backend",
            "tokens",
            "verifier rows",
            "dump, s",
            "plain prefill, s",
            "norm and lm_head, s",
            "dump / (prefill + head)",
            "dump, tokens/s",
        ),
        rows,
    )
    for backend, ratio in verdicts:
        if backend == "vllm" and device == "GPU":
            note(verdict(f"vllm on a GPU: {ratio:.2f}, to be {TARGET} or less", ratio <= TARGET))
        else:
            note(
                f"{backend} on a {device}: {ratio:.2f} (reported; the target of {TARGET} is for "
                "vLLM on a GPU)"
            )


def _alternate(config: DumpConfig, repeats: int, num_processes: int) -> tuple[Values, Values]:
    """One engine at a time: two would share the device, and its memory."""
    found: dict[str, Values] = {}
    for _ in range(num_processes):
        for side in ("dump", "plain"):
            asked: Values = {"side": side, "config": config.model_dump(), "repeats": repeats}
            answered = in_child("scripts.bench.dump_side", asked)
            before = found.setdefault(side, answered)
            if before is not answered:
                for name, value in answered.items():
                    if isinstance(value, list):
                        before[name] += value
                    elif before[name] != value:
                        raise RuntimeError(f"{side}: {name} is {value}, and was {before[name]}")
    if found["dump"]["num_tokens"] != found["plain"]["num_tokens"]:
        raise RuntimeError("the two sides went through different tokens")
    return found["dump"], found["plain"]


def _save_target(folder: Path, shape: dict[str, int]) -> Path:
    num_heads = shape["hidden"] // _HEAD_DIM
    return save_tiny_llama(
        folder,
        shape["vocab"],
        spread=0.02,
        dtype=torch.bfloat16,
        hidden_size=shape["hidden"],
        intermediate_size=3 * shape["hidden"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=num_heads,
        num_key_value_heads=max(1, num_heads // 4),
        head_dim=_HEAD_DIM,
        max_position_embeddings=2 * _LONGEST,
    )


def _write_data(path: Path, num_tokens: int, vocab: int) -> Path:
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        while num_tokens > 0:
            length = int(rng.integers(128, _LONGEST + 1))
            ids = rng.integers(4, vocab, length).tolist()
            row = {
                "input_ids": ids,
                "attention_mask": [1] * length,
                "labels": [-100] * (length // 2) + ids[length // 2 :],
            }
            file.write(json.dumps(row) + "\n")
            num_tokens -= length
    return path
