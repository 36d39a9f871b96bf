"""When training ends before its last step because tau no longer rises."""

from specpipe.schemas.records.checkpoint import TrainState
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.train.data.order import eval_every


def stops_early(state: TrainState, config: TrainConfig) -> bool:
    """Whether the last `early_stop` evaluations up to `state` brought no better tau.

    A function of the state alone, so that a run that is killed and resumed ends at the same step.
    """
    if config.early_stop is None or state.best_step is None:
        return False
    every = eval_every(state.total_steps, config)
    return state.step // every - state.best_step // every >= config.early_stop
