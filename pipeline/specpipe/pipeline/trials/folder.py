"""The folder of a search: its lock, its clock, and records that are read back checked."""

from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError as PydanticError

from specpipe.pipeline.trials.clock import Clock
from specpipe.schemas.base import Record
from specpipe.schemas.errors import ConfigError, IntegrityError
from specpipe.schemas.location import local_path
from specpipe.schemas.records.choose import ChoosePlan
from specpipe.schemas.records.tune import PLAN_FILE, TunePlan
from specpipe.schemas.settings.train import ResolvedTrainConfig, TrainConfig
from specpipe.stages.runs.folder import MAY_CHANGE, check_same, refuse_others
from specpipe.stages.storage.store.local_disk import write_file
from specpipe.stages.storage.store.lock import locked
from specpipe.stages.train.data.dumps import check_still_of
from specpipe.stages.untrusted.files import read_file
from specpipe.stages.untrusted.foreign import first_bad_field
from specpipe.stages.untrusted.json_text import parse_object

CLOCK_FILE = "clock.json"
"""Seconds that the search has taken so far, over all its runs."""

_PLANS = {"recipe": "specpipe tune", "recipes": "specpipe choose"}
"""Whose plan it is, by a field that the other one's lacks."""

R = TypeVar("R", bound=Record)


class SearchFolder:
    """One search's folder on a local disk."""

    command: str
    """What works in it."""

    def __init__(self, out: str) -> None:
        what = f"what {self.command} finds is written to a local disk"
        self.path = local_path(out, what).expanduser()

    def locked(self) -> AbstractContextManager[object]:
        """Hold the folder; raises ConfigError where another search has it, or another output."""
        refuse_others(self.path, PLAN_FILE)
        self._refuse_other_plan()
        return locked(self.path, f"another {self.command} works in this folder")

    def _refuse_other_plan(self) -> None:
        path = self.path / PLAN_FILE
        try:
            plan = parse_object(read_file(path), str(path)) if path.exists() else {}
        except IntegrityError:
            return
        for field, command in _PLANS.items():
            if field in plan and command != self.command:
                raise ConfigError(
                    f"{self.path} holds a search of {command}; give {self.command} another --out"
                )

    def clock(self) -> Clock:
        return Clock(self.path / CLOCK_FILE)

    def lacks(self, *names: str) -> bool:
        """Whether one of these files is missing."""
        return not all((self.path / name).exists() for name in names)

    def write(self, name: str, data: bytes) -> None:
        write_file(self.path / name, data)

    def read(self, record: type[R], name: str) -> R | None:
        """None where there is no file; raises IntegrityError for a damaged one."""
        path = self.path / name
        if not path.exists():
            return None
        try:
            return record.model_validate_json(read_file(path))
        except PydanticError as error:
            raise damaged(path, error) from None

    def check_still_of(
        self, now: TrainConfig, recipe: TrainConfig, plan: TunePlan | ChoosePlan
    ) -> None:
        """Raise IdentityError where the complete search here, with this recipe, is of other dumps
        than those that are given now."""
        dumps = plan.dump_fingerprint, plan.eval_dump_fingerprint
        check_still_of(f"{self.path} holds a complete search", now, recipe, dumps)

    def check_same_settings(
        self, before: dict[str, Any], given: Collection[str], config: TrainConfig
    ) -> None:
        """Raise IdentityError where the search that is here began with other settings.

        What neither it was `given` nor this command gives is a default: where another version has
        another one, the search goes on with its own.
        """
        now = config.without_credentials().flat("json")
        check_same(f"{self.path} holds a search", before, now, {*given, *config.flat_fields_set})


def begun_with(recipe: dict[str, Any], now: ResolvedTrainConfig) -> ResolvedTrainConfig:
    """The recipe that stands in a plan, also where this version has another one `now`; what may
    change is as it is now."""
    values = now.flat("json")
    return ResolvedTrainConfig.model_validate(recipe | {name: values[name] for name in MAY_CHANGE})


def damaged(path: Path, error: PydanticError) -> IntegrityError:
    return IntegrityError(
        f"{path} is damaged ({first_bad_field(error)}); give another --out, or remove it:"
        " runs that are complete are not trained twice"
    )
