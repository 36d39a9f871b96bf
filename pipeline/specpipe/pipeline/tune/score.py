"""The score of a trial."""

from specpipe.schemas.errors import DivergedError
from specpipe.schemas.records.tune import TrialScore
from specpipe.schemas.settings.train import ResolvedTrainConfig
from specpipe.stages.train.loop import Progress
from specpipe.stages.train.run import run


def train_trial(config: ResolvedTrainConfig, progress: Progress, *, is_greedy: bool) -> TrialScore:
    """Train, or go on; a run that diverges counts as tau 0. Raises what training raises.

    `is_greedy`: tau is that of greedy decoding, as the text is.
    """
    try:
        result = run(config, progress=progress)
    except DivergedError:
        return TrialScore(steps=config.max_steps or 0, tau=0.0, tau_low=0.0, tau_high=0.0)
    curve = result.best.replay(is_greedy=is_greedy)
    return TrialScore(
        steps=result.steps,
        tau=curve.tau[-1],
        tau_low=curve.tau_low[-1],
        tau_high=curve.tau_high[-1],
    )
