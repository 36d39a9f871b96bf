"""What a dump of `topk:N` costs: errors of alpha, of tau and of the gradient, against `final`.

    python -m scripts.losses.topk RUN --dump DUMP [--samples 100]

A trained drafter is measured on held-out samples of a dump of the mode `final`, once with all of
the verifier's distribution and once with each row's N likeliest tokens, as a dump of the mode
`topk:N` would keep them. The replayed tau needs only the log-probability of the text's own token,
which every mode stores: it does not differ. The tau that follows from alpha does.

Legend: S verifier rows, N starts, K heads, M measures, H hidden size, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import torch
from torch import Tensor

from specpipe.schemas.records.metrics import EvalMetrics
from specpipe.stages.acceptance.loss.head_loss import HeadLoss
from specpipe.stages.acceptance.loss.settings import LossSettings
from specpipe.stages.acceptance.loss.verifier import Verifier
from specpipe.stages.acceptance.measure_sums import MeasureSums
from specpipe.stages.drafters.registry import drafter_kind
from specpipe.stages.runs.checkpoint import Checkpoint, load_checkpoint
from specpipe.stages.runs.pointers import resolve_checkpoint
from specpipe.stages.samples.batch import Batch, make_batch
from specpipe.stages.samples.read_ahead import read_samples
from specpipe.stages.samples.reader import SampleReader
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.head.target_tensors import StoredTarget
from specpipe.stages.target.head.verifier_head import VerifierHead

KEPT = (1, 4, 16, 64, 256, 1024)
CPU = torch.device("cpu")


@dataclass
class Measured:
    """With so many tokens kept of each row; None: with all of them."""

    kept: int | None
    sums: MeasureSums
    gradient: Tensor | None = None
    """Of lk_hybrid, in the drafter's outputs, of all samples one after the other."""


class Comparison:
    """One drafter, measured sample by sample with every number of kept tokens."""

    def __init__(self, checkpoint: Checkpoint, dump: Dump) -> None:
        vocab = checkpoint.vocab
        self.num_heads = checkpoint.state.num_heads
        self.model = drafter_kind(checkpoint.shape).scoring_model(
            checkpoint.shape, checkpoint.model, StoredTarget(dump.target_file), vocab.target_ids_D
        )
        self.head = VerifierHead.load(dump.target_file, CPU)
        rows = VerifierHead.load(dump.target_file, CPU, rows=vocab.target_ids_D)
        self.verifier = Verifier(rows.logits, vocab.draft_ids(), vocab.target_ids_D)
        self.settings = LossSettings(
            {"lk_hybrid": 1.0}, torch.ones(self.num_heads), torch.full((self.num_heads,), 0.3)
        )

    def measure(self, batches: Sequence[Batch], kept: int | None) -> Measured:
        sums, gradients = MeasureSums(self.num_heads, keep_spans=True), []
        for batch in batches:
            seen = batch if kept is None else self._truncated(batch, kept)
            hidden_KNH = self.model(batch).detach().requires_grad_()
            loss, measures_MKN = HeadLoss(self.verifier, 256)(
                hidden_KNH, self.model.heads(), seen, self.settings
            )
            gradients.append(torch.autograd.grad(loss, hidden_KNH)[0].flatten())
            sums.add(seen, measures_MKN)
        return Measured(kept, sums, torch.cat(gradients))

    def _truncated(self, batch: Batch, kept: int) -> Batch:
        assert batch.final_SH is not None, "the dump is to be one of the mode `final`"
        logp_SV = self.head.logits(batch.final_SH) - batch.logz_S.unsqueeze(1)
        top = logp_SV.topk(kept, dim=1)
        return replace(
            batch,
            final_SH=None,
            topk_ids_SC=top.indices.int(),
            topk_logp_SC=top.values.bfloat16(),
        )


@click.command(help=__doc__)
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.option("--dump", "url", required=True, help="A dump of the mode `final`, held out.")
@click.option("--samples", type=int, default=100, show_default=True)
def main(run: Path, url: str, samples: int) -> None:
    checkpoint = load_checkpoint(resolve_checkpoint(run))
    dump = Dump.open(url)
    reader = SampleReader(dump, None, layers=checkpoint.shape.aux_layers)
    comparison = Comparison(checkpoint, dump)
    refs = reader.refs()[:samples]
    batches = [make_batch([s], comparison.num_heads) for s in read_samples(reader, refs)]
    exact = comparison.measure(batches, None)
    metrics = exact.sums.eval_metrics(comparison.settings, dump.identity.text)
    heads = range(comparison.num_heads)
    print(f"{metrics.num_positions} positions, alpha {_text(metrics.alpha)}")
    print("| N | mass | " + " | ".join(f"alpha {k + 1}" for k in heads) + " | tau | gradient |")
    print("|" + "---|" * (4 + len(heads)))
    for kept in (n for n in KEPT if n <= dump.identity.target.vocab_size):
        print(_row(comparison.measure(batches, kept), exact, metrics, comparison, dump))


def _row(
    of: Measured, exact: Measured, metrics: EvalMetrics, comparison: Comparison, dump: Dump
) -> str:
    """The kept mass, and by how much alpha, tau (from alpha) and the gradient are off."""
    ours = of.sums.eval_metrics(comparison.settings, dump.identity.text)
    assert ours.replay_temperature_1 == metrics.replay_temperature_1
    errors = [a - b for a, b in zip(ours.alpha, metrics.alpha, strict=True)]
    tau = ours.temperature_1.number_of_tokens[-1] - metrics.temperature_1.number_of_tokens[-1]
    assert of.gradient is not None
    assert exact.gradient is not None
    gradient = float((of.gradient - exact.gradient).norm() / exact.gradient.norm())
    cells = [str(of.kept), f"{ours.attainable_mass:.3f}"]
    cells += [f"{error:+.4f}" for error in [*errors, tau]] + [f"{gradient:.1%}"]
    return f"| {' | '.join(cells)} |"


def _text(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


if __name__ == "__main__":
    main()
