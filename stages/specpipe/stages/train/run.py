"""`specpipe train` as a function: from a dump to a run directory, resumable at any moment."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError as PydanticError

from specpipe.schemas.errors import ConfigError, InputError, IntegrityError
from specpipe.schemas.records.checkpoint import (
    CHECKPOINTS_FOLDER,
    RESULT_FILE,
    TargetReference,
    TrainResult,
    TrainState,
)
from specpipe.schemas.settings.recipe import Recipe, resolve
from specpipe.schemas.settings.train import ResolvedTrainConfig, TrainConfig
from specpipe.stages.process.stop import StopQuestion, stop_question
from specpipe.stages.runs.checkpoint import load_checkpoint
from specpipe.stages.runs.folder import RunFolder, continued
from specpipe.stages.runs.pointers import latest_checkpoint
from specpipe.stages.samples.batch import Batch, make_batch
from specpipe.stages.samples.reader import SampleReader, SampleRef
from specpipe.stages.samples.selection import evaluated, share, split
from specpipe.stages.storage.store.local_disk import write_file
from specpipe.stages.train.checkpoint_writer import checkpoint_name, restore
from specpipe.stages.train.data.dumps import (
    TrainingDumps,
    check_same_dumps,
    check_still_of,
    located,
)
from specpipe.stages.train.loggers.opening import check_loggers, open_loggers
from specpipe.stages.train.loggers.reports import Reports
from specpipe.stages.train.loop import Loop, Progress
from specpipe.stages.train.memory import enough_memory
from specpipe.stages.train.optim.precision import check_dtype
from specpipe.stages.train.ranks.ranks import Ranks, join_ranks
from specpipe.stages.train.ranks.sharding import is_sharded
from specpipe.stages.train.recipe import facts_of, recipe_of
from specpipe.stages.train.trainee import Trainee
from specpipe.stages.untrusted.files import read_file
from specpipe.stages.untrusted.foreign import first_bad_field

Tell = Callable[[Recipe], None]
"""Called once, before the first step, with what the run will do."""


def run(
    config: TrainConfig,
    *,
    progress: Progress | None = None,
    tell: Tell | None = None,
    began: float | None = None,
) -> TrainResult:
    """Train a drafter, or continue one; a complete run does nothing.

    A run that goes on keeps the settings that it began with, for all that `config` leaves open.
    The time limit counts from `began`, by time.monotonic, or from now.

    Under torchrun this is one rank of several: they train together, end together, and the first
    one writes. Raises ConfigError, InputError, IntegrityError before the first step where something
    is wrong with the settings or the dump; UnfinishedError after saving on SIGTERM or at the time
    limit; DivergedError on a loss that is not finite.
    """
    folder = RunFolder(config.out)
    with (
        join_ranks(config.device) as ranks,
        stop_question(config.time_limit, began) as should_stop,
        ExitStack() as held,
    ):
        _check_same_settings(config, ranks)
        with ranks.together():
            check_dtype(config, ranks.device)
        if finished := ranks.of_first(lambda: _claimed(config, folder, held)):
            return TrainResult.model_validate_json(finished)
        config = continued(config, ranks.of_first(folder.begun))
        with ranks.together():
            check_dtype(config, ranks.device)
        latest = ranks.of_first(lambda: str(latest_checkpoint(folder.path) or "").encode())
        checkpoint_path = Path(latest.decode()) if latest else None
        reports = Reports()
        with ranks.together(), enough_memory("as the drafter is made"):
            loop, recipe = _prepare(config, folder, checkpoint_path, ranks, reports, should_stop)
            if ranks.is_first:
                # Only now: a first attempt that is refused must not make the directory its own.
                folder.write_config(located(recipe.config))
                folder.cut_metrics(loop.state)
                step = -1 if checkpoint_path is None else loop.state.step
                held.enter_context(open_loggers(recipe.config, folder.path, step, reports))
        if tell is not None:
            tell(recipe)
        result = _result(recipe, folder, loop.run(progress or (lambda *_: None)))
        with ranks.together():
            if ranks.is_first:
                data = result.model_dump_json(indent=2).encode()
                write_file(folder.path / RESULT_FILE, data)
    return result


def _check_same_settings(config: TrainConfig, ranks: Ranks) -> None:
    settings = ranks.gather(config.model_dump_json().encode())
    with ranks.together():
        if ranks.is_first and len(set(settings)) > 1:
            raise ConfigError(
                "the processes of this run were started with different settings; start all of"
                " them with the same command"
            )


def _claimed(config: TrainConfig, folder: RunFolder, held: ExitStack) -> bytes:
    """Lock the run directory and look whether it is this run's; its result if it is complete."""
    held.enter_context(folder.locked())
    folder.check_config(config)
    if (folder.path / RESULT_FILE).exists():
        return _finished(config, folder).model_dump_json().encode()
    check_loggers(config.log)
    return b""


def _prepare(
    config: TrainConfig,
    folder: RunFolder,
    checkpoint_path: Path | None,
    ranks: Ranks,
    reports: Reports,
    should_stop: StopQuestion,
) -> tuple[Loop, Recipe]:
    # One rank reads what is to be verified for all.
    preverify = config.preverify if ranks.is_first else "metadata"
    dumps = TrainingDumps.open(config, preverify, should_stop)
    checkpoint = None if checkpoint_path is None else load_checkpoint(checkpoint_path)
    if checkpoint is not None and config.layers is None:
        config = config.model_copy(update={"layers": checkpoint.shape.aux_layers})
    evaluated_on = dumps.evaluated_on(config, preverify, should_stop)
    if checkpoint is not None:
        check_same_dumps(checkpoint, dumps, evaluated_on)
    reader = dumps.reader(config)
    eval_reader = reader if evaluated_on is dumps else evaluated_on.reader(config)
    training, num_left_out = training_samples(config, reader, eval_reader)
    identity = dumps.dump.identity
    if checkpoint is None:
        recipe = recipe_of(config, training, identity, should_stop)
    else:
        recipe = resolve(config, facts_of(training, identity))
    settings = recipe.config
    trainee = Trainee.build(
        settings,
        dumps.dump,
        checkpoint.vocab if checkpoint else None,
        checkpoint.shape if checkpoint else None,
        ranks,
        statistics=dumps.vocab,
    )
    if checkpoint is not None:
        restore(checkpoint, trainee)
    state = (
        checkpoint.state if checkpoint else _fresh_state(recipe, dumps, evaluated_on, num_left_out)
    )
    loop = Loop(
        trainee=trainee,
        reader=reader,
        training=training,
        eval_reader=eval_reader,
        held_out=_held_out_samples(settings, eval_reader),
        eval_text=evaluated_on.text,
        folder=folder,
        state=state,
        reports=reports,
        should_stop=should_stop,
        idle=_idle(reader, training, settings) if is_sharded(trainee.model) else None,
    )
    return loop, replace(recipe, num_steps=state.total_steps, is_counted=True)


def _idle(reader: SampleReader, training: Sequence[SampleRef], config: TrainConfig) -> Batch:
    """The shortest sample, with no weight."""
    shortest = min(training, key=lambda ref: (ref.num_tokens, ref))
    sample = reader.some(shortest.shard_id, [shortest])[shortest.index]
    return make_batch([replace(sample, weight=0.0)], config.num_heads)


def training_samples(
    config: TrainConfig, reader: SampleReader, eval_reader: SampleReader
) -> tuple[list[SampleRef], int]:
    """What is trained on, and how many samples were left out for sharing a prompt with the eval
    dump: whatever is evaluated on must be new to the drafter."""
    training, num_left_out = _may_train_on(config, reader, eval_reader)
    taken = share(training, config.data_fraction)
    if not taken:
        raise InputError(
            f"a share of {config.data_fraction:g} of the prompts is no sample of the"
            f" {len(training)} that could be trained on; give a larger --data-fraction"
        )
    return taken, num_left_out


def _may_train_on(
    config: TrainConfig, reader: SampleReader, eval_reader: SampleReader
) -> tuple[list[SampleRef], int]:
    """All that is not evaluated on, and how many samples share a prompt with the eval dump."""
    refs = reader.refs()
    if config.eval_dump is None:
        training, held_out = split(refs, config.held_out_fraction)
        if not training or not held_out:
            if len({ref.prompt_id for ref in refs}) < 2:
                raise InputError(
                    f"{reader.dump.folder.url} has {len(refs)} samples of one prompt, which cannot"
                    " be both trained and evaluated on; give an --eval-dump"
                )
            raise InputError(
                f"holding out {config.held_out_fraction:.0%} of the prompts leaves"
                f" {len(training)} samples to train on and {len(held_out)} to evaluate on; change"
                " --held-out-fraction or give an --eval-dump"
            )
        return training, 0
    seen = {ref.prompt_id for ref in eval_reader.refs()}
    training = [ref for ref in refs if ref.prompt_id not in seen]
    if not training:
        raise InputError(
            f"every prompt of {reader.dump.folder.url} stands in the eval dump"
            f" {eval_reader.dump.folder.url} too; evaluate on other prompts, or leave out"
            " --eval-dump to hold some out"
        )
    return training, len(refs) - len(training)


def _held_out_samples(config: ResolvedTrainConfig, eval_reader: SampleReader) -> list[SampleRef]:
    """What is evaluated on; the best checkpoint is chosen by whole rounds of all heads."""
    held_out = evaluated(eval_reader, config)
    if not eval_reader.has_span(held_out, config.num_heads + 1):
        raise InputError(
            f"no held-out answer of {eval_reader.dump.folder.url} is longer than"
            f" {config.num_heads} tokens, so none has a whole round of {config.num_heads} draft"
            " tokens to choose the best checkpoint by; give fewer --num-heads, or another"
            " --eval-dump"
        )
    return held_out


def _fresh_state(
    recipe: Recipe, dumps: TrainingDumps, evaluated_on: TrainingDumps, num_left_out: int
) -> TrainState:
    target = dumps.dump.identity.target
    return TrainState(
        step=0,
        epoch=0,
        batch_in_epoch=0,
        total_steps=recipe.num_steps,
        eval_due=True,
        num_heads=recipe.config.num_heads,
        previous_alpha=None,
        num_tokens=0,
        num_left_out=num_left_out,
        draft_loss_first=None,
        draft_loss_last=None,
        untrained=None,
        best=None,
        best_step=None,
        dump_fingerprint=dumps.fingerprint,
        eval_dump_fingerprint=evaluated_on.fingerprint,
        target=TargetReference(
            name=target.name,
            revision=target.revision,
            architecture=target.architecture,
            weights_sha256=target.weights_sha256,
        ),
        text=dumps.text,
        seconds=0.0,
        data_wait=0.0,
        files_sha256={},
    )


def _result(recipe: Recipe, folder: RunFolder, state: TrainState) -> TrainResult:
    config = recipe.config
    assert state.best is not None
    assert state.best_step is not None
    assert state.untrained is not None
    assert state.draft_loss_first is not None
    assert state.draft_loss_last is not None
    checkpoint = folder.path / CHECKPOINTS_FOLDER / checkpoint_name(state.best_step)
    return TrainResult(
        out=config.out,
        checkpoint=str(checkpoint),
        steps=state.step,
        stopped_early=state.step < state.total_steps,
        best_step=state.best_step,
        num_tokens=state.num_tokens,
        fill=None if config.batch_size else state.num_tokens / (state.step * config.batch_tokens),
        num_left_out=state.num_left_out,
        seconds=state.seconds,
        data_wait=state.data_wait,
        draft_loss_first=state.draft_loss_first,
        draft_loss_last=state.draft_loss_last,
        dump_fingerprint=state.dump_fingerprint,
        eval_dump_fingerprint=state.eval_dump_fingerprint,
        untrained=state.untrained,
        best=state.best,
        recipe=recipe.record,
    )


def _finished(config: TrainConfig, folder: RunFolder) -> TrainResult:
    """The result of a run that is complete, after a look at whether it is of these dumps."""
    path = folder.path / RESULT_FILE
    try:
        result = TrainResult.model_validate_json(read_file(path))
    except PydanticError as error:
        raise IntegrityError(
            f"{path} is damaged ({first_bad_field(error)}); remove it and run the same command"
            " again, which makes it anew"
        ) from None
    dumps = result.dump_fingerprint, result.eval_dump_fingerprint
    check_still_of(f"{folder.path} holds a complete run", config, folder.read_config(), dumps)
    return result.model_copy(update={"did_nothing": True})
