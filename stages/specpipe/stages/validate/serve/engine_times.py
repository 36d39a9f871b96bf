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
    tokens, or without one. Raises as `decode` does.

    A drafter that follows no schedule is timed with 1 and with the most, each in an engine of its
    own: what is between follows.
    """
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
    if artifact is None:
        return _timed([request])
    shape = read_artifact(str(artifact)).shape
    kind = drafter_kind(shape)
    architecture = architecture_of(folder, trust_remote_code=config.trust_remote_code)
    most = max(config.serve_speculative_tokens)
    layers, largest = kind.num_layers(shape), max(config.serve_batch_sizes)
    of_drafter = {
        "artifact": str(artifact.resolve()),
        "method": kind.serving.method,
        "options": dict(kind.serving.options),
        "draft_sample_method": "probabilistic" if kind.settings.samples_drafts else "greedy",
        "kv_cache_bytes": cache_bytes_of(model, layers, largest, longest),
        "with_plugin": servable(architecture, kind.serving).how == "plugin",
    }
    schedule = [(1, 1, most)] if kind.serving.follows_schedule else []
    return _timed(
        [
            request.model_copy(
                update=of_drafter | {"num_draft_tokens": number, "draft_schedule": schedule}
            )
            for number in ([most] if schedule else sorted({1, most}))
        ]
    )


def _timed(requests: Sequence[EngineRequest]) -> EngineTimes:
    """By one engine after the other."""
    results = [decode(request) for request in requests]
    return EngineTimes(
        vllm_version=results[0].vllm_version,
        times=[time for result in results for time in result.step_times],
    )
