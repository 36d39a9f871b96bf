"""The tokenizer of a target's folder, as transformers loads it."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.integrations.mistral.tokenizer import convert_tekken_tokenizer

from specpipe.schemas.errors import ConfigError, InputError, SpecpipeError
from specpipe.stages.target.files.identity import load_config
from specpipe.stages.target.files.location import CONFIG_FILE, TEKKEN_FILE, tokenizer_files
from specpipe.stages.untrusted.files import read_file
from specpipe.stages.untrusted.foreign import foreign_call


def load_tokenizer(
    folder: Path,
    *,
    trust_remote_code: bool = False,
    what: str = "",
    refuse: type[SpecpipeError] = ConfigError,
) -> PreTrainedTokenizerBase:
    """Raises `refuse`, beginning with `what` or else the folder, where transformers cannot."""
    what = what or f"target {folder}"
    files = tokenizer_files(folder)
    for path in files:
        read_file(path, refuse)  # rights and size, which transformers does not name
    # Left to itself, transformers reads config.json for it, without bounds.
    has_config = (folder / CONFIG_FILE).is_file()
    config = load_config(folder, trust_remote_code=trust_remote_code) if has_config else None
    with foreign_call(f"{what}: transformers cannot load its tokenizer", refuse):
        if folder / TEKKEN_FILE in files:
            converted: PreTrainedTokenizerBase = convert_tekken_tokenizer(str(folder / TEKKEN_FILE))
            return converted
        # Where mistral-common is installed, transformers would prefer a tekken.json beside the
        # tokenizer, in a class that does not tell which characters a token stands for.
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, config=config, trust_remote_code=trust_remote_code, mistral_format=False
        )
    return tokenizer


def encode(tokenizer: Any, text: str, **options: bool) -> Any:
    """What the tokenizer makes of a text. Raises InputError where it fails at it, as with a regex
    that gives up."""
    with foreign_call("the target's tokenizer fails at this text", InputError):
        return tokenizer(text, verbose=False, **options)
