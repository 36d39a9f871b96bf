"""The target's tokenizer, from a dump."""

from transformers import PreTrainedTokenizerBase

from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.dump import TARGET_FOLDER
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.files.fetched import fetched
from specpipe.stages.target.files.location import CONFIG_FILE, TEKKEN_FILE, TOKENIZER_FILES
from specpipe.stages.target.files.tokenizer import load_tokenizer


def stored_tokenizer(dump: Dump) -> PreTrainedTokenizerBase | None:
    """The tokenizer in the dump; None if there is none, or none that loads without its own code."""
    target = dump.folder.child(TARGET_FOLDER)
    names = [name for name in target.list() if name in (*TOKENIZER_FILES, TEKKEN_FILE)]
    if not names:
        return None
    with fetched(dump.target_file, [*names, CONFIG_FILE]) as folder:
        try:
            return load_tokenizer(folder, what="the dump's target")
        except ConfigError:
            return None
