"""Part d: bytes per token on disk, beside the layout of vLLM speculators.

What that layout is (speculators 0.9 and its repository of August 2026: data_generation/
preprocessing.py, offline.py): an Arrow dataset with int64 lists `input_ids` and `loss_mask` and
`seq_len`, and one hs_N.safetensors a row with `hidden_states` [T, L + 1, H] bfloat16 (the last is
the final state before its norm), at every position, and `token_ids` int64 [T]. A conversation is a
row per assistant turn, each with all that came before it; rows that come tokenised stay as they
are.

Legend: T tokens, L aux layers, H hidden.
"""

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_file

from scripts.bench.table import heading, note, table, verdict
from scripts.bench.threads import one_thread
from specpipe.schemas.records.sample import Ids, Mask, first_supervised
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.dump.run import run as run_dump
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.backend import Captured
from specpipe.stages.target.hf.backend import HfBackend

TARGET = 0.75
SAMPLE_DATA = Path("sample_data")
CONVERSATIONS = SAMPLE_DATA / "train" / "conversations.jsonl"

Messages = list[dict[str, str]]
Parts = dict[str, int]
"""Bytes by what they are for."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of theirs."""

    input_ids: Ids
    loss_mask: Mask


@dataclass(frozen=True, slots=True)
class _Case:
    name: str
    conversations: list[Messages]
    one_row_a_turn: bool


def bench(work: Path, num_conversations: int, turns: int) -> None:
    heading("d. Bytes per token on disk, beside speculators' layout")
    with one_thread():
        _bench(work, num_conversations, turns)


def _bench(work: Path, num_conversations: int, turns: int) -> None:
    lines = CONVERSATIONS.read_text().splitlines()
    single: list[Messages] = [json.loads(line)["messages"] for line in lines[:num_conversations]]
    several = [
        [message for conversation in single[at : at + turns] for message in conversation]
        for at in range(0, len(single), turns)
    ]
    cases = [
        _Case("one turn", single, False),
        _Case(f"{turns} turns, theirs tokenised by the user", several, False),
        _Case(f"{turns} turns, theirs from messages", several, True),
    ]
    summary, parts = [], []
    for case in cases:
        ours, theirs, counts = _measure(work / "layout", case)
        num_tokens = counts["tokens"]
        ratio = sum(ours.values()) / sum(theirs.values())
        summary.append(
            (
                case.name,
                str(len(case.conversations)),
                str(num_tokens),
                f"{counts['supervised'] / num_tokens:.0%}",
                str(counts["rows of theirs"]),
                f"{sum(ours.values()) / num_tokens:.0f}",
                f"{sum(theirs.values()) / num_tokens:.0f}",
                f"**{ratio:.3f}** ({verdict(f'at most {TARGET}', ratio <= TARGET)})",
            )
        )
        for what in dict.fromkeys([*theirs, *ours]):
            a, b = ours.get(what, 0) / num_tokens, theirs.get(what, 0) / num_tokens
            parts.append((case.name, what, f"{a:.1f}", f"{b:.1f}", f"{a - b:+.1f}"))
    note(
        "The conversations of sample_data/train, prompts masked, through the sample target "
        "(three auxiliary layers, H 192); lossless, uncompressed, real files of both layouts. A "
        "token counts once, however often a layout stores it. Ours without the copy of the "
        "target's head and tokenizer, which does not grow with the data: "
        f"{counts['bytes of target/'] / 1e6:.1f} MB."
    )
    table(
        (
            "conversations",
            "number",
            "tokens",
            "supervised",
            "rows of theirs",
            "ours, bytes/token",
            "theirs, bytes/token",
            "ours / theirs",
        ),
        summary,
    )
    note("Where the difference comes from, bytes per token:")
    table(("conversations", "what", "ours", "theirs", "difference"), parts)
    note(
        "Auxiliary states are the same numbers in both: with one row a conversation, they alone "
        "are three quarters of theirs, so what is saved then is the final state of masked "
        "positions, and a ratio below 0.75 is out of reach. Where theirs has a row a turn, the "
        "rest is history that it stores again and again: the more turns, the more."
    )
    _note_8b(counts["supervised"] / num_tokens)


def _note_8b(supervised: float) -> None:
    ours = 3 * 2 * 4096 + supervised * (2 * 4096 + 12)
    theirs = 4 * 2 * 4096 + 24
    note(
        f"By arithmetic, for H = 4,096 and {supervised:.0%} supervised, one row a conversation: "
        f"{ours:,.0f} of {theirs:,.0f} bytes per token, {ours / theirs:.3f}."
    )


def _measure(work: Path, case: _Case) -> tuple[Parts, Parts, dict[str, int]]:
    """Bytes of ours and of theirs, and counts."""
    work.mkdir(parents=True)
    data = work / "conversations.jsonl"
    data.write_text("".join(json.dumps({"messages": m}) + "\n" for m in case.conversations))
    config = DumpConfig(
        target=str(SAMPLE_DATA / "target"),
        data=(str(data),),
        out=str(work / "dump"),
        backend="hf",
    )
    result = run_dump(config)
    dump = Dump.open(config.out)
    ours = _our_parts(dump)
    rows = list(_rows(dump, case))
    theirs = _write_theirs(work / "theirs", config, dump.identity.layers, rows)
    on_disk = sum(p.stat().st_size for p in (work / "dump").rglob("*") if p.is_file())
    in_target = ours.pop("target")
    assert sum(ours.values()) + in_target == on_disk, "a file of the dump is not counted"
    on_disk = sum(p.stat().st_size for p in (work / "theirs").rglob("*") if p.is_file())
    assert sum(theirs.values()) == on_disk, "a file of theirs is not counted"
    shutil.rmtree(work)
    counts = {
        "tokens": result.num_tokens,
        "supervised": result.num_rows,
        "rows of theirs": len(rows),
        "bytes of target/": in_target,
    }
    return ours, theirs, counts


def _our_parts(dump: Dump) -> Parts:
    parts: Parts = defaultdict(int)
    for key, size in dump.folder.sizes().items():
        parts[_what(key)] += size
    return dict(parts)


def _what(key: str) -> str:
    if "/states.zarr/aux_" in key:
        return "auxiliary states"
    if "/states.zarr/final/" in key:
        return "final states"
    if "/states.zarr/" in key:
        return "log Z, log-probability and argmax of the verifier"
    if key.startswith("target/"):
        return "target"
    if key.endswith("samples.parquet"):
        return "token ids, masks, and what else is said of a sample"
    if key.startswith("plan/"):
        return "plan (ids and masks again)"
    return "records, vocabulary statistics, headers of files"


def _rows(dump: Dump, case: _Case) -> Iterator[Row]:
    for shard_id in dump.manifests:
        for sample in dump.shard(shard_id).samples():
            ids, mask = sample.input_ids, sample.loss_mask
            # Each row ends where a span of supervised tokens does, and supervises that span alone.
            edges = np.flatnonzero(np.diff(mask, append=np.uint8(0)) == 255) + 1
            if not case.one_row_a_turn:
                yield Row(ids, mask)
                continue
            for number, end in enumerate(edges):
                start = int(edges[number - 1]) if number else 0
                row_mask = mask[:end].copy()
                row_mask[:start] = 0
                assert start <= first_supervised(row_mask) < end
                yield Row(ids[:end], row_mask)


def _write_theirs(
    root: Path, config: DumpConfig, layers: Sequence[int], rows: Sequence[Row]
) -> Parts:
    """Write the rows as speculators does; returns bytes by what they are for."""
    states = root / "hidden_states"
    states.mkdir(parents=True)
    parts: Parts = defaultdict(int)
    backend = HfBackend(config, layers)
    for number, (row, captured) in enumerate(zip(rows, backend.capture(rows), strict=True)):
        path = states / f"hs_{number}.safetensors"
        aux, final = write_states(path, row, captured)
        ids = 8 * len(row.input_ids)
        parts["auxiliary states"] += aux
        parts["final states"] += final
        parts["token ids, masks, and what else is said of a sample"] += ids
        parts["records, vocabulary statistics, headers of files"] += (
            path.stat().st_size - aux - final - ids
        )
    table = pa.table(
        {
            "input_ids": pa.array([r.input_ids for r in rows], pa.list_(pa.int64())),
            "loss_mask": pa.array([r.loss_mask for r in rows], pa.list_(pa.int64())),
            "seq_len": pa.array([len(r.input_ids) for r in rows], pa.int64()),
        }
    )
    path = root / "data-00000-of-00001.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    parts["token ids, masks, and what else is said of a sample"] += path.stat().st_size
    return dict(parts)


def write_states(path: Path, row: Row, captured: Captured) -> tuple[int, int]:
    """One row's states; returns the bytes of the auxiliary and of the final ones."""
    states_TLH = torch.cat([captured.aux_TLH, captured.final_TH[:, None]], dim=1).cpu()
    token_ids = torch.from_numpy(row.input_ids).long()
    save_file({"hidden_states": states_TLH.contiguous(), "token_ids": token_ids}, path)
    num_bytes = states_TLH.numel() * 2
    final = num_bytes // states_TLH.shape[1]
    return num_bytes - final, final
