"""vLLM's own counters of drafts."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Counters(BaseModel):
    """What was drafted and accepted, as vLLM counts it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int
    accepted_per_position: list[int]

    def minus(self, before: "Counters") -> "Counters":
        return self._with(before, -1)

    def plus(self, more: "Counters") -> "Counters":
        return self._with(more, 1)

    def _with(self, other: "Counters", sign: int) -> "Counters":
        pairs = zip(self.accepted_per_position, other.accepted_per_position, strict=True)
        return Counters(
            num_drafts=self.num_drafts + sign * other.num_drafts,
            num_draft_tokens=self.num_draft_tokens + sign * other.num_draft_tokens,
            num_accepted_tokens=self.num_accepted_tokens + sign * other.num_accepted_tokens,
            accepted_per_position=[ours + sign * theirs for ours, theirs in pairs],
        )


def read_counters(llm: Any) -> Counters:
    """Since the start of an engine with a drafter in this process."""
    metrics = {metric.name: metric for metric in llm.get_metrics()}
    prefix = "vllm:spec_decode_num"
    return Counters(
        num_drafts=metrics[f"{prefix}_drafts"].value,
        num_draft_tokens=metrics[f"{prefix}_draft_tokens"].value,
        num_accepted_tokens=metrics[f"{prefix}_accepted_tokens"].value,
        accepted_per_position=metrics[f"{prefix}_accepted_tokens_per_pos"].values,
    )
