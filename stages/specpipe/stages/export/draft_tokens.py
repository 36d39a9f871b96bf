"""The number of draft tokens of an artifact, from the replay's tau and the cost of a round."""

from dataclasses import dataclass

from specpipe.schemas.records.served import ServeFindings
from specpipe.schemas.records.validation import ReplayFindings, StructureFindings
from specpipe.schemas.settings.stages import ExportConfig
from specpipe.schemas.speedup import Cost, Recommendation, fitted_cost, recommend, speedup
from specpipe.schemas.step_costs import plain_seconds, relative_rounds
from specpipe.stages.drafters.contract import Serving

CURVE = "replay_temperature_1"


@dataclass(frozen=True, slots=True)
class LevelFindings:
    """Findings of the levels of validation that have run."""

    structure: StructureFindings | None = None
    replay: ReplayFindings | None = None
    serve: ServeFindings | None = None

    def by_level(self) -> dict[str, StructureFindings | ReplayFindings | ServeFindings]:
        found = (("structure", self.structure), ("replay", self.replay), ("serve", self.serve))
        return {level: one for level, one in found if one is not None}


def recommendation(
    config: ExportConfig, num_heads: int, findings: LevelFindings, serving: Serving
) -> Recommendation:
    """What is given, else what costs recommend, else the number of draft steps that were trained.

    Costs are those that `serve` has timed, or `step_cost`.
    """
    if config.speculative_tokens is not None:
        return Recommendation(draft_tokens=config.speculative_tokens, because="given")
    replay, serve = findings.replay, findings.serve
    curve = replay.artifact.get(CURVE) if replay is not None else None
    if curve is None:
        because = "the number of draft steps that were trained: no replay predicts their tokens"
        return Recommendation(draft_tokens=num_heads, because=because)
    if serve is not None:
        speedups = [
            speedup(curve.tau, cost, measured)
            for size in config.serve_batch_sizes
            for cost, measured in [_measured(serve, size, is_parallel=serving.is_parallel)]
        ]
        return recommend(
            speedups,
            f"by step times in vLLM {serve.vllm_version}",
            follows_schedule=serving.follows_schedule,
        )
    if config.step_cost is not None:
        cost = Cost(batch_size=1, step_cost=config.step_cost, overhead=1.0)
        if serving.is_parallel:
            # One pass, whatever the number.
            cost = Cost(batch_size=1, step_cost=0.0, overhead=1.0 + config.step_cost)
        return recommend([speedup(curve.tau, cost)], f"with a step cost of {config.step_cost:g}")
    because = "the number of draft steps that were trained; step times were not measured"
    return Recommendation(draft_tokens=num_heads, because=because)


def _measured(
    serve: ServeFindings, batch_size: int, *, is_parallel: bool
) -> tuple[Cost, dict[int, float]]:
    """The cost of rounds at a batch size, and the speed-up by number of draft tokens.

    The latter where the engine's tau was measured: it does not depend on the batch size.
    """
    plain = plain_seconds(serve.step_times, batch_size)
    rounds = relative_rounds(serve.step_times, batch_size, plain)
    speed = {
        run.num_draft_tokens: run.temperature_1.tau_measured / rounds[run.num_draft_tokens]
        for run in serve.runs
        if run.temperature_1 is not None
    }
    return fitted_cost(batch_size, rounds, is_parallel=is_parallel), speed
