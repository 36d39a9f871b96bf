"""Capture through transformers: hooks on exactly the layers that are asked for.

Legend: B samples of a batch, T tokens, L aux layers, H hidden size, S verifier rows.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.stages import DumpConfig, GenerateConfig
from specpipe.stages.process.device import choose_device
from specpipe.stages.process.gpu_memory import enough_gpu_memory
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.target.backend import Captured, Generation, Prompt
from specpipe.stages.target.batches import Tokens, batches
from specpipe.stages.target.files.identity import load_config
from specpipe.stages.target.files.location import local_folder, weight_files
from specpipe.stages.target.files.turn_end import TurnEnd
from specpipe.stages.target.head.verifier_head import WideLinear, save_head
from specpipe.stages.target.model.causal_lm import load_causal_lm
from specpipe.stages.target.model.decoder import find_decoder
from specpipe.stages.target.model.model_class import drop_other_weights
from specpipe.stages.untrusted.foreign import foreign_call
from specpipe.stages.untrusted.tensors import opened_tensors


class HfBackend:
    """The target in transformers, run for its hidden states only."""

    logits_rounding = 0.0

    def __init__(self, config: DumpConfig, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)
        self.device = choose_device(config.device)
        self.batch_tokens = config.batch_tokens
        self._folder = local_folder(
            config.target, config.revision, with_code=config.trust_remote_code
        )
        self._trust_remote_code = config.trust_remote_code
        self.model = _load_model(config, self.device)
        self.decoder = find_decoder(self.model)
        self._parameters = signature(self.model.forward).parameters
        # transformers renamed it in 5.21; a hub's own code may go by the old name for long.
        self._cache_name = "cache" if "cache" in self._parameters else "past_key_values"
        self._caught: dict[int, Tensor] = {}
        for layer in {*self.layers, self.decoder.num_layers}:
            self.decoder.entry(layer).register_forward_pre_hook(
                self._catch(layer), with_kwargs=True
            )

    def _catch(self, layer: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden: Tensor = args[0] if args else kwargs["hidden_states"]
            if hidden.ndim > 3:
                raise ConfigError(
                    f"{type(self.model).__name__} is not supported: what enters its layers has the "
                    f"shape {list(hidden.shape)}, not one state for each token"
                )
            self._caught[layer] = hidden

        return hook

    def save_head(self, folder: Folder) -> None:
        save_head(self.model, folder)

    def capture(self, samples: Sequence[Tokens]) -> Iterator[Captured]:
        """The states of each sample, on the backend's device."""
        for batch in batches(samples, self.batch_tokens):
            yield from self.capture_batch(batch)

    def generate(self, prompts: Sequence[Prompt], settings: GenerateConfig) -> Iterator[Generation]:
        from specpipe.stages.target.hf.generate import generate

        return generate(self, prompts, settings)

    def close(self) -> None:
        """Nothing outlives the object itself."""

    @torch.no_grad()
    def capture_batch(self, batch: Sequence[Tokens]) -> list[Captured]:
        """The states of samples that go through the target together. The lm_head does not run."""
        ids_BT, mask_BT = self._padded(batch)
        with _memory_of(mask_BT):
            self.decoder.module(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
        aux_BTLH, final_BTH = self._take()
        lengths = [len(sample.input_ids) for sample in batch]
        return [Captured(aux_BTLH[i, :t], final_BTH[i, :t]) for i, t in enumerate(lengths)]

    @torch.no_grad()
    def step(
        self, ids_BN: Tensor, mask_BT: Tensor, cache: Any
    ) -> tuple[Tensor, Tensor, Tensor, Any]:
        """Put N more tokens through the target, behind the T - N that are in `cache` (or None).

        `mask_BT` is 0 at padding. Returns fp32 logits [B, V] behind the last token, the tokens'
        states [B, N, L, H] and [B, N, H] in bfloat16, and the cache of all T. To be called within
        `wide_logits`.
        """
        positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
        options = {"position_ids": positions_BT[:, -ids_BN.shape[1] :], "logits_to_keep": 1}
        if getattr(self.model.config.get_text_config(decoder=True), "num_kv_shared_layers", 0):
            # Such layers get the kept tokens alone (Gemma 4, transformers 5.24), without states of
            # the others.
            del options["logits_to_keep"]
        with _memory_of(mask_BT):
            output = self.model(
                input_ids=ids_BN,
                attention_mask=mask_BT,
                use_cache=True,
                **{self._cache_name: cache},
                **{name: value for name, value in options.items() if name in self._parameters},
            )
        aux_BNLH, final_BNH = self._take()
        return output.logits[:, -1].float(), aux_BNLH, final_BNH, cache_of(output)

    def turn_end(self, texts: Sequence[str]) -> TurnEnd:
        """Where turns end: the target's own end tokens, or one of the texts."""
        return TurnEnd.of_target(self._folder, texts, trust_remote_code=self._trust_remote_code)

    @torch.no_grad()
    def own_logprobs(self, sample: Tokens, first: int) -> tuple[Tensor, dict[int, Tensor]]:
        """The whole model as transformers runs it, and its own `hidden_states` at the aux layer ids
        below n."""
        ids_BT, mask_BT = self._padded([sample])
        last = ids_BT.shape[1] - first
        # Not every architecture can leave out the logits before `first`.
        keep = {"logits_to_keep": last} if "logits_to_keep" in self._parameters else {}
        with self.wide_logits():
            output = self.model(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                use_cache=False,
                output_hidden_states=True,
                **keep,
            )
        self._caught.clear()
        below = [layer for layer in self.layers if layer < self.decoder.num_layers]
        own = output.hidden_states or ()
        states = {layer: own[layer][0] for layer in below if layer < len(own)}
        next_S = ids_BT[0, first + 1 :, None]
        logprobs_SV = output.logits[0, -last:-1].float().log_softmax(-1)
        return logprobs_SV.gather(1, next_S)[:, 0], states

    @contextmanager
    def wide_logits(self) -> Iterator[None]:
        """Within, the lm_head's products are summed, and stay, in fp32: bf16 logits carry an error
        of up to 0.06 each. What the architecture does to them afterwards is left to it."""
        lm_head: Any = self.model.get_output_embeddings()
        wide = WideLinear(lm_head.weight, getattr(lm_head, "bias", None))
        hook = lm_head.register_forward_hook(lambda _, args, __: wide(args[0]))
        try:
            yield
        finally:
            hook.remove()

    def _take(self) -> tuple[Tensor, Tensor]:
        """The states that the last forward pass left, bfloat16 [B, T, L, H] and [B, T, H]."""
        aux_BTLH = torch.stack([self._caught[layer] for layer in self.layers], dim=2).bfloat16()
        final_BTH = self._caught[self.decoder.num_layers].bfloat16()
        self._caught.clear()
        return aux_BTLH, final_BTH

    def _padded(self, batch: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
        """Ids and attention mask, padded on the right: no real position sees the padding."""
        width = max(len(sample.input_ids) for sample in batch)
        ids_BT = torch.zeros(len(batch), width, dtype=torch.int64)
        mask_BT = torch.zeros(len(batch), width, dtype=torch.int64)
        for i, sample in enumerate(batch):
            ids_BT[i, : len(sample.input_ids)] = torch.tensor(sample.input_ids)
            mask_BT[i, : len(sample.input_ids)] = 1
        return ids_BT.to(self.device), mask_BT.to(self.device)


def cache_of(output: Any) -> Any:
    """The cache that the target hands back; from 5.21 on, transformers stores either name as
    `cache`."""
    for name in ("cache", "past_key_values"):
        if name in output:
            return output[name]
    raise ConfigError(
        "the target keeps no cache that transformers can go on from, so it cannot write answers "
        "there: leave out --generate, or use --backend vllm"
    )


def _memory_of(mask_BT: Tensor) -> AbstractContextManager[None]:
    num_samples, num_tokens = mask_BT.shape
    what = f"with {num_samples} samples of {num_tokens} tokens"
    return enough_gpu_memory(what, "lower --batch-tokens")


def compute_dtype(requested: str, config: PreTrainedConfig, folder: Path) -> torch.dtype:
    """The dtype in which the target runs; `auto` is the checkpoint's own."""
    name: Any = requested
    if requested == "auto":
        name = getattr(config, "dtype", None) or _stored_dtype(folder)
    dtype = name if isinstance(name, torch.dtype) else getattr(torch, str(name), None)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ConfigError(f"the checkpoint's dtype is {name}: give --dtype bfloat16 or float32")
    return dtype


def _stored_dtype(folder: Path) -> torch.dtype:
    path = weight_files(folder)[0]
    with opened_tensors(path, str(path)) as file:
        dtype: torch.dtype = file.get_tensor(next(iter(file.keys()))).dtype
    return dtype


def _load_model(config: DumpConfig, device: torch.device) -> PreTrainedModel:
    folder = local_folder(config.target, config.revision, with_code=config.trust_remote_code)
    model_config = load_config(folder, trust_remote_code=config.trust_remote_code)
    text_config = model_config.get_text_config(decoder=True)
    # torch's SDPA has no soft-cap on attention scores, and transformers' wrapper around it drops
    # the cap without a word. Left to itself, transformers takes SDPA wherever the class has it.
    capped = getattr(text_config, "attn_logit_softcapping", None) is not None
    loaded: Any = load_causal_lm(
        config,
        compute_dtype(config.dtype, text_config, folder),
        model_config,
        attn_implementation="eager" if capped else None,
    )
    drop_other_weights(loaded, find_decoder(loaded))
    what = f"target {config.target}: transformers cannot run it"
    with foreign_call(what, ConfigError), enough_gpu_memory("with the target", "use another GPU"):
        model: PreTrainedModel = loaded.to(device)
        _run_once(model)
    return model


@torch.no_grad()
def _run_once(model: PreTrainedModel) -> None:
    """A quantised model unpacks its weights in its first pass as a whole. Captures go past the
    whole, and the head is saved from the weights."""
    ids_BT = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    model(input_ids=ids_BT, use_cache=False)
