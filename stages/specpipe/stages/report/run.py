"""`specpipe report` as a function: one page from the files that a run and its export left."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

from specpipe.schemas.base import Frozen
from specpipe.schemas.location import without_credentials
from specpipe.schemas.settings.stages import ReportConfig
from specpipe.stages.drafters.scorer import TrainedDrafter
from specpipe.stages.report.blocks import Page, Section, Tile
from specpipe.stages.report.drafted import DraftedSample, drafted_samples
from specpipe.stages.report.page import render
from specpipe.stages.report.sections.acceptance import (
    position_section,
    replay_curves,
    tau_section,
    vocabulary_section,
)
from specpipe.stages.report.sections.draft_tokens import draft_tokens_section
from specpipe.stages.report.sections.facts import environment_section, subject_section
from specpipe.stages.report.sections.more_data import more_data_section
from specpipe.stages.report.sections.texts import texts_section
from specpipe.stages.report.sections.training import training_section
from specpipe.stages.report.sections.validated import validation_section
from specpipe.stages.report.sources import Sources, read_sources
from specpipe.stages.report.token_kinds import KindSums, sums_by_kind
from specpipe.stages.report.token_text import KINDS, Tokenizer, token_kinds, token_texts
from specpipe.stages.runs.held_out import evaluation, settings_for
from specpipe.stages.storage.store.folder import place_of_file
from specpipe.stages.target.files.stored_tokenizer import stored_tokenizer

Progress = Callable[[str], None]
"""Told what is going on, a line at a time."""


class ReportResult(Frozen):
    """What `specpipe report` reports."""

    out: str
    num_bytes: int
    num_samples: int
    """Held-out samples that were drafted."""
    missing: list[str]
    """What the page could not show, and why."""


@dataclass(slots=True)
class _Drafted:
    """The held-out samples with what is drafted along them, or why there are none."""

    samples: list[DraftedSample] = field(default_factory=list)
    tokenizer: Tokenizer | None = None
    because: str = ""
    is_greedy: bool = False
    """Whether the target wrote the text greedily: acceptance is then that of greedy decoding."""


def run(config: ReportConfig, *, progress: Progress | None = None) -> ReportResult:
    """Write the page; raises what `read_sources` raises, and StoreError where it cannot write.

    Raises ConfigError where the page would have a folder's name, or a file stand for its folder.
    """
    report = progress or (lambda _: None)
    folder, name = place_of_file(config.out)
    sources = read_sources(config)
    folder.check_writable()
    drafted = _drafted(config, sources, report)
    page = render(_page(config, sources, drafted))
    folder.write(name, page)
    return ReportResult(
        out=without_credentials(config.out),
        num_bytes=len(page),
        num_samples=len(drafted.samples),
        missing=list(sources.missing.values()),
    )


def _drafted(config: ReportConfig, sources: Sources, report: Progress) -> _Drafted:
    checkpoint, dump = sources.checkpoint, sources.dump
    if checkpoint is None or dump is None:
        part = "checkpoint" if checkpoint is None else "dump"
        return _Drafted(because=f"No sample was drafted. {sources.missing[part]}")
    tokenizer = cast(Tokenizer | None, stored_tokenizer(dump))
    if config.samples == 0:
        return _Drafted(tokenizer=tokenizer, because="No sample was to be drafted (--samples 0).")
    report(f"drafting at most {config.samples} held-out samples")
    settings = settings_for(dump, checkpoint.state, sources.settings)
    reader, refs = evaluation(dump, settings)
    samples = drafted_samples(
        TrainedDrafter(checkpoint, dump), reader.context_length, refs[: config.samples]
    )
    return _Drafted(list(samples), tokenizer, is_greedy=dump.identity.text.is_greedy)


def _page(config: ReportConfig, sources: Sources, drafted: _Drafted) -> Page:
    by_kind, how = _by_kind(sources, drafted)
    num_heads = sources.settings.num_heads
    shown = drafted.samples[: config.texts]
    no_text = drafted.because or "No sample was to be shown (--texts 0), or none is held out."
    sections = [
        subject_section(sources),
        training_section(sources),
        more_data_section(sources),
        tau_section(sources),
        draft_tokens_section(sources),
        position_section(sources, by_kind, how),
        _vocabulary(sources),
        texts_section(shown, drafted.tokenizer, num_heads, no_text),
        validation_section(sources),
        environment_section(sources),
    ]
    target = "" if sources.checkpoint is None else f" for {sources.checkpoint.state.target.name}"
    return Page(f"Drafter{target}", str(sources.run), _tiles(sources), sections)


def _by_kind(sources: Sources, drafted: _Drafted) -> tuple[KindSums | None, str]:
    """Acceptance by kind of token, and how it was measured or why it was not."""
    if not drafted.samples:
        return None, drafted.because or "No sample is held out."
    if drafted.tokenizer is None:
        return None, (
            "The dump holds no tokenizer (or one that needs its own code), so the kinds of its"
            " tokens are not known."
        )
    special = frozenset(drafted.tokenizer.all_special_ids)
    kinds = []
    for sample in drafted.samples:
        ids = sample.input_ids_T.tolist()
        kinds.append(token_kinds(ids, token_texts(ids, drafted.tokenizer), special))
    sums = sums_by_kind(
        drafted.samples,
        kinds,
        len(KINDS),
        sources.settings.num_heads,
        is_greedy=drafted.is_greedy,
    )
    mode = "greedily" if drafted.is_greedy else "at temperature 1"
    if not (drafted.is_greedy or sources.samples_drafts):
        mode += " with greedy drafts"
    how = (
        f"{len(drafted.samples):,} held-out samples, decoded {mode}; by the kind of the token that"
        " the text has. Share: of all tokens. A dash: too few to say."
    )
    return sums, how


def _vocabulary(sources: Sources) -> Section:
    dumps = [("text trained on", sources.training_dump)]
    if sources.settings.eval_dump is not None:
        dumps.append(("held-out text", sources.dump))
    masses = [(name, dump.vocab().attainable_mass()) for name, dump in dumps if dump is not None]
    size = None if sources.checkpoint is None else sources.checkpoint.shape.draft_vocab_size
    because = sources.missing.get("training_dump", "The dumps count no token.")
    return vocabulary_section(masses, size, because)


def _tiles(sources: Sources) -> Sequence[Tile]:
    tiles = []
    curves = replay_curves(sources)
    at_1 = "replay_temperature_1" if sources.samples_drafts else "replay_greedy_draft"
    for name, label in ((at_1, "temperature 1"), ("replay_greedy", "greedy")):
        if name in curves:
            curve = curves[name]
            note = f"{label}, {len(curve.tau)} draft tokens"
            note += "" if curve.exact else ", estimate"
            tiles.append(Tile("tokens per round", f"{curve.tau[-1]:.2f}", note))
    if sources.metrics is not None:
        rate = sources.metrics.temperature_1.acceptance_rate[0]
        tiles.append(Tile("acceptance, head 1", f"{rate:.0%}", "temperature 1, held out"))
    if sources.checkpoint is not None:
        state = sources.checkpoint.state
        tiles.append(Tile("tokens trained on", f"{state.num_tokens:,}", f"{state.step:,} steps"))
    found = sources.validation
    if found is None:
        tiles.append(Tile("validation", "none", "no export given"))
    else:
        levels = ", ".join(found.config.validation)
        tiles.append(
            Tile("validation", "passed", levels, "good")
            if found.passed
            else Tile("validation", "FAILED", levels, "bad")
        )
    return tiles
