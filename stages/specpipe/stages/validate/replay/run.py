"""Validation level `replay`: the exported files are the drafter that was trained.

Like is compared with like. The tensors must be the checkpoint's, rounded; and the plain drafter,
which loads the files and shares no code with the trained one, must agree with the trainer's code on
those same rounded weights, at every start. What the rounding itself costs is a finding apart, and
no failure: the tau of both sides on the same samples.

Legend: T tokens, L aux layers, S verifier rows, K heads.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.dump import TextOrigin
from specpipe.schemas.records.metrics import REPLAY_TITLES, EvalMetrics, ReplayCurve, TauDifference
from specpipe.schemas.records.sample import verifier_rows
from specpipe.schemas.records.validation import ReplayFindings
from specpipe.schemas.settings.train import ResolvedTrainConfig
from specpipe.stages.acceptance.measure_sums import MeasureSums
from specpipe.stages.acceptance.replay import ReplaySpan, replay, tau_difference
from specpipe.stages.drafters.artifact import Artifact
from specpipe.stages.drafters.registry import drafter_kind
from specpipe.stages.drafters.scorer import TrainedDrafter
from specpipe.stages.runs.checkpoint import Checkpoint
from specpipe.stages.runs.held_out import evaluation, settings_for
from specpipe.stages.runs.metric_rows import recorded_metrics
from specpipe.stages.samples.batch import DrafterSample, supervised_spans
from specpipe.stages.samples.read_ahead import read_samples
from specpipe.stages.samples.reader import SampleReader, SampleRef
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.head.target_tensors import StoredTarget
from specpipe.stages.validate.drafted_text import TargetText, TextSpans
from specpipe.stages.validate.replay.agreement import Comparison
from specpipe.stages.validate.replay.artifact_weights import ArtifactWeights, artifact_weights
from specpipe.stages.validate.replay.same_weights import stored_tensors, weight_problems

RECORDED_ERRORS = 10
"""Standard errors of what rounding the weights does to tau, which recorded figures may be off: the
run may have computed in bfloat16, or on a GPU."""
RECORDED_SHARE = 0.002
RECORDED_ROUNDS = 3
"""Whole rounds by which any figure of a small set may be off."""


def check(
    artifact: Path,
    checkpoint: Checkpoint,
    dump: Dump,
    run: ResolvedTrainConfig | None,
    most_samples: int | None,
) -> ReplayFindings:
    """Replay what `run` evaluated on; without a run, or of another dump, everything in it."""
    is_whole = dump.header.fingerprint == checkpoint.state.eval_dump_fingerprint
    run = settings_for(dump, checkpoint.state, run)
    reader, everything = evaluation(dump, run)
    refs = everything[:most_samples]
    if not refs:
        raise ConfigError(f"{dump.folder.url} holds no sample to replay; give another --dump")
    stored = stored_tensors(artifact)
    target = StoredTarget(dump.target_file)
    problems = weight_problems(stored, checkpoint, target)
    if problems:
        return _not_replayed(dump, len(refs), problems)
    shape = checkpoint.shape
    read = Artifact(artifact, {}, shape, stored, layer_ids=None)
    exported = artifact_weights(read, target, checkpoint.num_heads)
    found = compare(exported, checkpoint, dump, reader.context_length, refs)
    recorded = (
        recorded_metrics(checkpoint.path, checkpoint.state)
        if run and is_whole and len(refs) == len(everything)
        else None
    )
    return found if recorded is None else _with_recorded(found, recorded)


def compare(
    exported: ArtifactWeights,
    checkpoint: Checkpoint | None,
    dump: Dump,
    context_length: int | None,
    refs: Sequence[SampleRef],
) -> ReplayFindings:
    """The artifact's files beside the trainer's code: on the same weights, and, where there is a
    checkpoint, on those before they were rounded."""
    target = StoredTarget(dump.target_file)
    kind = drafter_kind(exported.shape)
    plain = kind.proposal(exported.path, target)
    each_number = kind.depends_on_num_heads(exported.shape)
    layers = exported.shape.aux_layers
    if plain.aux_layers != layers:
        asks, took = list(plain.aux_layers), list(layers)
        problem = f"the artifact asks for layers {asks}, the drafter was trained on {took}"
        return _not_replayed(dump, len(refs), [problem])
    same = TrainedDrafter(exported, dump)
    trained = same if checkpoint is None else TrainedDrafter(checkpoint, dump)
    num_heads = exported.num_heads
    spans = TextSpans(samples_drafts=same.samples_drafts)
    sums = MeasureSums(num_heads, keep_spans=True, samples_drafts=same.samples_drafts)
    comparison = Comparison(plain, same)
    for sample in read_samples(SampleReader(dump, context_length, layers=layers), refs):
        measured = trained.measured(sample)
        sums.add(measured.batch, measured.measures_MKN, measured.fewer)
        text = text_of(sample)
        outputs = spans.add(plain, text, num_heads, each_number=each_number)
        hidden_KNH = measured.hidden_KNH if trained is same else same.hidden(measured.batch)
        comparison.add(text, outputs, measured.batch, hidden_KNH)
    curves = _curves(spans.sampled, spans.greedy, num_heads, dump.identity.text)
    before = _curves(sums.sampled_spans, sums.greedy_spans, num_heads, dump.identity.text)
    agreement = comparison.found
    problems = [] if agreement.problem is None else [agreement.problem]
    return ReplayFindings(
        passed=not problems,
        dump=dump.folder.url,
        fingerprint=dump.header.fingerprint,
        num_samples=len(refs),
        compared_with="recomputed",
        artifact=curves,
        trained_tau={name: curve.tau for name, curve in before.items()},
        largest_difference=max(
            abs(ours - theirs) / theirs
            for name, curve in curves.items()
            for ours, theirs in zip(curve.tau, before[name].tau, strict=True)
        ),
        agreement=agreement,
        rounding={} if checkpoint is None else _rounding(spans, sums, num_heads),
        problems=problems,
    )


def _curves(
    sampled: Sequence[ReplaySpan],
    greedy: Sequence[ReplaySpan],
    num_heads: int,
    text: TextOrigin,
) -> dict[str, ReplayCurve]:
    spans = (sampled, greedy, greedy)
    exact = (text.is_sampled, text.is_greedy, text.is_sampled)
    return {
        name: replay(of_curve, num_heads, exact=is_exact)
        for name, of_curve, is_exact in zip(REPLAY_TITLES, spans, exact, strict=True)
    }


def _rounding(spans: TextSpans, sums: MeasureSums, num_heads: int) -> dict[str, TauDifference]:
    sampled = tau_difference(spans.sampled, _drafted(sums.sampled_spans), num_heads)
    greedy = tau_difference(spans.greedy, _drafted(sums.greedy_spans), num_heads)
    return dict(zip(REPLAY_TITLES, (sampled, greedy, greedy), strict=True))


def _drafted(spans: Sequence[ReplaySpan]) -> list[ReplaySpan]:
    """Spans with a draft, which are all that the plain drafter's texts have."""
    return [span for span in spans if span.num_tokens >= 2]


def _with_recorded(found: ReplayFindings, recorded: EvalMetrics) -> ReplayFindings:
    """The findings beside the run's own evaluation, which must be the trainer's code's."""
    problems = list(found.problems)
    recorded_tau = {name: getattr(recorded, name).tau for name in REPLAY_TITLES}
    for name, tau in found.trained_tau.items():
        cost, curve = found.rounding[name], found.artifact[name]
        for k, (ours, theirs) in enumerate(zip(tau, recorded_tau[name], strict=True)):
            limit = (
                RECORDED_SHARE * theirs
                + RECORDED_ERRORS * cost.standard_error[k]
                + RECORDED_ROUNDS * (k + 1) / max(curve.num_rounds[k], 1.0)
            )
            if not abs(ours - theirs) <= limit:
                problems.append(
                    f"{name}, {k + 1} draft tokens: tau of the trained drafter is {ours:.4f}, but"
                    f" the run recorded {theirs:.4f}: it was trained or evaluated by other"
                    " arithmetic than this (a GPU's kernels?)"
                )
    return found.model_copy(
        update={
            "passed": not problems,
            "compared_with": "recorded",
            "recorded_tau": recorded_tau,
            "problems": problems,
        }
    )


def _not_replayed(dump: Dump, num_samples: int, problems: list[str]) -> ReplayFindings:
    return ReplayFindings(
        passed=False,
        dump=dump.folder.url,
        fingerprint=dump.header.fingerprint,
        num_samples=num_samples,
        compared_with="recomputed",
        artifact={},
        trained_tau={},
        largest_difference=None,
        problems=problems,
    )


def text_of(sample: DrafterSample) -> TargetText:
    """The sample as the plain drafter takes it."""
    aux_TLH = torch.tensor(sample.states.aux_TLH).view(torch.bfloat16)
    rows_S = torch.from_numpy(verifier_rows(sample.loss_mask))
    token_logprob_T = torch.zeros(len(sample.input_ids))
    token_logprob_T[rows_S + 1] = torch.tensor(sample.states.token_logprob_S)
    return TargetText(
        input_ids_T=torch.tensor(sample.input_ids).long(),
        spans=supervised_spans(sample.loss_mask),
        aux_TLH=aux_TLH,
        token_logprob_T=token_logprob_T,
        weight=sample.weight,
    )
