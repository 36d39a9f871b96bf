"""From tau and costs to speed-ups, and from these to a recommendation with its reasons."""

from collections.abc import Sequence

from specpipe.schemas.records.choose import Compared, StepTimes
from specpipe.schemas.records.served import StepTime
from specpipe.schemas.speedup import Recommendation, Speedup, fitted_cost, recommend, speedup
from specpipe.schemas.step_costs import plain_seconds, relative_rounds
from specpipe.stages.drafters.registry import architecture


def batch_sizes(times: StepTimes | None) -> list[int]:
    """In the order in which they were timed."""
    if times is None:
        return []
    return list(dict.fromkeys(time.batch_size for time in times.without_drafter))


def speedups(
    times: StepTimes, drafter: str, tau: Sequence[float], *, parallel: bool
) -> list[Speedup]:
    """At each batch size; all drafters are held against the same step of the target alone."""
    own = times.drafters.get(drafter, [])
    everything: list[StepTime] = [*times.without_drafter]
    for of_drafter in times.drafters.values():
        everything += of_drafter
    found = []
    for size in batch_sizes(times):
        rounds = relative_rounds(own, size, plain_seconds(everything, size))
        if most := max(rounds, default=0):
            # Beyond what was timed nothing is known.
            cost = fitted_cost(size, rounds, is_parallel=parallel)
            found.append(speedup(tau[:most], cost))
    return found


def ranked(compared: Sequence[Compared], sizes: Sequence[int]) -> list[Compared]:
    """Fastest at the first batch size first; then those whose speed is not known, by tau."""

    def key(one: Compared) -> tuple[float, float]:
        best = one.best(sizes[0]) if sizes else None
        return (0.0 if best is None else best[1], max(one.tau, default=0.0))

    return sorted(compared, key=key, reverse=True)


def recommendation(
    order: Sequence[Compared], sizes: Sequence[int], times_of: str
) -> Recommendation | None:
    """Of the first of them; None where its speed is not known."""
    if not sizes or order[0].best(sizes[0]) is None:
        return None
    follows = architecture(order[0].drafter).serving.follows_schedule
    return recommend(order[0].speedups, f"by {times_of}", follows_schedule=follows)


def reasons(
    order: Sequence[Compared], sizes: Sequence[int], steps: int, full_steps: int, times_of: str
) -> list[str]:
    """Sentences for a person, the decisive one first."""
    first, advice = order[0], recommendation(order, sizes, times_of)
    if advice is None:
        words = [
            "speeds are not known, so that none is recommended: tau says how many tokens a round"
            " yields, and not what it costs"
        ]
    else:
        words = [f"{first.title}: {advice.because}", *_beside(order, sizes[0])]
        words += [line for size in sizes[1:] for line in _elsewhere(order, first, size)]
    unknown = [one.drafter for one in order if not one.speedups]
    if advice is not None and unknown:
        words.append(f"no speed is known of {', '.join(unknown)}: tau alone does not rank them")
    if any(not one.exact for one in order):
        words.append(
            "tau is an estimate: the text is not of the target's own sampling (specpipe dump"
            " --generate)"
        )
    if steps < full_steps:
        words.append(
            f"each was trained for {steps:,} of the {full_steps:,} steps of a whole run: all of"
            " them still rise, and not alike; a larger --budget is surer"
        )
    return words


def _beside(order: Sequence[Compared], size: int) -> list[str]:
    """The first against the second."""
    first = order[0].best(size)
    second = order[1].best(size) if len(order) > 1 else None
    if first is None or second is None:
        return []
    is_sure = first[2] > second[3]
    words = "the intervals do not meet" if is_sure else "the intervals meet: it may be chance"
    costs = " and ".join(
        f"{of.tau[best[0] - 1]:.2f} tokens in {of.tau[best[0] - 1] / best[1]:.2f} steps of the"
        f" target ({_passes(of, best[0])})"
        for of, best in ((order[0], first), (order[1], second))
    )
    return [f"{order[1].title} comes next with {second[1]:.2f}; {words}. A round: {costs}"]


def _passes(one: Compared, number: int) -> str:
    if one.is_parallel:
        return "one pass"
    return "1 draft step" if number == 1 else f"{number} draft steps"


def _elsewhere(order: Sequence[Compared], first: Compared, size: int) -> list[str]:
    """The fastest at another batch size."""
    known = [(best[1], best[0], one) for one in order if (best := one.best(size)) is not None]
    if not known:
        return []
    fastest, number, one = max(known, key=lambda entry: entry[0])
    whose = "also" if one is first else one.title
    return [f"at batch size {size} {whose}, {fastest:.2f} with {number} draft tokens"]
