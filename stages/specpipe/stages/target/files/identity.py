"""The identity of a target: hashes of its config, its weights and its tokenizer."""

import hashlib
import json
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from specpipe.schemas.errors import ConfigError, IntegrityError
from specpipe.schemas.records.dump import TargetIdentity, canonical_sha256
from specpipe.stages.target.files.location import (
    CONFIG_FILE,
    local_folder,
    tokenizer_files,
    weight_files,
)
from specpipe.stages.target.files.model_config import (
    build_config,
    check_known,
    check_sizes,
    parse_config,
)
from specpipe.stages.untrusted.files import MOST_BYTES, open_regular, read_file
from specpipe.stages.untrusted.foreign import foreign_call
from specpipe.stages.untrusted.json_text import parse_object

# Said by the library that wrote the file, not by the model.
_VOLATILE_KEYS = ("_name_or_path", "transformers_version")


def target_identity(
    target: str,
    revision: str | None = None,
    *,
    trust_remote_code: bool = False,
    with_weights: bool = True,
) -> TargetIdentity:
    """Identity of the target in a folder or on the hub; reads all weights once.

    Without weights, theirs is left empty, and they need not be there.
    """
    folder = local_folder(target, revision, with_weights=with_weights, with_code=trust_remote_code)
    raw = read_config(folder)
    config = load_config(folder, trust_remote_code=trust_remote_code).get_text_config(decoder=True)
    return TargetIdentity(
        name=target,
        revision=revision,
        architecture=architecture_of(folder, trust_remote_code=trust_remote_code),
        config_sha256=canonical_sha256(
            {key: value for key, value in raw.items() if key not in _VOLATILE_KEYS}
        ),
        weights_sha256=weights_sha256(folder) if with_weights else "",
        tokenizer_sha256=tokenizer_sha256(folder),
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        num_layers=config.num_hidden_layers,
    )


def architecture_of(folder: Path, *, trust_remote_code: bool = False) -> str:
    """First entry of the config's `architectures`, or the name of its class where it has none."""
    named = read_config(folder).get("architectures")
    if isinstance(named, list) and named:
        return str(named[0])
    config = load_config(folder, trust_remote_code=trust_remote_code).get_text_config(decoder=True)
    return type(config).__name__


def read_config(folder: Path) -> dict[str, Any]:
    """What the target's config.json says, word for word."""
    path = folder / CONFIG_FILE
    return parse_config(read_file(path, ConfigError), str(path), ConfigError)


def load_config(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The target's config; raises ConfigError where it makes no causal language model."""
    raw, what = read_config(folder), f"target {folder}"
    auto_map = raw.get("auto_map") if trust_remote_code else None
    if not isinstance(auto_map, dict) or "AutoConfig" not in auto_map:
        return build_config(raw, what, ConfigError, with_code=trust_remote_code)
    with foreign_call(f"{what}: transformers cannot read its config", ConfigError):
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        config._attn_implementation = None  # chosen where the model is built
    check_known(config.model_type)
    check_sizes(config, what, ConfigError)
    return config


def head_sizes(config: PreTrainedConfig) -> list[int]:
    """Widths of the decoder's attention heads, ascending; Gemma 4 has two."""
    model = config.get_text_config(decoder=True)
    layers = list(model.per_layer_config) if getattr(model, "is_heterogeneous", False) else [model]
    given = [
        getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads
        for layer in layers
    ]
    return sorted(set(given))


def cached_numbers(config: PreTrainedConfig, num_layers: int) -> int:
    """Numbers of a token's keys and values in so many layers; of heads of several widths, the
    widest."""
    model = config.get_text_config(decoder=True)
    heads = getattr(model, "num_key_value_heads", None) or model.num_attention_heads
    return int(2 * num_layers * heads * max(head_sizes(config)))


def weights_sha256(folder: Path) -> str:
    """Hash over name, dtype, shape and bytes of every tensor, however they are split into files."""
    tensors = sorted(
        (tensor for path in weight_files(folder) for tensor in _stored_tensors(path)),
        key=lambda tensor: tensor.name,
    )
    digest = hashlib.sha256()
    # sha256 releases the interpreter lock: several tensors at a time.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for tensor, content in zip(tensors, pool.map(_content_digest, tensors), strict=True):
            described = json.dumps([tensor.name, tensor.dtype, tensor.shape]).encode()
            digest.update(hashlib.sha256(described).digest() + content)
    return digest.hexdigest()


def tokenizer_sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in tokenizer_files(folder):
        digest.update(hashlib.sha256(path.name.encode()).digest())
        digest.update(hashlib.sha256(read_file(path, ConfigError)).digest())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class _StoredTensor:
    path: Path
    name: str
    dtype: str
    shape: list[int]
    start: int
    stop: int


def _stored_tensors(path: Path) -> list[_StoredTensor]:
    """The header of a safetensors file: 8 bytes of its length (little endian), then JSON.

    Raises IntegrityError where it is none, StoreError where it cannot be read.
    """
    with foreign_call(f"{path}: not a safetensors file", IntegrityError):
        with open_regular(path) as file:
            num_bytes = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if length > min(num_bytes, MOST_BYTES):
                raise ValueError("the header is longer than the file")
            header = parse_object(file.read(length), str(path))
        header.pop("__metadata__", None)
        start = 8 + length
        tensors = []
        for name, entry in header.items():
            first, stop = entry["data_offsets"]
            if not 0 <= first <= stop:
                raise ValueError(f"the offsets of {name} are {first} and {stop}")
            place = start + first, start + stop
            tensors.append(_StoredTensor(path, name, entry["dtype"], entry["shape"], *place))
    if tensors and max(tensor.stop for tensor in tensors) != num_bytes:
        raise IntegrityError(f"{path}: the file is truncated, or longer than its header says")
    return tensors


def _content_digest(tensor: _StoredTensor) -> bytes:
    with (
        tensor.path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        memoryview(content)[tensor.start : tensor.stop] as view,
    ):
        return hashlib.sha256(view).digest()
