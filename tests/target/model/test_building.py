"""Models that are loaded at the same time, by threads of one process."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from transformers import PreTrainedModel

from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.target.files.identity import load_config
from specpipe.stages.target.model.causal_lm import load_causal_lm


def _loaded(config: DumpConfig) -> PreTrainedModel:
    return load_causal_lm(config, torch.bfloat16, load_config(Path(config.target)))


def test_threads_that_load_models_leave_weight_tying_as_it_was(
    target: Callable[..., Path],
) -> None:
    config = DumpConfig(target=str(target("gemma2")), data=("unused",), out="unused")
    tie_weights, dtype = PreTrainedModel.tie_weights, torch.get_default_dtype()
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda _: _loaded(config), range(12)))
    assert PreTrainedModel.tie_weights is tie_weights
    assert torch.get_default_dtype() == dtype
    for model in models:
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
