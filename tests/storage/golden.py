"""The dumps of tests/golden: what they hold, as formulas, and how they were made.

    python -m tests.storage.golden

writes them anew, in the repository, and prints what test_golden_dump.py has to say of them. That
is for a new version of the format only: readers of version 1 read what is there now.

Legend: S verifier rows, K kept logits, V vocabulary.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from specpipe.schemas.records.dump import DumpIdentity, GenerationCounts, TextOrigin
from specpipe.schemas.records.sample import Sample, Source
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.shard.samples import PlannedSample
from specpipe.stages.storage.shard.states import SampleStates
from specpipe.stages.storage.store.crc import crc32c
from tests.storage.tiny import VOCAB_SIZE, Pair, make_identity, write_dump

GOLDEN = Path(__file__).parents[1] / "golden"

GENERATED = TextOrigin(
    kind="generated",
    temperature=1.0,
    top_p=1.0,
    max_tokens=8,
    stop=("###",),
    seed=7,
    samples_per_prompt=1,
)
COUNTS = GenerationCounts(num_turns=2, num_new_tokens=7, num_stopped=1, num_max_tokens=1)

IDENTITIES: dict[str, dict[str, Any]] = {
    "dump-v1": {"chunk_tokens": 4},
    "dump-v1-zarr-full-int8-zstd": {
        "logits": "full",
        "states_dtype": "int8",
        "compression": "zstd",
    },
    "dump-v1-parquet": {"shard_format": "parquet", "chunk_tokens": 4},
    "dump-v1-parquet-topk-int8-zstd": {
        "shard_format": "parquet",
        "logits": "topk:5",
        "states_dtype": "int8",
        "compression": "zstd",
    },
    "dump-v1-topk-generated": {"logits": "topk:3", "text": GENERATED},
}
"""What is said of each dump beside the defaults, by its folder."""


def golden_identity(name: str) -> DumpIdentity:
    return make_identity(hidden=4, num_layers=2, **IDENTITIES[name])


def golden_shards(name: str) -> list[list[Pair]]:
    identity = golden_identity(name)
    return [
        [
            _pair(identity, 1, [0, 0, 0, 1, 1, 1, 1]),
            _pair(identity, 2, [0, 1, 1, 0, 0, 1]),
        ]
    ]


def _pair(identity: DumpIdentity, number: int, mask: list[int]) -> Pair:
    num_tokens = len(mask)
    sample = PlannedSample.of(
        Sample(
            np.arange(num_tokens, dtype=np.int32) * 3 % VOCAB_SIZE,
            np.array(mask, np.uint8),
            Source("golden.jsonl", number),
            multiplicity=number,
            metadata={"name": f"sample {number}, with ü"},
            max_new_tokens=8 if identity.text.is_planned else 0,
        )
    )
    num_rows, start = sample.num_rows, 1000 * number
    # 0x3C00 + n and 0xBC00 + n: small positive and negative bfloat16 values.
    columns: dict[str, Any] = {
        "aux_TLH": (0x3C00 + start + np.arange(num_tokens * 8)).astype("u2").reshape(-1, 2, 4)
    }
    if identity.logits == "final":
        columns["final_SH"] = _negative_bits(start, num_rows, 4)
    elif identity.logits == "full":
        columns["logits_SV"] = _negative_bits(start, num_rows, VOCAB_SIZE)
    elif identity.topk is not None:
        ids_S1, ids_K = np.arange(num_rows)[:, None] * 5, np.arange(identity.topk) * 7
        columns["topk_ids_SK"] = ((ids_S1 + ids_K) % VOCAB_SIZE).astype(np.int32)
        columns["topk_logits_SK"] = _negative_bits(start, num_rows, identity.topk)
    return sample, SampleStates(
        **columns,
        logz_S=(np.arange(num_rows) / 4 + number).astype(np.float32),
        token_logprob_S=(-np.arange(num_rows) / 8 - number).astype(np.float32),
        argmax_S=np.arange(num_rows, dtype=np.int32) + number,
    )


def _negative_bits(start: int, *shape: int) -> np.ndarray[Any, np.dtype[np.uint16]]:
    return (0xBC00 + start + np.arange(np.prod(shape))).astype(np.uint16).reshape(shape)


def write_golden(name: str, root: Path) -> None:
    write_dump(
        str(root),
        golden_identity(name),
        golden_shards(name),
        generation=COUNTS if golden_identity(name).text.is_planned else None,
    )


def stated(name: str) -> tuple[str, list[str], dict[str, int]]:
    """Fingerprint, sample ids, and the crc32c of each column that is read, of a dump in GOLDEN."""
    dump = Dump.open(str(GOLDEN / name))
    reader = dump.shard(0)
    columns = reader.read_all().columns()
    crcs = {array: crc32c(values.tobytes()) for array, values in columns.items()}
    return dump.header.fingerprint[:16], [s.sample_id for s in reader.samples()], crcs


if __name__ == "__main__":
    for name in IDENTITIES:
        shutil.rmtree(GOLDEN / name, ignore_errors=True)
        write_golden(name, GOLDEN / name)
        print(f"    {name!r}: {stated(name)},")
