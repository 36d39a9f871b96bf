"""EAGLE-3 (arXiv 2503.01840): a chain drafter of one or more decoder layers."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from specpipe.schemas.drafters.base import EagleSettings, LayerShape, LayerType

SWITCHES = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
"""Norms of EAGLE-3.1, which some engines pass over without a word: SGLang, TensorRT-LLM, older
vLLM."""

_SEARCHED = (
    (True, True, False, True),
    (True, False, True, True),
    (True, True, False, False),
    (False, True, False, True),
    (False, False, False, False),
)


class Eagle3Settings(EagleSettings):
    short_names: ClassVar[Mapping[str, str]] = {
        "norm_before_residual": "residual",
        "norm_before_fc": "fc",
        "fc_norm": "each",
        "norm_output": "output",
    }
    kind: Literal["eagle3"] = "eagle3"
    layer_type: LayerType = "llama"
    """qwen3: queries and keys are normed per head."""
    num_layers: int = Field(1, ge=1, le=8)
    """Decoder layers; the first takes [embedding; hidden], further ones the hidden state alone."""
    hidden_size: int | None = Field(None, gt=0, le=2**16)
    """Width of the drafter; another one than the target's learns a projected embedding. [default:
    the target's]"""
    norm_before_residual: bool = True
    """Take the normed hidden state as the residual."""
    norm_before_fc: bool = True
    """RMSNorm on the concatenated auxiliary states; off where --fc-norm is on."""
    fc_norm: bool = False
    """RMSNorm on each auxiliary state."""
    norm_output: bool = False
    """Feed the normed output to the next draft step; of use with --no-norm-before-residual alone.
    """
    serve_anywhere: bool = False
    """Plain EAGLE-3, without the norms that SGLang, TensorRT-LLM and older vLLM do not know; for
    the first two then specpipe export --format eagle3."""

    def search_choices(self) -> list[dict[str, bool]]:
        choices = [dict(zip(SWITCHES, choice, strict=True)) for choice in _SEARCHED]
        plain = [choice for choice in choices if not any(choice.values())]
        return plain if self.serve_anywhere else choices

    def hidden_size_or(self, target: int) -> int:
        return self.hidden_size or target

    @model_validator(mode="before")
    @classmethod
    def _norms_that_give_way(cls, values: Any) -> Any:
        """A norm that is on by default is off where a setting excludes it."""
        if not isinstance(values, dict):
            return values
        off = list(SWITCHES) if values.get("serve_anywhere") is True else []
        if values.get("fc_norm") is True:
            off.append("norm_before_fc")
        return dict.fromkeys(off, False) | values

    @model_validator(mode="after")
    def _served_anywhere(self) -> "Eagle3Settings":
        if not self.serve_anywhere:
            return self
        more = [name for name in (*SWITCHES, "sliding_window") if getattr(self, name)]
        more += ["layer_type qwen3"] if self.layer_type == "qwen3" else []
        more += [f"num_layers {self.num_layers}"] if self.num_layers > 1 else []
        if more:
            raise ValueError(
                f"serve_anywhere excludes {', '.join(more)}: not every engine serves it"
                " (docs/export.md)"
            )
        return self

    @model_validator(mode="after")
    def _one_norm(self) -> "Eagle3Settings":
        if self.norm_before_fc and self.fc_norm:
            raise ValueError("norm_before_fc and fc_norm exclude each other")
        return self


class Eagle3Shape(LayerShape):
    """Everything that is needed to build an EAGLE-3 drafter, and what its artifact declares.

    The first layer takes [embedding; hidden], further ones the hidden state alone.
    """

    architecture: Literal["eagle3"] = "eagle3"
    norm_before_residual: bool
    norm_before_fc: bool
    fc_norm: bool
    norm_output: bool

    @model_validator(mode="before")
    @classmethod
    def _as_wide_as_the_target(cls, values: Any) -> Any:
        if isinstance(values, dict) and "target_hidden_size" not in values:
            return values | {"target_hidden_size": values.get("hidden_size")}
        return values
