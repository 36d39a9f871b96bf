"""Load a target, or a part of it, from its checkpoint by transformers."""

from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from specpipe.schemas.errors import ConfigError, IntegrityError
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.target.files.location import LONE_SHARD, local_folder, weight_files
from specpipe.stages.target.model.building import MODEL_BUILDING
from specpipe.stages.target.model.model_class import auto_class
from specpipe.stages.untrusted.files import open_regular
from specpipe.stages.untrusted.foreign import foreign_call


def load_causal_lm(
    of: DumpConfig, dtype: torch.dtype, config: PreTrainedConfig, **options: Any
) -> PreTrainedModel:
    """The causal language model of a configuration's target, on the CPU, for inference.

    `config` is the target's own, perhaps with fewer layers; `options` go to transformers'
    from_pretrained. Raises ConfigError where transformers cannot load it, IntegrityError where the
    checkpoint lacks weights.
    """
    folder = local_folder(of.target, of.revision, with_code=of.trust_remote_code)
    files = weight_files(folder)
    if files[0].name == LONE_SHARD:
        config.transformers_weights = LONE_SHARD
    with foreign_call(f"target {of.target}: transformers cannot load it", ConfigError):
        for path in files:
            open_regular(path).close()  # transformers does not say which one it may not read
        with MODEL_BUILDING:
            loaded: Any = auto_class(config).from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=of.trust_remote_code,
                output_loading_info=True,
                **options,
            )
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        # transformers fills them with random numbers and goes on.
        raise IntegrityError(
            f"target {of.target}: the checkpoint lacks {len(missing)} weights of "
            f"{type(model).__name__}, {missing[0]} among them"
        )
    for_inference: PreTrainedModel = model.eval()
    return for_inference
