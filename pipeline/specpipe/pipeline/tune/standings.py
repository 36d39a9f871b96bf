"""The standings of a search: who took part in which rung, who is best, and who goes on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from specpipe.pipeline.tune.space import Axis, middle
from specpipe.schemas.records.tune import Rung, Settings, Trial, TrialScore

NUM_PARENTS = 3
"""The best trials of a rung, of which the next one tries the middle."""


@dataclass(slots=True)
class Standings:
    trials: list[Settings]
    """Those of the plan, and the middles of the best of each rung."""
    rungs: list[dict[int, TrialScore]] = field(default_factory=list)
    """Scores by rung and trial."""

    def best(self, rung: int) -> int:
        """The trial with the largest tau, diverged ones included; of equal ones the first."""
        scores = self.rungs[rung]
        return min(scores, key=lambda trial: (-scores[trial].tau, trial))

    def begin(self, rung: Rung, axes: Sequence[Axis]) -> list[int]:
        """The trials of the next rung: at first all, then the best of the last one, and what lies
        between the best three."""
        if not self.rungs:
            chosen = [*range(rung.num_trials)]
        else:
            before = self.rungs[-1]
            chosen = going_on(before, rung.num_trials - rung.has_middle)
            best = [self.trials[trial] for trial in ranked(before)[:NUM_PARENTS]]
            if rung.has_middle and best and (between := middle(axes, best)) not in self.trials:
                chosen.append(len(self.trials))
                self.trials.append(between)
        self.rungs.append({})
        return chosen

    def took_part(self) -> Iterator[Trial]:
        """The trials that were trained."""
        for trial, settings in enumerate(self.trials):
            rungs = [at for at, scores in enumerate(self.rungs) if trial in scores]
            if rungs:
                scores = [self.rungs[at][trial] for at in rungs]
                yield Trial(settings=settings, scores=scores, first_rung=rungs[0])


def going_on(scores: Mapping[int, TrialScore], num_trials: int) -> list[int]:
    """The trials of the next rung: the recipe (trial 0), then the best of the others."""
    others = [trial for trial in ranked(scores) if trial != 0]
    return [0, *others[: num_trials - 1]]


def ranked(scores: Mapping[int, TrialScore]) -> list[int]:
    """The trials that did not diverge, best first."""
    alive = [trial for trial, score in scores.items() if score.tau > 0]
    return sorted(alive, key=lambda trial: (-scores[trial].tau, trial))
