"""The dumps of a run: opened and verified, and the same ones from its start to its end."""

from pathlib import Path

from specpipe.schemas.errors import ConfigError, IdentityError, IntegrityError
from specpipe.stages.drafter.checkpoint import Checkpoint
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.folder import Folder
from specpipe.stages.storage.verify import verify

PREVERIFY_BYTES = 16 * 2**30


def open_dump(url: str, preverify: str) -> Dump:
    """A complete dump whose objects are all there; read and checked whole when asked to.

    Raises ConfigError for a dump that training cannot read, UnfinishedError, IntegrityError.
    """
    dump = Dump.open(url)
    if dump.identity.logits != "final":
        raise ConfigError(
            f"{dump.folder.url} keeps the verifier's logits in the mode {dump.identity.logits};"
            " training reads the mode `final`: dump again with --logits final, the default"
        )
    dump.check_objects()
    dump.check_metadata()
    if preverify == "full" or (preverify == "auto" and dump.num_bytes < PREVERIFY_BYTES):
        damages = verify(url).damages
        if damages:
            first = "; ".join(f"{d.key}: {d.problem}" for d in damages[:5])
            more = f" (and {len(damages) - 5} more)" if len(damages) > 5 else ""
            raise IntegrityError(f"{dump.folder.url} is damaged: {first}{more}; dump it again")
    return dump


def check_same_target(dump: Dump, eval_dump: Dump) -> None:
    ours, theirs = dump.identity, eval_dump.identity
    if ours.target.weights_sha256 != theirs.target.weights_sha256:
        raise IdentityError(
            f"{eval_dump.folder.url} is a dump of another target than the training dump"
        )
    if ours.layers != theirs.layers:
        raise IdentityError(
            f"{eval_dump.folder.url} holds layers {theirs.layers}, the training dump {ours.layers}"
        )


def check_same_dumps(checkpoint: Checkpoint, dump: Dump, eval_dump: Dump) -> None:
    state = checkpoint.state
    if state.target.weights_sha256 != dump.identity.target.weights_sha256:
        raise IdentityError(
            f"{checkpoint.path} was trained for another target than that of {dump.folder.url}"
            f" ({state.target.name} there, {dump.identity.target.name} here)"
        )
    if (state.dump_fingerprint, state.eval_dump_fingerprint) != (
        dump.header.fingerprint,
        eval_dump.header.fingerprint,
    ):
        raise IdentityError(
            f"{checkpoint.path} was trained on another dump than {dump.folder.url};"
            " use another --out for this one"
        )


def check_still_of(run: Path, now: str | None, then: str | None, fingerprint: str) -> None:
    """Raise IdentityError where a complete run is of another dump than the one that is given now.

    A dump that lies where it lay is not opened: it may be gone once the run is complete.
    """
    if now is None and then is None:
        return
    in_place = now is not None and Folder.open(now).url == then
    given = now is not None and then is not None
    if in_place or (given and Dump.open(str(now)).header.fingerprint == fingerprint):
        return
    raise IdentityError(f"{run} holds a complete run of another dump ({then}); use another --out")
