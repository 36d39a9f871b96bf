"""An EAGLE-3 artifact of whatever program, as it is on disk: its shape, vocabulary and weights.

Ours and speculators' have their settings in `transformer_layer_config` and name their layers
`layers.N`; SpecForge's, ModelOpt's and the paper's own have them at the top, and one layer, named
`midlayer` or `layers.0`. Layer ids: `eagle_aux_hidden_state_layer_ids` at the top counts as we do;
inside `eagle_config` (SGLang's place) it names a layer's output by the layer, one less.

Legend: V target vocabulary, D draft vocabulary, H hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from specpipe.schemas.errors import ConfigError, IntegrityError, SpecpipeError
from specpipe.schemas.records.artifact import (
    ARTIFACT_FOLDER,
    CONFIG_FILE,
    LAYER_IDS,
    MODEL_TENSORS_FILE,
    SWITCHES,
    layer_config,
)
from specpipe.schemas.records.checkpoint import DrafterShape
from specpipe.stages.acceptance.draft_vocab import VocabMap
from specpipe.stages.acceptance.draft_vocab_file import vocab_map
from specpipe.stages.drafters.eagle3.shape import shape_problems
from specpipe.stages.drafters.parts.rope import foreign_keys, own_keys, rope_problems
from specpipe.stages.untrusted.files import read_file
from specpipe.stages.untrusted.foreign import one_line
from specpipe.stages.untrusted.json_text import parse_object
from specpipe.stages.untrusted.tensors import load_tensors

BUFFERS = ("rotary_emb.inv_freq",)
"""Ends of names that hold what the config says anyway."""


@dataclass(frozen=True, slots=True)
class OfTarget:
    """What is known of the target; where the artifact says otherwise, it is another's."""

    vocab_size: int
    hidden_size: int
    aux_layers: tuple[int, ...] | None
    """Ids that an artifact is taken to want whose config does not say."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact as it is on disk, under our names."""

    folder: Path
    config: Mapping[str, Any]
    shape: DrafterShape
    tensors: dict[str, Tensor]
    layer_ids: tuple[int, ...] | None
    """As its config says; None where it says nothing."""

    @property
    def rope_left_out(self) -> list[str]:
        """Keys of its rope that are passed over, since the rope's type does not have them."""
        return foreign_keys(_given_rope(layer_config(self.config)))

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


def read_artifact(location: str, target: OfTarget | None = None) -> Artifact:
    """The artifact in a local folder; raises ConfigError where it is none for this target.

    Without a target, the artifact has to say everything itself.
    """
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
    tensors = _our_names(folder, stored)
    if _is_eagle_1(tensors):
        raise ConfigError(
            f"artifact {folder} is an EAGLE-1, EAGLE-2 or HASS drafter: fc takes one hidden state,"
            " and no layer norms it. Only EAGLE-3 is read here; vLLM serves this one as it is, by"
            " method eagle"
        )
    try:
        layer_ids = _layer_ids(folder, config)
        shape = _shape(folder, config, layer_ids, target)
    except KeyError as error:
        raise ConfigError(f"artifact {folder}: {CONFIG_FILE} does not say {error}") from None
    except SpecpipeError:
        raise
    except Exception as error:  # what transformers and we make of values of other types
        raise ConfigError(f"artifact {folder}: {CONFIG_FILE}: {one_line(error)}") from None
    _check_sizes(folder, shape, tensors)
    return Artifact(folder, config, shape, tensors, layer_ids)


def _layer_ids(folder: Path, config: Mapping[str, Any]) -> tuple[int, ...] | None:
    own = tuple(config.get(LAYER_IDS) or ())
    nested = tuple(layer + 1 for layer in _nested(config).get(LAYER_IDS) or ())
    if own and nested and own != nested:
        raise ConfigError(
            f"artifact {folder}: {LAYER_IDS} {list(own)} disagrees with that of eagle_config,"
            f" {[layer - 1 for layer in nested]}, which must be one less each"
        )
    return own or nested or None


def _nested(config: Mapping[str, Any]) -> Mapping[str, Any]:
    nested: Mapping[str, Any] = config.get("eagle_config") or {}
    return nested


def _shape(
    folder: Path,
    config: Mapping[str, Any],
    layer_ids: tuple[int, ...] | None,
    target: OfTarget | None,
) -> DrafterShape:
    layer, nested = layer_config(config), _nested(config)
    kind = config.get("speculators_model_type", "eagle3")
    if kind != "eagle3" or not nested.get("use_aux_hidden_state", True):
        raise ConfigError(f"artifact {folder} is no EAGLE-3 drafter (it takes no auxiliary states)")
    if "speculators_model_type" in config and "norm_before_residual" not in config:
        raise ConfigError(
            f"artifact {folder}: {CONFIG_FILE} does not say norm_before_residual; vLLM takes it for"
            " true, speculators for false: write down what was trained"
        )
    switches = {name: config.get(name, nested.get(name, False)) for name in SWITCHES}
    vocab_size, width = _sizes(folder, config, target)
    aux_layers = layer_ids or (target.aux_layers if target else None)
    if aux_layers is None:
        raise ConfigError(
            f"artifact {folder}: {CONFIG_FILE} names no {LAYER_IDS}, and their default depends on"
            " the target; give --target"
        )
    heads = layer["num_attention_heads"]
    shape = DrafterShape(
        layer_type="qwen3" if layer.get("model_type") == "qwen3" else "llama",
        num_layers=layer.get("num_hidden_layers", 1),
        sliding_window=_sliding_window(folder, layer),
        hidden_size=layer["hidden_size"],
        target_hidden_size=width,
        intermediate_size=layer["intermediate_size"],
        num_attention_heads=heads,
        num_key_value_heads=layer.get("num_key_value_heads") or heads,
        head_dim=layer.get("head_dim") or layer["hidden_size"] // heads,
        rms_norm_eps=layer.get("rms_norm_eps", 1e-6),
        hidden_act=layer.get("hidden_act", "silu"),
        rope_parameters=_rope(folder, layer),
        max_position_embeddings=layer["max_position_embeddings"],
        vocab_size=vocab_size,
        draft_vocab_size=config.get("draft_vocab_size") or vocab_size,
        aux_layers=aux_layers,
        **switches,
    )
    if shape.hidden_act != "silu":
        raise ConfigError(f"artifact {folder}: hidden_act {shape.hidden_act!r} is not silu")
    if problems := shape_problems(shape):
        raise ConfigError(f"artifact {folder}: {CONFIG_FILE}: {'; '.join(problems)}")
    return shape


def _sliding_window(folder: Path, layer: Mapping[str, Any]) -> int | None:
    window: int | None = layer.get("sliding_window")
    if window is not None and not (isinstance(window, int) and window > 0):
        raise ConfigError(
            f"artifact {folder}: {CONFIG_FILE}: sliding_window is {window!r}, not positive"
        )
    return window if layer.get("layer_types") else None


def _check_sizes(folder: Path, shape: DrafterShape, tensors: Mapping[str, Tensor]) -> None:
    """Raise ConfigError for sizes that none of the tensors has: a model of any size would be built
    to compare them."""
    longest = max((max(tensor.shape, default=0) for tensor in tensors.values()), default=0)
    sizes = {
        "num_hidden_layers": (shape.num_layers, len(tensors)),
        "hidden_size": (shape.hidden_size, longest),
        "intermediate_size": (shape.intermediate_size, longest),
        "num_attention_heads": (shape.num_attention_heads * shape.head_dim, longest),
        "draft_vocab_size": (shape.draft_vocab_size, max(longest, shape.vocab_size)),
    }
    for name, (size, most) in sizes.items():
        if size > most:
            raise ConfigError(
                f"artifact {folder} is not the drafter that its config describes: {name} makes"
                f" {size}, and its weights have {most} at most"
            )


def _sizes(folder: Path, config: Mapping[str, Any], target: OfTarget | None) -> tuple[int, int]:
    """The target's vocabulary and width."""
    layer = layer_config(config)
    width = config.get("target_hidden_size") or layer.get("hidden_size")
    vocab_size = layer.get("vocab_size", target.vocab_size if target else None)
    if target and (vocab_size, width) != (target.vocab_size, target.hidden_size):
        raise ConfigError(
            f"artifact {folder} is for a target with a vocabulary of {vocab_size} and {width} wide"
            f" states, not for this one with {target.vocab_size} and {target.hidden_size}"
        )
    if vocab_size is None or width is None:
        raise KeyError("vocab_size" if vocab_size is None else "hidden_size")
    return vocab_size, width


def _rope(folder: Path, layer: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' rope_parameters, also from the older rope_theta and rope_scaling, without keys
    that their type does not have.

    Raises ConfigError for a rope that no drafter's layer has.
    """
    given = _given_rope(layer)
    if given.get("partial_rotary_factor") not in (None, 1):
        raise ConfigError(
            f"artifact {folder}: its rope has a partial_rotary_factor of"
            f" {given['partial_rotary_factor']}, but a drafter's layer turns whole heads: with"
            " which rope it was trained cannot be told"
        )
    rope = own_keys(given)
    if problems := rope_problems(rope):
        raise ConfigError(f"artifact {folder}: {CONFIG_FILE}: {'; '.join(problems)}")
    return rope


def _given_rope(layer: Mapping[str, Any]) -> dict[str, Any]:
    given = layer.get("rope_parameters")
    keys = ("rope_parameters",) if given else ("rope_theta", "rope_scaling")
    values = {key: layer[key] for key in keys if layer.get(key) is not None}
    rope: dict[str, Any] = LlamaConfig(**values).to_dict()["rope_parameters"]
    return rope


def _is_eagle_1(tensors: Mapping[str, Tensor]) -> bool:
    fc = tensors.get("fc.weight")
    is_normed = any(name.endswith("hidden_norm.weight") for name in tensors)
    return fc is not None and fc.ndim == 2 and fc.shape[1] == 2 * fc.shape[0] and not is_normed


def _our_names(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {}
    for name, tensor in tensors.items():
        ours = name.removeprefix("model.").replace("midlayer.", "layers.0.", 1)
        if ours in named:
            raise ConfigError(f"artifact {folder}: two of its tensors are {ours}")
        if not name.endswith(BUFFERS):
            named[ours] = tensor
    return named
