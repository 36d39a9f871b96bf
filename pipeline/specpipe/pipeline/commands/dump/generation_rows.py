"""Counts of the turns that the target wrote, as rows of a table."""

from collections.abc import Mapping


def generation_rows(counts: Mapping[str, int] | None) -> list[tuple[str, str]]:
    """Rows for GenerationCounts, given by their names; none for text that was given."""
    if counts is None:
        return []
    rows = [
        ("turns", f"{counts['num_turns']:,} written, {counts['num_new_tokens']:,} tokens"),
        (
            "ended",
            f"{counts['num_stopped']:,} by the target, {counts['num_max_tokens']:,} by"
            f" --max-tokens, {counts['num_context_length']:,} by the context",
        ),
    ]
    fates = (
        ("empty", "num_empty", "turns"),
        ("broken off", "num_broken_off", "conversations lack later turns"),
        ("rewritten", "num_rewritten", "conversations end where the template changes a turn"),
    )
    return rows + [(name, f"{counts[key]:,} {what}") for name, key, what in fates if counts[key]]
