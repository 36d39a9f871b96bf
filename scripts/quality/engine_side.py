"""A drafter in the real vLLM: what its own counters say, on the prompts that are reported."""

from pathlib import Path

from scripts.quality.cell import artifact_of
from scripts.quality.judge import Mode, half_of
from specpipe.schemas.base import Frozen
from specpipe.schemas.settings.stages import DraftSampleMethod
from specpipe.stages.drafters.artifact import read_files
from specpipe.stages.drafters.registry import recognised
from specpipe.stages.samples.reader import SampleReader
from specpipe.stages.storage.dump import Dump
from specpipe.stages.validate.serve import prompts
from specpipe.stages.validate.serve.engine import Decoded, EngineRequest, decode
from specpipe.stages.validate.serve.rounds import measured_rounds

SERVED_FILE = "served.json"
MAX_TOKENS = 128
MOST_PROMPTS = 120


class ServedTau(Frozen):
    """tau of whole rounds, by mode."""

    tau: dict[Mode, float]
    num_prompts: int
    vllm_version: str


def read_served(folder: Path) -> ServedTau | None:
    """None where it was not served yet."""
    path = folder / SERVED_FILE
    return ServedTau.model_validate_json(path.read_text("utf-8")) if path.exists() else None


def serve(folder: Path, target: Path, held_out: str, num_draft_tokens: int, seed: int) -> ServedTau:
    """Decode with drafts drawn from the drafter, greedily too, and with greedy drafts at T = 1."""
    dump = Dump.open(held_out)
    artifact = artifact_of(folder).resolve()
    serving = recognised(read_files(str(artifact))).serving
    refs = [ref for ref in SampleReader(dump, None).refs() if half_of(ref.prompt_id) == "report"]
    chosen = prompts.choose(prompts.from_dump(dump, refs), MOST_PROMPTS, 10**6)

    def engine(method: DraftSampleMethod, temperatures: list[float]) -> tuple[list[Decoded], str]:
        result = decode(
            EngineRequest(
                target=str(target),
                artifact=str(artifact),
                method=serving.method,
                num_draft_tokens=num_draft_tokens,
                draft_sample_method=method,
                prompts=[list(prompt) for prompt in chosen],
                max_tokens=MAX_TOKENS,
                temperatures=temperatures,
                seed=seed,
            )
        )
        return result.decoded, result.vllm_version

    (greedy, sampled), version = engine("probabilistic", [0.0, 1.0])
    (drafted,), _ = engine("greedy", [1.0])
    decoded: dict[Mode, Decoded] = {
        "temperature_1": sampled,
        "greedy_draft": drafted,
        "greedy": greedy,
    }
    served = ServedTau(
        tau={mode: tau_of(one, num_draft_tokens) for mode, one in decoded.items()},
        num_prompts=len(chosen),
        vllm_version=version,
    )
    (folder / SERVED_FILE).write_text(served.model_dump_json(indent=1), encoding="utf-8")
    return served


def tau_of(decoded: Decoded, num_draft_tokens: int) -> float:
    """Tokens of a whole round, the bonus token counted."""
    assert decoded.accepted_per_round is not None
    lengths = [len(output) for output in decoded.output_ids]
    rounds = measured_rounds(decoded.accepted_per_round, lengths, num_draft_tokens)
    return float(rounds.tokens_B.sum() / rounds.rounds_B.sum())
