"""Section: what the export's validation found."""

from specpipe.schemas.records.metrics import REPLAY_TITLES
from specpipe.schemas.records.served import RoundsComparison, Served, ServeFindings
from specpipe.schemas.records.validation import ReplayFindings, StructureFindings
from specpipe.stages.report.blocks import Block, Missing, Notes, Section, Table
from specpipe.stages.report.sources import Sources

Row = tuple[str, str, str]
LEVELS = ("structure", "replay", "serve")


def validation_section(sources: Sources) -> Section:
    """Levels, the engine's figures beside the replay's, and what is wrong."""
    lead = "An artifact is served only when every level that was asked for has passed."
    validation = sources.validation
    if validation is None:
        blocks: list[Block] = [Missing(sources.missing["artifact"])]
        return Section("validation", "Validation", lead, blocks)
    rows = [
        _row(level, getattr(validation, level), level in validation.config.validation)
        for level in LEVELS
    ]
    blocks = [Table("Levels", ["level", "result", "what was found"], rows, is_words=True)]
    if validation.problems:
        blocks.append(Notes(validation.problems))
    if validation.serve is not None and validation.serve.runs:
        blocks += [_engine_table(validation.serve), _lossless_table(validation.serve)]
    return Section("validation", "Validation", lead, blocks)


def _row(
    level: str,
    findings: StructureFindings | ReplayFindings | ServeFindings | None,
    was_asked: bool,
) -> Row:
    if findings is None:
        return level, "not reached" if was_asked else "not asked for", ""
    return level, "passed" if findings.passed else "FAILED", _words(findings)


def _words(findings: StructureFindings | ReplayFindings | ServeFindings) -> str:
    if isinstance(findings, StructureFindings):
        return f"{findings.num_tensors} tensors, {findings.num_parameters:,} parameters"
    if isinstance(findings, ReplayFindings):
        return _replayed(findings)
    fix = ", its CPU fault repaired" if findings.cpu_fix_applied else ""
    return (
        f"vLLM {findings.vllm_version}{fix}; {findings.num_prompts:,} prompts,"
        f" {findings.max_tokens:,} tokens each"
    )


def _replayed(findings: ReplayFindings) -> str:
    words = f"{findings.num_samples:,} samples"
    if findings.agreement is not None:
        starts, apart = findings.agreement.num_starts, findings.agreement.largest_difference
        words += f"; the files are held against the trainer's code at {starts:,} starts"
        words += f" (at most {apart:.1e} of a logit apart)"
    elif findings.largest_difference is not None:
        words += f"; tau of the exported files is within {findings.largest_difference:.3%}"
        words += f" of the trained drafter's ({findings.compared_with})"
    costs = [f"{REPLAY_TITLES[name]} {cost.in_words()}" for name, cost in findings.rounding.items()]
    return f"{words}; rounding changed tau: {', '.join(costs)}" if costs else words


def _engine_table(serve: ServeFindings) -> Table:
    rows = [
        row
        for run in serve.runs
        for row in (
            _compared(run, "greedy", run.greedy),
            _compared(run, "temperature 1", run.temperature_1),
        )
    ]
    header = ["draft tokens", "", "tau measured", "tau replayed", "difference", "its 95 % error"]
    caption = (
        "The replay is of the very texts that the engine wrote. By chance: the largest probability"
        " with which an engine that is right would differ so."
    )
    return Table("The engine beside the replay", [*header, "by chance", "agrees"], rows, caption)


def _compared(run: Served, name: str, comparison: RoundsComparison | None) -> tuple[str, ...]:
    count = str(run.num_draft_tokens)
    if comparison is None:
        return count, name, "not lossless", "-", "-", "-", "-", "no"
    return (
        count,
        name,
        f"{comparison.tau_measured:.4f}",
        f"{comparison.tau_replayed:.4f}",
        f"{comparison.relative_difference:+.2%}",
        f"{comparison.relative_error_95:.2%}",
        "-" if comparison.chance is None else f"{comparison.chance:.1g}",
        "yes" if comparison.passed else "NO",
    )


def _lossless_table(serve: ServeFindings) -> Table:
    rows = []
    for run in serve.runs:
        greedy, sampled = run.lossless_greedy, run.lossless_temperature_1
        rows += [
            (
                str(run.num_draft_tokens),
                "greedy",
                f"{greedy.num_identical:,} of {greedy.num_prompts:,} outputs are identical",
                "yes" if greedy.passed else "NO",
            ),
            (
                str(run.num_draft_tokens),
                "temperature 1",
                sampled.in_words(),
                "yes" if sampled.passed else "NO",
            ),
        ]
    header = ["draft tokens", "", "output with and without the drafter", "lossless"]
    return Table("Is the engine's output still the target's?", header, rows, is_words=True)
