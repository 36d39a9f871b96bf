"""What validation level `serve` found in an engine."""

from pydantic import Field

from specpipe.schemas.base import Frozen


class Difference(Frozen):
    """A prompt whose greedy outputs differ."""

    prompt: int
    """Its number among the decoded prompts, from 0."""
    position: int
    """First token of the output that differs."""
    token_without_drafter: int
    """Of an engine without a drafter, or the target's own choice."""
    token_with_drafter: int
    logit_gap: float
    """Target's logit of the first minus that of the second, on the text that both share."""
    bf16_step: float
    """Distance of two neighbouring bfloat16 numbers at the size of these logits."""
    near_tie: bool


class GreedyCheck(Frozen):
    num_prompts: int
    num_identical: int
    differences: list[Difference]
    """The first of them, at most 20."""
    near_tie_steps: float = 4
    """Logits within so many steps of bfloat16 may change order between two batch shapes."""
    passed: bool
    """Every difference is a near-tie of the two logits."""


class SampledCheck(Frozen):
    """Log-likelihood per token, under the target, of outputs at temperature 1.

    Two tests. The mean must be that of the outputs without a drafter. And the log-probability of
    a token drawn from p is -entropy(p) in the mean, whatever the text before it: the mean of their
    sum, the *excess*, must be 0, which is the sharper test of the two. Chance fails either of them
    once in 10,000 times at most (see acceptance/evidence.py).
    """

    mean_logprob_without_drafter: float | None
    """None where there is no engine without a drafter to compare with: a server that runs."""
    mean_logprob_with_drafter: float
    standard_error: float | None
    """Of the difference, over prompts."""
    z: float | None
    excess: float
    """Mean of log p(token) + entropy(p) over the outputs with drafter, nats."""
    excess_standard_error: float
    excess_z: float
    chance: float | None = None
    """A bound of the probability of such a difference of the means by chance, and"""
    excess_chance: float | None = None
    """of such an excess."""
    passed: bool

    def in_words(self) -> str:
        """The first of the two tests."""
        words = f"mean log-probability {self.mean_logprob_with_drafter:.4f} per token with drafter"
        if self.z is None:
            return words
        return (
            f"{words}, {self.mean_logprob_without_drafter:.4f} without"
            f" ({self.z:+.1f} standard errors)"
        )


class RoundsComparison(Frozen):
    """Acceptance that the engine measured, and that the replay predicts, over the same texts."""

    num_rounds_measured: int
    num_rounds_replayed: float
    tau_measured: float
    tau_replayed: float
    relative_difference: float
    """(replayed - measured) / measured"""
    relative_error_95: float
    """95 % half-width of that difference: what the draws of acceptance alone can do."""
    acceptance_measured: list[float]
    """[k]: share of rounds whose first k drafts are accepted."""
    acceptance_replayed: list[float]
    acceptance_error_95: list[float]
    tolerance: float
    """Accepted difference: relative of tau, absolute of each acceptance."""
    or_within_error: bool | None = None
    """What earlier versions accepted instead."""
    chance: float | None = None
    """A bound of the probability that an honest engine differs so in tau, and"""
    acceptance_chance: list[float] = Field(default_factory=list)
    """in each acceptance. Differences beyond the tolerance are accepted where it is not small."""
    passed: bool


class Counters(Frozen):
    """vLLM's counts of drafted and accepted tokens."""

    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int
    accepted_per_position: list[int]

    def minus(self, before: "Counters") -> "Counters":
        return self._with(before, -1)

    def plus(self, more: "Counters") -> "Counters":
        return self._with(more, 1)

    def _with(self, other: "Counters", sign: int) -> "Counters":
        pairs = zip(self.accepted_per_position, other.accepted_per_position, strict=True)
        return Counters(
            num_drafts=self.num_drafts + sign * other.num_drafts,
            num_draft_tokens=self.num_draft_tokens + sign * other.num_draft_tokens,
            num_accepted_tokens=self.num_accepted_tokens + sign * other.num_accepted_tokens,
            accepted_per_position=[ours + sign * theirs for ours, theirs in pairs],
        )


MOST_STEP_SECONDS = 1e6


class StepTime(Frozen):
    """Time of a decoding step at one batch size and number of draft tokens."""

    batch_size: int = Field(ge=1, le=2**20)
    num_draft_tokens: int | None = Field(ge=0, le=2**10)
    """0: a drafter is loaded and only follows the text; None: an engine without one."""
    seconds_per_step: float = Field(ge=1 / MOST_STEP_SECONDS, le=MOST_STEP_SECONDS)
    """A step of the target, or a round of drafts and their verification, for the whole batch."""


class Served(Frozen):
    """Findings for one number of draft tokens."""

    num_draft_tokens: int
    lossless_greedy: GreedyCheck
    lossless_temperature_1: SampledCheck
    greedy: RoundsComparison | None
    """None where the engine is not lossless: its acceptance then means nothing."""
    temperature_1: RoundsComparison | None
    counters_greedy: Counters
    """vLLM's own; they hold the last, cut round of each output too."""
    counters_temperature_1: Counters
    seconds_greedy: float
    seconds_temperature_1: float
    passed: bool


class ServeFindings(Frozen):
    """What level `serve` found."""

    passed: bool
    vllm_version: str
    cpu_fix_applied: bool | None
    """Whether vLLM's CPU build had to be repaired here (see target/vllm/repairs); unknown of a
    server."""
    with_plugin: bool = False
    """Whether our plugin gave the target's model the interface for drafters that vLLM lacks."""
    target: str
    num_prompts: int
    max_tokens: int
    server: str | None = None
    """URL of a server that was measured from outside; None: an engine of our own."""
    seconds_without_drafter_greedy: float | None
    seconds_without_drafter_temperature_1: float | None
    step_times: list[StepTime]
    """Without and with the drafter; none of a server's, which may stand anywhere."""
    runs: list[Served]
    problems: list[str]
