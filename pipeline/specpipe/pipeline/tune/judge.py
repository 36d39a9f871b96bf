"""tau on the prompts held back: of the best trial, of the recipe, and their difference."""

from pathlib import Path

from specpipe.pipeline.tune.material import Material
from specpipe.schemas.records.tune import HeldBack, TauInterval
from specpipe.stages.acceptance.measure_sums import MeasureSums
from specpipe.stages.acceptance.replay import ReplaySpan, replay, tau_difference
from specpipe.stages.drafters.scorer import TrainedDrafter
from specpipe.stages.runs.checkpoint import load_checkpoint
from specpipe.stages.runs.pointers import resolve_checkpoint
from specpipe.stages.samples.read_ahead import read_samples


def held_back(material: Material, best: Path, recipe: Path) -> HeldBack:
    """Replay the best checkpoints of two runs along samples that neither was chosen by."""
    num_heads = material.recipe.num_heads
    chosen, own = (_spans(material, run) for run in (best, recipe))
    difference = tau_difference(chosen, own, num_heads)
    return HeldBack(
        num_samples=len(material.held_back),
        chosen=_tau(chosen, num_heads),
        recipe=_tau(own, num_heads),
        difference=(difference.difference[-1], difference.low[-1], difference.high[-1]),
    )


def _spans(material: Material, run: Path) -> list[ReplaySpan]:
    checkpoint = load_checkpoint(resolve_checkpoint(run))
    drafter = TrainedDrafter(checkpoint, material.evaluated_on.dump)
    sums = MeasureSums(checkpoint.num_heads, keep_spans=True, samples_drafts=drafter.samples_drafts)
    for sample in read_samples(material.eval_reader, material.held_back):
        measured = drafter.measured(sample)
        sums.add(measured.batch, measured.measures_MKN, measured.fewer)
    is_greedy = material.evaluated_on.text.is_greedy
    return sums.greedy_spans if is_greedy else sums.sampled_spans


def _tau(spans: list[ReplaySpan], num_heads: int) -> TauInterval:
    curve = replay(spans, num_heads, exact=True)
    return curve.tau[-1], curve.tau_low[-1], curve.tau_high[-1]
