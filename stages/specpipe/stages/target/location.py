"""Where a target's files are, and which of them specpipe reads."""

import json
from pathlib import Path

from specpipe.schemas.errors import ConfigError, IntegrityError, StoreError
from specpipe.stages.storage.local_disk import read_file
from specpipe.stages.storage.store_faults import http_status

CONFIG_FILE = "config.json"

TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)

_REFUSED = (401, 403, 404)
"""The hub's answers to an id or a revision that is not there, or not for everybody."""


def local_folder(target: str, revision: str | None = None, *, with_weights: bool = True) -> Path:
    """The folder that holds the target: the given one, or the hub's snapshot of it.

    Without weights, those are not fetched. Raises ConfigError where there is neither, StoreError
    where the hub does not say.
    """
    folder = Path(target).expanduser()
    if folder.is_dir():
        if not (folder / CONFIG_FILE).is_file():
            raise ConfigError(f"target {target}: no {CONFIG_FILE} in this folder; is it a model?")
        return folder
    if folder.exists() or target.startswith((".", "/", "~")):
        raise ConfigError(f"target {target}: no such folder")
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        patterns = ["*.json", "*.jinja", "*.txt", "*.model"]
        patterns += ["*.safetensors"] if with_weights else []
        return Path(snapshot_download(target, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises a dozen unrelated types
        says = f"{type(error).__name__}: {' '.join(str(error).split())}"
        is_wrong = isinstance(error, HFValidationError) or http_status(error) in _REFUSED
        if is_wrong or constants.HF_HUB_OFFLINE:
            raise ConfigError(
                f"target {target}: neither a local folder nor a model that the hub gives ({says})"
            ) from error
        raise StoreError(
            f"target {target}: no local folder, and the hub cannot be asked for it ({says}); run "
            "the same command again when it answers"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers loads, sorted; raises ConfigError if there are none.

    Raises IntegrityError where their index is damaged, or names one that is missing. Pickled
    weights (`.bin`) are not read: unpickling runs code.
    """
    index = folder / "model.safetensors.index.json"
    names = _indexed(index) if index.is_file() else ["model.safetensors"]
    missing = [name for name in names if not (folder / name).is_file()]
    if not missing:
        return [folder / name for name in names]
    if index.is_file():
        raise IntegrityError(f"target {folder}: {missing[0]}, which {index.name} names, is missing")
    raise ConfigError(f"target {folder}: no {names[0]}; convert the weights to safetensors first")


def _indexed(index: Path) -> list[str]:
    try:
        return sorted({str(name) for name in json.loads(read_file(index))["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(
            f"{index} is no index of safetensors files ({error}); fetch the model again"
        ) from error


def tokenizer_files(folder: Path) -> list[Path]:
    """The tokenizer's files that exist, sorted; empty for a target without a tokenizer."""
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
