"""The tokens of a rendered turn at which an engine would stop."""

from dataclasses import dataclass

from specpipe.stages.text.mask.tokens import Span, TextTokens


@dataclass(frozen=True, slots=True)
class TurnEndTokens:
    """The tokens that can stand at the end of a turn."""

    special: frozenset[int]
    """Ids of the special tokens."""
    stops: frozenset[int]
    """Ids of the tokens at which an engine stops."""

    def closing(self, tokens: TextTokens, within: range) -> range:
        """The white space and special tokens at the end of `within`."""
        start = within.stop
        while start > within.start and self._closes(tokens, start - 1):
            start -= 1
        return range(start, within.stop)

    def trimmed(self, tokens: TextTokens, span: Span) -> Span:
        """The span up to the token at which an engine stops.

        What the template writes after it (a new line) is no output. Where none of the closing
        tokens is known to stop an engine, it is the last special one.
        """
        closing = self.closing(tokens, tokens.within(span))
        stops = [at for at in closing if tokens.ids[at] in self.stops]
        specials = [at for at in closing if self.is_special(tokens.ids[at])]
        last = stops[:1] or specials[-1:]
        return (span[0], int(tokens.stop_T[last[0]])) if last else span

    def extended(self, tokens: TextTokens, span: Span) -> Span:
        """The span with the stop that comes right after it, where it has no end of its own."""
        within = tokens.within(span)
        closing = [tokens.ids[at] for at in self.closing(tokens, within)]
        following = tokens.ids[within.stop : within.stop + 1]
        if any(map(self.is_special, closing)) or not self.stops.intersection(following):
            return span
        return (span[0], int(tokens.stop_T[within.stop]))

    def is_special(self, token_id: int) -> bool:
        return token_id in self.special or token_id in self.stops

    def _closes(self, tokens: TextTokens, at: int) -> bool:
        return self.is_special(tokens.ids[at]) or tokens.text_of(at).isspace()
