"""Keys with null values, which Arrow adds: it gives every object of a column every key."""

from typing import Any


def without_nulls(value: Any, *, but: frozenset[str] = frozenset()) -> Any:
    """The value without the keys that are null, at every depth; a null in a list stays.

    A key in `but` keeps its value as it is, null or not.
    """
    if isinstance(value, list):
        return [without_nulls(entry, but=but) for entry in value]
    if isinstance(value, dict):
        return {
            key: entry if key in but else without_nulls(entry, but=but)
            for key, entry in value.items()
            if key in but or entry is not None
        }
    return value
