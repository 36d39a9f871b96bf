"""Validation level `serve` of a server that runs already: a deployment, measured from outside.

Only counters say what it accepted. They hold the rounds that an output's end cuts too, as whole
ones; so each output is continued by K - 1 tokens, and the replay counts every round that began
before the end. There is no engine without a drafter beside it: that its output is the target's is
shown by the target alone.

Legend: B prompts, G groups of prompts, K draft tokens.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.served import Counters, RoundsComparison, Served, ServeFindings
from specpipe.schemas.settings.stages import ServerConfig
from specpipe.stages.acceptance.replay import Rounds, expected_rounds
from specpipe.stages.drafters.reading import read_artifact
from specpipe.stages.drafters.registry import drafter_kind
from specpipe.stages.target.files.location import TargetSource
from specpipe.stages.validate.drafted_text import text_spans
from specpipe.stages.validate.serve.capture import (
    CapturedText,
    TargetCapture,
    excess_chance,
    near_ties,
)
from specpipe.stages.validate.serve.engine import spare_tokens
from specpipe.stages.validate.serve.findings import compare_at, problems_of
from specpipe.stages.validate.serve.lossless import check_greedy, check_sampled, target_difference
from specpipe.stages.validate.serve.run import Report
from specpipe.stages.validate.server.client import Group, Server, ServerDecoded


def check(
    artifact: Path,
    target: TargetSource,
    prompts: Sequence[Sequence[int]],
    config: ServerConfig,
    report: Report,
) -> ServeFindings:
    """Let the server of `config` decode `prompts` (token ids), and replay what it wrote."""
    trust = config.trust_remote_code
    with Server.connect(config) as server:
        _check_room(server, prompts, config)
        shape = read_artifact(str(artifact)).shape
        # Transformers may not be able to load or run the target: before the server works in vain.
        capture = TargetCapture(target, shape.aux_layers, trust_remote_code=trust)
        greedy, sampled = _decoded(server, prompts, config, report)
    num_draft_tokens = server.num_draft_tokens
    report("replaying the texts that it wrote")
    kind = drafter_kind(shape)
    drafter = kind.proposal(artifact, capture)

    greedy_texts = capture.capture(prompts, greedy.output_ids)
    sampled_texts = capture.capture(prompts, sampled.output_ids)
    steps = near_ties(greedy_texts, list(map(len, greedy.output_ids)))
    differences = [
        target_difference(number, output, text.output_logits_SV.numpy(), steps)
        for number, (output, text) in enumerate(zip(greedy.output_ids, greedy_texts, strict=True))
    ]
    lossless_greedy = check_greedy(differences, steps)
    lossless_sampled = check_sampled(
        None,
        np.array([text.mean_logprob for text in sampled_texts]),
        np.array([text.excess for text in sampled_texts]),
        excess_chance(sampled_texts),
    )
    is_probabilistic = config.serve_draft_sample_method == "probabilistic"
    draws = is_probabilistic and kind.settings.samples_drafts
    compared: list[RoundsComparison | None] = []
    for decoded, lossless in ((greedy, lossless_greedy), (sampled, lossless_sampled)):
        if not lossless.passed:
            compared.append(None)
            continue
        texts = _with_further(capture, prompts, decoded)
        spans = text_spans(drafter, [text.text for text in texts], num_draft_tokens)
        is_sampled = draws and decoded.temperature > 0
        replayed = expected_rounds(spans.sampled if is_sampled else spans.greedy, num_draft_tokens)
        honest = spans.sampled if is_sampled else spans.greedy_chance
        measured, by_group = _counted(decoded.groups), _by(decoded.groups, replayed)
        compared.append(compare_at(decoded.temperature, measured, by_group, honest))
    run = Served(
        num_draft_tokens=num_draft_tokens,
        lossless_greedy=lossless_greedy,
        lossless_temperature_1=lossless_sampled,
        greedy=compared[0],
        temperature_1=compared[1],
        counters_greedy=_sum(greedy),
        counters_temperature_1=_sum(sampled),
        seconds_greedy=greedy.seconds,
        seconds_temperature_1=sampled.seconds,
        passed=all(comparison is not None and comparison.passed for comparison in compared),
    )
    problems = problems_of(run)
    return ServeFindings(
        passed=not problems,
        vllm_version=server.version,
        cpu_fix_applied=None,
        target=target.name,
        num_prompts=len(prompts),
        max_tokens=config.serve_max_tokens,
        server=server.url,
        seconds_without_drafter_greedy=None,
        seconds_without_drafter_temperature_1=None,
        step_times=[],
        runs=[run],
        problems=problems,
    )


def _decoded(
    server: Server, prompts: Sequence[Sequence[int]], config: ServerConfig, report: Report
) -> tuple[ServerDecoded, ServerDecoded]:
    """What the server writes at temperature 0 and 1."""
    report(f"{server.url} decodes with {server.num_draft_tokens} draft tokens, at temperature 0")
    greedy = server.decode(prompts, config.serve_max_tokens, 0.0)
    report(f"{server.url} decodes at temperature 1")
    return greedy, server.decode(prompts, config.serve_max_tokens, 1.0)


def _check_room(server: Server, prompts: Sequence[Sequence[int]], config: ServerConfig) -> None:
    """Raises ConfigError where a text does not fit into the server."""
    spare = spare_tokens(server.num_draft_tokens)
    needed = max(map(len, prompts)) + config.serve_max_tokens + spare
    if server.longest is not None and needed > server.longest:
        raise ConfigError(
            f"{server.url} takes {server.longest} tokens at most: the longest prompt, its output"
            f" and room for drafts are {needed}; give less --serve-max-tokens or shorter prompts"
        )


def _with_further(
    capture: TargetCapture, prompts: Sequence[Sequence[int]], decoded: ServerDecoded
) -> list[CapturedText]:
    """The outputs with the tokens that the last rounds drafted beyond them."""
    longer = [
        [*output, *further]
        for output, further in zip(decoded.output_ids, decoded.further_ids, strict=True)
    ]
    return capture.capture(prompts, longer)


def _counted(groups: Sequence[Group]) -> Rounds:
    """The counters of each group."""
    return Rounds(
        np.array([group.counters.num_drafts for group in groups], dtype=float),
        np.array([group.counters.accepted_per_position for group in groups], dtype=float),
    )


def _by(groups: Sequence[Group], replayed: Rounds) -> Rounds:
    """The rounds of each group's prompts."""
    return Rounds(
        np.array([replayed.rounds_B[group.prompts].sum() for group in groups]),
        np.array([replayed.accepted_BK[group.prompts].sum(0) for group in groups]),
    )


def _sum(decoded: ServerDecoded) -> Counters:
    total, *others = (group.counters for group in decoded.groups)
    for counters in others:
        total = total.plus(counters)
    return total
