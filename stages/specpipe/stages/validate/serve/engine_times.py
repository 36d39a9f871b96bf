"""Times of decoding steps in an engine of our own, without other decoding."""

from collections.abc import Sequence
from pathlib import Path

from specpipe.schemas.records.choose import EngineTimes
from specpipe.schemas.settings.stages import ServeConfig
from specpipe.stages.drafters.reading import read_artifact
from specpipe.stages.drafters.registry import drafter_kind
from specpipe.stages.target.files.identity import architecture_of, load_config
from specpipe.stages.target.files.location import local_folder
from specpipe.stages.target.vllm.support.servable import servable
from specpipe.stages.validate.serve.engine import EngineRequest, decode
from specpipe.stages.validate.serve.run import cache_bytes_of


def engine_times(
    artifact: Path | None,
    target: str,
    revision: str | None,
    prompts: Sequence[Sequence[int]],
    config: ServeConfig,
) -> EngineTimes:
    """Time steps at each of the batch sizes: with the drafter for 0 to the largest number of draft
    tokens (or for that one alone, if it follows no schedule), or without one. Raises as `decode`
    does."""
    folder = local_folder(target, revision, with_code=config.trust_remote_code)
    model = load_config(folder, trust_remote_code=config.trust_remote_code)
    longest = max(map(len, prompts)) + config.serve_max_tokens
    request = EngineRequest(
        target=target,
        revision=revision,
        artifact=None,
        prompts=[list(prompt) for prompt in prompts],
        max_tokens=config.serve_max_tokens,
        temperatures=[],
        timed_batch_sizes=list(config.serve_batch_sizes),
        seed=config.seed,
        kv_cache_bytes=cache_bytes_of(model, 1, max(config.serve_batch_sizes), longest),
        trust_remote_code=config.trust_remote_code,
    )
    if artifact is not None:
        shape = read_artifact(str(artifact)).shape
        kind = drafter_kind(shape)
        architecture = architecture_of(folder, trust_remote_code=config.trust_remote_code)
        most = max(config.serve_speculative_tokens)
        layers, largest = kind.num_layers(shape), max(config.serve_batch_sizes)
        request = request.model_copy(
            update={
                "artifact": str(artifact.resolve()),
                "method": kind.serving.method,
                "options": dict(kind.serving.options),
                "num_draft_tokens": most,
                "draft_sample_method": (
                    "probabilistic" if kind.serving.samples_drafts else "greedy"
                ),
                "draft_schedule": [(1, 1, most)] if kind.serving.follows_schedule else [],
                "kv_cache_bytes": cache_bytes_of(model, layers, largest, longest),
                "with_plugin": servable(architecture, kind.serving).how == "plugin",
            }
        )
    result = decode(request)
    return EngineTimes(vllm_version=result.vllm_version, times=result.step_times)
