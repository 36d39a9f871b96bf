"""Peak memory of the loss, of a process of its own: chunks, and nothing of [tokens, vocabulary]."""

import subprocess
import sys

import pytest

MIB = 2**20
ROWS, SIZE, WIDTH, HEADS = 3000, 8192, 8, 2

PROGRAM = """
import sys
import torch
from scripts.bench.resident import peak
from specpipe.stages.acceptance.loss.head_loss import HeadLoss
from specpipe.stages.acceptance.loss.heads import Heads
from specpipe.stages.acceptance.loss.settings import LossSettings
from specpipe.stages.acceptance.loss.verifier import Verifier
from tests.acceptance.loss.loss_rows import rows_batch

rows, size, width, heads, chunk_rows = map(int, sys.argv[1:])
torch.manual_seed(0)
torch.set_num_threads(1)
weight = torch.randn(size, width)
everything = torch.arange(size)
verifier = Verifier(lambda final: final @ weight.T, everything, everything)
settings = LossSettings(
    {"lk_hybrid": 1.0, "lk_alpha": 1.0, "kl": 1.0, "ce": 1.0},
    torch.ones(heads),
    torch.full((heads,), 0.5),
)

def step(rows):
    batch = rows_batch(torch.randn(rows, width), [0] * rows, [list(range(rows))] * heads)
    hidden = torch.randn(heads, rows, width, requires_grad=True)
    head = torch.randn(size, width, requires_grad=True)
    head_loss, of_heads = HeadLoss(verifier, chunk_rows), Heads.shared(head)
    head_loss.alpha_sums(hidden, of_heads, batch)
    head_loss(hidden, of_heads, batch, settings)[0].backward()

step(8)
before = peak()
step(rows)
print(peak() - before)
"""


@pytest.mark.parametrize("chunk_rows", [64, 512])
def test_peak_memory_is_of_chunks(chunk_rows: int) -> None:
    """Two chunks and blocks of them; all rows of one head's logits alone would be 94 MiB."""
    shape = [str(number) for number in (ROWS, SIZE, WIDTH, HEADS, chunk_rows)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *shape], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    chunk = 4 * SIZE * chunk_rows
    # At most one chunk between two, and what the rows themselves and the allocator take.
    assert int(done.stdout) <= 3 * chunk + 12 * MIB
