"""train.yaml: the settings that a search found, for `specpipe train --config`."""

from collections.abc import Sequence

import yaml

from specpipe.pipeline.trials.trial import step_size
from specpipe.schemas.records.tune import Settings, TuneResult
from specpipe.schemas.settings.train import ResolvedTrainConfig

_OF_THE_RATE = frozenset(
    {
        "learning_rate",
        "muon_weight_decay",
        "warmup_ratio",
        "schedule",
        "wsd_decay",
        "muon_momentum",
    }
)
"""What the recipe sets besides the steps' number and size, and what a rate was found with. It
stands in the file, so that the run is the one that the search took it to be."""
_OF_THE_SEARCH = frozenset({"out", "time_limit", "preset", "log", "log_project", "log_name"})


def kept_settings(given: Sequence[str], recipe: ResolvedTrainConfig, trial: Settings) -> Settings:
    """What the user gave and what the search found; the recipe's for the rest of the data's."""
    values = recipe.without_credentials().flat("json")
    own = set(given) & values.keys() - _OF_THE_SEARCH
    step = step_size(recipe)
    length = "num_epochs" if recipe.max_steps is None else "max_steps"
    wanted = (own - {"num_epochs", "batch_tokens"}) | _OF_THE_RATE | {step, length}
    names = [name for name in values if name in wanted]
    return {"dump": values["dump"]} | {name: values[name] for name in names} | trial


def settings_file(result: TuneResult) -> bytes:
    """YAML, with a line on where it comes from."""
    tau = f", tau {result.gain:+.1%} on prompts held back" if result.kept else ""
    whose = f"trial {result.kept}{tau}" if result.kept else "the recipe, which was best"
    head = f"# specpipe train --config THIS --out RUN\n# Found by specpipe tune: {whose}.\n"
    return (head + yaml.safe_dump(result.settings, sort_keys=False)).encode()
