"""Targets whose own MTP layer vLLM drafts with.

vLLM takes the layer's class from the *target's* config: its architecture, or its model type.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MtpLayer:
    model_type: str
    """Of the target's config."""
    drafter: str
    """The layer's class, as vLLM's registry has it."""


MTP_LAYERS = {
    "DeepseekV3ForCausalLM": MtpLayer("deepseek_v3", "DeepSeekMTPModel"),
    "DeepseekV32ForCausalLM": MtpLayer("deepseek_v32", "DeepseekV32MTPModel"),
    "DeepseekV4ForCausalLM": MtpLayer("deepseek_v4", "DeepSeekV4MTPModel"),
    "Ernie4_5_MoeForCausalLM": MtpLayer("ernie4_5_moe", "ErnieMTPModel"),
    "ExaoneMoEForCausalLM": MtpLayer("exaone_moe", "ExaoneMoeMTP"),
    "ExaoneMoeForCausalLM": MtpLayer("exaone_moe", "ExaoneMoeMTP"),
    "Glm4MoeForCausalLM": MtpLayer("glm4_moe", "Glm4MoeMTPModel"),
    "Glm4MoeLiteForCausalLM": MtpLayer("glm4_moe_lite", "Glm4MoeLiteMTPModel"),
    "GlmMoeDsaForCausalLM": MtpLayer("glm_moe_dsa", "DeepseekV32MTPModel"),
    "HYV3ForCausalLM": MtpLayer("hy_v3", "HYV3MTPModel"),
    "HYV4ForCausalLM": MtpLayer("hy_v4", "HYV4MTPModel"),
    "LongcatFlashForCausalLM": MtpLayer("longcat_flash", "LongCatFlashMTPModel"),
    "MiMoForCausalLM": MtpLayer("mimo", "MiMoMTPModel"),
    "NemotronHForCausalLM": MtpLayer("nemotron_h", "NemotronHMTPModel"),
    "PanguUltraMoEForCausalLM": MtpLayer("pangu_ultra_moe", "OpenPanguMTPModel"),
    "Qwen3NextForCausalLM": MtpLayer("qwen3_next", "Qwen3NextMTP"),
    "Qwen3_5ForCausalLM": MtpLayer("qwen3_5_text", "Qwen3_5MTP"),
    "Qwen3_5ForConditionalGeneration": MtpLayer("qwen3_5", "Qwen3_5MTP"),
    "Qwen3_5MoeForCausalLM": MtpLayer("qwen3_5_moe_text", "Qwen3_5MoeMTP"),
    "Qwen3_5MoeForConditionalGeneration": MtpLayer("qwen3_5_moe", "Qwen3_5MoeMTP"),
    "Step3p5ForCausalLM": MtpLayer("step3p5", "Step3p5MTP"),
}
"""By the architecture in a target's config."""
