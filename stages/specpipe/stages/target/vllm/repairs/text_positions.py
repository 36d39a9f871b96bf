"""The positions of an MTP drafter of a Qwen3.5 that takes text alone.

Such a target has one row of positions: vLLM 0.32 takes `mrope_section`, which is for images, out of
its config, and the drafter's layer is built from that. It stays in the drafter's own config,
by which the proposer hands the layer three rows. The rope's CPU kernel then takes three times as
many tokens as there are, and writes behind their queries and keys: the engine hangs or is killed.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

Update = Callable[[Any], None]
_FOR_IMAGES = ("mrope_section", "mrope_interleaved")


def repair() -> bool:
    """Let vLLM take it out of the drafter's config too; False where it does so."""
    from vllm.model_executor.models import config

    family = getattr(config, "Qwen3_5ForCausalLMConfig", None)
    if family is None or not forgets_the_drafter(family.verify_and_update_config):
        return False
    family.verify_and_update_config = staticmethod(for_both(family.verify_and_update_config))
    return True


def for_both(update: Update) -> Update:
    """`update` of a vLLM's config, and the same for an MTP drafter."""

    def verify_and_update_config(vllm_config: Any) -> None:
        update(vllm_config)
        speculative = vllm_config.speculative_config
        if speculative is None or speculative.method != "mtp":
            return
        draft = speculative.draft_model_config
        for config in (draft.hf_config, draft.hf_text_config):
            for name in _FOR_IMAGES:
                (getattr(config, "rope_parameters", None) or {}).pop(name, None)

    return verify_and_update_config


def forgets_the_drafter(update: Update) -> bool:
    """Whether `update` leaves the drafter more rows of positions than the target."""
    target, draft = _model(), _model()
    speculative = SimpleNamespace(method="mtp", draft_model_config=draft)
    update(
        SimpleNamespace(
            model_config=target,
            speculative_config=speculative,
            cache_config=SimpleNamespace(mamba_ssm_cache_dtype="auto"),
        )
    )
    return _has_rows(draft) and not _has_rows(target)


def _model() -> SimpleNamespace:
    config = SimpleNamespace(rope_parameters={"mrope_section": [1, 1, 1]})
    return SimpleNamespace(hf_config=config, hf_text_config=config)


def _has_rows(model: SimpleNamespace) -> bool:
    return "mrope_section" in model.hf_text_config.rope_parameters
