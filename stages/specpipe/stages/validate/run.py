"""`specpipe validate`: the three levels on an artifact that is there, without its checkpoint.

There is no figure of the trainer's to compare with: `replay` holds the plain implementation
against the trainer's code on the same weights, and says what tau to expect.
"""

from collections.abc import Callable
from pathlib import Path

from specpipe.schemas.errors import ConfigError, ValidationError
from specpipe.schemas.location import local_path, without_credentials
from specpipe.schemas.records.validation import (
    ArtifactValidation,
    ReplayFindings,
)
from specpipe.schemas.settings.stages import ValidateConfig
from specpipe.schemas.versions import versions
from specpipe.stages.drafters.artifact import OfTarget, artifact_folder, read_files
from specpipe.stages.drafters.artifact_format import DRAFT_TOKENS, check_draft_tokens
from specpipe.stages.drafters.reading import format_of, read_as
from specpipe.stages.drafters.registry import recognised
from specpipe.stages.runs.held_out import evaluation
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.store.local_disk import write_file
from specpipe.stages.target.files.location import TargetSource
from specpipe.stages.target.head.target_tensors import StoredTarget
from specpipe.stages.validate import structure
from specpipe.stages.validate.record import artifact_sha256
from specpipe.stages.validate.replay import run as replay_check
from specpipe.stages.validate.replay.artifact_weights import artifact_weights
from specpipe.stages.validate.serve import run as serve
from specpipe.stages.validate.serve.engine_support import check_served
from specpipe.stages.validate.serve.prompts import Prompt, from_dump, serve_prompts
from specpipe.stages.validate.server import run as server_check
from specpipe.stages.validate.target_check import check_target
from specpipe.stages.validate.target_facts import target_facts


def run(
    config: ValidateConfig, *, progress: Callable[[str], None] | None = None
) -> ArtifactValidation:
    """Check the artifact, the structure first, up to the first level that fails.

    Raises ConfigError, IdentityError or StoreError where the inputs are wrong, and
    ValidationError, after the findings are written, where a level fails.
    """
    report = progress or (lambda _: None)
    folder = artifact_folder(config.artifact)
    dump = Dump.open(config.dump)
    target = without_credentials(config.target or dump.identity.target.name)
    chosen: list[Prompt] = []
    to_serve = "serve" in config.validation
    if to_serve or config.target is not None:
        check_target(target, dump.identity.target, config, report, to_serve=to_serve)
    if to_serve:
        chosen = serve_prompts(
            config,
            target,
            dump.identity.target,
            lambda: from_dump(dump, evaluation(dump, None)[1]),
        )
        if config.serve_url is None:
            serving = recognised(read_files(str(folder))).serving
            check_served(dump.identity.target.architecture, serving, config.validation, report)
    report("validation: structure")
    findings = structure.check(folder, target_facts(dump))
    problems = [f"structure: {problem}" for problem in findings.problems]
    replay, served = None, None
    if "replay" in config.validation and not problems:
        report("validation: replay")
        try:
            replay = _replay(config, folder, dump)
            problems += [f"replay: {problem}" for problem in replay.problems]
        except ConfigError as error:
            problems.append(f"replay: {error}")
    if "serve" in config.validation and not problems:
        report("validation: serve")
        source = TargetSource(target, dump.identity.target.revision)
        check = serve.check if config.serve_url is None else server_check.check
        served = check(folder, source, chosen, config, report)
        problems += [f"serve: {problem}" for problem in served.problems]
    validation = ArtifactValidation(
        passed=not problems,
        problems=problems,
        artifact=str(folder),
        structure=findings,
        replay=replay,
        serve=served,
        config=config.without_credentials(),
        artifact_sha256=artifact_sha256(folder),
        target=dump.identity.target,
        versions=versions(),
    )
    _write(config, validation)
    if problems:
        raise ValidationError(f"{folder} fails: {'; '.join(problems)}; do not serve it")
    return validation


def _replay(config: ValidateConfig, folder: Path, dump: Dump) -> ReplayFindings:
    """Raises ConfigError where the dump or the trainer's code cannot take the drafter."""
    reader, everything = evaluation(dump, None)
    refs = everything[: config.replay_samples]
    if not refs:
        raise ConfigError(f"{dump.folder.url} holds no sample to replay; give another --dump")
    target = dump.identity.target
    known = OfTarget(target.vocab_size, target.hidden_size, dump.identity.layers)
    files = read_files(str(folder))
    kind = recognised(files)
    artifact = read_as(kind, files, known)
    declared = format_of(kind, artifact.config).drafter(artifact.config)
    num_heads = config.speculative_tokens or (declared[2] if declared else DRAFT_TOKENS)
    check_draft_tokens(artifact.shape, num_heads)
    exported = artifact_weights(artifact, StoredTarget(dump.target_file), num_heads)
    return replay_check.compare(exported, None, dump, reader.context_length, refs)


def _write(config: ValidateConfig, validation: ArtifactValidation) -> None:
    if config.out is None:
        return
    path = local_path(config.out, "the findings are written to a local disk; copy them there")
    write_file(path.resolve(), validation.model_dump_json(indent=2).encode())
