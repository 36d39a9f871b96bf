"""train.yaml: the drafter that is recommended, for `specpipe train --config`."""

import yaml

from specpipe.pipeline.choose.candidates import Candidate
from specpipe.pipeline.tune.settings_file import kept_settings
from specpipe.schemas.records.choose import ChooseResult
from specpipe.schemas.settings.choose import ChooseConfig
from specpipe.schemas.settings.train import TrainConfig


def settings_of_best(config: ChooseConfig, best: Candidate, result: ChooseResult) -> bytes:
    """YAML of what was given and of the drafter as it was compared, for as many draft tokens as
    are best at some batch size."""
    given = {
        *(config.model_fields_set & TrainConfig.model_fields.keys()),
        *config.drafters.get(best.name, {}),
        "drafter",
    }
    number = {"num_heads": result.num_heads}
    settings = kept_settings(sorted(given), best.recipe, number)
    head = f"# specpipe train --config THIS --out RUN\n# Chosen by specpipe choose: {best.name}.\n"
    return (head + yaml.safe_dump(settings, sort_keys=False)).encode()
