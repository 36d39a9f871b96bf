"""What `specpipe choose` leaves, as types.

OUT/
  probe/NAME/               a training run of a few steps: what a step takes, and the shape
  engine/NAME/              the artifact of that run, random as good as, and its times.json
  engine/times.json         the EngineTimes of the target without a drafter
  step_times.json           the StepTimes of all, for --step-times elsewhere
  plan.json                 the ChoosePlan, written once
  runs/NAME/                the training run that is compared
  clock.json                seconds so far
  train.yaml                settings of the recommended drafter, for `specpipe train --config`
  choose.json, choose.html  the ChooseResult, and a page that shows it
"""

from pydantic import Field, model_validator

from specpipe.schemas.base import Record
from specpipe.schemas.records.served import StepTime
from specpipe.schemas.records.tune import RunName, Settings, ShortRun
from specpipe.schemas.speedup import Schedule, Speedup

TIMES_FILE = "times.json"
STEP_TIMES_FILE = "step_times.json"
RESULT_FILE = "choose.json"
PAGE_FILE = "choose.html"
PROBE_FOLDER = "probe"
ENGINE_FOLDER = "engine"
RUNS_FOLDER = "runs"


class EngineTimes(Record):
    """Of one engine: with one drafter, or without."""

    vllm_version: str
    times: list[StepTime] = Field(min_length=1)


class StepTimes(Record):
    """`step_times.json`: what steps take in an engine, with each drafter at its real shape."""

    target: str
    vllm_version: str
    without_drafter: list[StepTime] = Field(min_length=1)
    drafters: dict[str, list[StepTime]]
    """By architecture."""

    @model_validator(mode="after")
    def _of_engines_with_and_without(self) -> "StepTimes":
        if any(time.num_draft_tokens is not None for time in self.without_drafter):
            raise ValueError("without_drafter holds a step of an engine with a drafter")
        for name, times in self.drafters.items():
            if any(time.num_draft_tokens is None for time in times):
                raise ValueError(f"{name}: a step does not say how many tokens it drafts")
        return self


class ChoosePlan(Record):
    """`plan.json`: who is compared, and by how many steps; fixed before the first training."""

    config: Settings
    """The ChooseConfig, without credentials."""
    given: tuple[str, ...] = ()
    """Its settings that were given; unknown of a comparison of before."""
    steps: int = Field(gt=0)
    """Of each training."""
    full_steps: int
    """Of a run without `specpipe choose`."""
    recipes: dict[str, Settings] = Field(min_length=1)
    """By architecture: the settings of its run."""
    short_runs: dict[str, ShortRun] = Field(default_factory=dict)
    """By architecture: how its training differs from a whole run."""
    left_out: dict[str, str]
    """By architecture: why it is not compared."""
    no_speed: dict[str, str]
    """By architecture: why no speed is known of it."""
    dump_fingerprint: str
    eval_dump_fingerprint: str


class Compared(Record):
    """One architecture: what its short training came to."""

    drafter: str
    title: str
    """Its name in prose."""
    is_parallel: bool
    """A round's drafts come from one pass, whatever their number."""
    steps: int
    replay: str
    """Of which tau is (schemas/records/metrics.py): that of the decoding that the engine does on
    such text."""
    exact: bool
    tau: list[float]
    """For 1..K draft tokens; empty where training diverged."""
    tau_low: list[float]
    tau_high: list[float]
    """95 % confidence interval over samples."""
    speedups: list[Speedup]
    """By batch size; empty where no costs are known."""
    no_speed: str
    """Why no speed is known; empty where it is."""
    run: RunName
    """Folder of the run, below OUT."""

    @model_validator(mode="after")
    def _of_one_length(self) -> "Compared":
        lengths = {len(self.tau), len(self.tau_low), len(self.tau_high)}
        speeds = {len(one.expected) for one in self.speedups}
        if len(lengths) > 1 or not all(0 < speed <= len(self.tau) for speed in speeds):
            raise ValueError(f"{self.drafter}: not as many figures as draft tokens")
        return self

    def best(self, batch_size: int) -> tuple[int, float, float, float] | None:
        """Draft tokens with the largest speed-up at a batch size, and it with the interval that
        tau's gives; None where it is not known."""
        found = [one for one in self.speedups if one.cost.batch_size == batch_size]
        if not found or not self.tau:
            return None
        fastest = max(found[0].expected)
        number = found[0].expected.index(fastest) + 1
        cost = found[0].cost.round_cost(number)
        return number, fastest, self.tau_low[number - 1] / cost, self.tau_high[number - 1] / cost


class ChooseResult(Record):
    """`choose.json`, written when all is done; what `specpipe choose` reports."""

    steps: int
    full_steps: int
    num_samples: int
    """Held-out samples that tau is replayed on."""
    batch_sizes: list[int]
    """At which speed-ups are known; the first one decides."""
    times_of: str
    """Where the step times come from; empty where there are none."""
    compared: list[Compared] = Field(min_length=1)
    """The best first."""
    left_out: dict[str, str]
    recommended: str | None
    """None where no speed is known: tau alone does not say what a round costs."""
    draft_tokens: int | None
    num_heads: int | None
    """Draft tokens to train for: the most that is best at some batch size."""
    schedule: Schedule
    """Of draft tokens by batch size; empty where one number is best for all."""
    reasons: list[str]
    did_nothing: bool = False

    @model_validator(mode="after")
    def _of_those_compared(self) -> "ChooseResult":
        if self.recommended not in (None, *(one.drafter for one in self.compared)):
            raise ValueError(f"{self.recommended} is recommended and was not compared")
        if len(self.schedule) == 1:
            raise ValueError("a schedule of one range")
        return self
