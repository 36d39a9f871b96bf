"""Where a target's files are, and which of them specpipe reads."""

import re
from dataclasses import dataclass
from pathlib import Path

from specpipe.schemas.errors import ConfigError, IntegrityError, SpecpipeError, StoreError
from specpipe.stages.storage.store.faults import http_status
from specpipe.stages.untrusted.files import read_file
from specpipe.stages.untrusted.foreign import foreign_call, one_line
from specpipe.stages.untrusted.json_text import parse_object

CONFIG_FILE = "config.json"
WHOLE_WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
LONE_SHARD = "model-00001-of-00001.safetensors"
"""What some trainers write in place of the whole, without an index."""

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

TEKKEN_FILE = "tekken.json"
"""The tokenizer of Mistral's own library, which counts where there is no other."""

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")

_SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
_NOT_OF_THE_MODEL = ["*/*.json", "*/*.txt", "*/*.model"]
"""Other forms of the same model, and other tools' files, lie in folders of a repository."""

_REFUSED = (401, 403, 404)
"""The hub's answers to an id or a revision that is not there, or not for everybody."""


@dataclass(frozen=True, slots=True)
class TargetSource:
    """Where a target is had from: a folder, or a name on the hub and a revision there."""

    name: str
    revision: str | None = None


def local_folder(
    target: str,
    revision: str | None = None,
    *,
    with_weights: bool = True,
    with_code: bool = False,
) -> Path:
    """The folder that holds the target: the given one, or the hub's snapshot of it.

    Of the hub's, weights and Python code are fetched only where they are asked for. Raises
    ConfigError where there is neither, StoreError where the disk or the hub does not say.
    """
    with foreign_call(f"target {target}: no such folder", ConfigError):
        folder = Path(target).expanduser()
        if folder.is_dir():
            if not (folder / CONFIG_FILE).is_file():
                raise ConfigError(
                    f"target {target}: no {CONFIG_FILE} in this folder; is it a model?"
                )
            return folder
        is_path = folder.exists() or target.startswith((".", "/", "~"))
    if is_path:
        raise ConfigError(f"target {target}: no such folder")
    return hub_snapshot(target, revision, with_weights=with_weights, with_code=with_code)


def on_this_disk(target: str, revision: str | None = None) -> Path | None:
    """The target's folder, or the hub's snapshot with its weights if it was fetched before; None
    where it would have to be fetched."""
    with foreign_call(f"target {target}: no such folder", ConfigError):
        if Path(target).expanduser().is_dir():
            return local_folder(target)
    try:
        folder = hub_snapshot(
            target, revision, with_weights=True, with_code=False, only_cached=True
        )
        weight_files(folder)
    except (ConfigError, IntegrityError):
        return None
    return folder


def hub_snapshot(
    target: str,
    revision: str | None,
    *,
    with_weights: bool,
    with_code: bool,
    only_cached: bool = False,
) -> Path:
    """The snapshot of a hub's model on this disk; what is missing is fetched unless `only_cached`.

    Of weights, only what transformers loads: repositories have them in several forms.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = [*_SMALL_FILES, *(["*.py"] if with_code else [])]
    try:
        folder = Path(
            snapshot_download(
                target,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=_NOT_OF_THE_MODEL,
                local_files_only=only_cached,
            )
        )
        if with_weights:
            index = folder / WEIGHTS_INDEX
            names = _indexed(index) if index.is_file() else [WHOLE_WEIGHTS, LONE_SHARD]
            # The snapshot's name is its commit: the model may change at the hub meanwhile.
            snapshot_download(
                target, revision=folder.name, allow_patterns=names, local_files_only=only_cached
            )
        return folder
    except SpecpipeError:
        raise
    except Exception as error:  # the hub's client raises a dozen unrelated types
        says = one_line(error)
        is_wrong = isinstance(error, HFValidationError) or http_status(error) in _REFUSED
        if is_wrong or only_cached or constants.HF_HUB_OFFLINE:
            raise ConfigError(
                f"target {target}: neither a local folder nor a model that the hub gives ({says})"
            ) from error
        raise StoreError(
            f"target {target}: no local folder, and the hub cannot be asked for it ({says}); run "
            "the same command again when it answers, or from the folder to which that path is "
            "relative"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers loads, sorted; raises ConfigError if there are none.

    Raises IntegrityError where their index is damaged, or names one that is missing. Pickled
    weights (`.bin`) are not read: unpickling runs code.
    """
    index = folder / WEIGHTS_INDEX
    if index.is_file():
        names = _indexed(index)
        for name in names:
            if not (folder / name).is_file():
                raise IntegrityError(
                    f"target {folder}: {name}, which {index.name} names, is missing"
                )
        return [folder / name for name in names]
    for name in (WHOLE_WEIGHTS, LONE_SHARD):
        if (folder / name).is_file():
            return [folder / name]
    raise ConfigError(f"target {folder}: no {WHOLE_WEIGHTS}; {_instead(folder)}")


def _instead(folder: Path) -> str:
    """What to do about a folder without weights that transformers finds."""
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if shards := [name for name in others if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]:
        return (
            f"{shards[0]} is one of several files, and {WEIGHTS_INDEX}, which says what is in "
            "which, is missing: fetch it, too"
        )
    if any(name.startswith("consolidated") for name in others):
        return (
            "consolidated.safetensors holds the weights under other names than transformers': "
            f"fetch {WHOLE_WEIGHTS} or the model-*.safetensors of the same model, with their index"
        )
    if others:
        return f"if {others[0]} holds the whole model, rename it to {WHOLE_WEIGHTS}"
    return "convert the weights to safetensors first"


def _indexed(index: Path) -> list[str]:
    """The files that an index of weights names, sorted; they lie beside it."""
    with foreign_call(f"{index} is no index of safetensors files", IntegrityError):
        names = parse_object(read_file(index), str(index))["weight_map"].values()
        wrong = [name for name in names if not re.fullmatch(r"[\w.-]+", name)]
        if wrong:
            raise ValueError(f"it names {wrong[0]!r}")
        return sorted(set(names))


def tokenizer_files(folder: Path) -> list[Path]:
    """The tokenizer's files that exist, sorted; empty for a target without a tokenizer."""
    with foreign_call(f"cannot look into {folder}", StoreError):  # it may lack rights
        found = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
        has_tekken = (folder / TEKKEN_FILE).is_file()
    if has_tekken and not any(file.name in _VOCABULARIES for file in found):
        found.append(folder / TEKKEN_FILE)
    return found
