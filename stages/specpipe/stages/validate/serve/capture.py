"""Texts that an engine wrote, run through the target again for its states.

Legend: B texts, T tokens, L aux layers, H hidden size, S tokens of an output, V vocabulary.
"""

import gc
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from specpipe.schemas.records.sample import Ids
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.acceptance.evidence import chance, slopes
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.target.files.location import TargetSource
from specpipe.stages.target.head.verifier_head import (
    VerifierHead,
    acting_weight,
    load_embedding,
    save_head,
)
from specpipe.stages.target.hf.backend import HfBackend
from specpipe.stages.validate.drafted_text import TargetText, bf16_steps
from specpipe.stages.validate.serve.near_ties import near_tie_steps


@dataclass(frozen=True, slots=True)
class WrittenTokens:
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


def near_ties(texts: Sequence[CapturedText], num_tokens: Sequence[int]) -> float:
    """The limit of near_ties.py, by the first so many tokens of each greedy output."""
    leads, num_others = [np.zeros(0)], 0
    for text, count in zip(texts, num_tokens, strict=True):
        begin, _ = text.text.spans[0]
        top_S2, ids_S2 = text.output_logits_SV[:count].topk(2)
        leads.append((-top_S2.diff(dim=1)[:, 0] / bf16_steps(top_S2.abs().amax(-1))).numpy())
        chosen_S = text.text.input_ids_T[begin : begin + count]
        num_others += int((ids_S2[:, 0] != chosen_S).sum())
    return near_tie_steps(np.concatenate(leads), num_others)


def excess_chance(texts: Sequence[CapturedText]) -> float:
    """Probability that text drawn from the target has such an excess, either way, by chance.

    Of each token the target says what exp(s (log p + entropy)) is in the mean, given the text
    before it: the sum of p^(1+s), times exp(s entropy).
    """
    num_tokens = sum(len(text.output_logits_SV) for text in texts)
    # Nats; a standard deviation of one per token is common.
    slopes_J = slopes(np.sqrt(num_tokens), largest=0.9)
    ratios_J = np.zeros(len(slopes_J))
    for text in texts:
        logp_SV = text.output_logits_SV.log_softmax(-1)
        begin, end = text.text.spans[0]
        total = float(text.text.token_logprob_T[begin:end].double().sum())
        # The entropy is on both sides of the ratio.
        means = [float((logp_SV * (1 + s)).logsumexp(-1).double().sum()) for s in slopes_J]
        ratios_J += slopes_J * total - np.array(means)
    return chance(ratios_J)


class TargetCapture:
    """The target in transformers, with its head."""

    def __init__(
        self, target: TargetSource, layers: Sequence[int], *, trust_remote_code: bool
    ) -> None:
        config = DumpConfig(
            target=target.name,
            revision=target.revision,
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

    def close(self) -> None:
        """Let go of the target's memory, on a GPU too."""
        self._backend.close()
        del self._head, self._backend
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def lm_head_VH(self) -> Tensor:
        """The target's, for a drafter that has none of its own."""
        return self._head.lm_head_VH.cpu()

    @property
    def final_norm_H(self) -> Tensor:
        return acting_weight(self._head.norm, self.lm_head_VH.shape[1]).cpu()

    @property
    def final_norm(self) -> nn.Module:
        return deepcopy(self._head.norm).cpu()

    def capture(
        self, prompts: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]
    ) -> list[CapturedText]:
        """Each prompt with its output, in order."""
        texts = [np.array([*p, *o], dtype=np.int32) for p, o in zip(prompts, outputs, strict=True)]
        states = self._backend.capture([WrittenTokens(text) for text in texts])
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
