"""The configuration of `specpipe choose`."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from specpipe.schemas.drafters.registry import drafter_settings
from specpipe.schemas.settings.budget import Budgeted
from specpipe.schemas.settings.stages import Location, ServeConfig

_OF_ONE_DRAFTER = ("drafter", "layers", "init_from", "learning_curve", "draft_vocab_file")


def _by_name(value: Any) -> Any:
    """`eagle3,dflash`, a list of names, or settings by name; raises ValueError for others."""
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",")]
    if isinstance(value, list | tuple):
        if not all(isinstance(name, str) and name for name in value):
            raise ValueError("a list holds names alone; with settings, write NAME: {...} for each")
        if len(set(value)) < len(value):
            raise ValueError("a drafter is named twice")
        value = {name: {} for name in value}
    if not isinstance(value, Mapping):
        raise ValueError("give names of drafters, or a mapping from names to settings")
    for name, settings in value.items():
        if not isinstance(settings or {}, Mapping):
            raise ValueError(f"{name}: give a mapping of its settings, or nothing")
        if "kind" in (settings or {}):
            raise ValueError(f"{name}: its name says the kind; leave kind out")
        drafter_settings({**(settings or {}), "kind": name})
    return {name: dict(settings or {}) for name, settings in value.items()}


class ChooseConfig(Budgeted, ServeConfig):
    """`specpipe choose`: which architecture suits a dump and an engine.

    The settings of training hold for all of them; those of a drafter stand in `drafters`.
    """

    drafters: Annotated[dict[str, dict[str, Any]], BeforeValidator(_by_name)] = Field(
        default_factory=dict
    )
    """Architectures to compare, as eagle3,dflash; in a file, settings may stand below each name.
    [default: all that the dump allows and vLLM serves]"""
    num_heads: int = Field(5, ge=1)
    """K: compare 1 to so many draft tokens; of a drafter that allows fewer, those."""
    target: Location | None = None
    """Target that the engine serves, with the weights of the dump's. [default: as the dump names
    it]"""
    engine: bool = True
    """Time steps in vLLM on this machine; without, tau alone is compared."""
    step_times: Location | None = None
    """Step times that another run measured, e.g. on the serving GPU: its step_times.json."""

    @model_validator(mode="after")
    def _nothing_of_one_drafter(self) -> "ChooseConfig":
        for name in _OF_ONE_DRAFTER:
            default = type(self).model_fields[name].get_default(call_default_factory=True)
            if getattr(self, name) != default:
                raise ValueError(
                    f"{name} is of one drafter, and several are compared here; leave it out"
                    " (drafters holds the settings of each)"
                )
        return self

    @model_validator(mode="after")
    def _as_many_heads_as_the_drafter_has(self) -> "ChooseConfig":
        """Each drafter has as many as it allows."""
        return self
