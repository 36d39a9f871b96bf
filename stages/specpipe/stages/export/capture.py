"""Texts that an engine wrote, run through the target again for its states.

Legend: B texts, T tokens, L aux layers, H hidden size, S tokens of an output, V vocabulary.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specpipe.schemas.config import DumpConfig
from specpipe.schemas.sample import Ids
from specpipe.stages.export.accept import TargetText
from specpipe.stages.storage.folder import Folder
from specpipe.stages.target.head import VerifierHead, load_embedding, save_head
from specpipe.stages.target.hf import HfBackend


@dataclass(frozen=True, slots=True)
class Tokens:
    input_ids: Ids


@dataclass(frozen=True, slots=True)
class CapturedText:
    """A prompt's output with the target's states and logits."""

    text: TargetText
    output_logits_SV: Tensor
    """float32, the row of each output token"""

    @property
    def mean_logprob(self) -> float:
        """Of the output's tokens, nats."""
        begin, end = self.text.spans[0]
        return float(self.text.token_logprob_T[begin:end].mean())

    @property
    def excess(self) -> float:
        """Mean of log p(token) + entropy(p) over the output's tokens, nats."""
        logprobs_SV = self.output_logits_SV.log_softmax(-1)
        entropy_S = -(logprobs_SV.exp() * logprobs_SV).sum(-1)
        return self.mean_logprob + float(entropy_S.mean())


class TargetCapture:
    """The target in transformers, with its head."""

    def __init__(
        self, target: str, revision: str | None, layers: Sequence[int], *, trust_remote_code: bool
    ) -> None:
        config = DumpConfig(
            target=target,
            revision=revision,
            data=("-",),
            out="-",
            trust_remote_code=trust_remote_code,
        )
        self._backend = HfBackend(config, layers)
        with tempfile.TemporaryDirectory(prefix="specpipe-target-") as name:
            folder = Folder.open(name)
            save_head(self._backend.model, folder)
            folder.write("config.json", self._backend.model.config.to_json_string().encode())
            self._head = VerifierHead.load(folder.read, self._backend.device)
            self.embedding_VH = load_embedding(folder.read).float().cpu()

    @property
    def lm_head_VH(self) -> Tensor:
        """The target's, for a drafter that has none of its own."""
        return self._head.lm_head_VH.cpu()

    def capture(
        self, prompts: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]
    ) -> list[CapturedText]:
        """Each prompt with its output, in order."""
        texts = [np.array([*p, *o], dtype=np.int32) for p, o in zip(prompts, outputs, strict=True)]
        states = self._backend.capture([Tokens(text) for text in texts])
        return [
            self._text(text, len(prompt), of.aux_TLH, of.final_TH)
            for text, prompt, of in zip(texts, prompts, states, strict=True)
        ]

    def _text(self, ids: Ids, begin: int, aux_TLH: Tensor, final_TH: Tensor) -> CapturedText:
        input_ids_T = torch.from_numpy(ids).long()
        logits_SV = self._head.logits(final_TH[begin - 1 : -1]).cpu()
        logprobs_SV = logits_SV.log_softmax(-1)
        token_logprob_T = torch.zeros(len(ids))
        token_logprob_T[begin:] = logprobs_SV.gather(1, input_ids_T[begin:, None])[:, 0]
        text = TargetText(input_ids_T, [(begin, len(ids))], aux_TLH.cpu(), token_logprob_T)
        return CapturedText(text, logits_SV)
