"""Base classes of the settings and shapes of drafters."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from specpipe.schemas.base import Record
from specpipe.schemas.records.dump import MOST_LAYERS, MOST_VOCAB
from specpipe.schemas.settings.stages import Config

MOST_WIDTH = 2**24
"""Of any size in a layer: a config that says more is damaged."""


class DrafterSettings(Config):
    """Settings of one architecture: `drafter:` in the YAML file of a training."""

    most_draft_tokens: ClassVar[int] = 7
    """The largest K (`num_heads`)."""
    of_training: ClassVar[frozenset[str]] = frozenset()
    """Names of the settings that concern training alone: --init-from leaves them free."""

    own_recipe: ClassVar[Mapping[str, Any]] = {}
    """Settings of the training whose default is another one for it."""

    short_names: ClassVar[Mapping[str, str]] = {}
    """Short names of its switches, for narrow tables."""

    takes_any_layers: ClassVar[bool] = True
    """It can be trained on other layers than its default ones."""

    reads_starts_alone: ClassVar[bool] = False
    """It takes the target's states at its starts alone, each of them a verifier row."""

    has_draft_vocab: ClassVar[bool] = True
    """It can draft from a part of the vocabulary only."""

    samples_drafts: ClassVar[bool] = True
    """Engines can draw its drafts from its distribution; else they are greedy at every
    temperature."""

    state_loss: ClassVar[float | None] = None
    """The recipe's weight of the loss of states (train --state-loss); None: it has none, as its
    outputs are no input of a lm_head like the target's."""

    kind: str
    """Name of the architecture."""

    @property
    def begins_trained(self) -> bool:
        """Its first weights are the target's own drafter's, where the target has one."""
        return False

    @classmethod
    def default_layers(cls, num_layers: int) -> tuple[int, ...]:
        """Layer ids that a dump for this drafter stores, of a target with `num_layers` layers.

        Raises ValueError for a target that has too few layers.
        """
        raise NotImplementedError

    @classmethod
    def undeclared_layers(cls, num_layers: int) -> tuple[int, ...]:
        """Layer ids that an artifact reads whose config names none; ValueError as above."""
        return cls.default_layers(num_layers)

    @classmethod
    def chosen_layers(cls, stored: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
        """Layer ids that this drafter reads of a dump with the layers `stored`, by default.

        Raises ValueError where the dump lacks one.
        """
        wanted = cls.default_layers(num_layers)
        if missing := sorted(set(wanted) - set(stored)):
            raise ValueError(
                f"it takes layer {', '.join(map(str, missing))}, which the dump lacks; make a dump"
                f" with --layers {','.join(map(str, sorted({*wanted, *stored})))}"
            )
        return wanted

    def num_heads_problem(self, num_heads: int) -> str | None:
        """Why the drafter cannot be trained with `num_heads` draft tokens; None if it can."""
        if num_heads > self.most_draft_tokens:
            return f"num_heads {num_heads}: a drafter {self.kind} has {self.most_draft_tokens}"
        return None

    def search_choices(self) -> list[dict[str, bool]]:
        """Combinations that `specpipe tune` tries; all of them set the same switches."""
        return []

    def hidden_size_or(self, target: int) -> int:
        """The drafter's hidden size, on a target of hidden size `target`."""
        return target


class DrafterShape(Record):
    """Everything that is needed to build a drafter: stored in its checkpoints."""

    architecture: str
    target_hidden_size: int = Field(gt=0, le=MOST_WIDTH)
    """Width of the target's hidden states and of its embedding."""
    vocab_size: int = Field(gt=0, le=MOST_VOCAB)
    """V, the target's."""
    draft_vocab_size: int = Field(gt=0, le=MOST_VOCAB)
    """D."""
    aux_layers: tuple[int, ...] = Field(max_length=MOST_LAYERS)
    """Layer ids of the dump that it reads."""

    @property
    def num_aux(self) -> int:
        return len(self.aux_layers)

    @property
    def width(self) -> int:
        """Hidden size of the drafter."""
        return self.target_hidden_size

    def num_heads_problem(self, num_heads: int) -> str | None:
        """Why a run with so many draft tokens cannot go on with it; None where it can."""
        return None

    def draft_tokens_problem(self, number: int) -> str | None:
        """Why it cannot be served with so many draft tokens; None where it can."""
        return None

    def differences(self, given: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
        """Settings in `given` that differ from this drafter's: name, given value, own value."""
        return [
            (name, value, getattr(self, name))
            for name, value in sorted(given.items())
            if name in type(self).model_fields
            and value is not None
            and value != getattr(self, name)
        ]

    def summary(self) -> str:
        """The shape in a few words, for a report."""
        return self.architecture


class LayerSettings(DrafterSettings):
    """Settings of a drafter made of decoder layers as those of Llama and Qwen3."""

    num_layers: int = Field(1, ge=1, le=8)
    """Decoder layers."""
    sliding_window: int | None = Field(None, gt=0)
    """Most positions that a query sees, its own included. [default: all before it]"""
    num_attention_heads: int | None = Field(None, gt=0, le=2**10)
    """Query heads. [default: the target's, or as many as --hidden-size holds]"""
    num_key_value_heads: int | None = Field(None, gt=0, le=2**10)
    """Key and value heads. [default: the target's, or the most that divide the query heads]"""
    head_dim: int | None = Field(None, gt=0, le=2**10)
    """Size of a head. [default: the target's]"""
    rope_theta: float | None = Field(None, gt=0)
    """Base of the rotary embedding. [default: the target's]"""
    intermediate_size: int | None = Field(None, gt=0, le=2**20)
    """Width of the MLP. [default: the target's, scaled with --hidden-size]"""

    def num_heads_problem(self, num_heads: int) -> str | None:
        if self.sliding_window is not None and self.sliding_window < num_heads:
            return (
                f"sliding_window {self.sliding_window} is smaller than num_heads {num_heads}:"
                " a draft step sees its start and the steps between"
            )
        return super().num_heads_problem(num_heads)


class LayerShape(DrafterShape):
    """Shape of a drafter made of decoder layers."""

    layer_type: str = "llama"
    """`llama`, or `qwen3` (queries and keys are normed per head)."""
    num_layers: int = Field(1, le=MOST_LAYERS)
    sliding_window: int | None = None
    """Most positions that a query sees, its own included; None: all before it."""
    hidden_size: int = Field(le=MOST_WIDTH)
    intermediate_size: int = Field(le=MOST_WIDTH)
    num_attention_heads: int = Field(le=MOST_WIDTH)
    num_key_value_heads: int = Field(le=MOST_WIDTH)
    head_dim: int = Field(le=MOST_WIDTH)
    rms_norm_eps: float
    hidden_act: str = "silu"
    rope_parameters: dict[str, Any]
    """transformers' `rope_parameters` (rope_type, rope_theta, ...), as trained and exported."""
    max_position_embeddings: int

    @property
    def width(self) -> int:
        return self.hidden_size

    def num_heads_problem(self, num_heads: int) -> str | None:
        if self.sliding_window is None or self.sliding_window >= num_heads:
            return None
        return (
            f"num_heads {num_heads} does not fit into its sliding_window of {self.sliding_window}"
        )

    @property
    def projects_embedding(self) -> bool:
        """Whether the target's embedding needs a projection: its width is not the drafter's."""
        return self.hidden_size != self.target_hidden_size

    def differences(self, given: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
        theta = given.get("rope_theta")
        own = self.rope_parameters["rope_theta"]
        more = [] if theta in (None, own) else [("rope_theta", theta, own)]
        return [*super().differences(given), *more]

    def summary(self) -> str:
        return f"{self.architecture}, {self.num_layers} {self.layer_type} layer(s)"


LayerType = Literal["llama", "qwen3"]
LAYER_TYPES: tuple[LayerType, ...] = ("llama", "qwen3")
"""The decoder layers that vLLM has for drafters."""


def eagle_layers(num_layers: int) -> tuple[int, ...]:
    """EAGLE-3's auxiliary layer ids (2, n//2, n-1); of fewer than 8 layers 1 to n-1, evenly.

    The last one enters the target's last layer, which the drafter begins with. Raises ValueError
    for a target of fewer than 4 layers, which has no three ids in 1..n-1.
    """
    n = num_layers
    if n < 4:
        raise ValueError(f"a target of {n} layers has no three auxiliary layers: give --layers")
    return (2, n // 2, n - 1) if n >= 8 else (1, (n + 1) // 2, n - 1)


def undeclared_eagle_layers(num_layers: int) -> tuple[int, ...]:
    """The ids (2, n//2, n-3) that engines and other trainers take where nothing names them; as
    `eagle_layers` of a target of fewer than 7 layers, which has no such three."""
    n = num_layers
    return (2, n // 2, n - 3) if n >= 7 else eagle_layers(n)


class EagleSettings(LayerSettings):
    """Settings of a drafter that reads the auxiliary layers of EAGLE-3."""

    state_loss: ClassVar[float | None] = 10.0

    fresh_layer: bool = False
    """Begin with a new layer, also where the dump holds the target's last one."""

    @classmethod
    def default_layers(cls, num_layers: int) -> tuple[int, ...]:
        return eagle_layers(num_layers)

    @classmethod
    def undeclared_layers(cls, num_layers: int) -> tuple[int, ...]:
        return undeclared_eagle_layers(num_layers)

    @classmethod
    def chosen_layers(cls, stored: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
        """The default ones where the dump has them, else those that engines take undeclared, else
        all that it has below the last."""
        for layers_of in (eagle_layers, undeclared_eagle_layers) if num_layers >= 4 else ():
            if set(layers := layers_of(num_layers)) <= set(stored):
                return layers
        return tuple(layer for layer in stored if layer < num_layers) or stored
