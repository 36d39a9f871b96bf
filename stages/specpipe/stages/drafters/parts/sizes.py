"""A checkpoint's weights against the sizes that its shape claims."""

from collections.abc import Mapping

from torch import Tensor


def size_problems(
    expected: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor]
) -> list[str]:
    """Why these are not the weights of a model with such parameters, in words."""
    problems = []
    if missing := sorted(set(expected) - set(weights)):
        problems.append(f"it lacks {', '.join(missing[:3])}")
    if unknown := sorted(set(weights) - set(expected)):
        problems.append(f"nothing is known of {', '.join(unknown[:3])}")
    for name in sorted(set(expected) & set(weights)):
        if tuple(weights[name].shape) != expected[name]:
            problems.append(
                f"{name} is {list(weights[name].shape)} instead of {list(expected[name])}"
            )
    return problems[:3]
