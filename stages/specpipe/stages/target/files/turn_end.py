"""The end of a turn that the target writes: its own end tokens, or stop strings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specpipe.schemas.errors import ConfigError
from specpipe.stages.target.files.location import CONFIG_FILE, tokenizer_files
from specpipe.stages.target.files.model_config import parse_config
from specpipe.stages.target.files.tokenizer import load_tokenizer
from specpipe.stages.untrusted.files import read_file

_MARGIN = 8
"""Tokens at the beginning of a piece of text that may decode otherwise than in the whole."""


def end_token_ids(folder: Path, tokenizer: Any | None) -> frozenset[int]:
    """What the target's settings, and its tokenizer if it has one, call an end of sequence."""
    found = [] if tokenizer is None else [tokenizer.eos_token_id]
    for name in (CONFIG_FILE, "generation_config.json"):
        path = folder / name
        if path.is_file():
            values = parse_config(read_file(path, ConfigError), str(path), ConfigError)
            ids = values.get("eos_token_id")
            found += ids if isinstance(ids, list) else [ids]
    return frozenset(token_id for token_id in found if isinstance(token_id, int))


class TurnEnd:
    """Tells whether a turn ends with its last token."""

    def __init__(self, end_ids: frozenset[int], stop: Sequence[str], tokenizer: Any | None) -> None:
        """`tokenizer` may be None where no stop texts are given."""
        self.end_ids = end_ids
        self._stop = tuple(stop)
        self._tokenizer: Any = tokenizer
        # A token is at least a byte, so that a stop text lies in as many tokens as it has bytes.
        self._num_tail = max((len(text.encode()) for text in stop), default=0) + _MARGIN

    @classmethod
    def of_target(
        cls, folder: Path, stop: Sequence[str], *, trust_remote_code: bool = False
    ) -> "TurnEnd":
        """At the end tokens of the target in a folder, or one of the texts.

        Raises ConfigError for texts where the target has no tokenizer.
        """
        tokenizer = None
        if tokenizer_files(folder):
            tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
        elif stop:
            raise ConfigError(f"target {folder} has no tokenizer files: stop needs them")
        return cls(end_token_ids(folder, tokenizer), stop, tokenizer)

    def reached(self, new_ids: Sequence[int]) -> bool:
        """`new_ids` are the turn so far, whose beginnings did not end it."""
        if new_ids[-1] in self.end_ids:
            return True
        if not self._stop:
            return False
        text = self._tokenizer.decode(
            list(new_ids[-self._num_tail :]),
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        return any(stop in text for stop in self._stop)
