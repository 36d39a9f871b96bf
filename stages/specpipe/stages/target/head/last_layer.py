"""The target's last decoder layer, copied from its checkpoint into a dump's `target/` folder.

A drafter of the same kind of layer may begin with it (drafters/parts/eagle/warm_start.py).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_tensors
from torch import Tensor
from transformers import PreTrainedConfig

from specpipe.schemas.errors import IntegrityError
from specpipe.schemas.records.dump import LAST_LAYER_FILE
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.storage.store.objects import put_object
from specpipe.stages.target.files.identity import head_sizes, load_config, read_config
from specpipe.stages.target.files.weights import stored_tensors
from specpipe.stages.target.head.verifier_head import FLOATS, Read, is_finite
from specpipe.stages.untrusted.tensors import load_tensors, num_bytes_of

MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Decoder layers that are computed as the drafters' are (biases aside)."""


def save_last_layer(source: Path, folder: Folder) -> None:
    """Write last_layer.safetensors of the target in a local folder; nothing of a target whose
    layers are of another kind, or quantised."""
    tensors = {name: file.get_tensor(name) for file, name in _own(source)}
    if tensors and is_plain(tensors):
        put_object(folder, LAST_LAYER_FILE, save_tensors(dict(sorted(tensors.items()))))


def last_layer_bytes(source: Path, itemsize: int) -> tuple[int, int]:
    """Files that `save_last_layer` writes, and about how many bytes; without weights on this disk,
    by the target's config and so many bytes a number."""
    if is_llamas(read_config(source)) and not any(source.glob("*.safetensors")):
        return 1, itemsize * _num_numbers(load_config(source))
    num_bytes = sum(num_bytes_of(file, name) for file, name in _own(source))
    return (1 if num_bytes else 0), num_bytes


def load_last_layer(read: Read) -> dict[str, Tensor]:
    """What `save_last_layer` wrote, tensors under the checkpoint's names.

    Raises IntegrityError where the file is missing or damaged, or holds what no layer does.
    """
    where = f"{LAST_LAYER_FILE} of the dump's target"
    tensors = load_tensors(read(LAST_LAYER_FILE), where)
    if not is_plain(tensors) or not all(map(is_finite, tensors.values())):
        raise IntegrityError(f"{where} holds numbers that are not finite, or of another dtype")
    return tensors


def is_plain(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are numbers as they are used, and not quantised ones."""
    return all(tensor.dtype in FLOATS for tensor in tensors.values())


def layer_prefix(number: int) -> str:
    """Of the names that a checkpoint has for a layer's tensors; the first is 0."""
    return f"model.layers.{number}."


def is_llamas(config: Mapping[str, Any]) -> bool:
    """Whether the layers are as the drafters' are, and not quantised."""
    return config.get("model_type") in MODEL_TYPES and not config.get("quantization_config")


def _num_numbers(config: PreTrainedConfig) -> int:
    """H (2 q + 2 kv + 3 I + 2), with the widths of all queries and all keys."""
    hidden, [head] = config.hidden_size, head_sizes(config)
    queries, keys = head * config.num_attention_heads, head * config.num_key_value_heads
    numbers: int = hidden * (2 * queries + 2 * keys + 3 * config.intermediate_size + 2)
    return numbers


def _own(source: Path) -> Iterator[tuple[Any, str]]:
    """The tensors of the last layer, each as an open file and a name in it; of pickled weights,
    which vLLM loads, none."""
    if not is_llamas(read_config(source)) or not any(source.glob("*.safetensors")):
        return
    prefix = layer_prefix(load_config(source).num_hidden_layers - 1)
    yield from stored_tensors(source, lambda name: name.startswith(prefix))
