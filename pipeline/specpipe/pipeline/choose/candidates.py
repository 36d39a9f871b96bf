"""Which architectures are compared, and why others are not."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from specpipe.pipeline.trials.opened import Opened, train_settings
from specpipe.pipeline.trials.trial import TrialRun
from specpipe.schemas.drafters.base import DrafterSettings
from specpipe.schemas.drafters.registry import drafter_settings
from specpipe.schemas.errors import ConfigError, InputError
from specpipe.schemas.records.dump import DumpIdentity
from specpipe.schemas.settings.choose import ChooseConfig
from specpipe.schemas.settings.train import ResolvedTrainConfig, TrainConfig
from specpipe.stages.drafters.registry import AnyArchitecture, architecture, names
from specpipe.stages.samples.final_layer import layers_for
from specpipe.stages.samples.reader import SampleRef
from specpipe.stages.samples.selection import evaluated, limit_tokens
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.vllm.support.servable import Servable, servable

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An architecture that is trained."""

    architecture: AnyArchitecture
    opened: Opened
    served: Servable

    @property
    def name(self) -> str:
        return self.architecture.name

    @property
    def recipe(self) -> ResolvedTrainConfig:
        return self.opened.recipe.config

    @property
    def eval_refs(self) -> list[SampleRef]:
        """Held-out samples that tau is replayed on."""
        return evaluated(self.opened.eval_reader, self.recipe)

    @property
    def trial(self) -> TrialRun:
        return TrialRun(self.recipe, self.recipe.eval_tokens)

    @property
    def short_trial(self) -> TrialRun:
        """The same with evaluations that are as short as can be, where their time is not asked."""
        refs, tokens = self.eval_refs, self.recipe.batch_tokens
        reader, num_tokens = self.opened.eval_reader, self.recipe.num_heads + 1
        while tokens < self.recipe.eval_tokens and not reader.has_span(
            limit_tokens(refs, tokens), num_tokens
        ):
            tokens *= 2
        return TrialRun(self.recipe, min(tokens, self.recipe.eval_tokens))


def candidates(
    config: ChooseConfig, planned: Collection[str] = ()
) -> tuple[list[Candidate], dict[str, str]]:
    """Those that can be compared, and by name why the others cannot.

    `planned` are those of a comparison that has begun: it goes on with them, whatever the engine
    that is installed now serves.

    Raises what opening dumps raises, and ConfigError where there is none to compare.
    """
    identity = Dump.open(config.dump).identity
    found: list[Candidate] = []
    left_out: dict[str, str] = {}
    named = planned or config.drafters
    for name in named or names():
        kind = architecture(name)
        served = servable(identity.target.architecture, kind.serving)
        if served.how == "no" and name not in named:
            left_out[name] = served.in_words
            # A target without such a layer trains none.
            if kind.serving.reads != "mtp_layer":
                left_out[name] += f"; --drafters {name} compares its tau all the same"
            continue
        drafter = drafter_settings({**config.drafters.get(name, {}), "kind": name})
        if lacking := _lacking(drafter, identity):
            left_out[name] = lacking
            continue
        try:
            # The dump is read whole once, if at all.
            checked = config.preverify if not found else "metadata"
            own = settings_of(config, drafter).model_copy(update={"preverify": checked})
            candidate = Candidate(kind, Opened.of(own), served)
        except ConfigError as error:
            left_out[name] = str(error)
            continue
        if not candidate.opened.eval_reader.has_span(candidate.eval_refs, own.num_heads + 1):
            raise InputError(
                f"no held-out sample of {config.dump} is long enough to compare {own.num_heads}"
                " draft tokens on; give an --eval-dump, a larger --held-out-fraction, or fewer"
                " --num-heads"
            )
        found.append(candidate)
    check_some(found, left_out)
    return found, left_out


def check_some(found: list[Candidate], left_out: dict[str, str]) -> None:
    """Raise ConfigError where there is nothing to compare."""
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise ConfigError(f"no drafter can be compared here: {reasons}")


def settings_of(config: ChooseConfig, drafter: DrafterSettings) -> TrainConfig:
    """The settings of one drafter's training, with as many heads as it allows, and those of a draft
    vocabulary where it has one."""
    heads = config.num_heads
    while heads > 1 and drafter.num_heads_problem(heads) is not None:
        heads -= 1
    common = train_settings(config.model_copy(update={"num_heads": heads}))
    idle = set() if drafter.has_draft_vocab else {"draft_vocab_size", "draft_vocab_by"}
    values = {name: getattr(common, name) for name in common.model_fields_set - idle}
    return TrainConfig.model_validate(values | {"drafter": drafter, "num_heads": heads})


def _lacking(drafter: DrafterSettings, identity: DumpIdentity) -> str | None:
    """What the dump lacks for it, and how it comes in."""
    try:
        held = layers_for(type(drafter), identity)
        drafter.chosen_layers(held, identity.target.num_layers)
    except ValueError as error:
        hint = f"specpipe dump --for {drafter.kind} stores what it reads"
        return f"{error}; {hint}"
    return None
