"""The files of a search, as types.

OUT/
  plan.json              the TunePlan, written once: everything after it follows from it
  clock.json             seconds that the search has taken so far, over all its runs
  probe/                 the run that a budget of time was measured by
  trials/003-rung-1/     a training run, of trial 3 with the steps of the first rung; when it is
                         complete, its TrialScore is beside its files as score.json
  tune.json, tune.html   the TuneResult, and a page that shows it
  train.yaml             settings for `specpipe train --config`
"""

from typing import Annotated, Any

from pydantic import Field, model_validator

from specpipe.schemas.base import Record
from specpipe.schemas.records.metrics import check_tau

PLAN_FILE = "plan.json"
RESULT_FILE = "tune.json"
PAGE_FILE = "tune.html"
SCORE_FILE = "score.json"
SETTINGS_FILE = "train.yaml"
PROBE_FOLDER = "probe"
TRIALS_FOLDER = "trials"

Settings = dict[str, Any]
"""Settings of TrainConfig, by name."""
RunName = Annotated[str, Field(pattern=r"^(\w[\w.-]*/)*\w[\w.-]*$", max_length=100)]
"""Folder below a search's own."""
TauInterval = tuple[Annotated[float, Field(gt=0)], float, float]
"""tau, low and high end of the 95 % interval."""


class ShortRun(Record):
    """How a short training differs from a whole run besides its steps; nothing, in plans of
    before."""

    rate_times: float = Field(1.0, gt=0, le=2**10)
    """What the learning rates, which are those of a whole run, are multiplied by."""
    settings: Settings = Field(default_factory=dict)
    """Those in place of the whole run's: warm-up and weight decay."""


class Rung(Record):
    """One round of the search: the number of trials that remain, and the steps of each."""

    steps: int = Field(gt=0)
    """Of the recipe's size; a trial with larger steps takes fewer, on as much text."""
    num_trials: int = Field(gt=0)
    """At most: the recipe, the best of the rung before, and the middle of these."""
    short_run: ShortRun = Field(default_factory=ShortRun)
    has_middle: bool = False
    """Whether the middle of the best trials of the rung before takes part."""


class TunePlan(Record):
    """`plan.json`: what is tried and for how long, fixed before the first trial."""

    config: Settings
    """The TuneConfig, without credentials."""
    given: list[str]
    """Its settings that were given, which are not searched."""
    recipe: Settings
    """The TrainConfig that follows from the dump: trial 0."""
    full_steps: int
    """Steps of the recipe's own run."""
    rungs: list[Rung] = Field(min_length=1)
    trials: list[Settings]
    """What each trial is trained with in place of the recipe's; of trial 0 the recipe's own."""
    pass_steps: dict[int, Annotated[int, Field(gt=0)]] = Field(default_factory=dict)
    """Steps of a pass over the data, by the size of a step; unknown of a search of before."""
    seconds_per_step: float | None
    seconds_per_run: float | None
    """As the probe measured it, besides the steps; None where the budget is in steps."""
    dump_fingerprint: str
    eval_dump_fingerprint: str

    @model_validator(mode="after")
    def _settings_for_every_run(self) -> "TunePlan":
        if any(trial.keys() != self.trials[0].keys() for trial in self.trials):
            raise ValueError("a trial has other settings than the first one")
        known = len(self.trials)
        for rung in self.rungs:
            known += rung.has_middle
            if rung.num_trials > known:
                raise ValueError("a rung has more trials than there are settings of")
        return self


class TrialScore(Record):
    """Result of one run of a trial: tau on the prompts that trials are chosen by."""

    steps: int = Field(ge=0)
    tau: float
    """0 where training diverged."""
    tau_low: float
    tau_high: float
    """95 % confidence interval over samples."""

    @model_validator(mode="after")
    def _in_its_interval(self) -> "TrialScore":
        check_tau(self.tau_low, self.tau, self.tau_high)
        return self


class Trial(Record):
    settings: Settings
    scores: list[TrialScore]
    """By rung from `first_rung` on, as far as the trial came."""
    first_rung: int = Field(0, ge=0)
    """Counted from 0; later ones are those of trials between the best of the rung before."""

    def score(self, rung: int) -> TrialScore | None:
        """None where the trial took no part in the rung."""
        at = rung - self.first_rung
        return self.scores[at] if 0 <= at < len(self.scores) else None


class HeldBack(Record):
    """tau on the held-back prompts, by which no trial was chosen."""

    num_samples: int
    chosen: TauInterval
    """Of the best trial."""
    recipe: TauInterval
    difference: tuple[float, float, float]
    """The best trial's minus the recipe's, paired over samples."""

    @property
    def may_be_chance(self) -> bool:
        """Whether the interval of the difference holds 0."""
        return self.difference[1] <= 0


class TuneResult(Record):
    """`tune.json`, written when a search is complete; what `specpipe tune` reports."""

    variant: str
    """Of the replay: temperature_1 or greedy, as the text is."""
    exact: bool
    """Whether the text is of that kind."""
    num_draft_tokens: int
    searched: list[str]
    full_steps: int
    rungs: list[Rung] = Field(min_length=1)
    trials: list[Trial] = Field(min_length=1)
    is_cut_short: bool
    """The time was over before the plan was done."""
    num_chosen_by: int
    """Held-out samples that trials were compared on."""
    best: int
    """The trial with the largest tau at the last rung."""
    held_back: HeldBack | None
    """None where the recipe itself was best."""
    kept: int
    """The trial whose settings are in train.yaml: the best, or the recipe where its gain did not
    hold on the prompts that were held back."""
    settings: Settings
    """What stands in train.yaml."""
    run: RunName
    """Folder of the kept trial's longest run, below the search's own."""
    did_nothing: bool = False

    @model_validator(mode="after")
    def _settings_of_what_is_searched(self) -> "TuneResult":
        if not all(0 <= trial < len(self.trials) for trial in (self.best, self.kept)):
            raise ValueError("the best trial, or the one that is kept, is none of the trials")
        if any(trial.settings.keys() != set(self.searched) for trial in self.trials):
            raise ValueError("a trial has other settings than those that were searched")
        return self

    @property
    def gain(self) -> float:
        """tau of what is kept over the recipe's, on the prompts held back, less 1."""
        if self.held_back is None or self.kept == 0:
            return 0.0
        return self.held_back.chosen[0] / self.held_back.recipe[0] - 1
