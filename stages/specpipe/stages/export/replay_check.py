"""Validation level `replay`: the exported files have the trainer's tau on held-out samples.

The files are loaded by the plain drafter, which shares no code with the trained one, and the
samples' rounds are replayed with it. What is compared with is the evaluation that the run recorded
for this checkpoint; where the samples are others, the same figures of the checkpoint's own weights
under the trainer's implementation.

Legend: T tokens, L aux layers, S verifier rows, K heads.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from specpipe.schemas.checkpoint import TrainState
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.metrics import EvalMetrics, ReplayCurve
from specpipe.schemas.sample import verifier_rows
from specpipe.schemas.train_config import TrainConfig
from specpipe.stages.drafter.acceptance import MeasureSums
from specpipe.stages.drafter.checkpoint import Checkpoint
from specpipe.stages.drafter.loss.settings import LossSettings
from specpipe.stages.drafter.metric_rows import metric_rows
from specpipe.stages.drafter.replay import replay
from specpipe.stages.drafter.samples.batch import DrafterSample, supervised_spans
from specpipe.stages.drafter.samples.read_ahead import read_samples
from specpipe.stages.drafter.samples.reader import SampleReader, SampleRef
from specpipe.stages.export.accept import TargetText, text_spans
from specpipe.stages.export.evaluated import evaluation, settings_for
from specpipe.stages.export.plain_drafter import PlainDrafter
from specpipe.stages.export.trained_drafter import TrainedDrafter, Weights
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.head import load_embedding, load_lm_head

TOLERANCE = 0.002
"""Accepted relative difference of tau; the artifact's weights are rounded to bfloat16."""

CURVES = ("replay_temperature_1", "replay_greedy", "replay_greedy_draft")


class ReplayFindings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    passed: bool
    dump: str
    fingerprint: str
    num_samples: int
    compared_with: str
    """`recorded`: the run's evaluation of this checkpoint; `recomputed`: by the trainer's code."""
    artifact: dict[str, ReplayCurve]
    """Replays of the exported files."""
    trained_tau: dict[str, list[float]]
    largest_difference: float
    """Largest relative difference of tau over the curves and numbers of draft tokens."""
    tolerance: float
    problems: list[str]


def check(
    artifact: Path,
    checkpoint: Checkpoint,
    dump: Dump,
    run: TrainConfig | None,
    most_samples: int | None,
) -> ReplayFindings:
    """Replay what `run` evaluated on; without a run, or of another dump, everything in it."""
    is_whole = dump.header.fingerprint == checkpoint.state.eval_dump_fingerprint
    run = settings_for(dump, checkpoint.state, run)
    reader, everything = evaluation(dump, run)
    refs = everything[:most_samples]
    if not refs:
        raise ConfigError(f"{dump.folder.url} holds no sample to replay; give another --dump")
    trained = (
        recorded_metrics(checkpoint.path, checkpoint.state)
        if run and is_whole and len(refs) == len(everything)
        else None
    )
    compared_with = "recorded" if trained else "recomputed"
    trained = trained or recompute(checkpoint, dump, reader.context_length, refs)
    return compare(artifact, dump, reader, refs, trained, compared_with, checkpoint.num_heads)


def compare(
    artifact: Path,
    dump: Dump,
    reader: SampleReader,
    refs: Sequence[SampleRef],
    trained: EvalMetrics,
    compared_with: str,
    num_heads: int,
) -> ReplayFindings:
    """The replay of an artifact's files beside the figures `trained`."""
    curves: dict[str, ReplayCurve] = {}
    drafter = PlainDrafter.load(
        artifact, load_embedding(dump.target_file), lambda: load_lm_head(dump.target_file)
    )
    ids, layers = drafter.aux_layers, dump.identity.layers
    if set(ids) <= set(layers):
        columns = [layers.index(k) for k in ids]
        texts = (_text(sample, columns) for sample in read_samples(reader, refs))
        spans = text_spans(drafter, texts, num_heads)
        for name in CURVES:
            curves[name] = replay(
                spans.sampled if name == "replay_temperature_1" else spans.greedy,
                num_heads,
                exact=getattr(trained, name).exact,
            )
        trained_tau = {name: getattr(trained, name).tau for name in CURVES}
        largest, problems = _differences(curves, trained_tau)
    else:
        trained_tau, largest = {}, float("inf")
        problems = [f"the artifact asks for layers {list(ids)}, the dump holds {list(layers)}"]
    return ReplayFindings(
        passed=not problems,
        dump=dump.folder.url,
        fingerprint=dump.header.fingerprint,
        num_samples=len(refs),
        compared_with=compared_with,
        artifact=curves,
        trained_tau=trained_tau,
        largest_difference=largest,
        tolerance=TOLERANCE,
        problems=problems,
    )


def _differences(
    curves: dict[str, ReplayCurve], trained_tau: dict[str, list[float]]
) -> tuple[float, list[str]]:
    """The largest relative difference of tau, and every one that is too large, in words."""
    largest, problems = 0.0, []
    for name, curve in curves.items():
        pairs = zip(curve.tau, trained_tau[name], strict=True)
        for count, (ours, theirs) in enumerate(pairs, start=1):
            difference = abs(ours - theirs) / theirs
            largest = max(largest, difference)
            if not difference <= TOLERANCE:
                problems.append(
                    f"{name}, {count} draft tokens: tau of the exported files is {ours:.4f}, of"
                    f" the trained drafter {theirs:.4f}: {difference:.1%} apart"
                )
    return largest, problems


def recorded_metrics(checkpoint: Path, state: TrainState) -> EvalMetrics | None:
    """The run's evaluation of exactly this checkpoint, if it made one."""
    if state.best is not None and state.best_step == state.step:
        return state.best
    for row in metric_rows(checkpoint.parent.parent):
        if row["step"] == state.step and "eval" in row:
            return EvalMetrics.model_validate(row["eval"])
    return None


def recompute(
    drafter: Weights, dump: Dump, context_length: int | None, refs: Sequence[SampleRef]
) -> EvalMetrics:
    """The figures of the drafter's own weights under the trainer's implementation."""
    trained = TrainedDrafter(drafter, dump)
    sums = MeasureSums(trained.num_heads, keep_spans=True)
    for sample in trained.measure(context_length, refs):
        sums.add(sample.batch, sample.measures_MKN)
    plain = LossSettings({"kl": 1.0}, torch.ones(trained.num_heads))
    return sums.eval_metrics(plain, dump.identity.text)


def _text(sample: DrafterSample, columns: Sequence[int]) -> TargetText:
    """The sample as the plain drafter takes it, with the aux states in the artifact's order."""
    aux_TLH = torch.tensor(sample.states.aux_TLH).view(torch.bfloat16)
    rows_S = torch.from_numpy(verifier_rows(sample.loss_mask))
    token_logprob_T = torch.zeros(len(sample.input_ids))
    token_logprob_T[rows_S + 1] = torch.tensor(sample.states.token_logprob_S)
    return TargetText(
        input_ids_T=torch.tensor(sample.input_ids).long(),
        spans=supervised_spans(sample.loss_mask),
        aux_TLH=aux_TLH[:, list(columns)],
        token_logprob_T=token_logprob_T,
        weight=sample.weight,
    )
