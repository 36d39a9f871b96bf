"""A dump holds what the target computes, and running it again does nothing."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError as PydanticError
from transformers import AutoModelForCausalLM

from specpipe.schemas.drafters.registry import KINDS
from specpipe.schemas.errors import ConfigError, IdentityError
from specpipe.schemas.records.dump import plan_key
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.dump import score as score_module
from specpipe.stages.dump import worker as worker_module
from specpipe.stages.dump.run import run
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.shard.samples import plan_from_parquet
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.target.batches import batches
from specpipe.stages.target.hf.backend import HfBackend
from specpipe.stages.upkeep.verify.run import verify
from tests.dump.conftest import VOCAB
from tests.tiny_llama import save_tiny_llama

MakeConfig = Callable[..., DumpConfig]
WriteRows = Callable[..., Path]
MakeRows = Callable[..., list[dict[str, Any]]]


def bits(states: torch.Tensor) -> NDArray[np.uint16]:
    array: NDArray[np.uint16] = states.contiguous().view(torch.uint16).numpy()
    return array


def test_stored_states_are_the_targets(
    make_config: MakeConfig, write_rows: WriteRows, make_rows: MakeRows
) -> None:
    config = make_config(write_rows(make_rows(20)), layers=(1, 3, 5))
    run(config)
    dump = Dump.open(config.out)
    backend = HfBackend(config, dump.identity.layers)
    dense_V = torch.zeros(dump.identity.target.vocab_size, dtype=torch.float64)
    count_V = np.zeros(len(dense_V), np.int64)
    assert len(dump.manifests) > 2
    for shard_id in dump.manifests:
        reader = dump.shard(shard_id)
        stored = reader.samples()
        plan = plan_from_parquet(dump.folder.read(plan_key(shard_id)), "plan")
        assert [s.sample_id for s in stored] == [s.sample_id for s in plan]
        captured = [each for batch in batches(plan, 120) for each in backend.capture_batch(batch)]
        for sample, of in zip(stored, captured, strict=True):
            states = reader.read_sample(sample)
            rows_S = np.flatnonzero(sample.loss_mask[1:])
            assert np.array_equal(states.aux_TLH, bits(of.aux_TLH))
            assert states.final_SH is not None
            assert np.array_equal(states.final_SH, bits(of.final_TH)[rows_S])
            ids = torch.tensor(sample.input_ids)[None].long()
            with torch.no_grad():
                logits_SV = backend.model(ids).logits[0][torch.from_numpy(rows_S)].double()
            logprob_SV = logits_SV.log_softmax(-1)
            next_S = sample.input_ids[rows_S + 1]
            own_S = logprob_SV.numpy()[np.arange(len(rows_S)), next_S]
            assert np.allclose(states.logz_S, logits_SV.logsumexp(-1), atol=0.02)
            assert np.allclose(states.token_logprob_S, own_S, atol=0.03)
            # Rounding the state may swap the first two where they are close.
            best_S = logits_SV.max(-1).values.numpy()
            chosen_S = logits_SV.numpy()[np.arange(len(rows_S)), states.argmax_S]
            assert (best_S - chosen_S < 0.05).all()
            dense_V += logprob_SV.exp().sum(0)
            count_V += np.bincount(next_S, minlength=len(count_V))
    vocab = dump.vocab()
    assert np.array_equal(vocab.count_V, count_V)
    assert np.allclose(vocab.mass_V, dense_V, rtol=0.02)
    assert vocab.mass_V.sum() == pytest.approx(vocab.count_V.sum(), rel=1e-6)


def test_the_result_counts(
    make_config: MakeConfig, write_rows: WriteRows, make_rows: MakeRows
) -> None:
    data = make_rows(12)
    config = make_config(write_rows([*data, data[0], "{"]), max_rejected=1)
    reports: list[tuple[int, int]] = []
    result = run(config, progress=lambda done, all_tokens: reports.append((done, all_tokens)))
    num_tokens = sum(len(row["input_ids"]) for row in data)
    assert (result.num_samples, result.num_tokens) == (12, num_tokens)
    assert result.num_rows == sum(label != -100 for row in data for label in row["labels"])
    assert (result.num_rejected, result.complete, result.did_nothing) == (1, True, False)
    assert reports[0] == (0, num_tokens)
    assert reports[-1] == (num_tokens, num_tokens)
    assert reports == sorted(reports)
    dump = Dump.open(config.out)
    assert dump.num_bytes == result.num_bytes
    dump.check_objects()
    report = verify(config.out)
    assert report.complete
    assert not report.damages


def test_a_duplicate_weighs_in_the_statistics(
    make_config: MakeConfig, write_rows: WriteRows, make_rows: MakeRows
) -> None:
    data = make_rows(3)
    once, twice = (
        make_config(write_rows(lines, f"{len(lines)}.jsonl"), out=f"memory://dup/{len(lines)}")
        for lines in ([data[0]], [data[0], data[0]])
    )
    run(once)
    run(twice)
    a, b = (Dump.open(config.out) for config in (once, twice))
    assert b.shard(0).samples()[0].multiplicity == 2
    assert np.array_equal(2 * a.vocab().count_V, b.vocab().count_V)
    assert np.allclose(2 * a.vocab().mass_V, b.vocab().mass_V, rtol=1e-12)
    assert a.header.fingerprint != b.header.fingerprint


def test_the_logits_chunk_does_not_matter(
    make_config: MakeConfig,
    write_rows: WriteRows,
    make_rows: MakeRows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = write_rows(make_rows(6))
    run(make_config(data, out="memory://chunks/large"))
    monkeypatch.setattr(score_module, "LOGITS_BYTES", 3 * 4 * 260)
    run(make_config(data, out="memory://chunks/small"))
    large, small = (Dump.open(f"memory://chunks/{size}") for size in ("large", "small"))
    for shard_id in large.manifests:
        a, b = (dump.shard(shard_id).read_all() for dump in (large, small))
        assert np.allclose(a.logz_S, b.logz_S, atol=1e-5)
        assert np.allclose(a.token_logprob_S, b.token_logprob_S, atol=1e-5)
        assert np.array_equal(a.argmax_S, b.argmax_S)
    assert np.allclose(large.vocab().mass_V, small.vocab().mass_V, rtol=1e-5)


def test_a_finished_dump_runs_again_without_the_target(
    make_config: MakeConfig,
    write_rows: WriteRows,
    make_rows: MakeRows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = write_rows(make_rows(5))
    config = make_config(data)
    first = run(config)

    def refuse(*_: object) -> None:
        raise AssertionError("the target was loaded")

    monkeypatch.setattr(worker_module, "open_backend", refuse)
    again = run(config)
    assert again.did_nothing
    assert (again.num_tokens, again.num_bytes) == (first.num_tokens, first.num_bytes)
    # Touched files are read, and found to be the same.
    os.utime(data, ns=(1, 1))
    assert run(config).did_nothing
    # So are other ways to cut the work.
    assert run(make_config(data, batch_tokens=999)).did_nothing


@pytest.mark.parametrize("url", ["memory://dumps/one", "file://{tmp_path}/dump"])
def test_any_store(
    make_config: MakeConfig,
    write_rows: WriteRows,
    make_rows: MakeRows,
    url: str,
    tmp_path: Path,
) -> None:
    config = make_config(write_rows(make_rows(6)), out=url.format(tmp_path=tmp_path))
    result = run(config)
    assert Dump.open(config.out).index is not None
    assert result.num_samples == 6
    assert run(config).did_nothing


def test_a_sample_may_be_longer_than_shard_batch_and_chunk(
    make_config: MakeConfig, write_rows: WriteRows, make_rows: MakeRows
) -> None:
    limits = {"shard_tokens": 8, "batch_tokens": 4, "chunk_tokens": 3}
    config = make_config(write_rows(make_rows(4)), out="memory://long", **limits)
    assert run(config).num_samples == 4
    assert len(Dump.open(config.out).manifests) == 4


def test_conversations_end_to_end(make_config: MakeConfig, write_rows: WriteRows) -> None:
    turns = [
        {"role": "user", "content": "one and one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "and one"},
        {"role": "assistant", "content": "three"},
    ]
    config = make_config(write_rows([{"messages": turns}]), out="memory://chat")
    assert run(config).num_rows == len("two") + len("three") + 2


def test_text_of_the_targets_own_says_so(
    make_config: MakeConfig, write_rows: WriteRows, make_rows: MakeRows
) -> None:
    data = write_rows(make_rows(2))
    run(make_config(data, out="memory://own", text_temperature=0.7))
    text = Dump.open("memory://own").identity.text
    assert (text.kind, text.temperature) == ("generated", 0.7)


def test_a_dump_that_was_begun_with_the_layers_of_before_goes_on_with_them(
    make_config: MakeConfig, write_rows: WriteRows, make_rows: MakeRows, tmp_path: Path
) -> None:
    deep = str(save_tiny_llama(tmp_path / "deep", VOCAB, num_hidden_layers=8))
    data = write_rows(make_rows(2))
    config = make_config(data, target=deep, out="memory://before", layers=(2, 4, 5))
    run(config)
    # Another time of the file, so that its contents decide.
    os.utime(data, (1, 1))
    config = make_config(data, target=deep, out="memory://before")
    run(config)
    assert Dump.open("memory://before").identity.layers == (2, 4, 5)
    for given in ({"layers": (2, 4, 7)}, {"for_drafters": ("eagle3", "dflash")}):
        with pytest.raises(IdentityError, match=r"layers \(\[2, 4, 5\] there"):
            run(config.model_copy(update=given))
    run(make_config(data, target=deep, out="memory://new"))
    assert Dump.open("memory://new").identity.layers == (2, 4, 7)


def test_a_dump_for_drafters_stores_what_all_of_them_read(
    make_config: MakeConfig, write_rows: WriteRows, make_rows: MakeRows
) -> None:
    data = write_rows(make_rows(2))
    usual = KINDS["eagle3"].settings.default_layers(5)
    run(make_config(data, out="memory://usual"))
    run(make_config(data, out="memory://for", for_drafters=("eagle3",)))
    for root in ("memory://usual", "memory://for"):
        assert Dump.open(root).identity.layers == usual
    with pytest.raises(PydanticError, match="one of --layers and --for"):
        make_config(data, layers=(1, 3), for_drafters=("eagle3",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": (0, 2)}, "within 1..5"),
        ({"layers": (2, 6)}, "within 1..5"),
        ({"layers": (3, 2)}, "must ascend"),
        ({"layers": (2, 2)}, "must ascend"),
        ({"for_drafters": ("eagle9",)}, "'eagle9' is no drafter: give one of eagle3"),
        ({"context_length": 129}, "beyond the target's maximum of 128"),
        ({"logits": "topk:261"}, "topk:261: the target's vocabulary has 260 tokens"),
        ({"target": "/no/such/folder"}, "no such folder"),
        ({"target": "~no-such-user/x"}, "~no-such-user/x: no such folder"),
        ({"target": "x" * 300}, "File name too long"),
        ({"target": "a\0b"}, "neither a local folder"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_wrong_settings(
    make_config: MakeConfig,
    write_rows: WriteRows,
    make_rows: MakeRows,
    changes: dict[str, Any],
    message: str,
) -> None:
    config = make_config(write_rows(make_rows(2)), **changes)
    with pytest.raises(ConfigError, match=message):
        run(config)
    assert Folder.open(config.out).list() == []


@pytest.mark.parametrize(("limit", "length"), [(100, 100), (8192, 128)])
def test_a_limit_is_the_targets_maximum_where_that_is_less(
    make_config: MakeConfig, write_rows: WriteRows, make_rows: MakeRows, limit: int, length: int
) -> None:
    data = write_rows(make_rows(2))
    run(make_config(data, out=f"memory://limited-{limit}", context_limit=limit))
    assert Dump.open(f"memory://limited-{limit}").identity.context_length == length
    run(make_config(data, out=f"memory://given-{limit}", context_limit=limit, context_length=90))
    assert Dump.open(f"memory://given-{limit}").identity.context_length == 90


def test_a_dump_that_fails_its_proof_commits_nothing(
    make_config: MakeConfig,
    write_rows: WriteRows,
    make_rows: MakeRows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from specpipe.schemas.errors import ValidationError

    capture = HfBackend.capture_batch

    def normed(self: HfBackend, batch: Any) -> Any:
        return [
            replace(states, final_TH=self.decoder.norm(states.final_TH[None])[0])
            for states in capture(self, batch)
        ]

    monkeypatch.setattr(HfBackend, "capture_batch", normed)
    config = make_config(write_rows(make_rows(5)))
    with torch.no_grad(), pytest.raises(ValidationError, match="already normed"):
        run(config)
    assert Folder.open(config.out).list("shards") == []


def test_the_target_folder_is_all_that_training_needs(
    make_config: MakeConfig, write_rows: WriteRows, make_rows: MakeRows, target: Path
) -> None:
    config = make_config(write_rows(make_rows(2)), out="memory://needs")
    run(config)
    dump = Dump.open(config.out)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert dump.target_file(name) == (target / name).read_bytes()
    model = AutoModelForCausalLM.from_pretrained(target)
    from specpipe.stages.target.head.verifier_head import VerifierHead

    head = VerifierHead.load(dump.target_file, torch.device("cpu"))
    assert torch.equal(head.lm_head_VH, model.lm_head.weight)
