"""Sections: what was trained on what, and with which settings, versions and commands."""

import json
import shlex
from typing import Any

from specpipe.schemas.drafters.registry import DEFAULT, drafter_settings
from specpipe.schemas.location import without_credentials
from specpipe.schemas.records.dump import ShardManifest
from specpipe.schemas.settings.train import ResolvedTrainConfig, TrainConfig
from specpipe.stages.report.blocks import Block, Missing, Section, Table
from specpipe.stages.report.sources import Sources
from specpipe.stages.storage.dump import Dump

Row = tuple[str, str]


def subject_section(sources: Sources) -> Section:
    """Target, texts, drafter and training."""
    blocks: list[Block] = [_target(sources), _texts(sources), _drafter(sources), _training(sources)]
    blocks = [block for block in blocks if not isinstance(block, Table) or block.rows]
    blocks += [
        Missing(sources.missing[part])
        for part in ("checkpoint", "training_dump", "dump")
        if part in sources.missing
    ]
    lead = "Everything below is about this drafter for this target, on this text."
    return Section("subject", "What was trained on what", lead, blocks)


def _target(sources: Sources) -> Table:
    rows: list[Row] = []
    if sources.checkpoint is not None:
        target = sources.checkpoint.state.target
        rows += [
            ("name", target.name),
            ("architecture", target.architecture),
            ("weights", f"sha256 {target.weights_sha256[:16]}"),
        ]
        if target.revision is not None:
            rows.append(("revision", target.revision))
    dump = sources.training_dump or sources.dump
    if dump is not None:
        of = dump.identity.target
        rows += [
            ("size", f"{of.num_layers} layers, hidden size {of.hidden_size:,}"),
            ("vocabulary", f"{of.vocab_size:,} tokens"),
            ("states by", f"{dump.identity.backend}, in {dump.identity.compute_dtype}"),
        ]
    return _facts("Target", rows)


def _texts(sources: Sources) -> Table:
    settings = sources.settings
    rows = _dump_rows("trained on", settings.dump, sources.training_dump)
    rows += [(f"mixed in ({weight:g} passes)", url) for url, weight in settings.mix.items()]
    if settings.eval_dump is None:
        rows.append(("held out", f"{settings.held_out_fraction:.1%} of the prompts"))
    else:
        rows += _dump_rows("held out", settings.eval_dump, sources.dump)
    if sources.metrics is not None:
        rows.append(
            (
                "evaluated on",
                f"{sources.metrics.num_samples:,} samples,"
                f" {sources.metrics.num_positions:,} draft positions",
            )
        )
    return _facts("Text", rows)


def _dump_rows(name: str, url: str, dump: Dump | None) -> list[Row]:
    rows = [(name, url)]
    if dump is not None:
        samples, tokens, supervised = (
            sum(map(count, dump.manifests.values()))
            for count in (_num_samples, _num_tokens, _num_rows)
        )
        rows.append(("", f"{samples:,} samples, {tokens:,} tokens, {supervised:,} supervised"))
        rows.append(("", f"text: {dump.identity.text.in_words}"))
    return rows


def _num_samples(manifest: ShardManifest) -> int:
    return manifest.num_samples


def _num_tokens(manifest: ShardManifest) -> int:
    return manifest.num_tokens


def _num_rows(manifest: ShardManifest) -> int:
    return manifest.num_rows


def _drafter(sources: Sources) -> Table:
    if sources.checkpoint is None:
        return _facts("Drafter", [])
    shape, state = sources.checkpoint.shape, sources.checkpoint.state
    parameters = sum(tensor.numel() for tensor in sources.checkpoint.model.values())
    return _facts(
        "Drafter",
        [
            (
                "architecture",
                shape.summary(),
            ),
            ("size", f"{parameters:,} parameters, hidden size {shape.width:,}"),
            ("draft vocabulary", f"{shape.draft_vocab_size:,} of {shape.vocab_size:,} tokens"),
            ("auxiliary layers", ", ".join(map(str, shape.aux_layers))),
            ("heads trained", str(state.num_heads)),
            ("checkpoint", f"{sources.checkpoint.path.name} of {sources.run}"),
        ],
    )


def _training(sources: Sources) -> Table:
    settings = sources.settings
    loss = ", ".join(
        name if weight == 1 else f"{name} x {weight:g}" for name, weight in settings.losses.items()
    )
    batch = (
        f"{settings.batch_tokens:,} tokens"
        if settings.batch_size is None
        else f"{settings.batch_size:,} samples"
    )
    rows = [
        ("loss", loss),
        (
            "learning rate",
            f"{settings.learning_rate:g}, {settings.schedule}, {settings.optimizer},"
            f" warm-up over {settings.warmup_ratio:.1%} of the steps",
        ),
        ("step", batch),
    ]
    recipe = None if sources.result is None else sources.result.recipe
    if recipe is not None:
        rows.append(
            (
                "an epoch",
                f"{recipe.num_samples:,} samples, {recipe.num_tokens:,} tokens,"
                f" {recipe.num_supervised:,} supervised",
            )
        )
        rows.append(("epochs", f"{recipe.num_epochs:.3g}"))
    if sources.checkpoint is not None:
        state = sources.checkpoint.state
        rows += [
            ("steps", f"{state.step:,} of {state.total_steps:,}, {state.epoch:,} epoch(s) done"),
            ("tokens trained on", f"{state.num_tokens:,}"),
            ("time", f"{_duration(state.seconds)}, of which {_duration(state.data_wait)} for data"),
        ]
    if sources.result is None:
        rows.append(("state", "the run is not complete"))
    elif sources.result.stopped_early:
        rows.append(("state", "stopped early: tau grew no more"))
    return _facts("Training", rows)


def _facts(title: str, rows: list[Row]) -> Table:
    return Table(title, (), rows, is_words=True)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def environment_section(sources: Sources) -> Section:
    """Settings that differ from their defaults, all settings, versions, commands."""
    changed, everything = _settings(sources.settings)
    blocks: list[Block] = [
        Table("Settings of training that are not the defaults", (), changed, is_words=True),
        Table("All settings of training", (), everything, is_words=True, is_folded=True),
    ]
    versions = {name: record.get("versions", {}) for name, record in sources.provenance.items()}
    if sources.validation is not None:
        versions["export"] = sources.validation.versions
    if versions:
        names = sorted({name for of_stage in versions.values() for name in of_stage})
        rows = [
            (name, *(str(of_stage.get(name, "-")) for of_stage in versions.values()))
            for name in names
        ]
        blocks.append(Table("Versions", ["package", *versions], rows, is_words=True))
    else:
        blocks.append(Missing("The run folder holds no provenance.json: no versions are known."))
    commands = [
        (stage, value)
        for stage, record in sources.provenance.items()
        for value in (_command(record), record.get("platform"), record.get("finished_at"))
        if value
    ]
    if commands:
        blocks.append(Table("Commands and machines", (), commands, is_words=True))
    return Section(
        "environment", "Settings and environment", "What it takes to make the same again.", blocks
    )


def _settings(settings: ResolvedTrainConfig) -> tuple[list[Row], list[Row]]:
    changed, everything = [], []
    fields, values = TrainConfig.model_fields, settings.flat()
    defaults = {name: of.get_default(call_default_factory=True) for name, of in fields.items()}
    defaults |= drafter_settings({"kind": settings.drafter.kind}).model_dump()
    defaults["drafter"] = DEFAULT
    resolved = ResolvedTrainConfig.model_fields
    for name, value in settings.flat("json").items():
        row = (name, value if isinstance(value, str) else json.dumps(value))
        everything.append(row)
        is_open = defaults[name] is None and name in resolved and resolved[name].is_required()
        if name in ("dump", "out") or (not is_open and values[name] != defaults[name]):
            changed.append(row)
    return changed, everything


def _command(record: dict[str, Any]) -> str:
    return without_credentials(shlex.join(map(str, record.get("command", []))))
