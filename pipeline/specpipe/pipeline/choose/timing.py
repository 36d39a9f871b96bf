"""What a round of each drafter costs: timed in the engine, at the shape that is trained."""

import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from pydantic import ValidationError as PydanticError

from specpipe.pipeline.choose.candidates import Candidate
from specpipe.pipeline.choose.folder import ChooseFolder
from specpipe.pipeline.trials.folder import damaged
from specpipe.schemas.errors import ConfigError, StoreError, ValidationError
from specpipe.schemas.extras import install_hint
from specpipe.schemas.location import local_path
from specpipe.schemas.records.choose import (
    ENGINE_FOLDER,
    STEP_TIMES_FILE,
    EngineTimes,
    StepTimes,
)
from specpipe.schemas.settings.choose import ChooseConfig
from specpipe.schemas.settings.stages import ExportConfig
from specpipe.stages.export.run import run as export
from specpipe.stages.untrusted.files import read_file
from specpipe.stages.untrusted.foreign import first_bad_field
from specpipe.stages.validate.serve import prompts
from specpipe.stages.validate.serve.engine_times import engine_times
from specpipe.stages.validate.serve.prompts import serve_prompts
from specpipe.stages.validate.target_check import check_target

Say = Callable[[str], None]
WITHOUT = "the target without a drafter"


def given_times(config: ChooseConfig) -> StepTimes | None:
    """Of `--step-times`; raises ConfigError where the file is none of ours."""
    if config.step_times is None:
        return None
    path = local_path(config.step_times, "step times are read from a local disk").expanduser()
    try:
        return StepTimes.model_validate_json(read_file(path, ConfigError))
    except PydanticError as error:
        raise ConfigError(
            f"{path} holds no step times ({first_bad_field(error)}); give the {STEP_TIMES_FILE}"
            " that another specpipe choose wrote"
        ) from None


def target_of(config: ChooseConfig, candidate: Candidate) -> str:
    """The target that an engine serves."""
    return config.target or candidate.opened.dumps.dump.identity.target.name


def check_target_of(times: StepTimes, target: str, say: Say) -> None:
    """Say where given times are of a target of another name: paths differ between machines."""
    if times.target != target:
        say(f"the step times are of target {times.target}, the dump of {target}")


def no_engine(config: ChooseConfig) -> str | None:
    """Why nothing can be timed here, if so."""
    if not config.engine:
        return "no engine was timed (--no-engine)"
    if find_spec("vllm") is None:
        return f"no engine was timed: vLLM is not installed here ({install_hint('vllm')})"
    return None


class Timing:
    """Engines one after the other; what has been timed is not timed again."""

    def __init__(self, config: ChooseConfig, folder: ChooseFolder, say: Say) -> None:
        self._config, self._folder, self._say = config, folder, say

    def run(self, found: Sequence[Candidate]) -> dict[str, str]:
        """Time the target alone and with each drafter; by name, why some were not."""
        if (reason := no_engine(self._config)) is not None:
            return {candidate.name: reason for candidate in found}
        try:
            self._without(found[0])
        except (ConfigError, StoreError, ValidationError) as error:
            self._say(f"{WITHOUT} was not timed: {error}")
            return {one.name: f"{WITHOUT} was not timed: {_first(error)}" for one in found}
        return {one.name: why for one in found if (why := self._with(one)) is not None}

    def _without(self, candidate: Candidate) -> None:
        if self._folder.times(None) is None:
            self._say(f"timing {WITHOUT}")
            self._time(None, candidate)

    def _with(self, candidate: Candidate) -> str | None:
        name = candidate.name
        if self._folder.times(name) is not None:
            return None
        if candidate.served.how == "no":
            return candidate.served.in_words
        if not candidate.served.is_served_on_cpu and not torch.cuda.is_available():
            return f"{candidate.served.engine} serves it on a GPU alone"
        self._say(f"timing the target with {name}")
        try:
            exported = export(
                ExportConfig(
                    checkpoint=str(self._folder.probe(name)),
                    out=str(self._folder.artifact(name)),
                    validation=("structure",),
                    dump=self._config.dump,
                    target=self._config.target,
                )
            )
            self._time(Path(exported.artifact), candidate)
        except (ConfigError, StoreError, ValidationError) as error:
            self._say(f"{name} was not timed: {error}")
            return f"it was not timed: {_first(error)}"
        return None

    def _time(self, artifact: Path | None, candidate: Candidate) -> None:
        of = candidate.opened.evaluated_on.dump
        trained_for = of.identity.target
        target = self._config.target or trained_for.name
        sizes = self._config.serve_batch_sizes
        heads = candidate.recipe.num_heads
        config = self._config.model_copy(
            update={"serve_speculative_tokens": (heads,), "serve_prompts": max(sizes)}
        )
        if artifact is None:
            check_target(target, trained_for, config, self._say, to_serve=True)
        chosen = serve_prompts(
            config, target, trained_for, lambda: prompts.from_dump(of, candidate.eval_refs)
        )
        if not chosen:
            raise ConfigError("no prompt leaves room for its output; give fewer --serve-max-tokens")
        times = engine_times(artifact, target, trained_for.revision, chosen, config)
        self._folder.write_times(None if artifact is None else candidate.name, times)


def collected(folder: ChooseFolder, target: str, names: Sequence[str]) -> StepTimes | None:
    """All that was timed here; None where the target alone was not."""
    plain = folder.times(None)
    if plain is None:
        return None
    drafters: dict[str, EngineTimes | None] = {name: folder.times(name) for name in names}
    try:
        return StepTimes(
            target=target,
            vllm_version=plain.vllm_version,
            without_drafter=plain.times,
            drafters={name: found.times for name, found in drafters.items() if found is not None},
        )
    except PydanticError as error:
        raise damaged(folder.path / ENGINE_FOLDER, error) from None


def _first(error: Exception) -> str:
    """What failed, and of an engine's log the line that says why."""
    first, *log = str(error).splitlines()
    why = [line.strip() for line in log if re.search(r"\w*(Error|Exception): ", line)]
    return f"{first} {why[-1]}" if why else first
