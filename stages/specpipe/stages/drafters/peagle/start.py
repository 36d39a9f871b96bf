"""The first weights of a fresh P-EAGLE drafter.

Legend: D draft vocabulary, H hidden size.
"""

import torch
from torch import Tensor

from specpipe.schemas.drafters.base import EagleSettings
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.drafters.parts.eagle.warm_start import begin_with_last_layers
from specpipe.stages.drafters.peagle.model import Peagle
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.head.target_tensors import StoredTarget


@torch.no_grad()
def initialise(
    model: Peagle, config: TrainConfig, dump: Dump, target: StoredTarget, target_ids_D: Tensor
) -> None:
    """The lm_head's rows, the norm before them and the mask token's embedding are the target's,
    and, where they fit, its last layers (`begin_with_last_layers`).

    `mask_hidden` stays as the model made it: random, of the size that normed states have. Zeros
    would leave the norms no direction to scale, and a gradient of 1 / sqrt(eps).
    """
    model.norm.weight.copy_(target.final_scale_H)
    model.lm_head.weight.copy_(target.lm_head_VH[target_ids_D].float())
    model.mask_embedding.copy_(target.embedding_VH[model.shape.mask_token].float())
    assert isinstance(config.drafter, EagleSettings)
    begin_with_last_layers(
        model, model.shape, dump, target.config, config.warm_start, config.drafter
    )
