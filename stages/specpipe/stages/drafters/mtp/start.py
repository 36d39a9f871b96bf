"""The first weights of an MTP drafter: those of the target's own layer, or fresh ones."""

import logging

import torch

from specpipe.schemas.drafters.mtp import MtpSettings
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.dump import MTP_FILE
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.drafters.mtp.model import Mtp
from specpipe.stages.drafters.mtp.tensors import model_weights
from specpipe.stages.drafters.parts.artifact.weights import weight_problems
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.head.mtp_layer import load_mtp
from specpipe.stages.target.head.target_tensors import StoredTarget

_log = logging.getLogger(__name__)


def initialise(model: Mtp, config: TrainConfig, dump: Dump, target: StoredTarget) -> None:
    """Raises ConfigError where the dump does not say whether the target has a layer, or has one
    that is not as its config says."""
    assert isinstance(config.drafter, MtpSettings)
    if config.drafter.fresh_layer:
        return fresh(model, target)
    if not dump.has_target_file(MTP_FILE):
        raise ConfigError(
            f"{dump.folder.url} holds no MTP layer of its target: it was made by a version of"
            " specpipe that did not store it. Make it anew by `specpipe dump`, or begin with a new"
            " layer by --fresh-layer"
        )
    record, stored = load_mtp(target.read)
    if not record.tensors:
        _log.warning("the target's checkpoint has no MTP layer: a fresh one is trained")
        return fresh(model, target)
    where = f"the MTP layer of the target in {dump.folder.url}"
    weights = model_weights(model.shape, stored, where)
    if problems := weight_problems(weights, model):
        raise ConfigError(f"{where} is not as the target's config says: {'; '.join(problems)}")
    model.load_state_dict(weights)
    return None


@torch.no_grad()
def fresh(model: Mtp, target: StoredTarget) -> None:
    """The state goes on as it is, and the norm before the lm_head is the target's; the rest is
    random."""
    H = model.shape.width
    side = slice(0, H) if model.family.hidden_first else slice(H, 2 * H)
    model.proj.weight[:, side] += torch.eye(H)
    if hasattr(model, "norm"):
        shift = 1.0 if model.family.norm_adds_one else 0.0
        model.norm.weight.copy_(target.final_norm_H - shift)
