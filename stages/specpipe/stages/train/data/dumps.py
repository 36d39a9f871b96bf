"""The dumps of a run: opened and verified, and the same ones from its start to its end."""

from dataclasses import dataclass
from typing import TypeVar

from specpipe.schemas.errors import ConfigError, IdentityError, IntegrityError, UnfinishedError
from specpipe.schemas.records.dump import TextOrigin, canonical_sha256
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.process.stop import StopQuestion
from specpipe.stages.runs.checkpoint import Checkpoint
from specpipe.stages.samples.final_layer import layers_for
from specpipe.stages.samples.reader import SampleReader
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.storage.vocab import VocabStatistics
from specpipe.stages.upkeep.verify.run import verify

PREVERIFY_BYTES = 16 * 2**30
SomeConfig = TypeVar("SomeConfig", bound=TrainConfig)


def open_dump(url: str, preverify: str, should_stop: StopQuestion) -> Dump:
    """A complete dump whose objects are all there; read and checked whole when asked to.

    SIGTERM stops that; the time limit does not, as one that is shorter would let no run begin.
    Raises UnfinishedError, IntegrityError.
    """

    def go_on(_done: int, _total: int) -> None:
        if reason := should_stop.of_signal():
            raise UnfinishedError(
                f"{reason}: stopped while {dump.folder.url} was verified; run the same command"
                " again"
            )

    dump = Dump.open(url)
    dump.check_objects()
    dump.check_metadata()
    if preverify == "full" or (preverify == "auto" and dump.num_bytes < PREVERIFY_BYTES):
        damages = verify(url, progress=go_on).damages
        if damages:
            first = "; ".join(f"{d.key}: {d.problem}" for d in damages[:5])
            more = f" (and {len(damages) - 5} more)" if len(damages) > 5 else ""
            raise IntegrityError(f"{dump.folder.url} is damaged: {first}{more}; dump it again")
    return dump


@dataclass(frozen=True, slots=True)
class TrainingDumps:
    """What a run trains on: a dump, and others of the same target that are mixed in."""

    dump: Dump
    others: tuple[tuple[Dump, float], ...] = ()
    """With the passes over each to one pass over `dump`."""

    @classmethod
    def open(
        cls, config: TrainConfig, preverify: str, should_stop: StopQuestion
    ) -> "TrainingDumps":
        """Raises as `open_dump` and `check_same_states` do."""
        dump = open_dump(config.dump, preverify, should_stop)
        others = []
        for url, weight in config.mix.items():
            other = open_dump(url, preverify, should_stop)
            check_same_states(dump, other)
            others.append((other, weight))
        return cls(dump, tuple(others))

    def evaluated_on(
        self, config: TrainConfig, preverify: str, should_stop: StopQuestion
    ) -> "TrainingDumps":
        """The eval dump, or these where a share of them is held out; raises as `open` does."""
        if config.eval_dump is None:
            return self
        dump = open_dump(config.eval_dump, preverify, should_stop)
        check_same_states(self.dump, dump)
        return TrainingDumps(dump)

    @property
    def fingerprint(self) -> str:
        """That of the dump; of a mixture, a hash over all of them and their weights."""
        if not self.others:
            return self.dump.header.fingerprint
        mixed = [[other.header.fingerprint, weight] for other, weight in self.others]
        return canonical_sha256([self.dump.header.fingerprint, mixed])

    @property
    def text(self) -> TextOrigin:
        """How the text came to be; where that differs, it is given text, on which no replay is
        exact."""
        texts = {dump.identity.text for dump in (self.dump, *(other for other, _ in self.others))}
        return texts.pop() if len(texts) == 1 else TextOrigin()

    def vocab(self) -> VocabStatistics:
        """Statistics of one pass over the mixture; counts are rounded."""
        total = self.dump.vocab()
        for other, weight in self.others:
            total.add(other.vocab().times(weight))
        return total

    def reader(self, config: TrainConfig) -> SampleReader:
        return SampleReader(
            self.dump,
            config.context_length,
            layers=chosen_layers(self.dump, config),
            others=self.others,
        )


def chosen_layers(dump: Dump, config: TrainConfig) -> tuple[int, ...]:
    """The auxiliary layers that are trained on; raises ConfigError where the dump lacks one."""
    layers = layers_for(type(config.drafter), dump.identity)
    if config.layers is None:
        try:
            return config.drafter.chosen_layers(layers, dump.identity.target.num_layers)
        except ValueError as error:
            raise ConfigError(
                f"{dump.folder.url} is no dump for a drafter {config.drafter.kind}: {error}"
            ) from None
    if list(config.layers) != sorted(set(config.layers)) or not set(config.layers) <= set(layers):
        raise ConfigError(
            f"--layers {','.join(map(str, config.layers))}: {dump.folder.url} holds the layers"
            f" {', '.join(map(str, layers))}; name some of them, ascending"
        )
    if config.drafter.takes_any_layers:
        return config.layers
    usual = config.drafter.default_layers(dump.identity.target.num_layers)
    if config.layers != usual:
        raise ConfigError(
            f"--layers {','.join(map(str, config.layers))}: a drafter {config.drafter.kind} takes"
            f" layer {', '.join(map(str, usual))} alone; leave --layers out"
        )
    return config.layers


def check_same_states(dump: Dump, other: Dump) -> None:
    """Raise IdentityError where two dumps cannot be used together: of another target, with other
    layers, or with the verifier's logits in another mode."""
    ours, theirs = dump.identity, other.identity
    for what, mine, its in (
        ("the target", ours.target.weights_sha256, theirs.target.weights_sha256),
        ("the layers", ours.layers, theirs.layers),
        ("the logits mode", ours.logits, theirs.logits),
    ):
        if mine != its:
            raise IdentityError(
                f"{dump.folder.url} and {other.folder.url} do not go together: {what} is {mine} in"
                f" the one and {its} in the other"
            )


def check_same_dumps(
    checkpoint: Checkpoint, dumps: TrainingDumps, evaluated_on: TrainingDumps
) -> None:
    state, dump = checkpoint.state, dumps.dump
    if state.target.weights_sha256 != dump.identity.target.weights_sha256:
        raise IdentityError(
            f"{checkpoint.path} was trained for another target than that of {dump.folder.url}"
            f" ({state.target.name} there, {dump.identity.target.name} here)"
        )
    if (state.dump_fingerprint, state.eval_dump_fingerprint) != (
        dumps.fingerprint,
        evaluated_on.fingerprint,
    ):
        raise IdentityError(
            f"{checkpoint.path} was trained on another dump than {dump.folder.url}, or on other"
            " dumps mixed with it; use another --out for this one"
        )


def check_still_of(
    what: str, now: TrainConfig, then: TrainConfig, fingerprints: tuple[str, str]
) -> None:
    """Raise IdentityError, beginning with `what`, where something complete is of other dumps than
    those that are given now.

    `fingerprints` are of what it trained on and of what it was evaluated on. Dumps that lie where
    they lay are not opened: they may be gone once it is complete.
    """
    now = located(now)
    trained_on, evaluated_on = fingerprints
    for ours, theirs, fingerprint in (
        (_trained_on(now), _trained_on(then), trained_on),
        (_evaluated_on(now), _evaluated_on(then), evaluated_on),
    ):
        if ours == theirs or (ours and theirs and _fingerprint(ours) == fingerprint):
            continue
        places = ", ".join(url for url, _ in theirs) or "no --eval-dump"
        raise IdentityError(f"{what} of another dump ({places}); use another --out")


def located(config: SomeConfig) -> SomeConfig:
    """The configuration with where its dumps are, whatever the working directory."""
    where = {"dump": Folder.open(config.dump).url}
    if config.eval_dump is not None:
        where["eval_dump"] = Folder.open(config.eval_dump).url
    mix = {Folder.open(url).url: weight for url, weight in config.mix.items()}
    return config.model_copy(update=where | {"mix": mix})


_Sources = list[tuple[str, float]]
"""Where dumps lie, with the weight of each."""


def _trained_on(config: TrainConfig) -> _Sources:
    return [(config.dump, 1.0), *config.mix.items()]


def _evaluated_on(config: TrainConfig) -> _Sources:
    return [] if config.eval_dump is None else [(config.eval_dump, 1.0)]


def _fingerprint(sources: _Sources) -> str:
    (dump, _), *others = [(Dump.open(url), weight) for url, weight in sources]
    return TrainingDumps(dump, tuple(others)).fingerprint
