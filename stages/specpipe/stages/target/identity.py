"""What makes a target the same target: hashes of its config, its weights and its tokenizer."""

import hashlib
import json
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from specpipe.schemas.dump import TargetIdentity, canonical_sha256
from specpipe.schemas.errors import ConfigError, IntegrityError
from specpipe.stages.storage.local_disk import read_file
from specpipe.stages.target.location import (
    CONFIG_FILE,
    local_folder,
    tokenizer_files,
    weight_files,
)

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
    folder = local_folder(target, revision, with_weights=with_weights)
    raw = read_config(folder)
    config = load_config(folder, trust_remote_code=trust_remote_code).get_text_config(decoder=True)
    return TargetIdentity(
        name=target,
        revision=revision,
        architecture=(raw.get("architectures") or [type(config).__name__])[0],
        config_sha256=canonical_sha256(
            {key: value for key, value in raw.items() if key not in _VOLATILE_KEYS}
        ),
        weights_sha256=weights_sha256(folder) if with_weights else "",
        tokenizer_sha256=tokenizer_sha256(folder),
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        num_layers=config.num_hidden_layers,
    )


def read_config(folder: Path) -> dict[str, Any]:
    try:
        raw = json.loads(read_file(folder / CONFIG_FILE))
    except ValueError as error:
        raise ConfigError(f"{folder / CONFIG_FILE}: not JSON ({error})") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{folder / CONFIG_FILE}: not a JSON object")
    return raw


def load_config(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code
        )
    except (ValueError, KeyError, OSError) as error:
        raise ConfigError(
            f"target {folder}: transformers cannot read its config: {error}"
        ) from error
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
        digest.update(hashlib.sha256(path.read_bytes()).digest())
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
    """The header of a safetensors file: 8 bytes of its length (little endian), then JSON."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError("the header is longer than the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors = [
            _StoredTensor(path, name, entry["dtype"], entry["shape"], *entry["data_offsets"])
            for name, entry in header.items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path}: not a safetensors file ({error})") from error
    start = 8 + length
    if tensors and start + max(tensor.stop for tensor in tensors) != path.stat().st_size:
        raise IntegrityError(f"{path}: the file is truncated, or longer than its header says")
    return [
        _StoredTensor(t.path, t.name, t.dtype, t.shape, start + t.start, start + t.stop)
        for t in tensors
    ]


def _content_digest(tensor: _StoredTensor) -> bytes:
    with (
        tensor.path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        memoryview(content)[tensor.start : tensor.stop] as view,
    ):
        return hashlib.sha256(view).digest()
