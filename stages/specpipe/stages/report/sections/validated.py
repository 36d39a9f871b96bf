"""Section: what the export's validation found."""

from specpipe.schemas.records.metrics import replay_titles
from specpipe.schemas.records.served import RoundsComparison, Served, ServeFindings
from specpipe.schemas.records.validation import ReplayFindings, StructureFindings
from specpipe.stages.report.blocks import Block, Missing, Notes, Section, Table
from specpipe.stages.report.sources import Sources

Row = tuple[str, str, str]
Titles = dict[str, str]
"""Of the replays that say something of the drafter."""
LEVELS = ("structure", "replay", "serve")


def validation_section(sources: Sources) -> Section:
    """Levels, the engine's figures beside the replay's, and what is wrong."""
    lead = "An artifact is served only when every level that was asked for has passed."
    found = sources.validation
    if found is None:
        blocks: list[Block] = [Missing(sources.missing["artifact"])]
        return Section("validation", "Validation", lead, blocks)
    titles = replay_titles(samples_drafts=sources.samples_drafts)
    rows = [
        _row(level, getattr(found, level), level in found.config.validation, titles)
        for level in LEVELS
    ]
    blocks = [Table("Levels", ["level", "result", "what was found"], rows, is_words=True)]
    if found.problems:
        blocks.append(Notes(found.problems))
    if found.serve is not None and found.serve.runs:
        blocks += [_engine_table(found.serve), _lossless_table(found.serve)]
    return Section("validation", "Validation", lead, blocks)


def _row(
    level: str,
    found: StructureFindings | ReplayFindings | ServeFindings | None,
    was_asked: bool,
    titles: Titles,
) -> Row:
    if found is None:
        return level, "not reached" if was_asked else "not asked for", ""
    return level, "passed" if found.passed else "FAILED", _words(found, titles)


def _words(found: StructureFindings | ReplayFindings | ServeFindings, titles: Titles) -> str:
    if isinstance(found, StructureFindings):
        return f"{found.num_tensors} tensors, {found.num_parameters:,} parameters"
    if isinstance(found, ReplayFindings):
        return _replayed(found, titles)
    fix = ", its CPU fault repaired" if found.cpu_fix_applied else ""
    return (
        f"vLLM {found.vllm_version}{fix}; {found.num_prompts:,} prompts,"
        f" {found.max_tokens:,} tokens each"
    )


def _replayed(found: ReplayFindings, titles: Titles) -> str:
    words = f"{found.num_samples:,} samples"
    if found.agreement is not None:
        starts, apart = found.agreement.num_starts, found.agreement.largest_difference
        words += f"; the files are held against the trainer's code at {starts:,} starts"
        words += f" (at most {apart:.1e} of a logit apart)"
    elif found.largest_difference is not None:
        words += f"; tau of the exported files is within {found.largest_difference:.3%}"
        words += f" of the trained drafter's ({found.compared_with})"
    costs = [
        f"{title} {found.rounding[name].in_words()}"
        for name, title in titles.items()
        if name in found.rounding
    ]
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


def _compared(run: Served, name: str, found: RoundsComparison | None) -> tuple[str, ...]:
    count = str(run.num_draft_tokens)
    if found is None:
        return count, name, "not lossless", "-", "-", "-", "-", "no"
    return (
        count,
        name,
        f"{found.tau_measured:.4f}",
        f"{found.tau_replayed:.4f}",
        f"{found.relative_difference:+.2%}",
        f"{found.relative_error_95:.2%}",
        "-" if found.chance is None else f"{found.chance:.1g}",
        "yes" if found.passed else "NO",
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
