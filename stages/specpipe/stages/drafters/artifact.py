"""An artifact as it is on disk: its files, and what an architecture makes of them.

Legend: V target vocabulary, D draft vocabulary.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specpipe.schemas.drafters.base import DrafterShape
from specpipe.schemas.errors import ConfigError, IntegrityError, SpecpipeError
from specpipe.schemas.records.artifact import ARTIFACT_FOLDER, CONFIG_FILE, MODEL_TENSORS_FILE
from specpipe.stages.acceptance.draft_vocab import VocabMap
from specpipe.stages.acceptance.draft_vocab_file import vocab_map
from specpipe.stages.untrusted.files import read_file
from specpipe.stages.untrusted.foreign import one_line
from specpipe.stages.untrusted.json_text import parse_object
from specpipe.stages.untrusted.tensors import load_tensors


@dataclass(frozen=True, slots=True)
class OfTarget:
    """Facts of the target; an artifact that contradicts them belongs to another target."""

    vocab_size: int
    hidden_size: int
    aux_layers: tuple[int, ...] | None
    """Ids that an artifact is taken to want whose config does not say."""


@dataclass(frozen=True, slots=True)
class ArtifactFiles:
    """An artifact's two files, read."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    """Under the names in the file."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact under our names."""

    folder: Path
    config: Mapping[str, Any]
    shape: DrafterShape
    tensors: dict[str, Tensor]
    layer_ids: tuple[int, ...] | None
    """As its config says; None where it says nothing."""
    rope_left_out: tuple[str, ...] = ()
    """Keys of its rope that are passed over, since the rope's type does not have them."""

    def vocab(self) -> VocabMap:
        """Raises ConfigError where d2t and t2d are missing or are not its draft vocabulary."""
        vocab_size, size = self.shape.vocab_size, self.shape.draft_vocab_size
        where = f"artifact {self.folder}"
        maps: dict[str, Tensor] = {
            name: self.tensors[name] for name in ("d2t", "t2d") if name in self.tensors
        }
        if "d2t" not in maps:
            if size != vocab_size:
                raise ConfigError(
                    f"{where} has a draft vocabulary of {size}, but no d2t that says which tokens"
                )
            return VocabMap(torch.arange(vocab_size), vocab_size)
        try:
            vocab = vocab_map(maps, vocab_size)
        except IntegrityError as error:
            raise ConfigError(f"{where}: {error}") from None
        if vocab.size != size:
            raise ConfigError(f"{where}: d2t names {vocab.size} tokens, its config {size}")
        return vocab


def artifact_folder(location: str) -> Path:
    """The folder of an artifact's files: the given one, or `checkpoint` of an export's.

    Raises ConfigError where there is no folder.
    """
    folder = Path(location.removeprefix("file://")).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"artifact {location}: there is no such folder on this machine")
    has_config = (folder / CONFIG_FILE).is_file()
    inner = folder / ARTIFACT_FOLDER
    return inner if not has_config and (inner / CONFIG_FILE).is_file() else folder


def other_weights(folder: Path) -> str | None:
    """What is wrong with a folder that lacks the file of weights; None where it is there."""
    if (folder / MODEL_TENSORS_FILE).is_file():
        return None
    if shards := sorted(path.name for path in folder.glob("*-of-*.safetensors")):
        return (
            f"its weights are in shards ({shards[0]}); a drafter's are one file: load each by"
            f" safetensors' load_file and save all tensors as {MODEL_TENSORS_FILE}"
        )
    names = sorted(path.name for end in ("bin", "pt", "pth") for path in folder.glob(f"*.{end}"))
    if not names:
        return f"there is no {MODEL_TENSORS_FILE}; `specpipe export` makes one of a training run"
    return (
        f"its weights are pickled ({names[0]}), and reading them could run any code; save them as"
        f" {MODEL_TENSORS_FILE} first"
    )


@contextmanager
def reading_config(folder: Path) -> Iterator[None]:
    """Raise ConfigError, naming the config, for whatever its values make of the code within."""
    try:
        yield
    except KeyError as error:
        raise ConfigError(f"artifact {folder}: {CONFIG_FILE} does not say {error}") from None
    except SpecpipeError:
        raise
    except Exception as error:  # what transformers and we make of values of other types
        raise ConfigError(f"artifact {folder}: {CONFIG_FILE}: {one_line(error)}") from None


def read_config(folder: Path) -> dict[str, Any]:
    """The config of an artifact of ours. Raises IntegrityError where it is no JSON object."""
    path = folder / CONFIG_FILE
    return parse_object(read_file(path), str(path))


def read_files(location: str) -> ArtifactFiles:
    """The files of the artifact in a local folder; raises ConfigError where they are none."""
    folder = artifact_folder(location)
    if not (folder / CONFIG_FILE).is_file():
        raise ConfigError(f"artifact {folder}: there is no {CONFIG_FILE} in it; is it an artifact?")
    if other := other_weights(folder):
        raise ConfigError(f"artifact {folder}: {other}")
    cannot = f"artifact {folder} cannot be read"
    config = parse_object(
        read_file(folder / CONFIG_FILE, ConfigError), f"{cannot}: {CONFIG_FILE}", ConfigError
    )
    stored = load_tensors(
        folder / MODEL_TENSORS_FILE, f"{cannot}: {MODEL_TENSORS_FILE}", ConfigError
    )
    return ArtifactFiles(folder, config, stored)
