"""Validation level `serve`: a real vLLM decodes with the artifact, and must agree with the replay.

First the engine is shown to be lossless (see lossless.py). Then the texts that it wrote are run
through the target and replayed with the exported drafter, and its own acceptance is compared.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedConfig

from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.served import RoundsComparison, Served, ServeFindings
from specpipe.schemas.settings.stages import ServeConfig
from specpipe.stages.acceptance.replay import expected_rounds
from specpipe.stages.drafters.contract import Proposal
from specpipe.stages.drafters.reading import read_artifact
from specpipe.stages.drafters.registry import drafter_kind
from specpipe.stages.target.files.identity import architecture_of, cached_numbers, load_config
from specpipe.stages.target.files.location import TargetSource, local_folder
from specpipe.stages.target.vllm.support.servable import servable
from specpipe.stages.validate.drafted_text import text_spans
from specpipe.stages.validate.serve.capture import (
    CapturedText,
    TargetCapture,
    excess_chance,
    near_ties,
)
from specpipe.stages.validate.serve.engine import Decoded, EngineRequest, EngineResult, decode
from specpipe.stages.validate.serve.findings import compare_at, problems_of
from specpipe.stages.validate.serve.lossless import (
    check_greedy,
    check_sampled,
    greedy_difference,
    num_shared,
)
from specpipe.stages.validate.serve.rounds import measured_rounds

PARALLEL_PROMPTS = 32
SPARE_TOKENS = 64
BYTES_PER_VALUE = 2
LEAST_CACHE_BYTES = 256 * 2**20

Report = Callable[[str], None]
"""Told what is going on, a line at a time."""


def check(
    artifact: Path,
    target: TargetSource,
    prompts: Sequence[Sequence[int]],
    config: ServeConfig,
    report: Report,
    *,
    fix_cpu: bool = True,
) -> ServeFindings:
    """Serve `prompts` (token ids) without a drafter, then with it for each number of drafts."""
    if len(prompts) < 2:
        raise ConfigError("serve needs at least two prompts; give --serve-data with more")

    folder = local_folder(target.name, target.revision, with_code=config.trust_remote_code)
    model = load_config(folder, trust_remote_code=config.trust_remote_code)
    architecture = architecture_of(folder, trust_remote_code=config.trust_remote_code)
    longest = max(map(len, prompts)) + config.serve_max_tokens
    shape = read_artifact(str(artifact)).shape
    kind = drafter_kind(shape)
    with_plugin = servable(architecture, kind.serving).how == "plugin"
    largest = max(min(len(prompts), PARALLEL_PROMPTS), *config.serve_batch_sizes)
    cache_bytes = cache_bytes_of(model, kind.num_layers(shape), largest, longest)

    def engine(num_draft_tokens: int, *, is_timed: bool) -> EngineResult:
        has_schedule = is_timed and num_draft_tokens > 0 and kind.serving.follows_schedule
        return decode(
            EngineRequest(
                target=target.name,
                revision=target.revision,
                artifact=str(artifact.resolve()) if num_draft_tokens else None,
                method=kind.serving.method,
                options=dict(kind.serving.options),
                draft_sample_method="probabilistic" if kind.settings.samples_drafts else "greedy",
                num_draft_tokens=num_draft_tokens,
                prompts=[list(prompt) for prompt in prompts],
                max_tokens=config.serve_max_tokens,
                temperatures=[0.0, 1.0],
                draft_schedule=[(1, 1, num_draft_tokens)] if has_schedule else [],
                timed_batch_sizes=list(config.serve_batch_sizes) if is_timed else [],
                seed=config.seed,
                kv_cache_bytes=cache_bytes,
                # Without a drafter, it is vLLM's own model that the output is held against.
                with_plugin=with_plugin and num_draft_tokens > 0,
                trust_remote_code=config.trust_remote_code,
                fix_cpu=fix_cpu,
            )
        )

    def capture() -> TargetCapture:
        return TargetCapture(target, shape.aux_layers, trust_remote_code=config.trust_remote_code)

    # What transformers cannot load or run is found before engines have run for minutes. They want
    # the memory: the target is let go, and loaded again when they are done.
    report("loading the target in transformers, to see that it can be replayed")
    capture().close()
    report("vLLM decodes without a drafter")
    plain = engine(0, is_timed=True)
    engines = {}
    most = max(config.serve_speculative_tokens)
    for num_draft_tokens in config.serve_speculative_tokens:
        report(f"vLLM decodes with {num_draft_tokens} draft tokens")
        # The largest can draft fewer too, where it follows a schedule.
        is_timed = num_draft_tokens == most or not kind.serving.follows_schedule
        engines[num_draft_tokens] = engine(num_draft_tokens, is_timed=is_timed)
    report("replaying the texts that vLLM wrote")
    loaded = capture()
    drafter = kind.proposal(artifact, loaded)
    judge = _Judge(loaded, drafter, prompts, plain, samples_drafts=kind.settings.samples_drafts)
    runs = [judge.run(count, result) for count, result in engines.items()]
    problems = [problem for run in runs for problem in problems_of(run)]
    return ServeFindings(
        passed=not problems,
        vllm_version=plain.vllm_version,
        cpu_fix_applied=plain.cpu_fix_applied,
        with_plugin=with_plugin,
        target=target.name,
        num_prompts=len(prompts),
        max_tokens=config.serve_max_tokens,
        seconds_without_drafter_greedy=plain.decoded[0].seconds,
        seconds_without_drafter_temperature_1=plain.decoded[1].seconds,
        step_times=[time for one in (plain, *engines.values()) for time in one.step_times],
        runs=runs,
        problems=problems,
    )


def cache_bytes_of(
    model: PreTrainedConfig, drafter_layers: int, num_prompts: int, num_tokens: int
) -> int:
    """Room for the keys and values of so many prompts at once, the drafter's layers included.

    An engine left to itself takes most of the machine's memory.
    """
    num_layers = model.get_text_config(decoder=True).num_hidden_layers + drafter_layers
    per_token = cached_numbers(model, num_layers) * BYTES_PER_VALUE
    # Blocks are filled in part only, and drafts need room beyond the text.
    return max(LEAST_CACHE_BYTES, num_prompts * (num_tokens + SPARE_TOKENS) * per_token)


class _Judge:
    """Compares engines with a drafter to the one without, on the same prompts."""

    def __init__(
        self,
        capture: TargetCapture,
        drafter: Proposal,
        prompts: Sequence[Sequence[int]],
        plain: EngineResult,
        *,
        samples_drafts: bool,
    ) -> None:
        self._samples_drafts = samples_drafts
        self._capture = capture
        self._drafter = drafter
        self._prompts = prompts
        self._greedy, sampled = plain.decoded
        texts = capture.capture(prompts, sampled.output_ids)
        self._plain_logprob_B = np.array([text.mean_logprob for text in texts])

    def run(self, num_draft_tokens: int, result: EngineResult) -> Served:
        greedy, sampled = result.decoded
        greedy_texts = self._capture.capture(self._prompts, greedy.output_ids)
        sampled_texts = self._capture.capture(self._prompts, sampled.output_ids)
        pairs = list(zip(self._greedy.output_ids, greedy.output_ids, strict=True))
        steps = near_ties(greedy_texts, [num_shared(*pair) for pair in pairs])
        differences = [
            greedy_difference(number, *pair, text.output_logits_SV.numpy(), steps)
            for number, (pair, text) in enumerate(zip(pairs, greedy_texts, strict=True))
        ]
        lossless_greedy = check_greedy(differences, steps)
        lossless_sampled = check_sampled(
            self._plain_logprob_B,
            np.array([text.mean_logprob for text in sampled_texts]),
            np.array([text.excess for text in sampled_texts]),
            excess_chance(sampled_texts),
        )
        greedy_comparison = sampled_comparison = None
        if lossless_greedy.passed:
            greedy_comparison = self._compare(greedy, greedy_texts, num_draft_tokens)
        if lossless_sampled.passed:
            sampled_comparison = self._compare(sampled, sampled_texts, num_draft_tokens)
        assert greedy.counters is not None
        assert sampled.counters is not None
        comparisons = (greedy_comparison, sampled_comparison)
        return Served(
            num_draft_tokens=num_draft_tokens,
            lossless_greedy=lossless_greedy,
            lossless_temperature_1=lossless_sampled,
            greedy=greedy_comparison,
            temperature_1=sampled_comparison,
            counters_greedy=greedy.counters,
            counters_temperature_1=sampled.counters,
            seconds_greedy=greedy.seconds,
            seconds_temperature_1=sampled.seconds,
            passed=all(comparison is not None and comparison.passed for comparison in comparisons),
        )

    def _compare(
        self, decoded: Decoded, texts: Sequence[CapturedText], num_draft_tokens: int
    ) -> RoundsComparison:
        """The engine's whole rounds against those of the replay of the same texts."""
        assert decoded.accepted_per_round is not None
        lengths = [len(output) for output in decoded.output_ids]
        measured = measured_rounds(decoded.accepted_per_round, lengths, num_draft_tokens)
        spans = text_spans(self._drafter, [text.text for text in texts], num_draft_tokens)
        is_greedy = decoded.temperature == 0 or not self._samples_drafts
        replayed = expected_rounds(spans.greedy if is_greedy else spans.sampled, num_draft_tokens)
        honest = spans.greedy_chance if is_greedy else spans.sampled
        return compare_at(decoded.temperature, measured, replayed, honest)
