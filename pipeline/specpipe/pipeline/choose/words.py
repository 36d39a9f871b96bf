"""A comparison as cells of a table."""

from specpipe.schemas.records.choose import ChooseResult, Compared


def header(result: ChooseResult) -> list[str]:
    speeds = [f"speed, batch {size}" for size in result.batch_sizes]
    return ["drafter", "drafts", "tau", "95 %", *speeds]


def cells(one: Compared, result: ChooseResult) -> list[str]:
    """tau of the largest number of draft tokens; each speed-up with its own number."""
    name = f"{one.drafter} *" if one.drafter == result.recommended else one.drafter
    if not one.tau:
        return [name, "", "diverged", "", *[""] * len(result.batch_sizes)]
    interval = f"{one.tau_low[-1]:.3f} to {one.tau_high[-1]:.3f}"
    speeds = [speed_cell(one, size) for size in result.batch_sizes]
    return [name, str(len(one.tau)), f"{one.tau[-1]:.3f}", interval, *speeds]


def speed_cell(one: Compared, batch_size: int) -> str:
    best = one.best(batch_size)
    return "not known" if best is None else f"{best[1]:.2f} with {best[0]}"


def notes(result: ChooseResult) -> list[str]:
    """Why a speed is not known, and why others are not compared."""
    lines = [f"{one.drafter}: {one.no_speed}" for one in result.compared if one.no_speed]
    return lines + [f"{name} is left out: {reason}" for name, reason in result.left_out.items()]
