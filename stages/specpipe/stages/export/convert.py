"""`specpipe convert`: an artifact of any program in a format that engines load, and back.

Nothing is computed: every tensor is written as it was read, under another name, and one that is
missing or unknown is an error.
"""

import filecmp
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specpipe.schemas.base import Frozen
from specpipe.schemas.drafters.base import LayerShape
from specpipe.schemas.errors import ConfigError, StoreError
from specpipe.schemas.location import local_path
from specpipe.schemas.records.artifact import (
    CONFIG_FILE,
    EMBEDDING,
    LM_HEAD,
    MODEL_TENSORS_FILE,
)
from specpipe.schemas.records.checkpoint import PROVENANCE_FILE
from specpipe.schemas.records.dump import TargetIdentity
from specpipe.schemas.settings.stages import ConvertConfig
from specpipe.stages.drafters.artifact import Artifact, OfTarget, read_files, reading_config
from specpipe.stages.drafters.artifact_format import (
    DRAFT_TOKENS,
    Drafter,
    TargetFacts,
    check_draft_tokens,
)
from specpipe.stages.drafters.parts.artifact.layer_config import layer_config
from specpipe.stages.drafters.reading import format_of, read_as
from specpipe.stages.drafters.registry import AnyArchitecture, drafter_kind, recognised
from specpipe.stages.storage.store.local_disk import check_no_file
from specpipe.stages.target.files.identity import load_config, target_identity
from specpipe.stages.target.files.location import local_folder
from specpipe.stages.untrusted.tensors import load_tensors
from specpipe.stages.validate import structure

STITCHED = "stitched"
"""The format that is a whole target, its drafter in it."""


class ConvertResult(Frozen):
    """What `specpipe convert` reports."""

    source: str
    out: str
    source_format: str
    format: str
    target: str
    aux_layers: tuple[int, ...]
    layers_assumed: bool
    """Whether the source does not name its layers, so that the architecture's default was taken."""
    vocab_size: int
    draft_vocab_size: int
    has_embedding: bool
    has_lm_head: bool
    num_tensors: int
    num_bytes: int
    did_nothing: bool = False


def run(config: ConvertConfig, *, progress: Callable[[str], None] | None = None) -> ConvertResult:
    """Write OUT; one that already holds the same does nothing.

    Raises ConfigError where the source is no drafter that is known, not of this target, broken, or
    of a kind that the format cannot hold, and where OUT holds something else.
    """
    out = local_path(config.out, "an artifact is written to a local disk; copy it there")
    target = _target(config)
    files = read_files(config.source)
    kind = recognised(files)
    source = read_as(kind, files, None if target is None else _of_target(kind, target))
    if source.layer_ids is None and progress is not None:
        progress(
            f"{source.folder} does not name its layers: {kind.serving.title}'s default is taken"
        )
    if source.rope_left_out and progress is not None:
        progress(
            f"{source.folder}: its rope's {', '.join(source.rope_left_out)} are left out: a drafter"
            " is trained without them, and engines may build another rope from them"
        )
    if config.format == STITCHED:
        return _stitched(config, source, out)
    format = kind.formats.get(config.format)
    if format is None:
        raise ConfigError(
            f"format {config.format} is not one of a drafter {kind.name}, which {source.folder} is;"
            f" give --format {' or '.join(kind.formats)}"
        )
    if cannot := format.inexpressible(source.shape):
        raise ConfigError(f"format {format.name} cannot hold {source.folder}: {'; '.join(cannot)}")
    with reading_config(source.folder):
        drafter, tensors = _drafter(config, source, target), _tensors(source)
    check_no_file(out.parent)
    temporary = out.parent / f".{out.name}.{os.getpid()}.tmp"
    try:
        temporary.mkdir(parents=True)
        format.write(temporary, format.config(drafter), tensors)
        _check(temporary, drafter, config, target, source.folder)
        is_there = _is_there(out, temporary)
        if not is_there:
            shutil.rmtree(out, ignore_errors=True)
            temporary.rename(out)
    except OSError as error:
        raise StoreError(f"cannot write {out}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return ConvertResult(
        source=str(source.folder),
        out=str(out),
        source_format=format_of(kind, source.config).name,
        format=format.name,
        target=drafter.target,
        aux_layers=source.shape.aux_layers,
        layers_assumed=source.layer_ids is None,
        vocab_size=source.shape.vocab_size,
        draft_vocab_size=source.shape.draft_vocab_size,
        has_embedding=EMBEDDING in tensors,
        has_lm_head=LM_HEAD in tensors,
        num_tensors=len(tensors),
        num_bytes=sum((out / name).stat().st_size for name in (MODEL_TENSORS_FILE, CONFIG_FILE)),
        did_nothing=is_there,
    )


def _stitched(config: ConvertConfig, source: Artifact, out: Path) -> ConvertResult:
    """A copy of the target's checkpoint with the artifact's tensors in it."""
    if config.target is None:
        raise ConfigError(f"format {STITCHED} is a copy of the target's checkpoint; give --target")
    kind = drafter_kind(source.shape)
    with reading_config(source.folder):
        tensors = _tensors(source)
    target = local_folder(config.target, config.revision)
    if out.resolve().is_relative_to(target.resolve()):
        raise ConfigError(f"{out} lies in the target's folder {target}; give another --out")
    check_no_file(out.parent)
    temporary = out.parent / f".{out.name}.{os.getpid()}.tmp"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        kind.stitch(source, target, temporary)
        is_there = out.is_dir() and any(out.iterdir())
        if is_there and not _same_files(temporary, out):
            raise ConfigError(f"{out} already holds something else; give another --out")
        if not is_there:
            shutil.rmtree(out, ignore_errors=True)
            temporary.rename(out)
    except OSError as error:
        raise StoreError(f"cannot write {out}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return ConvertResult(
        source=str(source.folder),
        out=str(out),
        source_format=format_of(kind, source.config).name,
        format=STITCHED,
        target=config.target,
        aux_layers=source.shape.aux_layers,
        layers_assumed=False,
        vocab_size=source.shape.vocab_size,
        draft_vocab_size=source.shape.draft_vocab_size,
        has_embedding=True,
        has_lm_head=True,
        num_tensors=len(tensors),
        num_bytes=sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
        did_nothing=is_there,
    )


def _same_files(one: Path, other: Path) -> bool:
    names = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    there = {path.relative_to(other) for path in other.rglob("*") if path.is_file()}
    return names == there - {Path(PROVENANCE_FILE)} and all(
        filecmp.cmp(one / name, other / name, shallow=False)
        or (name.suffix == ".safetensors" and _same_tensors(one / name, other / name))
        for name in names
    )


def _same_tensors(one: Path, other: Path) -> bool:
    """The library writes a file's metadata in any order."""
    before, after = load_tensors(one, str(one)), load_tensors(other, str(other))
    return before.keys() == after.keys() and all(
        torch.equal(tensor, after[name]) for name, tensor in before.items()
    )


def _target(config: ConvertConfig) -> TargetIdentity | None:
    if config.target is None:
        return None
    return target_identity(
        config.target,
        config.revision,
        trust_remote_code=config.trust_remote_code,
        with_weights=False,
    )


def _of_target(kind: AnyArchitecture, target: TargetIdentity) -> OfTarget:
    try:
        default = kind.settings.undeclared_layers(target.num_layers)
    except ValueError:
        default = None
    return OfTarget(target.vocab_size, target.hidden_size, default)


def _drafter(
    config: ConvertConfig, source: Artifact, target: TargetIdentity | None
) -> Drafter[Any]:
    """What the new config says; raises ConfigError where nobody says which target it is for."""
    kind = drafter_kind(source.shape)
    declared = format_of(kind, source.config).drafter(source.config)
    name, architecture, tokens = declared or ("", "", 0)
    if target is not None:
        name, architecture = target.name, target.architecture
    if not name or not architecture:
        raise ConfigError(f"artifact {source.folder} does not say its target; give --target")
    draft_tokens = config.speculative_tokens or tokens or DRAFT_TOKENS
    check_draft_tokens(source.shape, draft_tokens)
    return Drafter(
        shape=source.shape,
        target=name,
        target_architecture=architecture,
        speculative_tokens=draft_tokens,
        dtype=str(_dtype(source)).removeprefix("torch."),
        has_lm_head=LM_HEAD in source.tensors,
    )


def _dtype(source: Artifact) -> torch.dtype:
    """Of its largest tensor."""
    floats = [tensor for tensor in source.tensors.values() if tensor.is_floating_point()]
    return max(floats, key=lambda tensor: tensor.numel()).dtype if floats else torch.bfloat16


def _tensors(source: Artifact) -> dict[str, Tensor]:
    """Every tensor, the map as d2t and t2d; raises ConfigError where one is missing, unknown or
    broken."""
    where = f"artifact {source.folder}"
    # Any other drafter's config is the target's, of which these do not say anything of the drafter.
    layer = layer_config(source.config) if isinstance(source.shape, LayerShape) else {}
    biased = [key for key in ("attention_bias", "mlp_bias", "bias") if layer.get(key)]
    if biased:
        raise ConfigError(f"{where} has biases ({', '.join(biased)}), which no format here has")
    if layer.get("tie_word_embeddings") and LM_HEAD not in source.tensors:
        raise ConfigError(
            f"{where}: its lm_head is its own embedding (tie_word_embeddings); write it down as"
            f" {LM_HEAD}"
        )
    tensors = {
        name: tensor for name, tensor in source.tensors.items() if name not in ("d2t", "t2d")
    }
    vocab = source.vocab()
    if vocab.size < vocab.vocab_size:
        tensors |= vocab.tensors()
    if problems := structure.tensor_problems(tensors, source.shape):
        raise ConfigError(
            f"{where} is not the drafter that its config describes: {'; '.join(problems)}"
        )
    return tensors


def _longest_text(config: ConvertConfig) -> int | None:
    if config.target is None:
        return None
    folder = local_folder(config.target, config.revision, with_weights=False)
    text = load_config(folder, trust_remote_code=config.trust_remote_code).get_text_config(
        decoder=True
    )
    longest = getattr(text, "max_position_embeddings", None)
    return longest if isinstance(longest, int) else None


def _check(
    folder: Path,
    drafter: Drafter[Any],
    config: ConvertConfig,
    target: TargetIdentity | None,
    source: Path,
) -> None:
    """Raises ConfigError unless what was written has the structure that engines expect."""
    longest = _longest_text(config)
    facts = TargetFacts(
        architecture=drafter.target_architecture,
        hidden_size=drafter.shape.target_hidden_size,
        vocab_size=drafter.shape.vocab_size,
        num_layers=target.num_layers if target else max(drafter.shape.aux_layers),
        max_position_embeddings=longest,
    )
    if problems := structure.check(folder, facts, drafter.shape).problems:
        raise ConfigError(f"artifact {source} cannot be served: {'; '.join(problems)}")


def _is_there(out: Path, written: Path) -> bool:
    """Whether OUT holds the same files; raises ConfigError where it holds others."""
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if not found and not out.is_file():
        return False
    names = {MODEL_TENSORS_FILE, CONFIG_FILE}
    is_same = names <= found <= names | {PROVENANCE_FILE} and all(
        (out / name).read_bytes() == (written / name).read_bytes() for name in names
    )
    if not is_same:
        raise ConfigError(f"{out} already holds something else; give another --out")
    return True
