"""`specpipe train`."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from specpipe.pipeline.commands.engine_support import say_served_of_training
from specpipe.pipeline.commands.train.learning_curve import (
    curve_rows,
    show_curve,
    show_tau_by_tokens,
    tau_of_run,
    train_shares,
)
from specpipe.pipeline.commands.train.options import EVALUATION, MODELS, TRAIN, train_config
from specpipe.pipeline.commands.train.progress import TrainProgress
from specpipe.pipeline.commands.train.recipe_help import recipe_help
from specpipe.pipeline.launch.provenance import write_provenance
from specpipe.pipeline.terminal.console import (
    is_first_process,
    note,
    quiet_libraries,
    show,
    show_columns,
)
from specpipe.pipeline.terminal.flags import flags_of
from specpipe.pipeline.terminal.options import (
    GroupedCommand,
    config_option,
    json_option,
    with_options,
)
from specpipe.pipeline.terminal.progress import progress
from specpipe.schemas.records.checkpoint import TrainResult
from specpipe.schemas.records.metrics import EvalMetrics
from specpipe.schemas.settings.recipe import Recipe
from specpipe.schemas.settings.train import TrainConfig

_ESTIMATE = " *"

_OPTIONS = flags_of(MODELS, TRAIN | {EVALUATION: (*TRAIN[EVALUATION], "--learning-curve")})


@click.command(
    cls=GroupedCommand,
    short_help="Train a drafter from a dump, without the target.",
    epilog=recipe_help(),
)
@config_option
@with_options(_OPTIONS)
@json_option
def train(config_file: Path | None, as_json: bool, **flags: Any) -> None:
    """Train a drafter from a dump. The target is never loaded.

    \b
      specpipe train --dump runs/dump --out runs/drafter --preset quick

    Evaluates on held-out prompts before the first step and ten times on the way: every loss, the
    acceptance per head, and the replay, which predicts the tokens per round (tau) of the serving
    engine. metrics.jsonl has a line per step. Killed at any moment, the same command continues from
    the last checkpoint, bit for bit; SIGTERM and --time-limit save first and exit with code 5. A
    setting that is wrong is named before the first step (exit code 2).

    \b
      --preset quick                     to see that everything works
      --early-stop 3                     end when tau rises no more
      --log tensorboard,wandb            besides metrics.jsonl
      --time-limit 3500                  for a queue: run again to go on
      --learning-curve                   how much more data would bring

    On several GPUs or nodes: torchrun --nproc-per-node 8 -m specpipe train ... (--shard for FSDP2).
    """
    config = train_config(config_file, flags)
    quiet_libraries()
    from specpipe.stages.runs.folder import RunFolder
    from specpipe.stages.train.run import run

    say_served_of_training(config)
    began = time.monotonic()

    def train_one(one: TrainConfig, name: str) -> TrainResult:
        if not is_first_process():
            return run(one, began=began)
        # That a share of the data makes few steps is the point of a learning curve.
        tell = _tell if one is config else _tell_recipe
        with progress(name, "steps") as report:
            return run(one, progress=TrainProgress(report), tell=tell, began=began)

    result = train_one(config, "train")
    if is_first_process() and not result.did_nothing:
        folder = RunFolder(config.out)
        write_provenance(folder.path, folder.read_config())
    curve = train_shares(config, result, train_one) if config.learning_curve else None
    if not is_first_process():
        return
    over_training = tau_of_run(result)
    samples_drafts = config.drafter.samples_drafts
    show_evaluation(result.untrained, result.best, samples_drafts=samples_drafts)
    show_tau_by_tokens(over_training)
    show_curve(curve)
    record = result.model_dump(mode="json") | {
        "over_training": [asdict(one) for one in over_training.evaluations],
        "learning_curve": None if curve is None else curve.model_dump(mode="json"),
    }
    rows = [*_rows(result, samples_drafts=samples_drafts), *curve_rows(curve)]
    show("Training", rows, record, as_json=as_json)


def _tell_recipe(recipe: Recipe) -> None:
    note(f"recipe: {recipe.in_words()}")


def _tell(recipe: Recipe) -> None:
    _tell_recipe(recipe)
    if recipe.shortage:
        note(f"warning: {recipe.shortage}")


def _rows(result: TrainResult, *, samples_drafts: bool) -> list[tuple[str, str]]:
    heads = len(result.best.alpha)
    replayed = result.best.replay_temperature_1
    return [
        ("run", result.out),
        (
            "steps",
            f"{result.steps:,} on {result.num_tokens:,} tokens{_fill(result)}{_early(result)}",
        ),
        *_left_out(result),
        ("loss", f"{result.draft_loss_first:.4f} first, {result.draft_loss_last:.4f} last"),
        ("best checkpoint", result.checkpoint),
        (
            "tau",
            f"{replayed.tau[-1]:.3f} [{replayed.tau_low[-1]:.3f}, {replayed.tau_high[-1]:.3f}]"
            f" at temperature 1 with {heads} draft tokens{'' if samples_drafts else ', greedy'}"
            f" (untrained: {result.untrained.replay_temperature_1.tau[-1]:.3f})",
        ),
        ("seconds", "nothing to do" if result.did_nothing else f"{result.seconds:.1f}"),
    ]


def _early(result: TrainResult) -> str:
    return ", ended early: tau rose no more" if result.stopped_early else ""


def _fill(result: TrainResult) -> str:
    return "" if result.fill is None else f" ({result.fill:.1%} of the room in them)"


def _left_out(result: TrainResult) -> list[tuple[str, str]]:
    if not result.num_left_out:
        return []
    return [("left out", f"{result.num_left_out:,} samples whose prompt is in the eval dump")]


def show_evaluation(untrained: EvalMetrics, best: EvalMetrics, *, samples_drafts: bool) -> None:
    """Acceptance per head, and tau by number of draft tokens, before and after training.

    Where engines do not sample the drafts, those at temperature 1 are greedy.
    """
    at_1 = "temperature 1" if samples_drafts else "greedy draft, temp. 1"
    further = (
        (_curve("tau, greedy draft, temp. 1", best.replay_greedy_draft.exact),
         best.replay_greedy_draft.tau),
    )  # fmt: skip
    header = ["held out, by head / draft tokens", *(str(k + 1) for k in range(len(best.alpha)))]
    rows = [
        (name, *(f"{value:.3f}" for value in values))
        for name, values in (
            (f"acceptance, {at_1}", best.temperature_1.acceptance_rate),
            ("acceptance, greedy", best.greedy.acceptance_rate),
            (_curve(f"tau, {at_1}", best.replay_temperature_1.exact),
             best.replay_temperature_1.tau),
            ("  untrained", untrained.replay_temperature_1.tau),
            *(further if samples_drafts else ()),
            (_curve("tau, greedy", best.replay_greedy.exact), best.replay_greedy.tau),
        )
    ]  # fmt: skip
    show_columns("Evaluation", header, rows)
    if any(row[0].endswith(_ESTIMATE) for row in rows):
        note("* an estimate: the text is not what the target writes in this way")
        note("")


def _curve(name: str, exact: bool) -> str:
    return name if exact else name + _ESTIMATE
