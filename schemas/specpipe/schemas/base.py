"""The base of all values that are checked: frozen, and unknown fields are errors."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A value that cannot be changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")
