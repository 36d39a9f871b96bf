"""Settings of a trial as cells of a table."""

from specpipe.pipeline.tune.space import NORMS
from specpipe.schemas.records.tune import Settings, TuneResult

_SHORT = {"norm_before_residual": "residual", "norm_before_fc": "fc", "fc_norm": "each",
          "norm_output": "output"}  # fmt: skip


def settings_header(result: TuneResult) -> list[str]:
    """A column for each thing that is searched."""
    searched = set(result.searched)
    columns = {
        "rate": {"learning_rate"},
        "step": {"batch_tokens", "batch_size"},
        "norms": set(NORMS),
        "heads": {"head_decay", "head_weights"},
    }
    return [name for name, settings in columns.items() if settings & searched]


def settings_cells(settings: Settings, result: TuneResult) -> list[str]:
    """In the columns of `settings_header`."""
    by_column = {
        "rate": lambda: f"{settings['learning_rate']:.3g}",
        "step": lambda: f"{settings.get('batch_tokens', settings.get('batch_size')):,}",
        "norms": lambda: "+".join(_SHORT[n] for n in NORMS if settings.get(n)) or "none",
        "heads": lambda: _heads(settings),
    }
    return [by_column[name]() for name in settings_header(result)]


def _heads(settings: Settings) -> str:
    if settings.get("head_weights") == "survival":
        return "survival"
    decay = settings.get("head_decay")
    return "static" if decay is None else f"{decay:g}^k"
