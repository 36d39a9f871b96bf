"""The drafter that is trained, its plain second implementation, and finite differences."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from specpipe.schemas.drafters.mtp_families import FAMILIES
from specpipe.stages.drafters.artifact_format import Drafter
from specpipe.stages.drafters.contract import Runtime
from specpipe.stages.drafters.mtp.architecture import ARCHITECTURE
from specpipe.stages.drafters.mtp.model import Mtp
from specpipe.stages.drafters.mtp.tensors import model_weights
from specpipe.stages.samples.batch import Batch, make_batch
from tests.drafters.mtp.targets import VOCAB, mtp_tensors, shape_of
from tests.drafters.toys import assert_slopes, random_sample

H = 32


class Target:
    def __init__(self) -> None:
        torch.manual_seed(3)
        self.embedding_VH = torch.randn(VOCAB, H)
        self.lm_head_VH = torch.randn(VOCAB, H) / H**0.5
        self.final_norm_H = 1 + 0.3 * torch.randn(H)
        self.final_norm = torch.nn.Identity()


def trained(family: str, target: Target) -> Mtp:
    shape = shape_of(family)
    model = Mtp(shape, target, Runtime())
    model.load_state_dict(model_weights(shape, mtp_tensors(family, 0), "here"))
    return model


def batch_of(masks: list[list[int]], num_heads: int) -> Batch:
    """Samples of the target's width with one layer's states."""
    torch.manual_seed(5)
    samples = [random_sample(mask, torch.randn(23, 12), seed) for seed, mask in enumerate(masks)]
    batch = make_batch(samples, num_heads)
    states = torch.randn(batch.num_tokens, 1, H).bfloat16()
    return replace(batch, aux_TLH=states)


MASKS = [[0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 0]]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_files_say_what_the_trained_one_does(family: str, tmp_path: Path) -> None:
    target = Target()
    model = trained(family, target)
    tensors = ARCHITECTURE.artifact_tensors(model.shape, model.state_dict(), {}, target)
    format = ARCHITECTURE.formats["mtp"]
    format.write(tmp_path, format.config(Drafter(model.shape, "t", "X", 3)), tensors)
    plain = ARCHITECTURE.proposal(tmp_path, target)
    assert plain.aux_layers == model.shape.aux_layers
    batch = batch_of(MASKS, 3)
    in_float32 = ours_of(model, batch)
    in_float64 = ours_of(model.double(), batch)
    wide = plain.double()
    at = 0
    for span in batch.spans:
        of_text = slice(span.sample, span.sample + len(MASKS[0 if span.sample == 0 else 1]))
        begin, end = span.begin - span.sample, span.end - span.sample
        inputs = batch.input_ids_T[of_text], batch.aux_TLH[of_text], begin, end, 3
        rows = slice(at, at + end - begin)
        at += end - begin
        used_KN = batch.rows_KN[:, rows] >= 0
        for of, ours_KNH, most in ((plain, in_float32, 2e-4), (wide, in_float64, 1e-6)):
            theirs_KRH = of.hidden(*inputs)
            apart = (theirs_KRH - ours_KNH[:, rows]).abs().amax(-1)[used_KN]
            assert float(apart.max()) < most, (family, float(apart.max()))
    assert at == len(batch.starts_N)


@torch.no_grad()
def ours_of(model: Mtp, batch: Batch) -> Tensor:
    out: Tensor = model(batch)
    return out


@pytest.mark.parametrize("family", ["mimo", "ernie4_5_moe", "qwen3_5", "deepseek_dense"])
def test_gradients_are_those_of_finite_differences(family: str) -> None:
    model = trained(family, Target()).double()
    batch = batch_of(MASKS, 3)
    torch.manual_seed(11)
    weights_KNH = torch.randn(3, len(batch.starts_N), H, dtype=torch.float64)
    weights_KNH *= (batch.rows_KN >= 0)[..., None]

    def value() -> Tensor:
        out: Tensor = (model(batch) * weights_KNH).sum()
        return out

    # A router's scores are float32 by the family's class.
    routers = [name for name, _ in model.named_parameters() if name.endswith("mlp.gate.weight")]
    assert_slopes(value, model, 2e-3, 2e-3, leave_out=routers)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_position_has_a_zero_embedding_where_the_engine_has(family: str) -> None:
    """T18: row 0 is token x[1]."""
    target = Target()
    batch = batch_of([MASKS[0]], 3)
    ids_T = torch.arange(len(MASKS[0])) + 3
    batch = replace(batch, input_ids_T=ids_T)
    before = ours_of(trained(family, target), batch)
    target.embedding_VH[ids_T[1]] += 1
    after = ours_of(trained(family, target), batch)
    is_kept = family.startswith("qwen3")
    assert torch.equal(before, after) is not is_kept


@pytest.mark.parametrize("family", FAMILIES)
def test_the_targets_state_is_normed_where_the_engine_feeds_it_so(family: str) -> None:
    """T8: the weight of the target's final norm matters, but for MiMo."""
    target = Target()
    batch = batch_of(MASKS, 3)
    before = ours_of(trained(family, target), batch)
    target.final_norm_H = target.final_norm_H.flip(0)
    after = ours_of(trained(family, target), batch)
    assert torch.equal(before, after) is (family == "mimo")


def test_recomputing_changes_nothing() -> None:
    target, batch = Target(), batch_of(MASKS, 3)
    grads = []
    for recompute in (False, True):
        shape = shape_of("glm4_moe")
        model = Mtp(shape, target, Runtime(recompute=recompute))
        model.load_state_dict(model_weights(shape, mtp_tensors("glm4_moe", 0), "here"))
        model(batch).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
