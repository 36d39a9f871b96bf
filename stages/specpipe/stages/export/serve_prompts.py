"""The prompts that `serve` decodes, after a check that the target is the drafter's."""

from collections.abc import Callable, Iterator

from specpipe.schemas.checkpoint import TargetReference
from specpipe.schemas.config import ServeConfig
from specpipe.schemas.dump import TargetIdentity
from specpipe.schemas.errors import IdentityError
from specpipe.stages.export import prompts
from specpipe.stages.export.engine import spare_tokens
from specpipe.stages.target.identity import load_config, target_identity
from specpipe.stages.target.location import local_folder


def serve_prompts(
    config: ServeConfig,
    target: str,
    trained_for: TargetReference | TargetIdentity,
    from_dump: Callable[[], Iterator[prompts.Prompt]],
) -> list[prompts.Prompt]:
    """Prompts of `serve_data`, else of the dump, that leave room for their output.

    Raises IdentityError where `target` has other weights than the one that was trained for.
    """
    revision = trained_for.revision
    found = target_identity(target, revision, trust_remote_code=config.trust_remote_code)
    if found.weights_sha256 != trained_for.weights_sha256:
        raise IdentityError(
            f"{target} is not the target that the drafter was trained for ({trained_for.name}):"
            " its weights differ; give the right --target"
        )
    folder = local_folder(target, revision, with_code=config.trust_remote_code)
    source = (
        from_dump()
        if config.serve_data is None
        else prompts.from_file(
            config.serve_data,
            folder,
            found.vocab_size,
            trust_remote_code=config.trust_remote_code,
        )
    )
    model = load_config(folder, trust_remote_code=config.trust_remote_code)
    most_tokens = model.get_text_config(decoder=True).max_position_embeddings
    spare = spare_tokens(max(config.serve_speculative_tokens))
    return prompts.choose(
        source, config.serve_prompts, most_tokens - config.serve_max_tokens - spare
    )
