"""The plain drafter against the one that is trained: two implementations, one mathematics."""

from pathlib import Path

import numpy as np
import pytest
import torch

from specpipe.schemas.drafters.eagle3 import Eagle3Shape
from specpipe.schemas.records.artifact import EMBEDDING
from specpipe.stages.drafters.artifact_format import Drafter
from specpipe.stages.drafters.eagle3.architecture import ARCHITECTURE
from specpipe.stages.drafters.eagle3.layout import expected_tensors
from specpipe.stages.drafters.eagle3.model import Eagle3
from specpipe.stages.drafters.eagle3.proposal import PlainDrafter
from specpipe.stages.drafters.parts.layer_shape import check_layers
from specpipe.stages.samples.batch import DrafterSample, make_batch
from specpipe.stages.storage.shard.states import SampleStates
from tests.drafters.toys import Given

H, V, D, T, K = 24, 40, 30, 17, 4
BEGIN = 5  # first supervised token
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def make_shape(num_aux: int = 3, **changes: object) -> Eagle3Shape:
    base = Eagle3Shape(
        hidden_size=H,
        target_hidden_size=H,
        intermediate_size=20,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        max_position_embeddings=64,
        vocab_size=V,
        draft_vocab_size=D,
        aux_layers=tuple(range(1, num_aux + 1)),
        norm_before_residual=False,
        norm_before_fc=False,
        fc_norm=False,
        norm_output=False,
    )
    return base.model_copy(update=changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_before_residual": True},
        {"norm_before_fc": True},
        {"fc_norm": True},
        {"norm_output": True},
        {"fc_norm": True, "norm_output": True, "norm_before_residual": True, "num_aux": 2},
        {"draft_vocab_size": V},
        {"rope_parameters": LLAMA3_ROPE},
        {"hidden_act": "silu", "num_key_value_heads": 1},
        {"num_aux": 5},
        {"num_layers": 2},
        {"num_layers": 3, "norm_before_residual": True, "norm_output": True},
        {"layer_type": "qwen3"},
        {"layer_type": "qwen3", "num_layers": 2, "num_aux": 4},
        {"sliding_window": 5},
        {"sliding_window": 6, "num_layers": 2},
        {"hidden_size": 20, "num_attention_heads": 3, "num_key_value_heads": 3},
        {"hidden_size": 16, "fc_norm": True},
        {"hidden_size": 30, "norm_before_fc": True},
    ],
    ids=str,
)
def test_plain_drafter_equals_the_trained_one(changes: dict[str, object], tmp_path: Path) -> None:
    shape = make_shape(**changes)  # type: ignore[arg-type]
    check_layers(shape)
    generator = torch.Generator().manual_seed(0)
    draft_size = shape.draft_vocab_size
    # Values that bfloat16 holds, so that the file loses nothing; half the size, since K steps of
    # larger weights blow float32's rounding up, on some processors beyond the tolerance.
    model = {
        name: (0.5 * torch.randn(size, generator=generator)).bfloat16().float()
        for name, (size, kind) in expected_tensors(shape).items()
        if kind == "float" and name != EMBEDDING
    }
    if shape.projects_embedding:
        # One weight a row: its product with a bfloat16 embedding needs no rounding.
        columns = torch.arange(shape.hidden_size) % H
        model["embed_proj.weight"] = 0.5 * torch.nn.functional.one_hot(columns, H).float()
    ids = torch.randperm(V, generator=generator)[:draft_size].sort().values
    vocab = {"d2t": ids - torch.arange(draft_size), "t2d": torch.isin(torch.arange(V), ids)}
    embedding_VH = torch.randn(V, H, generator=generator).bfloat16().float()
    target = Given(embedding_VH, embedding_VH)
    tensors = ARCHITECTURE.artifact_tensors(shape, model, vocab, target)
    assert set(tensors) == set(expected_tensors(shape))
    drafter = Drafter(shape, "target", "X", K)
    for format in ARCHITECTURE.formats.values():
        if not format.inexpressible(shape):
            (tmp_path / format.name).mkdir()
            format.write(tmp_path / format.name, format.config(drafter), tensors)
    tokens_T = torch.randint(0, V, (T,), generator=generator)
    aux_TLH = torch.randn(T, shape.num_aux, H, generator=generator).bfloat16()

    trained = Eagle3(shape, embedding_VH)
    trained.load_state_dict(model)
    mask_T = (np.arange(T) >= BEGIN).astype(np.uint8)
    zeros_S = np.zeros(T - BEGIN, dtype=np.float32)
    states = SampleStates(
        aux_TLH=aux_TLH.view(torch.uint16).numpy(),
        final_SH=np.zeros((T - BEGIN, H), dtype=np.uint16),
        logz_S=zeros_S,
        token_logprob_S=zeros_S,
        argmax_S=zeros_S.astype(np.int32),
    )
    batch = make_batch([DrafterSample(tokens_T.int().numpy(), mask_T, states)], K)
    with torch.no_grad():
        expected_KNH = trained(batch)
    first, last = int(batch.starts_N[0]), int(batch.starts_N[-1]) + 1
    used_KN = batch.rows_KN >= 0
    assert used_KN.sum() > 3 * K
    # `Eagle3` gives what the lm_head takes; the plain drafter norms inside `logits`.
    expected = expected_KNH[used_KN] @ model["lm_head.weight"].T
    for folder in tmp_path.iterdir():
        plain = PlainDrafter.load(folder, embedding_VH)
        hidden_KNH = plain.hidden(tokens_T, aux_TLH, first, last, K)
        assert torch.equal(plain.target_ids_D, ids)
        logits = plain.logits(hidden_KNH[used_KN])
        torch.testing.assert_close(logits, expected, rtol=2e-4, atol=1e-3)
