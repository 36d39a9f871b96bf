"""The rounds of a decode that wrote a text, with greedy drafts: what was kept and what was not.

With greedy drafting a text leaves no choice: a draft is accepted exactly where it is the text's
token, be the text greedy or sampled.

Legend: K heads, R starts of a span.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from specpipe.stages.report.drafted import DraftedSpan, Ids


@dataclass(frozen=True, slots=True)
class Round:
    """The tokens [begin, end) of the sample: accepted drafts, then one of the target's own.

    Where the text ends among the accepted drafts, there is no own token.
    """

    begin: int
    num_accepted: int
    end: int
    rejected: int | None
    """The draft (token id) that the own token stands for; None where no draft was rejected.
    The drafts after it fell with it."""


def rounds_of(span: DraftedSpan, input_ids_T: Ids) -> Iterator[Round]:
    """The rounds after the span's first token, which comes from the prompt's own pass."""
    num_heads = span.drafts_RK.shape[1]
    at = span.begin
    while at + 1 < span.end:
        drafts_K = span.drafts_RK[at - span.begin]
        most = min(num_heads, span.end - at - 1)
        tokens = input_ids_T[at + 1 : at + 1 + most]
        is_right = drafts_K[:most] == tokens
        accepted = most if is_right.all() else int(is_right.argmin())
        own = at + accepted + 1
        rejected = int(drafts_K[accepted]) if accepted < most else None
        yield Round(at + 1, accepted, min(own + 1, span.end), rejected)
        at = own
