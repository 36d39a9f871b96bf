"""Real drafters after few and many steps: what rounding does, and which damage is found where."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scripts.proofs.damages import DAMAGES, Damage
from scripts.proofs.engines import TOLERANCES, decode
from scripts.proofs.table import share
from specpipe.schemas.errors import SpecpipeError
from specpipe.schemas.settings.stages import ExportConfig, ValidateConfig
from specpipe.stages.acceptance.measure_sums import MeasureSums
from specpipe.stages.acceptance.replay import ReplaySpan, expected_rounds, replay
from specpipe.stages.drafters.artifact_format import TargetFacts
from specpipe.stages.drafters.eagle3.proposal import PlainDrafter
from specpipe.stages.drafters.scorer import TrainedDrafter
from specpipe.stages.export.run import run as export
from specpipe.stages.runs.checkpoint import Checkpoint, load_checkpoint
from specpipe.stages.samples.read_ahead import read_samples
from specpipe.stages.samples.reader import SampleReader
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.head.verifier_head import load_embedding
from specpipe.stages.validate import structure
from specpipe.stages.validate.drafted_text import TextSpans
from specpipe.stages.validate.replay import run as replay_check
from specpipe.stages.validate.run import run as validate
from specpipe.stages.validate.serve.rounds import compare

ROUNDING_HEADER = (
    "drafter", "samples of a set", "0.2 % of tau", "start by start", "largest difference",
)  # fmt: skip
DAMAGE_HEADER = (
    "damage", "structure", "replay", "validate alone", "engine, greedy", "engine, temperature 1",
)  # fmt: skip
SET_SIZES = (2, 8, 32)
SIMPLE_TOLERANCE = 0.002
NUM_HEADS = 3


def rounding_rows(
    checkpoints: dict[str, Path], dump: Dump, out: Path, subsets: int, rng: np.random.Generator
) -> Iterator[tuple[str, ...]]:
    """Random sets of held-out samples: how often would the former limit have failed?"""
    for name, path in checkpoints.items():
        checkpoint = load_checkpoint(path)
        folder = out / f"rounding-{path.name}"
        config = ExportConfig(
            checkpoint=str(path), out=str(folder), dump=str(dump.folder.url),
            validation=("structure",),
        )  # fmt: skip
        export(config)
        found = replay_check.check(folder / "checkpoint", checkpoint, dump, None, None)
        assert found.agreement is not None
        ours, theirs = _greedy_spans(folder / "checkpoint", checkpoint, dump)
        numbers = np.array([span.sample for span in ours])
        for size in SET_SIZES:
            failed = 0
            for _ in range(subsets):
                chosen = np.flatnonzero(np.isin(numbers, rng.choice(numbers.max() + 1, size)))
                sides = ([spans[at] for at in chosen] for spans in (ours, theirs))
                exported, trained = (replay(side, NUM_HEADS, exact=True).tau for side in sides)
                failed += any(
                    abs(a / b - 1) > SIMPLE_TOLERANCE
                    for a, b in zip(exported, trained, strict=True)
                )
            yield (
                name, str(size), share(failed, subsets),
                "all agree" if found.passed else "FAILED",
                f"{found.agreement.largest_difference:.1e}",
            )  # fmt: skip


def _greedy_spans(
    artifact: Path, checkpoint: Checkpoint, dump: Dump
) -> tuple[list[ReplaySpan], list[ReplaySpan]]:
    """Of the exported files, and of the drafter before its weights were rounded."""
    plain = PlainDrafter.load(artifact, load_embedding(dump.target_file))
    trained = TrainedDrafter(checkpoint, dump)
    spans, sums = TextSpans(), MeasureSums(NUM_HEADS, keep_spans=True)
    reader = SampleReader(dump, None, layers=checkpoint.shape.aux_layers)
    for sample in read_samples(reader, reader.refs()):
        measured = trained.measured(sample)
        sums.add(measured.batch, measured.measures_MKN, measured.fewer)
        spans.add(plain, replay_check.text_of(sample), NUM_HEADS)
    return spans.greedy, [span for span in sums.greedy_spans if span.num_tokens >= 2]


@dataclass(frozen=True)
class Sound:
    """A sound artifact, and the texts that engines are simulated on."""

    artifact: Path
    checkpoint: Checkpoint
    dump: Dump
    samples: int = 48

    def spans(self, change: Callable[[PlainDrafter], object] = lambda _: None) -> TextSpans:
        """Of a drafter that loads these files, or of one that `change` damages."""
        plain = PlainDrafter.load(self.artifact, load_embedding(self.dump.target_file))
        change(plain)
        reader = SampleReader(self.dump, None, layers=self.checkpoint.shape.aux_layers)
        spans = TextSpans()
        for sample in read_samples(reader, reader.refs()[: self.samples]):
            spans.add(plain, replay_check.text_of(sample), NUM_HEADS)
        return spans


def damage_rows(sound: Sound, out: Path, rng: np.random.Generator) -> Iterator[tuple[str, ...]]:
    """Each damage, and what every level says of it."""
    before = sound.spans()
    for name, damage in DAMAGES.items():
        folder = out / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sound.artifact, folder)
        damage.to_folder(folder)
        yield name, *_levels(sound, folder), *_engines(sound, before, damage, rng)


def _levels(sound: Sound, folder: Path) -> tuple[str, str, str]:
    identity = sound.dump.identity.target
    facts = TargetFacts(
        architecture=identity.architecture, hidden_size=identity.hidden_size,
        vocab_size=identity.vocab_size, num_layers=identity.num_layers,
    )  # fmt: skip
    shaped = structure.check(folder, facts, sound.checkpoint.shape).passed
    try:
        replayed = replay_check.check(folder, sound.checkpoint, sound.dump, None, 8).passed
    except (SpecpipeError, KeyError, RuntimeError):
        replayed = False
    try:
        alone = validate(
            ValidateConfig(artifact=str(folder), dump=sound.dump.folder.url, replay_samples=8)
        ).passed
    except SpecpipeError:
        alone = False
    found = tuple("-" if passed else "found" for passed in (shaped, replayed, alone))
    return found[0], found[1], found[2]


def _engines(
    sound: Sound, before: TextSpans, damage: Damage, rng: np.random.Generator
) -> Iterator[str]:
    """An engine that computes with the damage, against the replay without it."""
    after = sound.spans(damage.to_drafter)
    for mode in ("greedy", "temperature 1"):
        is_greedy = mode == "greedy"
        drafts = after.greedy if is_greedy else after.sampled
        replayed = expected_rounds(before.greedy if is_greedy else before.sampled, NUM_HEADS)
        honest = before.greedy_chance if is_greedy else before.sampled
        measured = decode(drafts, NUM_HEADS, rng)
        found = compare(measured, replayed, honest, tolerance=TOLERANCES[mode])
        word = "-" if found.passed else "found"
        yield f"{word} ({found.tau_measured:.3f} for {found.tau_replayed:.3f})"
