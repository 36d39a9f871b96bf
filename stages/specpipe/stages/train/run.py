"""`specpipe train` as a function: from a dump to a run directory, resumable at any moment."""

from specpipe.schemas.checkpoint import (
    CHECKPOINTS_FOLDER,
    RESULT_FILE,
    TargetReference,
    TrainResult,
    TrainState,
)
from specpipe.schemas.errors import InputError, StoreError
from specpipe.schemas.train_config import TrainConfig
from specpipe.stages.drafter.checkpoint import latest_checkpoint, load_checkpoint
from specpipe.stages.drafter.sample_reader import SampleReader, SampleRef
from specpipe.stages.drafter.selection import evaluated, split
from specpipe.stages.storage.dump import Dump
from specpipe.stages.train.checkpoint import checkpoint_name, restore
from specpipe.stages.train.dumps import (
    check_same_dumps,
    check_same_target,
    check_still_of,
    open_dump,
)
from specpipe.stages.train.loggers.opening import check_loggers, open_loggers
from specpipe.stages.train.loggers.records import read_records
from specpipe.stages.train.loggers.reports import Reports
from specpipe.stages.train.loop import Loop, Progress
from specpipe.stages.train.order import epoch_batches
from specpipe.stages.train.run_folder import RunFolder, write_atomically
from specpipe.stages.train.stop import StopQuestion, stop_question
from specpipe.stages.train.trainee import Trainee


def run(config: TrainConfig, *, progress: Progress | None = None) -> TrainResult:
    """Train a drafter, or continue one; a complete run does nothing.

    Raises ConfigError, InputError, IntegrityError before the first step where something is wrong
    with the settings or the dump; UnfinishedError after saving on SIGTERM or at the time limit;
    DivergedError on a loss that is not finite.
    """
    folder = RunFolder(config.out)
    with folder.locked(), stop_question(config.time_limit) as should_stop:
        folder.check_config(config)
        if (folder.path / RESULT_FILE).exists():
            return _finished(config, folder)
        try:
            check_loggers(config.log)
            records = read_records(folder.path)
            reports = Reports()
            loop = _prepare(config, folder, reports, should_stop, progress or (lambda *_: None))
            # Only now: a first attempt that was refused must not bind the directory.
            located = {"dump": loop.reader.dump.folder.url}
            if config.eval_dump is not None:
                located["eval_dump"] = loop.eval_reader.dump.folder.url
            folder.write_config(config.model_copy(update=located))
            with open_loggers(config, folder.path, loop.state.step or -1, records, reports):
                state = loop.run()
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(f"cannot write to {folder.path}: {error.strerror}") from error
        result = _result(config, folder, state)
        write_atomically(folder.path / RESULT_FILE, result.model_dump_json(indent=2).encode())
    return result


def _prepare(
    config: TrainConfig,
    folder: RunFolder,
    reports: Reports,
    should_stop: StopQuestion,
    progress: Progress,
) -> Loop:
    dump = open_dump(config.dump, config.preverify)
    path = latest_checkpoint(folder.path)
    checkpoint = None if path is None else load_checkpoint(path)
    eval_dump = dump
    if config.eval_dump is not None:
        eval_dump = open_dump(config.eval_dump, config.preverify)
        check_same_target(dump, eval_dump)
    if checkpoint is not None:
        check_same_dumps(checkpoint, dump, eval_dump)
    reader = SampleReader(dump, config.context_length)
    eval_reader = reader if eval_dump is dump else SampleReader(eval_dump, config.context_length)
    training, num_left_out = _training_samples(config, reader, eval_reader)
    trainee = Trainee.build(
        config,
        dump,
        checkpoint.vocab if checkpoint else None,
        checkpoint.shape if checkpoint else None,
    )
    if checkpoint is not None:
        restore(checkpoint, trainee)
    state = (
        checkpoint.state
        if checkpoint
        else _fresh_state(config, dump, eval_dump, training, num_left_out)
    )
    folder.cut_metrics(state.step if checkpoint else -1)
    return Loop(
        trainee=trainee,
        reader=reader,
        training=training,
        eval_reader=eval_reader,
        held_out=evaluated(eval_reader, config),
        eval_text=eval_dump.identity.text,
        folder=folder,
        state=state,
        reports=reports,
        should_stop=should_stop,
        progress=progress,
    )


def _training_samples(
    config: TrainConfig, reader: SampleReader, eval_reader: SampleReader
) -> tuple[list[SampleRef], int]:
    """What is trained on, and how many samples were left out for sharing a prompt with the eval
    dump: whatever is evaluated on must be new to the drafter."""
    refs = reader.refs()
    if config.eval_dump is None:
        training, held_out = split(refs, config.held_out_fraction)
        if not training or not held_out:
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


def _fresh_state(
    config: TrainConfig,
    dump: Dump,
    eval_dump: Dump,
    training: list[SampleRef],
    num_left_out: int,
) -> TrainState:
    total = config.max_steps or sum(
        len(epoch_batches(training, config.seed, e, config.batch_tokens, config.batch_size))
        for e in range(config.num_epochs)
    )
    target = dump.identity.target
    return TrainState(
        step=0,
        epoch=0,
        batch_in_epoch=0,
        total_steps=total,
        num_heads=config.num_heads,
        previous_alpha=None,
        num_tokens=0,
        num_left_out=num_left_out,
        draft_loss_first=None,
        draft_loss_last=None,
        untrained=None,
        best=None,
        best_step=None,
        dump_fingerprint=dump.header.fingerprint,
        eval_dump_fingerprint=eval_dump.header.fingerprint,
        target=TargetReference(
            name=target.name,
            revision=target.revision,
            architecture=target.architecture,
            weights_sha256=target.weights_sha256,
        ),
        text=dump.identity.text,
        seconds=0.0,
        data_wait=0.0,
        files_sha256={},
    )


def _result(config: TrainConfig, folder: RunFolder, state: TrainState) -> TrainResult:
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
        num_left_out=state.num_left_out,
        seconds=state.seconds,
        data_wait=state.data_wait,
        draft_loss_first=state.draft_loss_first,
        draft_loss_last=state.draft_loss_last,
        dump_fingerprint=state.dump_fingerprint,
        eval_dump_fingerprint=state.eval_dump_fingerprint,
        untrained=state.untrained,
        best=state.best,
    )


def _finished(config: TrainConfig, folder: RunFolder) -> TrainResult:
    """The result of a run that is complete, after a look at whether it is of these dumps."""
    result = TrainResult.model_validate_json((folder.path / RESULT_FILE).read_bytes())
    before = folder.read_config()
    for now, then, fingerprint in (
        (config.dump, before.dump, result.dump_fingerprint),
        (config.eval_dump, before.eval_dump, result.eval_dump_fingerprint),
    ):
        check_still_of(folder.path, now, then, fingerprint)
    return result.model_copy(update={"did_nothing": True})
