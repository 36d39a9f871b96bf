"""The most that any drafter is accepted on a dump's text: tau of drafts of the target itself.

    python -m scripts.losses.ceiling DUMP [--num-draft-tokens 3]

A greedy draft token is accepted at temperature 1 as often as the target draws its likeliest token,
however good the drafter. Of text of temperature 1, on the half of the prompts that
`scripts/prove quality` reports.

Legend: T tokens, L aux layers, H hidden size, D kept tokens (here all), K draft tokens, R starts,
X a drafter's outputs (here final states).
"""

import click
import torch
from torch import Tensor

from scripts.quality.judge import half_of, samples_of
from specpipe.stages.acceptance.replay import replay
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.head.verifier_head import VerifierHead
from specpipe.stages.validate.drafted_text import TextSpans
from specpipe.stages.validate.replay.run import text_of


class TargetAsDrafter:
    """The target's own distributions along the text, as a drafter's."""

    def __init__(self, dump: Dump) -> None:
        self._head = VerifierHead.load(dump.target_file, torch.device("cpu"))
        self.aux_layers = (dump.identity.target.num_layers,)
        self.vocab_size = len(self._head.lm_head_VH)
        self.target_ids_D = torch.arange(self.vocab_size)

    def hidden(
        self, input_ids_T: Tensor, aux_TLH: Tensor, begin: int, end: int, num_steps: int
    ) -> Tensor:
        """The final states [K, R, H] that the tokens after each start were drawn from."""
        starts_1R = torch.arange(begin, end)[None]
        steps_K1 = torch.arange(1, num_steps + 1)[:, None]
        return aux_TLH[(starts_1R + steps_K1).clamp(max=len(input_ids_T) - 1), 0]

    def logits(self, hidden_RX: Tensor, step: int) -> Tensor:
        return self._head.logits(hidden_RX)

    def double(self) -> "TargetAsDrafter":
        return self


def ceiling(dump: Dump, num_draft_tokens: int) -> tuple[float, float]:
    """tau of greedy drafts of the target itself, and of drafts that are drawn from it."""
    target, spans = TargetAsDrafter(dump), TextSpans()
    for ref, sample in samples_of(dump, target.aux_layers):
        if half_of(ref.prompt_id) == "report":
            spans.add(target, text_of(sample), num_draft_tokens)
    greedy, drawn = (
        replay(kind, num_draft_tokens, exact=True).tau[-1] for kind in (spans.greedy, spans.sampled)
    )
    return greedy, drawn


@click.command()
@click.argument("url", metavar="DUMP")
@click.option("--num-draft-tokens", default=3, show_default=True)
def main(url: str, num_draft_tokens: int) -> None:
    """Print the largest tau of greedy drafts, and of drafts that are drawn."""
    greedy, drawn = ceiling(Dump.open(url), num_draft_tokens)
    print(f"greedy drafts {greedy:.3f}, drawn {drawn:.3f}")


if __name__ == "__main__":
    main()
