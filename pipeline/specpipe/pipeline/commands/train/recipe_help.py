"""What the help says of the recipe."""

from specpipe.schemas.settings.recipe import BUDGETS


def recipe_help() -> str:
    """What the help says of settings that are left open."""
    lines = ["\b", "What is left open follows from width and data (docs/training.md):"]
    for name, budget in BUDGETS.items():
        most = (
            f"at most {budget.most_steps:,}" if budget.most_steps else f"{budget.steps:,} or more"
        )
        lines.append(f"  --preset {name:9}{most} steps, in up to {budget.most_epochs} epochs")
    lines.append("Little data has fewer steps than that, even in so many epochs. The line")
    lines.append('"recipe:" (and specpipe plan) says what came out.')
    return "\n".join(lines)
