"""The first weights of a fresh EAGLE-3 drafter.

Legend: D draft vocabulary, H hidden size.
"""

import torch
from torch import Tensor

from specpipe.schemas.drafters.base import EagleSettings
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.drafters.eagle3.model import Eagle3
from specpipe.stages.drafters.parts.eagle.warm_start import begin_with_last_layers
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.head.target_tensors import StoredTarget


def initialise(
    model: Eagle3, config: TrainConfig, dump: Dump, target: StoredTarget, target_ids_D: Tensor
) -> None:
    """The lm_head's rows and the norm before them are the target's, and, where they fit, its last
    layers (`begin_with_last_layers`)."""
    rows_DH = target.lm_head_VH[target_ids_D]
    with torch.no_grad():
        if model.shape.projects_embedding:
            # Directions that stay apart in another space; the lm_head's rows see the same ones.
            torch.nn.init.orthogonal_(model.embed_proj.weight)
            rows_DH = rows_DH.float() @ model.embed_proj.weight.T
        else:
            # The rows expect states of the scale that the target's final norm gives them.
            model.norm.weight.copy_(target.final_scale_H)
        model.lm_head.weight.copy_(rows_DH.float())
    assert isinstance(config.drafter, EagleSettings)
    begin_with_last_layers(
        model, model.shape, dump, target.config, config.warm_start, config.drafter
    )
