"""The recipe of a run, from its samples; the numbers are in schemas/settings/recipe.py."""

from collections.abc import Sequence
from dataclasses import replace

from specpipe.schemas.records.dump import DumpIdentity
from specpipe.schemas.settings.recipe import Facts, Recipe, resolve
from specpipe.schemas.settings.train import TrainConfig
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


def recipe_of(config: TrainConfig, training: Sequence[SampleRef], identity: DumpIdentity) -> Recipe:
    """The recipe of a run on these samples, with its exact number of steps."""
    recipe = resolve(config, facts_of(training, identity))
    settings = recipe.config
    return replace(
        recipe,
        num_steps=settings.max_steps
        or sum(
            len(
                epoch_batches(
                    training, settings.seed, e, settings.batch_tokens, settings.batch_size
                )
            )
            for e in range(settings.num_epochs)
        ),
    )
