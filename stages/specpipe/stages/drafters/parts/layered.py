"""What architectures of decoder layers do alike behind the contract."""

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

from specpipe.schemas.drafters.base import LayerShape
from specpipe.stages.drafters.contract import Architecture
from specpipe.stages.drafters.parts.layer_shape import stored_layer_problems
from specpipe.stages.drafters.parts.rope import own_keys

Shape = TypeVar("Shape", bound=LayerShape)


class LayerArchitecture(Architecture[Shape]):
    def as_trained(self, shape: Shape) -> Shape:
        """Without keys of its rope that its rope's type does not have."""
        return shape.model_copy(update={"rope_parameters": own_keys(shape.rope_parameters)})

    def stored_problems(self, shape: Shape, weights: Mapping[str, Tensor]) -> list[str]:
        return stored_layer_problems(shape, weights)
