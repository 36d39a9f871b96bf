"""The model card that lies beside the artifact."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from specpipe.schemas.drafters.base import DrafterShape
from specpipe.schemas.records.artifact import ARTIFACT_FOLDER, VALIDATION_FILE
from specpipe.schemas.records.metrics import replay_titles
from specpipe.schemas.records.served import RoundsComparison
from specpipe.schemas.records.validation import ReplayFindings, Validation
from specpipe.schemas.speedup import Recommendation
from specpipe.schemas.tested import TESTED
from specpipe.stages.drafters.registry import drafter_kind
from specpipe.stages.target.vllm.support.servable import Servable
from specpipe.stages.validate.serve.engine_support import card_lines, serve_prefix


def model_card(
    shape: DrafterShape, validation: Validation, advice: Recommendation, served: Servable
) -> str:
    """README.md: what it is, how to serve it, what to expect."""
    target, kind = validation.target, drafter_kind(shape)
    speculative: dict[str, Any] = {
        "method": kind.serving.method,
        "model": ARTIFACT_FOLDER,
        "num_speculative_tokens": advice.most_draft_tokens,
        **kind.serving.options,
    }
    samples_drafts = kind.settings.samples_drafts
    if samples_drafts:
        speculative["draft_sample_method"] = "probabilistic"
    if advice.schedule:
        speculative["num_speculative_tokens_per_batch_size"] = advice.schedule
    lines = [
        "---",
        f"base_model: {json.dumps(target.name)}",
        f"tags: [speculative-decoding, {shape.architecture}]",
        "---",
        f"# {kind.serving.title} drafter for {target.name}",
        "",
        f"Guesses the next tokens of `{target.name}` ({target.architecture}, weights sha256"
        f" `{target.weights_sha256[:16]}`), which accepts or rejects them: the output stays the"
        f" target's own. Trained and exported by specpipe; layout `{validation.config.format}`.",
        "",
        "```sh",
        f"{serve_prefix(served)}vllm serve {target.name}"
        f" --speculative-config '{json.dumps(speculative)}'",
        "```",
        "",
        *card_lines(served),
        "`draft_sample_method: probabilistic` samples the drafts, which is better at temperatures"
        " above 0; vLLM's default drafts greedily."
        if samples_drafts
        else "It drafts greedily at every temperature: engines do not sample its drafts.",
        "",
        "| | |",
        "|---|---|",
        f"| auxiliary layers (vLLM's numbering) | {', '.join(map(str, shape.aux_layers))} |",
        f"| draft vocabulary | {shape.draft_vocab_size} of {shape.vocab_size} tokens |",
        f"| training step | {validation.step} |",
        f"| engine | {kind.needed_engine(shape) or f'any that serves {kind.serving.title}'} |",
        f"| vLLM versions tested | {TESTED['vllm']} |",
        f"| recommended draft tokens | {advice.draft_tokens}: {advice.because} |",
        "",
        *_replayed(validation, replay_titles(samples_drafts=samples_drafts)),
        *_served(validation),
        f"## Validation: {'passed' if validation.passed else 'FAILED'}",
        "",
        *(f"- {problem}" for problem in validation.problems),
        f"Findings of every level are in `{VALIDATION_FILE}`.",
    ]
    return "\n".join(lines) + "\n"


def _replayed(validation: Validation, titles: Mapping[str, str]) -> list[str]:
    findings = validation.replay
    if findings is None or not findings.artifact:
        return []
    count = len(next(iter(findings.artifact.values())).tau)
    rows = [
        f"| {titles[name]}{'' if curve.exact else ' (*)'} | {_figures(curve.tau)} |"
        for name, curve in findings.artifact.items()
        if name in titles
    ]
    return [
        "## Tokens per round, replayed on held-out samples",
        "",
        f"| draft tokens | {' | '.join(str(k) for k in range(1, count + 1))} |",
        "|---" * (count + 1) + "|",
        *rows,
        "",
        *_rounding(findings, titles),
        *(
            ["(*) not text that the target wrote in this way, so only an estimate.", ""]
            if not all(curve.exact for curve in findings.artifact.values())
            else []
        ),
    ]


def _rounding(findings: ReplayFindings, titles: Mapping[str, str]) -> list[str]:
    if not findings.rounding:
        return []
    most = len(next(iter(findings.rounding.values())).difference)
    costs = "; ".join(
        f"{titles[name]}, {cost.in_words()}"
        for name, cost in findings.rounding.items()
        if name in titles
    )
    return [
        f"Of this, rounding the trained weights to bfloat16 did, with {most} draft tokens (and its"
        f" 95 % interval): {costs}.",
        "",
    ]


def _served(validation: Validation) -> list[str]:
    findings = validation.serve
    if findings is None:
        return []
    lines = [
        f"## Tokens per round, measured in vLLM {findings.vllm_version}",
        "",
        f"{findings.num_prompts} prompts, {findings.max_tokens} tokens each.",
        "",
        "| draft tokens | | measured | replayed | acceptance per position, measured |",
        "|---|---|---|---|---|",
    ]
    for run in findings.runs:
        for name, found in (("greedy", run.greedy), ("temperature 1", run.temperature_1)):
            lines.append(f"| {run.num_draft_tokens} | {name} | {_measured(found)} |")
    return [*lines, ""]


def _measured(found: RoundsComparison | None) -> str:
    if found is None:
        return "the engine is not lossless | |"
    rates = ", ".join(f"{rate:.3f}" for rate in found.acceptance_measured)
    return f"{found.tau_measured:.3f} | {found.tau_replayed:.3f} | {rates}"


def _figures(values: Sequence[float]) -> str:
    return " | ".join(f"{value:.3f}" for value in values)
