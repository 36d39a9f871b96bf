"""The verifier's head: final norm, lm_head, logit scale and soft-cap, loaded without the target.

The head is the architecture's own `ForCausalLM` with its decoder replaced by the final norm, so
that Gemma's 1 + w norms, Granite's and Cohere's logit scales and Gemma's soft-caps come out right
without being named here. The norm runs in the target's dtype, as it does in the target; the
products with lm_head are summed, scaled and capped in fp32.

Legend: S rows, H hidden size, V vocabulary, D draft vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from specpipe.schemas.errors import ConfigError, IntegrityError
from specpipe.schemas.records.dump import HEAD_FILE, HEAD_WEIGHTS_FILE, TARGET_FOLDER, HeadRecord
from specpipe.stages.storage.records import parse_record
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.storage.store.objects import put_object
from specpipe.stages.target.files.location import CONFIG_FILE
from specpipe.stages.target.files.model_config import build_config, parse_config
from specpipe.stages.target.model.building import MODEL_BUILDING
from specpipe.stages.target.model.decoder import find_decoder
from specpipe.stages.target.model.model_class import auto_class, place_of_decoder
from specpipe.stages.untrusted.foreign import foreign_call
from specpipe.stages.untrusted.tensors import load_tensors

Read = Callable[[str], bytes]
"""Contents of a file of a dump's `target/` folder."""

EMBEDDING = "embed_tokens.weight"
LM_HEAD = "lm_head.weight"

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
_FINITE_ROWS = 2**12

_CONFIG = "config.json of the dump's target"


class VerifierHead:
    """Final states before the final norm -> the verifier's logits."""

    def __init__(self, model: PreTrainedModel, norm: nn.Module, lm_head: "WideLinear") -> None:
        self._model = model
        self.norm = norm
        self.lm_head = lm_head

    @property
    def lm_head_VH(self) -> Tensor:
        """Rows of the lm_head that are kept: [V, H], or [D, H] where rows were chosen."""
        return self.lm_head.weight_VH

    @classmethod
    def load(cls, read: Read, device: torch.device, rows: Tensor | None = None) -> "VerifierHead":
        """The head stored in a dump's `target/` folder.

        `rows` (int64 [D]) keeps only these token ids: the draft vocabulary. No code from the
        folder is run. Raises IntegrityError where the files do not fit each other, ConfigError for
        an architecture that transformers does not know.
        """
        record = _record(read)
        tensors = _tensors(read)
        model = _without_weights(load_stored_config(read))
        decoder = find_decoder(model)
        norm = decoder.norm
        norm_tensors = {
            name.removeprefix("norm."): tensor
            for name, tensor in tensors.items()
            if name.startswith("norm.")
        }
        try:
            norm.load_state_dict(norm_tensors, assign=True)
        except RuntimeError as error:
            raise IntegrityError(
                f"{HEAD_WEIGHTS_FILE} does not fit {record.architecture}: {error}"
            ) from error
        norm.to(device).eval()
        weight_VH, bias_V = _stored(tensors, record.lm_head), tensors.get("lm_head.bias")
        _check_fit(model, record, weight_VH, bias_V, tensors.get(EMBEDDING))
        for name, tensor in tensors.items():
            if name != EMBEDDING or name == record.lm_head:
                _check_finite(name, tensor)
        if rows is not None:
            weight_VH = weight_VH[rows.to(weight_VH.device)]
            bias_V = None if bias_V is None else bias_V[rows.to(bias_V.device)]
        lm_head = WideLinear(weight_VH.to(device), None if bias_V is None else bias_V.to(device))
        place = place_of_decoder(model, decoder, record.lm_head_path)
        model.set_submodule(place, _FinalNorm(norm, model.get_submodule(place)))
        model.set_submodule(record.lm_head_path, lm_head)
        model.eval()
        return cls(model, norm, lm_head)

    @torch.no_grad()
    def logits(self, final_SH: Tensor) -> Tensor:
        """fp32 logits [S, V] (or [S, D]) of final states before the final norm."""
        weight = next(self.norm.parameters(), None)
        inputs = final_SH.to(self.lm_head_VH.device)
        inputs = inputs if weight is None else inputs.to(weight.dtype)
        logits_1SV: Tensor = self._model(inputs_embeds=inputs[None], use_cache=False).logits
        return logits_1SV[0].float()


class WideLinear(nn.Module):
    """A linear layer whose products are summed, and returned, in fp32.

    Half-precision weights stay as they are on a GPU, which multiplies them with fp32 sums; CPUs
    have no such product, so there they are widened once.
    """

    def __init__(self, weight_VH: Tensor, bias_V: Tensor | None) -> None:
        super().__init__()
        self.weight_VH = weight_VH if weight_VH.is_cuda else weight_VH.float()
        self.bias_V = None if bias_V is None else bias_V.float()

    def forward(self, hidden: Tensor) -> Tensor:
        if self.weight_VH.dtype == torch.float32:
            return nn.functional.linear(hidden.float(), self.weight_VH, self.bias_V)
        hidden_SH = hidden.reshape(-1, hidden.shape[-1]).to(self.weight_VH.dtype)
        logits_SV = torch.mm(hidden_SH, self.weight_VH.T, out_dtype=torch.float32)
        logits_SV = logits_SV if self.bias_V is None else logits_SV + self.bias_V
        return logits_SV.view(*hidden.shape[:-1], -1)


class _FinalNorm(nn.Module):
    """Stands where the decoder stood: its "output" is the normed input."""

    def __init__(self, norm: nn.Module, replaced: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        # Some heads read a number of its, such as Falcon H1's lm_head_multiplier.
        for name, value in vars(replaced).items():
            if isinstance(value, int | float):
                setattr(self, name, value)

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> "_NormedOutput":
        return _NormedOutput(last_hidden_state=self.norm(inputs_embeds))


@dataclass
class _NormedOutput(BaseModelOutputWithPast):
    """A decoder's output without whatever else its architecture's output has (router logits, shared
    keys and values, ...): each such field is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def load_embedding(read: Read) -> Tensor:
    """The target's token embedding [V, H], in the dtype in which it is stored."""
    return _stored(_tensors(read), EMBEDDING)


def load_lm_head(read: Read) -> Tensor:
    """The target's lm_head [V, H], in the dtype in which it is stored."""
    return _stored(_tensors(read), _record(read).lm_head)


def load_norm(read: Read) -> Tensor:
    """The weight [H] of the target's final norm, in the dtype in which it is stored."""
    return _stored(_tensors(read), "norm.weight")


def final_scale(read: Read) -> Tensor:
    """What the target multiplies its normed final state by on the way to its logits: float32 [H].

    The weight of the final norm as it acts (Gemma's is 1 + w), times the logit scale: lm_head rows
    on a state of root mean square 1 that is multiplied by it are the target's logits (before a
    soft-cap).
    """
    return final_norm(read) * logit_scale(read)


def logit_scale(read: Read) -> float:
    """What the target multiplies its logits by."""
    return _record(read).logit_scale or 1.0


def final_norm(read: Read) -> Tensor:
    """The weight of the final norm as it acts (Gemma's is 1 + w): float32 [H]."""
    head = VerifierHead.load(read, torch.device("cpu"), rows=torch.zeros(1, dtype=torch.int64))
    return acting_weight(head.norm, head.lm_head_VH.shape[1])


@torch.no_grad()
def acting_weight(norm: nn.Module, width: int) -> Tensor:
    """What a norm multiplies a state of root mean square 1 by: float32 [H]."""
    weight = next(norm.parameters(), torch.ones(()))
    # Mean 0 and root mean square 1, so that every kind of norm leaves it as it is; half the
    # difference of both signs is free of a bias.
    state_H = torch.ones(width, dtype=weight.dtype, device=weight.device)
    state_H[1::2] = -1
    out_H: Tensor = (norm(state_H) - norm(-state_H)) / 2 * state_H
    return out_H.float()


def load_final_norm(read: Read) -> nn.Module:
    """The target's final norm, as its architecture computes it and in the dtype that it has."""
    rows = torch.zeros(1, dtype=torch.int64)
    return VerifierHead.load(read, torch.device("cpu"), rows=rows).norm


def longest_text(read: Read) -> int | None:
    """The target's `max_position_embeddings`, where its config has such a number."""
    config = load_stored_config(read).get_text_config(decoder=True)
    longest = getattr(config, "max_position_embeddings", None)
    return longest if isinstance(longest, int) else None


def save_head(model: PreTrainedModel, folder: Folder) -> None:
    """Write head.safetensors and, last, head.json into a dump's `target/` folder.

    Tied embeddings are stored once. Files that hold something else are replaced.
    """
    decoder = find_decoder(model)
    config = model.config.get_text_config(decoder=True)
    lm_head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    if lm_head is None:
        raise ConfigError(f"{type(model).__name__} has no output embeddings: not a language model?")
    lm_head_path = next(name for name, module in model.named_modules() if module is lm_head)
    tied = lm_head.weight.data_ptr() == embedding.weight.data_ptr()
    tensors = {f"norm.{name}": tensor for name, tensor in decoder.norm.state_dict().items()}
    tensors[EMBEDDING] = embedding.weight
    if not tied:
        tensors[LM_HEAD] = lm_head.weight
    if getattr(lm_head, "bias", None) is not None:
        tensors["lm_head.bias"] = lm_head.bias
    stored = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    scaling = getattr(config, "logits_scaling", None)
    record = HeadRecord(
        model_type=model.config.model_type,
        architecture=type(model).__name__,
        dtype=str(lm_head.weight.dtype).removeprefix("torch."),
        norm=type(decoder.norm).__name__,
        norm_eps=getattr(decoder.norm, "eps", getattr(decoder.norm, "variance_epsilon", None)),
        logit_scale=1 / scaling if scaling else getattr(config, "logit_scale", None),
        logit_softcap=getattr(config, "final_logit_softcapping", None),
        lm_head_path=lm_head_path,
        lm_head=EMBEDDING if tied else LM_HEAD,
    )
    put_object(folder, HEAD_WEIGHTS_FILE, save_tensors(stored))
    put_object(folder, HEAD_FILE, record.to_json())


def _record(read: Read) -> HeadRecord:
    return parse_record(HeadRecord, read(HEAD_FILE), f"{TARGET_FOLDER}/{HEAD_FILE}")


def _tensors(read: Read) -> dict[str, Tensor]:
    where = f"{HEAD_WEIGHTS_FILE} of the dump's target"
    tensors = load_tensors(read(HEAD_WEIGHTS_FILE), where)
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise IntegrityError(f"{where}: {name} is {tensor.dtype}, not a float of 16 or 32 bits")
    return tensors


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are."""
    # In pieces: the test makes a tensor of its own of each.
    return all(
        bool(piece.isfinite().all()) for piece in torch.atleast_1d(tensor).split(_FINITE_ROWS)
    )


def _check_finite(name: str, tensor: Tensor) -> None:
    if not is_finite(tensor):
        raise IntegrityError(
            f"{HEAD_WEIGHTS_FILE} of the dump's target: {name} holds NaN or infinity"
        )


def _stored(tensors: dict[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise IntegrityError(f"{HEAD_WEIGHTS_FILE} of the dump's target holds no {name}")
    return tensors[name]


def load_stored_config(read: Read) -> PreTrainedConfig:
    """The target's config from a dump's `target/` folder; never runs code from it.

    Raises IntegrityError where it makes no model, ConfigError for a model type that transformers
    does not know.
    """
    raw = parse_config(read(CONFIG_FILE), _CONFIG, IntegrityError)
    return build_config(raw, f"{_CONFIG} makes no causal language model", IntegrityError)


def _without_weights(config: PreTrainedConfig) -> PreTrainedModel:
    with (
        foreign_call(f"{_CONFIG} makes no causal language model", IntegrityError),
        MODEL_BUILDING,
        torch.device("meta"),
    ):
        model: PreTrainedModel = auto_class(config).from_config(config)
    return model


def _check_fit(
    model: PreTrainedModel,
    record: HeadRecord,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    embedding: Tensor | None,
) -> None:
    """Raises IntegrityError unless head.json, lm_head and embedding are of this architecture."""
    own_embedding: Any = model.get_input_embeddings()
    own: Any = model.get_output_embeddings()
    if record.lm_head_path not in {n for n, module in model.named_modules() if module is own}:
        raise IntegrityError(
            f"{HEAD_FILE} of the dump's target says that the output layer of "
            f"{type(model).__name__} is {record.lm_head_path!r}, which it is not"
        )
    shape: torch.Size = own.weight.shape
    stored: list[tuple[str, Tensor | None, torch.Size]] = [
        (record.lm_head, weight_VH, shape),
        ("lm_head.bias", bias_V, shape[:1]),
        (EMBEDDING, embedding, own_embedding.weight.shape),
    ]
    for name, tensor, expected in stored:
        if tensor is not None and tensor.shape != expected:
            raise IntegrityError(
                f"{HEAD_WEIGHTS_FILE} of the dump's target: {name} is {list(tensor.shape)}, but "
                f"by config.json it is {list(expected)}"
            )
