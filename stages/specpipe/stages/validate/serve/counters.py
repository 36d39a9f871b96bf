"""vLLM's own counters of drafts."""

from typing import Any

from specpipe.schemas.records.served import Counters


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
