"""vLLM and transformers give the same dump of the same target, whichever its architecture.

Everything runs as the real command with the real vLLM. scripts/prove takes all architectures.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from specpipe.schemas.records.dump import plan_key
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.dump.run import run
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.shard.int8_states import widened
from specpipe.stages.storage.shard.samples import StoredSample
from specpipe.stages.storage.shard.states import U16, SampleStates
from specpipe.stages.upkeep.verify.run import verify
from tests.architectures import VOCAB, build
from tests.dump.commands import Command

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

DENSE = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "granite", "gpt_neox")
EXPERTS = ("qwen3_moe", "mixtral", "olmoe")

SOME = (("llama", "bfloat16"), ("gemma2", "float32"), ("qwen3_moe", "bfloat16"))
"""Captured by vLLM itself and untied; through our hooks, with soft-caps and 1 + w; experts."""
ALL = (
    *((name, "float32") for name in (*DENSE, *EXPERTS)),
    # In Mixtral and OLMoE, rounding sends a token to other experts here and there: more than noise.
    *((name, "bfloat16") for name in (*DENSE, "qwen3_moe")),
)
CASES = ALL if os.environ.get("SPECPIPE_ALL_ARCHITECTURES") else SOME

EXACT = 1e-3
"""In float32: norm of the difference over norm of the states, which are stored in bfloat16."""
NOISE = 1.5
"""How much further from the exact states than those of transformers in bfloat16 vLLM's may be."""
LOGPROB_TOLERANCE = 2e-2
"""Nats, on average over the tokens."""

pytest.importorskip("vllm", reason="vLLM is not installed")


@dataclass(frozen=True, slots=True)
class Difference:
    """Between two dumps of the same text."""

    per_layer: dict[str, float]
    """Norm of the difference over norm of the states."""
    logprob: float
    """Mean absolute difference, nats."""


def rows(num: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(5)
    made = []
    for _ in range(num):
        ids = rng.integers(3, VOCAB, int(rng.integers(8, 60))).tolist()
        labels = [-100] * 4 + ids[4:]
        made.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return made


def dump_config(target: Path, data: Path, out: Path, **changes: Any) -> DumpConfig:
    settings: dict[str, Any] = {
        "target": str(target),
        "data": (str(data),),
        "out": str(out),
        "shard_tokens": 400,
        "chunk_tokens": 64,
        "batch_tokens": 256,
    }
    return DumpConfig(**(settings | changes))


def samples(dump: Dump) -> list[tuple[StoredSample, SampleStates]]:
    return [
        (sample, reader.read_sample(sample))
        for reader in map(dump.shard, dump.manifests)
        for sample in reader.samples()
    ]


def compare(one: Dump, other: Dump) -> Difference:
    pairs = list(zip(samples(one), samples(other), strict=True))
    for (a, _), (b, _) in pairs:
        assert a.sample_id == b.sample_id
        assert np.array_equal(a.input_ids, b.input_ids)
    per_layer = {
        f"layer {layer}": _relative(
            [a.aux_TLH[:, at] for (_, a), _ in pairs], [b.aux_TLH[:, at] for _, (_, b) in pairs]
        )
        for at, layer in enumerate(one.identity.layers)
    }
    per_layer["final"] = _relative(
        [a.final_SH for (_, a), _ in pairs], [b.final_SH for _, (_, b) in pairs]
    )
    gaps = [np.abs(a.token_logprob_S - b.token_logprob_S) for (_, a), (_, b) in pairs]
    return Difference(per_layer, float(np.concatenate(gaps).mean()))


def _relative(ours: list[U16 | None], theirs: list[U16 | None]) -> float:
    a, b = (widened(np.concatenate([v for v in vs if v is not None])) for vs in (ours, theirs))
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


@pytest.mark.parametrize(("architecture", "dtype"), CASES)
def test_vllm_gives_the_dump_of_transformers(
    architecture: str, dtype: str, tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    target = tmp_path / "target"
    model = build(architecture, layers=6, dtype=getattr(torch, dtype), head_dim=32)
    model.save_pretrained(target)
    data = write_rows(rows(40))
    hf = dump_config(target, data, tmp_path / "hf", backend="hf", device="cpu")
    run(hf)
    in_vllm = dump_config(target, data, tmp_path / "vllm", backend="vllm")
    command = Command(in_vllm, tmp_path / "command")
    assert command.wait() == 0, command.stderr
    assert command.result["num_samples"] == 40
    one, other = Dump.open(hf.out), Dump.open(in_vllm.out)
    assert other.identity.backend == "vllm"
    assert len(other.manifests) > 2
    for shard_id in one.manifests:
        key = plan_key(shard_id)
        assert one.folder.read(key) == other.folder.read(key)
    assert verify(in_vllm.out).damages == ()
    found = compare(one, other)
    shares = " | ".join(f"{100 * value:.2f} %" for value in found.per_layer.values())
    print(f"\n| {architecture} | {dtype} | {shares} | {found.logprob:.4f} |")
    if dtype == "float32":
        assert max(found.per_layer.values()) <= EXACT, found
    else:
        exact = dump_config(target, data, tmp_path / "exact", backend="hf", dtype="float32")
        run(exact)
        noise, ours = (compare(Dump.open(exact.out), dump) for dump in (one, other))
        for name, value in ours.per_layer.items():
            assert value <= NOISE * noise.per_layer[name], (name, ours, noise)
    assert found.logprob <= LOGPROB_TOLERANCE, found
