"""The trials of a search as a table: their settings, and their tau by rung."""

from specpipe.schemas.drafters.registry import KINDS, settings_fields
from specpipe.schemas.records.tune import Settings, Trial, TuneResult


def trials_table(result: TuneResult) -> tuple[list[str], list[list[str]]]:
    """Header and rows; the trial that is kept has a star."""
    header = ["trial", *_settings_header(result), *(f"{r.steps:,} steps" for r in result.rungs)]
    rows = []
    for number, trial in enumerate(result.trials):
        name = "0 (recipe)" if number == 0 else str(number)
        cells = [*_settings_cells(trial.settings, result), *_tau_cells(trial, result)]
        rows.append([f"{name} *" if number == result.kept else name, *cells])
    return header, rows


def _settings_header(result: TuneResult) -> list[str]:
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


def _tau_cells(trial: Trial, result: TuneResult) -> list[str]:
    """A column for each rung, empty where the trial took no part."""
    scores = [trial.score(rung) for rung in range(len(result.rungs))]
    return ["" if s is None else f"{s.tau:.3f}" if s.tau else "diverged" for s in scores]


def _settings_cells(settings: Settings, result: TuneResult) -> list[str]:
    """In the columns of `_settings_header`."""
    by_column = {
        "rate": lambda: f"{settings['learning_rate']:.3g}",
        "step": lambda: f"{settings.get('batch_tokens', settings.get('batch_size')):,}",
        "states": lambda: f"{settings['state_loss']:g}",
        "drafter": lambda: _switches(settings),
        "heads": lambda: _heads(settings),
    }
    return [by_column[name]() for name in _settings_header(result)]


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
    return "static" if decay is None else f"{decay:g}^(k-1)"
