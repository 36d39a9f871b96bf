"""train.yaml: the drafter that is recommended, for `specpipe train --config`."""

import yaml

from specpipe.pipeline.tune.settings_file import kept_settings
from specpipe.schemas.records.choose import ChooseResult
from specpipe.schemas.settings.choose import ChooseConfig
from specpipe.schemas.settings.train import ResolvedTrainConfig, TrainConfig


def settings_of_best(
    config: ChooseConfig, recipe: ResolvedTrainConfig, result: ChooseResult
) -> bytes:
    """YAML of what was given and of the recommended drafter, whose recipe it was compared with,
    for as many draft tokens as are best at some batch size."""
    name = recipe.drafter.kind
    given = {
        *(config.model_fields_set & TrainConfig.model_fields.keys()),
        *config.drafters.get(name, {}),
        "drafter",
    }
    number = {"num_heads": result.num_heads}
    settings = kept_settings(sorted(given), recipe, number)
    head = f"# specpipe train --config THIS --out RUN\n# Chosen by specpipe choose: {name}.\n"
    return (head + yaml.safe_dump(settings, sort_keys=False)).encode()
