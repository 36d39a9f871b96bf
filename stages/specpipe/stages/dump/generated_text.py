"""One text that the target writes: a turn that goes on from a prompt, or several that are fed back.

Legend: T tokens, L aux layers, H hidden size.
"""

import hashlib
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from torch.nn.functional import pad

from specpipe.schemas.records.dump import GenerationCounts
from specpipe.schemas.settings.stages import GenerateConfig
from specpipe.stages.dump.target_text import TextWithStates
from specpipe.stages.storage.shard.samples import PlannedSample
from specpipe.stages.target.backend import Captured, Generation, Prompt
from specpipe.stages.text.conversation import ChatTemplate
from specpipe.stages.text.dialogue import Dialogue

Finish = Literal["stop", "max_tokens", "context_length"]
"""What ended a turn: the target or a stop text, its limit, or the end of the context."""

_SEED_DIGITS = 15  # Hexadecimal: a number below 2**60 is a seed for every generator.


class GeneratedText:
    """The tokens of a sample as they become more.

    A turn that the target ends is followed by what its chat template writes up to the next one.
    All ends with a turn that is cut off, and where the template would write an earlier turn
    otherwise than the target did.
    """

    def __init__(
        self, sample: PlannedSample, settings: GenerateConfig, template: ChatTemplate
    ) -> None:
        self._sample = sample
        self._settings = settings
        self._template = template
        self._ids: list[int] = sample.input_ids.tolist()
        self._mask: list[int] = sample.loss_mask.tolist()
        self._states: Captured | None = None
        self._finishes: list[Finish] = []
        self._counts = GenerationCounts()
        self.is_done = False
        """Whether there is no further turn."""
        self._dialogue: Dialogue | None = None
        self._text = ""
        self._answers: list[str] = []
        if sample.metadata:
            self._dialogue = Dialogue.of_metadata(sample.metadata)
            self._text = self._dialogue.prompt(template)

    @property
    def prompt(self) -> Prompt:
        """What the next turn goes on from."""
        turn = f"{self._sample.sample_id} {len(self._finishes)}"
        return Prompt(
            input_ids=np.array(self._ids, np.int32),
            seed=int(hashlib.sha256(turn.encode()).hexdigest()[:_SEED_DIGITS], 16),
            max_new_tokens=min(self._settings.max_tokens, self._room),
        )

    def add(self, turn: Generation) -> None:
        """The next turn, as the target wrote it."""
        new_ids: list[int] = turn.new_ids.tolist()
        ends = bool(new_ids) and new_ids[-1] in self._template.end_ids
        answer_ids, end_ids = (new_ids[:-1], new_ids[-1:]) if ends else (new_ids, [])
        finish: Finish = "stop"
        if turn.finish == "length":
            is_whole = len(new_ids) == self._settings.max_tokens
            finish = "max_tokens" if is_whole else "context_length"
        self._finishes.append(finish)
        self._count(
            num_turns=1,
            num_new_tokens=len(new_ids),
            num_stopped=int(finish == "stop"),
            num_max_tokens=int(finish == "max_tokens"),
            num_context_length=int(finish == "context_length"),
            num_empty=int(not answer_ids),
        )
        between = self._feed_back(answer_ids, end_ids) if self._has_more_turns else []
        self._extend(new_ids, supervised=1)
        self._extend(between, supervised=0)
        self.is_done = not between
        self._states = turn.states if self.is_done else None

    def keep_states(self) -> None:
        """Copy the states to memory of their own, so that those of their batch can go."""
        if self._states is not None:
            aux_TLH, final_TH = self._states.aux_TLH, self._states.final_TH
            self._states = Captured(aux_TLH.cpu().clone(), final_TH.cpu().clone())

    def text(self) -> TextWithStates:
        """All of it, once it is done.

        The last token's states may be missing, where it never was an input: nothing follows it, so
        that nobody needs them, and they are stored as zeros.
        """
        assert self._states is not None, "the conversation is not done"
        sample = replace(
            self._sample,
            input_ids=np.array(self._ids, np.int32),
            loss_mask=np.array(self._mask, np.uint8),
            metadata={"finish": self._finishes},
            max_new_tokens=0,
        )
        missing = sample.num_tokens - len(self._states.aux_TLH)
        states = Captured(
            pad(self._states.aux_TLH, (0, 0, 0, 0, 0, missing)),
            pad(self._states.final_TH, (0, 0, 0, missing)),
        )
        return TextWithStates(sample, states, self._counts)

    @property
    def _room(self) -> int:
        """Tokens that are left of those that were planned."""
        return self._sample.size - len(self._ids)

    @property
    def _has_more_turns(self) -> bool:
        return self._dialogue is not None and len(self._finishes) < self._dialogue.num_turns

    def _feed_back(self, answer_ids: list[int], end_ids: list[int]) -> list[int]:
        """The tokens between this turn and the next one; none if there is to be no next one."""
        assert self._dialogue is not None
        if self._finishes[-1] != "stop":
            self._count(num_broken_off=1)
            return []
        before, whole = self._decode(self._ids), self._decode([*self._ids, *answer_ids])
        end = self._decode(end_ids)
        between = None
        if whole.startswith(before):
            answer = whole[len(before) :]
            self._answers.append(answer)
            between = self._dialogue.following(self._template, self._text, self._answers, end)
        if between is None:
            self._count(num_rewritten=1)
            return []
        self._text += f"{answer}{end}{between}"
        between_ids = self._template.tokenize(between)
        if len(answer_ids) + len(end_ids) + len(between_ids) >= self._room:
            self._count(num_broken_off=1)
            return []
        return between_ids

    def _decode(self, ids: list[int]) -> str:
        tokenizer: Any = self._template.tokenizer  # its decode also takes several texts
        text: str = tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def _extend(self, ids: list[int], *, supervised: int) -> None:
        self._ids += ids
        self._mask += [supervised] * len(ids)

    def _count(self, **counts: int) -> None:
        self._counts = self._counts.plus(GenerationCounts(**counts))
