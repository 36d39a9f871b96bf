"""The token that stands for a draft that is not there yet, where one pass makes all drafts.

It is embedded as any other token: one that the target writes would mean two things.
"""

import numpy as np

from specpipe.schemas.errors import ConfigError
from specpipe.stages.storage.vocab import VocabStatistics


def mask_token(statistics: VocabStatistics, given: int | None) -> int:
    """The given one, or the least probable one that the text does not hold, of several the last.

    Raises ConfigError where the target writes the given one, or every token there is.
    """
    count_V, mass_V = statistics.count_V, statistics.mass_V
    if given is None:
        unused = np.flatnonzero(count_V == 0)
        if not len(unused):
            raise ConfigError(
                f"the text holds each of the {len(count_V)} tokens of the vocabulary, and a mask"
                " token must be one that the target never writes: this drafter does not suit it"
            )
        return int(unused[mass_V[unused] == mass_V[unused].min()][-1])
    if not 0 <= given < len(count_V):
        raise ConfigError(f"mask_token {given} is not in 0..{len(count_V) - 1}, the vocabulary")
    if count_V[given]:
        raise ConfigError(
            f"mask_token {given}: the target writes it, {count_V[given]:,} times in this text; name"
            " one that it never writes, or leave it open"
        )
    return given
