"""Inputs of a search: the dumps, the recipe, and the held-out prompts in two halves."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from specpipe.pipeline.trials.opened import Opened, train_settings
from specpipe.pipeline.trials.trial import TrialRun
from specpipe.schemas.errors import InputError
from specpipe.schemas.settings.recipe import Recipe
from specpipe.schemas.settings.train import ResolvedTrainConfig
from specpipe.schemas.settings.tune import TuneConfig
from specpipe.stages.samples.reader import SampleReader, SampleRef
from specpipe.stages.samples.selection import evaluated, limit_tokens
from specpipe.stages.train.data.dumps import TrainingDumps
from specpipe.stages.train.data.packing import epoch_batches


@dataclass(frozen=True, slots=True)
class Material:
    """Trials are compared on one half of the held-out prompts; the other half is held back."""

    dumps: TrainingDumps
    evaluated_on: TrainingDumps
    training: list[SampleRef]
    whole: Recipe
    """Of a run without a search."""
    recipe: ResolvedTrainConfig
    """The settings that trials change: those of `whole`, or of the plan that the search goes on
    with."""
    eval_reader: SampleReader
    chosen_by: list[SampleRef]
    held_back: list[SampleRef]

    @classmethod
    def open(cls, config: TuneConfig) -> "Material":
        """Raises what opening dumps raises, and InputError for too few held-out prompts."""
        opened = Opened.of(train_settings(config))
        recipe, eval_reader = opened.recipe, opened.eval_reader
        chosen_by, held_back = halves(evaluated(eval_reader, recipe.config))
        for half in (chosen_by, held_back):
            if not eval_reader.has_span(half, config.num_heads + 1):
                raise InputError(
                    f"{len(chosen_by) + len(held_back)} held-out samples are too few to compare"
                    " trials on one half of their prompts and to measure the best on the other;"
                    " give an --eval-dump, or a larger --held-out-fraction"
                )
        return cls(
            dumps=opened.dumps,
            evaluated_on=opened.evaluated_on,
            training=opened.training,
            whole=recipe,
            recipe=recipe.config,
            eval_reader=eval_reader,
            chosen_by=chosen_by,
            held_back=held_back,
        )

    @property
    def eval_tokens(self) -> int:
        """With so many `eval_tokens` a run evaluates on exactly the half that is chosen by."""
        return sum(ref.num_tokens for ref in self.chosen_by)

    def trial_run(self, pass_steps: Mapping[int, int] | None = None) -> TrialRun:
        return TrialRun(self.recipe, self.eval_tokens, pass_steps or {})

    def pass_steps(self, sizes: Iterable[int]) -> dict[int, int]:
        """Steps of a pass over the data, by the size of a step: samples stay whole, so that small
        steps are more than the tokens say."""
        recipe = self.recipe
        by_samples = recipe.batch_size is not None
        return {
            size: len(
                epoch_batches(
                    self.training,
                    recipe.seed,
                    0,
                    recipe.batch_tokens if by_samples else size,
                    size if by_samples else None,
                )
            )
            for size in sizes
        }


def halves(refs: list[SampleRef]) -> tuple[list[SampleRef], list[SampleRef]]:
    """Samples in the order of their prompts' hashes, cut at half of their tokens; what shares a
    prompt with the first half is in neither."""
    first = limit_tokens(refs, sum(ref.num_tokens for ref in refs) // 2)
    prompts = {ref.prompt_id for ref in first}
    return first, [ref for ref in refs if ref.prompt_id not in prompts]
