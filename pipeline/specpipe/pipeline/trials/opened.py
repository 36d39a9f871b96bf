"""Dumps that are opened for training, and the recipe that follows from them."""

from dataclasses import dataclass

from specpipe.schemas.settings.recipe import Recipe
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.process.stop import StopQuestion
from specpipe.stages.samples.reader import SampleReader, SampleRef
from specpipe.stages.train.data.dumps import TrainingDumps, located
from specpipe.stages.train.recipe import recipe_of
from specpipe.stages.train.run import training_samples


@dataclass(frozen=True, slots=True)
class Opened:
    dumps: TrainingDumps
    evaluated_on: TrainingDumps
    eval_reader: SampleReader
    training: list[SampleRef]
    recipe: Recipe
    """Of a run with nothing in place of its settings."""

    @classmethod
    def of(cls, config: TrainConfig) -> "Opened":
        """Raises what opening dumps raises, and ConfigError where they lack a layer."""
        settings = located(config)
        never = StopQuestion(None)
        dumps = TrainingDumps.open(settings, settings.preverify, never)
        evaluated_on = dumps.evaluated_on(settings, settings.preverify, never)
        reader, eval_reader = dumps.reader(settings), evaluated_on.reader(settings)
        training, _ = training_samples(settings, reader, eval_reader)
        recipe = recipe_of(settings, training, dumps.dump.identity, never)
        return cls(dumps, evaluated_on, eval_reader, training, recipe)


def train_settings(config: TrainConfig) -> TrainConfig:
    """What a search's configuration says of training; only what is given counts as given."""
    names = config.model_fields_set & TrainConfig.model_fields.keys()
    return TrainConfig.model_validate({name: getattr(config, name) for name in names})
