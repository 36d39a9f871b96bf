"""The spec-draft fine-tuning job of the Token Factory API, and the settings that it stands for."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    StrictFloat,
    StrictInt,
    ValidationError,
)

from specpipe.schemas.base import Record
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.train import MOST_EPOCHS

Text = Annotated[str, Field(min_length=1)]
_ENDLESS = 2**31
"""Far above any use, and below what integers on the way can hold."""
CONTEXT_LIMIT = 8192
_MOST = 10
_LONGEST_NAME = 80


def _zero_for_null(seed: Any) -> Any:
    return 0 if seed is None else seed


class Loss(Record):
    type: Literal["kl", "lk_alpha", "lk_hybrid"] = "kl"


class Hyperparameters(Record):
    """Hyperparameters of the spec-draft method; names and meaning are the API's."""

    batch_size: StrictInt = Field(32, ge=1, lt=_ENDLESS)
    """Samples of one optimiser step."""
    learning_rate: StrictFloat | None = Field(None, gt=0)
    """The rate of Muon, which trains drafters unless the job's file says otherwise; the API's docs
    recommend 0.0075. Left out: that of the recipe."""
    n_epochs: StrictInt = Field(1, ge=1, le=MOST_EPOCHS)
    warmup_ratio: StrictFloat = Field(0.1, ge=0, lt=1)
    max_grad_norm: StrictFloat = Field(1.0, gt=0)
    context_length: StrictInt | None = Field(None, ge=2, lt=_ENDLESS)
    """Left out: CONTEXT_LIMIT, or the target's maximum where that is less."""
    num_decoding_heads: StrictInt = Field(3, ge=1, le=7)
    architecture: Literal["eagle3_original", "eagle3"] = "eagle3_original"
    """`eagle3_original` has no more than every vLLM since 0.20 serves; `eagle3` adds a norm per
    auxiliary state and normed feedback, which vLLM serves since 0.25."""
    loss: Loss = Loss()


class SpecDraft(Record):
    hyperparameters: Hyperparameters = Hyperparameters()


class Method(Record):
    type: Literal["spec-draft"]
    spec_draft: SpecDraft = SpecDraft()


class SpecDraftJob(Record):
    """The request body of a spec-draft fine-tuning job."""

    model: Text
    training_file: Text
    method: Method
    seed: Annotated[StrictInt, BeforeValidator(_zero_for_null)] = Field(0, ge=0, lt=2**63)
    """null, which OpenAI's client sends for None, is the default."""
    suffix: str | None = Field(None, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")

    def dump_settings(self) -> dict[str, Any]:
        """What the job says of DumpConfig."""
        given = self.method.spec_draft.hyperparameters.context_length
        return {
            "target": self.model,
            "data": (self.training_file,),
            **({"context_limit": CONTEXT_LIMIT} if given is None else {"context_length": given}),
        }

    def train_settings(self) -> dict[str, Any]:
        """What the job says of TrainConfig."""
        parameters = self.method.spec_draft.hyperparameters
        modern = parameters.architecture == "eagle3"
        settings = {
            "loss": parameters.loss.type,
            "batch_size": parameters.batch_size,
            "num_epochs": parameters.n_epochs,
            "warmup_ratio": parameters.warmup_ratio,
            "max_grad_norm": parameters.max_grad_norm,
            "num_heads": parameters.num_decoding_heads,
            "fc_norm": modern,
            "norm_output": modern,
            "seed": self.seed,
        }
        for name in ("learning_rate", "context_length"):
            if (given := getattr(parameters, name)) is not None:
                settings[name] = given
        return settings


def parse_job(body: Any) -> SpecDraftJob:
    """A job from its JSON; raises ConfigError naming the fields that are wrong."""
    try:
        return SpecDraftJob.model_validate(body)
    except ValidationError as error:
        problems = [(e["loc"], e["msg"]) for e in error.errors(include_url=False)]
        raise ConfigError(f"the job is not valid: {problems_in_a_line(problems)}") from None


def problems_in_a_line(problems: Sequence[tuple[Sequence[int | str], str]]) -> str:
    """Fields and what is wrong with each, in one line: the first ten, and how many more.

    A field's name is cut: the names of unknown fields are the client's own.
    """
    lines = [
        f"{'.'.join(map(str, field))[:_LONGEST_NAME]}: {why}" for field, why in problems[:_MOST]
    ]
    if more := len(problems) - len(lines):
        lines.append(f"and {more} more")
    return "; ".join(lines)
