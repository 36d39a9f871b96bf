"""Settings of a job's stages: from the job's body, and those that its API has no field for."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from specpipe.pipeline.terminal.settings import SomeConfig, problems, read_settings
from specpipe.schemas.drafters.registry import settings_fields
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.location import without_credentials
from specpipe.schemas.records.job import DUMP_FOLDER, TRAIN_FOLDER, StageName
from specpipe.schemas.settings.job import SpecDraftJob, parse_job
from specpipe.schemas.settings.stages import Config, DumpConfig, ExportConfig
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.untrusted.files import read_file
from specpipe.stages.untrusted.json_text import parse_json

SECTIONS = ("dump", "train", "export")
Sections = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class JobSettings:
    """A job, checked, with the configuration of each of its stages."""

    job: SpecDraftJob
    extra: Sections
    """Settings of stages that the job's body says nothing about."""
    dump: DumpConfig
    train: TrainConfig
    export: ExportConfig

    @property
    def sha256(self) -> str:
        """Of everything that decides what the job makes; secrets in URLs do not."""
        text = json.dumps([self.job.model_dump(mode="json"), self.extra], sort_keys=True)
        return hashlib.sha256(without_credentials(text).encode()).hexdigest()

    def config(self, stage: StageName) -> dict[str, Any]:
        """The configuration that the stage's command reads."""
        config: Config = getattr(self, stage)
        return config.model_dump(mode="json", exclude_unset=True)


def job_settings(job: SpecDraftJob, extra: Sections, out: Path) -> JobSettings:
    """The configuration of each stage of a job that works in the folder `out`.

    Raises ConfigError that names every wrong setting, or one that the job's body holds.
    """
    dump, train = out / DUMP_FOLDER, out / TRAIN_FOLDER
    own = {
        "dump": job.dump_settings() | {"out": str(dump)},
        "train": job.train_settings() | {"dump": str(dump), "out": str(train)},
        "export": {"checkpoint": str(train), "out": str(out), "target": job.model},
    }
    if extra.get("train", {}).get("init_from"):
        # The artifact has an architecture already.
        own["train"] = {n: value for n, value in own["train"].items() if n not in settings_fields()}
    merged = {section: _merged(section, own[section], extra.get(section, {})) for section in own}
    return JobSettings(
        job=job,
        extra=extra,
        dump=_checked(DumpConfig, "dump", merged),
        train=_checked(TrainConfig, "train", merged),
        export=_checked(ExportConfig, "export", merged),
    )


def read_job(path: Path) -> SpecDraftJob:
    """The job in a JSON file; raises ConfigError where there is none, or a wrong one."""
    where = f"cannot read the job {path}"
    text = read_file(path, ConfigError, where=where, or_pipe=True)
    # A field that is NaN is refused by its name.
    return parse_job(parse_json(text, where, ConfigError, allow_non_finite=True))


def read_sections(path: Path | None) -> Sections:
    """Further settings, by stage, from a YAML file."""
    found = {} if path is None else read_settings(path)
    for name, section in found.items():
        if name not in SECTIONS:
            raise ConfigError(f"{path}: there is no section {name!r}; there are {list(SECTIONS)}")
        if not isinstance(section, dict):
            raise ConfigError(f"{path}: {name} must hold settings of `specpipe {name}`")
    return found


def check_sections(extra: Sections) -> None:
    """Raises ConfigError for further settings with which no job can run."""
    method = {"type": "spec-draft"}
    any_job = parse_job({"model": "model", "training_file": "file", "method": method})
    job_settings(any_job, extra, Path("out"))


def _merged(section: str, own: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    if twice := sorted(set(own) & set(extra)):
        raise ConfigError(f"{section}.{twice[0]}: the job itself says this; leave it out")
    return {**own, **extra}


def _checked(kind: type[SomeConfig], section: str, merged: Mapping[str, Any]) -> SomeConfig:
    try:
        return kind.model_validate(merged[section])
    except ValidationError as error:
        raise ConfigError(f"{section}: {problems(error)}") from None
