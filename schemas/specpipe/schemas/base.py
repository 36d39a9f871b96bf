"""The base of all checked values: frozen, and unknown fields are errors."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A value that cannot be changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Record(Frozen):
    """A value that is stored as JSON: infinite numbers and NaN, which JSON lacks, are errors."""

    model_config = ConfigDict(allow_inf_nan=False)

    def to_json(self) -> bytes:
        """As it is stored: UTF-8, indented, fields in the order of the class."""
        return (self.model_dump_json(indent=1) + "\n").encode()
