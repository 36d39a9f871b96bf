"""The recipe of a run, from its samples; the numbers are in schemas/settings/recipe.py."""

from collections.abc import Sequence
from dataclasses import replace

from specpipe.schemas.errors import UnfinishedError
from specpipe.schemas.records.dump import DumpIdentity
from specpipe.schemas.settings.recipe import Facts, Recipe, resolve
from specpipe.schemas.settings.train import ResolvedTrainConfig, TrainConfig
from specpipe.stages.process.stop import StopQuestion
from specpipe.stages.samples.reader import SampleRef
from specpipe.stages.train.data.packing import epoch_batches


def facts_of(training: Sequence[SampleRef], identity: DumpIdentity) -> Facts:
    """Of these samples of a dump."""
    return Facts(
        hidden_size=identity.target.hidden_size,
        num_samples=max(1, round(sum(ref.weight for ref in training))),
        num_tokens=max(1, round(sum(ref.weight * ref.num_tokens for ref in training))),
        num_supervised=round(sum(ref.weight * ref.num_supervised for ref in training)),
        has_final_states=identity.logits == "final",
    )


def recipe_of(
    config: TrainConfig,
    training: Sequence[SampleRef],
    identity: DumpIdentity,
    should_stop: StopQuestion,
) -> Recipe:
    """The recipe of a run on these samples, with its exact number of steps.

    SIGTERM stops the count; the time limit does not, as one that is shorter would let no run begin.
    Raises UnfinishedError.
    """
    recipe = resolve(config, facts_of(training, identity))
    settings = recipe.config
    return replace(
        recipe, num_steps=settings.max_steps or _counted(settings, training, should_stop)
    )


def _counted(
    config: ResolvedTrainConfig, training: Sequence[SampleRef], should_stop: StopQuestion
) -> int:
    """Steps of all epochs."""
    steps = 0
    for epoch in range(config.num_epochs):
        if reason := should_stop.of_signal():
            raise UnfinishedError(
                f"{reason}: stopped while the steps of {config.num_epochs:,} epochs were counted;"
                " run the same command again, or give fewer --num-epochs"
            )
        batches = epoch_batches(
            training, config.seed, epoch, config.batch_tokens, config.batch_size
        )
        steps += len(batches)
    return steps
