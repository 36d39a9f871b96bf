"""One side of part a, in a process of its own.

Legend: B samples of a batch, T tokens, S verifier rows, H hidden.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from scripts.bench.child import Values, serve_parent
from specpipe.schemas.records.dump import TARGET_FOLDER
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.dump.score import LOGITS_BYTES
from specpipe.stages.dump.worker import Worker
from specpipe.stages.dump_plan.prepared import Prepared, prepare
from specpipe.stages.dump_plan.stamp import make_stamp
from specpipe.stages.process.device import choose_device
from specpipe.stages.storage.shard.samples import PlannedSample
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.target.batches import batches
from specpipe.stages.target.head.verifier_head import VerifierHead
from specpipe.stages.target.model.decoder import find_decoder


def answer(asked: Values) -> Values:
    config = DumpConfig(**asked["config"])
    folder = Folder.open(config.out)
    prepared = prepare(config, folder, make_stamp(config))
    samples = [sample for shard in prepared.plan for sample in shard]
    counts = {
        "num_tokens": sum(sample.num_tokens for sample in samples),
        "num_rows": sum(sample.num_rows for sample in samples),
        "num_shards": len(prepared.plan),
    }
    measure = _dump if asked["side"] == "dump" else _plain
    return {**counts, **measure(config, prepared, asked["repeats"])}


def _dump(config: DumpConfig, prepared: Prepared, repeats: int) -> dict[str, list[float]]:
    with Worker(config, prepared, 0) as worker:

        def make_all() -> None:
            for shard_id in range(len(prepared.plan)):
                worker.make(shard_id, lambda num_tokens: None)

        def clear() -> None:
            prepared.folder.remove("shards")

        return {"seconds": _passes(make_all, repeats, clear)}


def _plain(config: DumpConfig, prepared: Prepared, repeats: int) -> dict[str, list[float]]:
    prefill = _vllm_prefill if prepared.identity.backend == "vllm" else _hf_prefill
    return {
        "prefill": prefill(config, prepared, repeats),
        "head": _passes(_over_rows(config, prepared), repeats),
    }


def _vllm_prefill(config: DumpConfig, prepared: Prepared, repeats: int) -> list[float]:
    from specpipe.stages.target.vllm.start import start_engine

    samples = [sample for shard in prepared.plan for sample in shard]
    longest = max(sample.size for sample in samples)
    engine = start_engine(config, prepared.identity, (), longest, None)
    try:
        return _passes(lambda: _through(engine, samples), repeats)
    finally:
        engine.engine_core.shutdown()


def _through(engine: Any, samples: Sequence[PlannedSample]) -> None:
    """All samples through the engine, which has all of them at once to choose batches from."""
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input
    from vllm.sampling_params import RequestOutputKind

    sampling = SamplingParams(
        max_tokens=1,
        temperature=0.0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    for number, sample in enumerate(samples):
        engine.add_request(str(number), tokens_input(sample.input_ids.tolist()), sampling)
    num_done = 0
    while engine.has_unfinished_requests():
        num_done += len(engine.step())
    assert num_done == len(samples)


def _hf_prefill(config: DumpConfig, prepared: Prepared, repeats: int) -> list[float]:
    device = choose_device(config.device)
    dtype = getattr(torch, prepared.identity.compute_dtype)
    model: Any = AutoModelForCausalLM.from_pretrained(
        prepared.target_folder, dtype=dtype, attn_implementation="sdpa"
    )
    decoder = find_decoder(model.to(device).eval()).module

    @torch.no_grad()
    def prefill() -> None:
        for shard in prepared.plan:
            for batch in batches(shard, config.batch_tokens):
                width = max(sample.num_tokens for sample in batch)
                ids_BT = torch.zeros(len(batch), width, dtype=torch.int64)
                mask_BT = torch.zeros(len(batch), width, dtype=torch.int64)
                for at, sample in enumerate(batch):
                    ids_BT[at, : sample.num_tokens] = torch.from_numpy(sample.input_ids)
                    mask_BT[at, : sample.num_tokens] = 1
                decoder(
                    input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), use_cache=False
                )

    return _passes(prefill, repeats)


def _over_rows(config: DumpConfig, prepared: Prepared) -> Callable[[], None]:
    """Norm and lm_head over as many rows as the dump has, in chunks as large as the dump's."""
    identity = prepared.identity
    device = choose_device(config.device)
    # The other side, which goes first, has written the head there.
    head = VerifierHead.load(prepared.folder.child(TARGET_FOLDER).read, device)
    num_rows = sum(sample.num_rows for shard in prepared.plan for sample in shard)
    final_SH = torch.randn(num_rows, identity.target.hidden_size, device=device).bfloat16()
    chunk = max(1, LOGITS_BYTES // (4 * identity.target.vocab_size))

    def over_rows() -> None:
        for final_CH in final_SH.split(chunk):
            head.logits(final_CH)

    return over_rows


def _passes(
    action: Callable[[], None], repeats: int, before: Callable[[], None] = lambda: None
) -> list[float]:
    """Seconds of each pass, after one that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        before()
        os.sync()
        _wait_for_gpu()
        began = time.perf_counter()
        action()
        _wait_for_gpu()
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def _wait_for_gpu() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


if __name__ == "__main__":
    serve_parent(answer)
