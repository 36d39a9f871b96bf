"""The drafter architectures, by name: their settings, and the shapes that checkpoints store.

A package of somebody else's adds an architecture by an entry point of the group
`specpipe.drafters`, named as the architecture, that leads to its `Architecture`
(stages/drafters/contract.py).
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, cast

from specpipe.schemas.drafters.base import DrafterSettings, DrafterShape
from specpipe.schemas.drafters.dflash import DFlashSettings, DFlashShape
from specpipe.schemas.drafters.dspark import DSparkSettings, DSparkShape
from specpipe.schemas.drafters.eagle1 import Eagle1Settings, Eagle1Shape
from specpipe.schemas.drafters.eagle3 import Eagle3Settings, Eagle3Shape
from specpipe.schemas.drafters.medusa import MedusaSettings, MedusaShape
from specpipe.schemas.drafters.mtp import MtpSettings, MtpShape
from specpipe.schemas.drafters.peagle import PeagleSettings, PeagleShape

GROUP = "specpipe.drafters"


class Kind(Protocol):
    """The part of an architecture that needs no torch."""

    @property
    def settings(self) -> type[DrafterSettings]: ...
    @property
    def shape(self) -> type[DrafterShape]: ...


class _Own:
    def __init__(self, settings: type[DrafterSettings], shape: type[DrafterShape]) -> None:
        self.settings, self.shape = settings, shape


DEFAULT = "eagle3"
KINDS: Mapping[str, Kind] = {
    "eagle3": _Own(Eagle3Settings, Eagle3Shape),
    "dflash": _Own(DFlashSettings, DFlashShape),
    "dspark": _Own(DSparkSettings, DSparkShape),
    "peagle": _Own(PeagleSettings, PeagleShape),
    "mtp": _Own(MtpSettings, MtpShape),
    "eagle1": _Own(Eagle1Settings, Eagle1Shape),
    "medusa": _Own(MedusaSettings, MedusaShape),
}


@cache
def foreign() -> Mapping[str, EntryPoint]:
    """The architectures of other packages that are installed."""
    return {point.name: point for point in entry_points(group=GROUP)}


def kind_of(name: str) -> Kind:
    """Raises ValueError for a name that nobody has."""
    if name in KINDS:
        return KINDS[name]
    if name in foreign():
        return cast(Kind, foreign()[name].load())
    raise ValueError(f"{name!r} is no drafter: give one of {', '.join((*KINDS, *foreign()))}")


def settings_fields() -> dict[str, list[str]]:
    """Names of the settings of all architectures that come with specpipe, each with these."""
    fields: dict[str, list[str]] = {}
    for name, kind in KINDS.items():
        for field in kind.settings.model_fields:
            if field != "kind":
                fields.setdefault(field, []).append(name)
    return fields


def shape_of_json(stored: bytes) -> DrafterShape:
    """A stored shape; raises ValueError (pydantic's, too) where it is none."""
    values: Any = json.loads(stored)
    if not isinstance(values, dict):
        raise ValueError("it holds no object")
    kind = kind_of(str(values.get("architecture", DEFAULT)))
    return kind.shape.model_validate_json(stored)


def drafter_settings(values: Any) -> DrafterSettings:
    """Settings from nested values; raises ValueError (pydantic's, too) where they are wrong."""
    if isinstance(values, DrafterSettings):
        return values
    if not isinstance(values, Mapping):
        raise ValueError("give a mapping of settings, or the name of an architecture")
    name = values.get("kind", DEFAULT)
    if not isinstance(name, str):
        raise ValueError(f"drafter: kind is {name!r}, which is no drafter's name")
    return kind_of(name).settings.model_validate({**values, "kind": name})


def own_recipe(drafter: Any) -> Mapping[str, Any]:
    """Settings of the training whose default is another one for this drafter; none of what is no
    drafter."""
    name = drafter.get("kind", DEFAULT) if isinstance(drafter, Mapping) else DEFAULT
    name = drafter.kind if isinstance(drafter, DrafterSettings) else name
    try:
        return kind_of(name).settings.own_recipe
    except (TypeError, ValueError):
        return {}


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a training with those of its drafter in `drafter`.

    They may stand beside the others, as flags and files of earlier versions have them; `drafter`
    may then be a name. Raises ValueError for a setting that this drafter does not have.
    """
    given = values.get("drafter")
    if isinstance(given, DrafterSettings):
        given = {"kind": given.kind, **given.model_dump(exclude_unset=True)}
    known = settings_fields()
    beside = {name: value for name, value in values.items() if name in known}
    rest = {name: value for name, value in values.items() if name not in known}
    if given is None and not beside:
        return rest
    own = {"kind": DEFAULT if given is None else given} if not isinstance(given, Mapping) else given
    name = own.get("kind", DEFAULT)
    fields = kind_of(name).settings.model_fields if isinstance(name, str) else {}
    for setting in beside.keys() - fields.keys():
        if fields:
            raise ValueError(
                f"{setting} is a setting of a drafter {' or '.join(known[setting])}, not of {name}"
            )
    own = {**own, **beside}
    # What stands in `drafter` is checked as a part of it, and an error says so.
    return rest | {"drafter": own if isinstance(given, Mapping) else drafter_settings(own)}
