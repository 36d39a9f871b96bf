"""A trial as cells of a table: its settings, and its tau by rung."""

from specpipe.schemas.drafters.registry import KINDS, settings_fields
from specpipe.schemas.records.tune import Settings, Trial, TuneResult


def settings_header(result: TuneResult) -> list[str]:
    """A column for each thing that is searched."""
    searched = set(result.searched)
    columns = {
        "rate": {"learning_rate"},
        "step": {"batch_tokens", "batch_size"},
        "states": {"state_loss"},
        "drafter": set(settings_fields()),
        "heads": {"head_decay", "head_weights"},
    }
    return [name for name, settings in columns.items() if settings & searched]


def tau_cells(trial: Trial, result: TuneResult) -> list[str]:
    """A column for each rung, empty where the trial took no part."""
    scores = [trial.score(rung) for rung in range(len(result.rungs))]
    return ["" if s is None else f"{s.tau:.3f}" if s.tau else "diverged" for s in scores]


def settings_cells(settings: Settings, result: TuneResult) -> list[str]:
    """In the columns of `settings_header`."""
    by_column = {
        "rate": lambda: f"{settings['learning_rate']:.3g}",
        "step": lambda: f"{settings.get('batch_tokens', settings.get('batch_size')):,}",
        "states": lambda: f"{settings['state_loss']:g}",
        "drafter": lambda: _switches(settings),
        "heads": lambda: _heads(settings),
    }
    return [by_column[name]() for name in settings_header(result)]


def _switches(settings: Settings) -> str:
    """Those that are on."""
    short = {
        name: word for kind in KINDS.values() for name, word in kind.settings.short_names.items()
    }
    return "+".join(word for name, word in short.items() if settings.get(name)) or "none"


def _heads(settings: Settings) -> str:
    if (weights := settings.get("head_weights", "static")) != "static":
        return str(weights)
    decay = settings.get("head_decay")
    return "static" if decay is None else f"{decay:g}^k"
