"""The prompts that `serve` decodes: those of a dump's held-out samples, or of a file.

A prompt is what stands before the first supervised token.
"""

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec

from specpipe.schemas.errors import ConfigError, InputError, SpecpipeError, StoreError
from specpipe.schemas.location import without_credentials
from specpipe.schemas.records.checkpoint import TargetReference
from specpipe.schemas.records.dump import TargetIdentity
from specpipe.schemas.records.sample import Source, first_supervised, sample_from_pretokenized
from specpipe.schemas.settings.chat_template import not_to_be_set
from specpipe.schemas.settings.stages import ServeConfig
from specpipe.stages.drafters.parts.layer_shape import longest_of
from specpipe.stages.samples.reader import SampleRef
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.files.identity import load_config
from specpipe.stages.target.files.location import local_folder, tokenizer_files
from specpipe.stages.target.files.tokenizer import load_tokenizer
from specpipe.stages.untrusted.json_text import parse_object
from specpipe.stages.untrusted.templates import render_template
from specpipe.stages.validate.serve.engine import spare_tokens

Prompt = tuple[int, ...]

_SETTINGS = "chat_template_kwargs"
_PREPARE = "`specpipe prepare --out FILE.jsonl` makes 'input_ids' of other forms"


def serve_prompts(
    config: ServeConfig,
    target: str,
    trained_for: TargetReference | TargetIdentity,
    from_dump: Callable[[], Iterator[Prompt]],
) -> list[Prompt]:
    """Prompts of `serve_data`, else of the dump, that leave room for their output."""
    folder = local_folder(target, trained_for.revision, with_code=config.trust_remote_code)
    model = load_config(folder, trust_remote_code=config.trust_remote_code)
    text = model.get_text_config(decoder=True)
    source = (
        from_dump()
        if config.serve_data is None
        else from_file(
            config.serve_data,
            folder,
            text.vocab_size,
            trust_remote_code=config.trust_remote_code,
        )
    )
    spare = spare_tokens(max(config.serve_speculative_tokens))
    return choose(source, config.serve_prompts, longest_of(text) - config.serve_max_tokens - spare)


def from_dump(dump: Dump, refs: list[SampleRef]) -> Iterator[Prompt]:
    """Prompts of these samples, in their order."""
    stored = {shard: dump.shard(shard).samples() for shard in {ref.shard_id for ref in refs}}
    for ref in refs:
        sample = stored[ref.shard_id][ref.index]
        yield tuple(sample.input_ids[: first_supervised(sample.loss_mask)].tolist())


def from_file(
    url: str, folder: Path, vocab_size: int, *, trust_remote_code: bool = False
) -> Iterator[Prompt]:
    """Prompts of a JSONL file of `messages` (up to the first answer) or pretokenised samples.

    Messages are plain text: tools and parts are written by a dump's rules, which `specpipe prepare`
    applies.
    `folder` holds the target's tokenizer, which only messages need. Raises ConfigError where there
    is no file, no tokenizer or no chat template, InputError naming file and line for a row that is
    no prompt, StoreError where reading fails.
    """
    tokenizer: Any = None
    for source, row in _rows(url):
        if "messages" in row:
            tokenizer = tokenizer or _tokenizer(folder, trust_remote_code=trust_remote_code)
            yield tuple(_chat_prompt(tokenizer, row, source))
        elif "input_ids" not in row:
            raise InputError(f"{source}: neither 'messages' nor 'input_ids' is there; {_PREPARE}")
        else:
            sample = sample_from_pretokenized(row, source, vocab_size)
            yield tuple(sample.input_ids[: first_supervised(sample.loss_mask)].tolist())


def choose(prompts: Iterator[Prompt], most: int, longest: int) -> list[Prompt]:
    """The first `most` different prompts of 1 to `longest` tokens."""
    chosen: dict[Prompt, None] = {}
    for prompt in prompts:
        if 0 < len(prompt) <= longest:
            chosen[prompt] = None
        if len(chosen) == most:
            break
    return list(chosen)


def _rows(url: str) -> Iterator[tuple[Source, dict[str, Any]]]:
    """Every line, which must be a JSON object, with where it stands."""
    name = without_credentials(url)
    try:
        with fsspec.open(url, "rb", compression="infer") as lines:
            for number, line in enumerate(lines, start=1):
                source = Source(name, number)
                try:
                    row = parse_object(line, str(source), InputError)
                except InputError as error:
                    raise InputError(f"{error}; --serve-data is JSONL") from None
                yield source, row
    except SpecpipeError:
        raise
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise ConfigError(f"serve data {name}: no such file; give another --serve-data") from None
    except (EOFError, zlib.error) as error:
        raise InputError(f"{name}: the compressed file is truncated or damaged: {error}") from None
    except OSError as error:
        reason = without_credentials(str(error))
        raise StoreError(f"serve data {name} cannot be read: {reason}") from None
    except (ImportError, ValueError) as error:
        raise ConfigError(f"serve data {name}: {without_credentials(str(error))}") from None


def _tokenizer(folder: Path, *, trust_remote_code: bool) -> Any:
    if not tokenizer_files(folder):
        raise ConfigError(
            f"target {folder} has no tokenizer files, which messages need; give pretokenised"
            " --serve-data"
        )
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    if not tokenizer.chat_template:
        raise ConfigError(
            f"target {folder} has no chat template, which messages need; give pretokenised"
            " --serve-data"
        )
    return tokenizer


def _chat_prompt(tokenizer: Any, row: dict[str, Any], source: Source) -> list[int]:
    messages, settings = row["messages"], row.get(_SETTINGS) or {}
    if not isinstance(messages, list) or not all(
        isinstance(message, dict) and isinstance(message.get("role"), str) for message in messages
    ):
        raise InputError(f"{source}: 'messages' must be a list of objects with role and content")
    if not isinstance(settings, dict) or not_to_be_set(settings) is not None:
        raise InputError(f"{source}: {_SETTINGS!r} must be an object of template variables")
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise InputError(f"{source}: no assistant message, so there is no prompt to answer")
    before = messages[: roles.index("assistant")]
    if row.get("tools") or not all(isinstance(message.get("content"), str) for message in before):
        raise InputError(
            f"{source}: 'messages' with tools, or whose content is no text; {_PREPARE}"
        )
    variables = {
        **tokenizer.special_tokens_map,
        **settings,
        "messages": before,
        "add_generation_prompt": True,
    }
    try:
        text, _ = render_template(tokenizer.get_chat_template(), variables)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids
