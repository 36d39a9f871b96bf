"""Which samples of a dump are trained on, and which are evaluated on."""

from collections.abc import Sequence

from specpipe.schemas.records.sample import is_held_out, is_in_share
from specpipe.schemas.settings.train import ResolvedTrainConfig
from specpipe.stages.samples.reader import SampleReader, SampleRef


def split(
    refs: Sequence[SampleRef], held_out_fraction: float
) -> tuple[list[SampleRef], list[SampleRef]]:
    """(training, held-out) samples, by the hash of their prompt."""
    held_out = [ref for ref in refs if is_held_out(ref.prompt_id, held_out_fraction)]
    training = [ref for ref in refs if not is_held_out(ref.prompt_id, held_out_fraction)]
    return training, held_out


def share(refs: Sequence[SampleRef], data_fraction: float) -> list[SampleRef]:
    """The samples of a share of the prompts, in their order."""
    return [ref for ref in refs if is_in_share(ref.prompt_id, data_fraction)]


def by_prompt(refs: Sequence[SampleRef]) -> list[SampleRef]:
    """In the order of their prompts' hashes: any first part is a fair sample of the whole."""
    return sorted(refs, key=lambda ref: (ref.prompt_id, ref))


def limit_tokens(refs: Sequence[SampleRef], most_tokens: int) -> list[SampleRef]:
    """The first samples by prompt, up to `most_tokens` together (at least one sample)."""
    chosen: list[SampleRef] = []
    total = 0
    for ref in by_prompt(refs):
        if chosen and total + ref.num_tokens > most_tokens:
            break
        chosen.append(ref)
        total += ref.num_tokens
    return chosen


def evaluated(reader: SampleReader, config: ResolvedTrainConfig) -> list[SampleRef]:
    """What a run with this configuration evaluates on, by prompt.

    `reader` reads the run's eval_dump, of which everything is used, or else its dump, of which the
    held-out prompts are.
    """
    refs = reader.refs()
    if config.eval_dump is None:
        refs = split(refs, config.held_out_fraction)[1]
    return limit_tokens(refs, config.eval_tokens)
