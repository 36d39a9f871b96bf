"""The recipe in the help of `specpipe train`."""

from specpipe.schemas.settings.recipe import (
    BUDGETS,
    MOST_MUON_RATE,
    MOST_MUON_TOKENS,
    MUON_RATE,
    PASS_TOKENS,
    SHORT_RUN,
)


def recipe_help() -> str:
    """What the help says of settings that are left open."""
    lines = ["\b", "What is left open follows from width and data (docs/training.md):"]
    for name, budget in BUDGETS.items():
        most = (
            f"at most {budget.most_steps:,}" if budget.most_steps else f"{budget.steps:,} or more"
        )
        lines.append(f"  --preset {name:9}{most} steps, in up to {budget.most_epochs} epochs")
    lines += [
        "Little data has fewer steps than that, even in so many epochs. The line",
        '"recipe:" (and specpipe plan) says what came out.',
        f"  --learning-rate  {MUON_RATE:g} times the root of tokens of a step / width,",
        f"                   of at most {MOST_MUON_TOKENS:,} tokens, at most {MOST_MUON_RATE:g};",
        f"                   higher in fewer than {SHORT_RUN} steps from new weights; with",
        "                   --optimizer adamw about 1/width",
        f"  --pack-tokens    at most {PASS_TOKENS:,} of a step whose size is left open",
    ]
    return "\n".join(lines)
