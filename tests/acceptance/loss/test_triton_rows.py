"""The fused passes against the plain ones: on the GPU, or by Triton's interpreter on a CPU."""

import os
import subprocess
import sys

import pytest
import torch

PROGRAM = """
import sys
import torch
from specpipe.stages.acceptance.loss.chunk import VerifierChunk
from specpipe.stages.acceptance.loss.plain_rows import PlainRows
from specpipe.stages.acceptance.loss.row_pass import RowPass
from specpipe.stages.acceptance.loss.settings import RowWeights
from specpipe.stages.acceptance.loss.triton_rows import TritonRows

device = torch.device(sys.argv[1])
torch.manual_seed(0)
for size in (5, 300, 5000):
    rows = 7
    target = torch.randn(rows, size + 3, device=device) * 3
    target[2, :size] -= 80.0  # next to no mass on the draft vocabulary
    logp = torch.log_softmax(target, -1)[:, :size].contiguous()
    logmass = logp.logsumexp(-1)
    pt = torch.exp(logp - logmass[:, None])
    token = torch.randint(size, (rows,), device=device)
    token_draft = token.clone()
    token_draft[4] = -1
    chunk = VerifierChunk(
        begin=0,
        pt_RD=pt,
        mass_R=logmass.exp(),
        known_R=logmass > -torch.inf,
        entropy_R=torch.special.entr(pt).sum(-1),
        token_R=token,
        token_draft_R=token_draft,
        token_logprob_R=logp.gather(1, token[:, None])[:, 0],
        argmax_R=logp.argmax(-1),
        start_of_row_KR=torch.zeros(1, rows, dtype=torch.int64, device=device),
    )
    at = torch.tensor([0, 1, 2, 4, 5, 6], device=device)
    logits = torch.randn(len(at), size, device=device) * 3
    logits[1] = 0.0  # ties: the first is the argmax
    logits[3, -1] = 120.0  # an overlap that underflows
    ids = torch.arange(size, device=device)
    zero, one = torch.zeros((), device=device), torch.ones((), device=device)
    mix = RowWeights(0.5 * one, 0.25 * one, 0.3 * one, 0.75, 1.5, 3.0, True, True)
    token_scope = RowWeights(zero, zero, zero, 0.0, 1.0, 3.0, True, True)
    only_kl = RowWeights(one, zero, zero, 0.0, 0.0, 3.0, True, False)
    for weights in (None, mix, token_scope, only_kl):
        out = {}
        for name, passes in (
            ("plain", PlainRows(4, size, logits)), ("fused", TritonRows())
        ):
            row_pass, gradient = RowPass(4, ids, logits), logits.clone()
            row_pass.passes = passes
            alone = row_pass.alpha(logits, chunk, at)
            measures, loss = row_pass(
                gradient, chunk, at, weights,
                lambda x: (logp[at[x]], torch.log_softmax(logits[x], -1)),
            )
            torch.testing.assert_close(alone, measures[0], rtol=1e-5, atol=1e-7)
            out[name] = measures, loss, gradient
        for one, other in zip(*out.values()):
            torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)
        assert weights is None or out["fused"][2].abs().max() > 1e-3
"""


def test_fused_passes_are_the_plain_ones() -> None:
    pytest.importorskip("triton", reason="no Triton here")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    environment = os.environ | ({} if device == "cuda" else {"TRITON_INTERPRET": "1"})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, device],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
