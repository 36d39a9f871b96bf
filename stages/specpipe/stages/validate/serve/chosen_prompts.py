"""The prompts that `serve` decodes."""

from collections.abc import Callable, Iterator

from specpipe.schemas.records.checkpoint import TargetReference
from specpipe.schemas.records.dump import TargetIdentity
from specpipe.schemas.settings.stages import ServeConfig
from specpipe.stages.drafters.parts.layer_shape import longest_of
from specpipe.stages.target.files.identity import load_config
from specpipe.stages.target.files.location import local_folder
from specpipe.stages.validate.serve import prompts
from specpipe.stages.validate.serve.engine import spare_tokens


def serve_prompts(
    config: ServeConfig,
    target: str,
    trained_for: TargetReference | TargetIdentity,
    from_dump: Callable[[], Iterator[prompts.Prompt]],
) -> list[prompts.Prompt]:
    """Prompts of `serve_data`, else of the dump, that leave room for their output."""
    folder = local_folder(target, trained_for.revision, with_code=config.trust_remote_code)
    model = load_config(folder, trust_remote_code=config.trust_remote_code)
    text = model.get_text_config(decoder=True)
    source = (
        from_dump()
        if config.serve_data is None
        else prompts.from_file(
            config.serve_data,
            folder,
            text.vocab_size,
            trust_remote_code=config.trust_remote_code,
        )
    )
    spare = spare_tokens(max(config.serve_speculative_tokens))
    return prompts.choose(
        source, config.serve_prompts, longest_of(text) - config.serve_max_tokens - spare
    )
