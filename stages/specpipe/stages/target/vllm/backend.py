"""The target in vLLM: an engine in processes of its own, whose states come through the arena.

Legend: T tokens, L aux layers, C captured layers, H hidden size, N generated tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from specpipe.schemas.errors import EngineLostError
from specpipe.schemas.records.dump import DumpIdentity
from specpipe.schemas.settings.stages import DumpConfig, GenerateConfig
from specpipe.stages.process.device import choose_device
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.target.backend import Captured, Generation, Prompt
from specpipe.stages.target.batches import Tokens
from specpipe.stages.target.files.location import local_folder
from specpipe.stages.target.files.turn_end import TurnEnd
from specpipe.stages.target.head.head_model import load_head_model
from specpipe.stages.target.head.verifier_head import save_head
from specpipe.stages.target.vllm.arena import REQUEST_FIELD, Arena, Extent
from specpipe.stages.target.vllm.start import start_engine
from specpipe.stages.target.written_tokens import Tally

_CLOSE_SECONDS = 60.0
_LOOK_SECONDS = 1.0
"""How often a dead engine is looked for while states are awaited."""


@dataclass(frozen=True, slots=True)
class Request:
    """A text for the engine, and the most tokens that it may have in the end."""

    input_ids: list[int]
    sampling: dict[str, Any]
    """Arguments of vLLM's SamplingParams."""

    @property
    def most_tokens(self) -> int:
        return len(self.input_ids) + int(self.sampling["max_tokens"]) - 1


@dataclass(slots=True)
class _Flight:
    """A request in flight in the engine."""

    extent: Extent
    output: Any = None
    """vLLM's RequestOutput, once it is finished."""
    has_landed: bool = False


class VllmBackend:
    """One engine; with tensor parallelism it has several processes, of which one writes."""

    def __init__(self, config: DumpConfig, identity: DumpIdentity, longest: int) -> None:
        """`longest` is the most tokens of one text, what is generated included."""
        self.layers = identity.layers
        self._config = config
        self._identity = identity
        num_layers = identity.target.num_layers
        self._captured = tuple(sorted({*identity.layers, num_layers}))
        self._final = self._captured.index(num_layers)
        self._aux = [self._captured.index(layer) for layer in identity.layers]
        self._arena = Arena(config.staging_mib * 2**20)
        self._is_lost = False
        try:
            self._engine = start_engine(
                config, identity, self._captured, longest, self._arena.address
            )
        except BaseException:
            self._arena.close()
            raise

    @property
    def device(self) -> torch.device:
        # Asked for after the engine has started: a process that uses the GPU can not be forked.
        return choose_device(self._config.device)

    @property
    def logits_rounding(self) -> float:
        """vLLM's logits have the dtype of its weights."""
        if self._identity.compute_dtype == "float32":
            return 0.0
        return torch.finfo(getattr(torch, self._identity.compute_dtype)).eps / 2

    def save_head(self, folder: Folder) -> None:
        """From the checkpoint: the engine keeps its weights in an order of its own."""
        save_head(load_head_model(self._config, self._identity.compute_dtype), folder)

    def capture(self, samples: Sequence[Tokens]) -> Iterator[Captured]:
        """The states of each sample, in memory of the CPU."""
        requests = (
            Request(sample.input_ids.tolist(), {"max_tokens": 1, "temperature": 0.0})
            for sample in samples
        )
        for _, states in self._run(requests):
            yield states

    def generate(self, prompts: Sequence[Prompt], settings: GenerateConfig) -> Iterator[Generation]:
        folder = local_folder(
            self._config.target, self._config.revision, with_code=self._config.trust_remote_code
        )
        turn_end = TurnEnd.of_target(
            folder, settings.stop, trust_remote_code=self._config.trust_remote_code
        )
        requests = (
            Request(
                prompt.input_ids.tolist(),
                {
                    "max_tokens": prompt.max_new_tokens,
                    "temperature": settings.temperature,
                    "top_p": settings.top_p,
                    "seed": prompt.seed,
                    # vLLM knows them itself only where it has loaded the tokenizer.
                    "stop_token_ids": sorted(turn_end.end_ids),
                    "stop": list(settings.stop),
                    "include_stop_str_in_output": True,
                    "skip_special_tokens": False,
                },
            )
            for prompt in prompts
        )
        tally = Tally(len(prompts))
        for output, states in self._run(requests, tally):
            (completion,) = output.outputs
            finish: Literal["stop", "length"] = (
                "length" if completion.finish_reason == "length" else "stop"
            )
            yield Generation(np.array(completion.token_ids, np.int32), finish, states)

    def own_logprobs(self, sample: Tokens, first: int) -> tuple[Tensor, dict[int, Tensor]]:
        """What vLLM itself says of a prompt's tokens; it has no states from elsewhere."""
        ids = sample.input_ids.tolist()
        sampling = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        ((output, _),) = self._run([Request(ids, sampling)])
        pairs = zip(ids[first + 1 :], output.prompt_logprobs[first + 1 :], strict=True)
        return torch.tensor([found[token_id].logprob for token_id, found in pairs]), {}

    def close(self) -> None:
        # Left to itself vLLM kills its processes after five seconds, which a busy machine needs for
        # ending them; what is killed leaves its shared memory behind.
        self._engine.engine_core.shutdown(timeout=_CLOSE_SECONDS)
        self._arena.close()

    def _run(
        self, requests: Iterable[Request], tally: Tally | None = None
    ) -> Iterator[tuple[Any, Captured]]:
        """What vLLM says of each request, and its states, in order.

        The engine has as many requests at a time as the arena has room for, and goes on with them
        while the caller is busy.
        """
        waiting = iter(requests)
        # By ticket, which is the request's name in the engine too; in order.
        flights: dict[int, _Flight] = {}
        held: Request | None = None
        try:
            while True:
                held = held or next(waiting, None)
                while held is not None and (extent := self._lend(held)) is not None:
                    self._submit(held, extent)
                    flights[extent.ticket] = _Flight(extent)
                    held = next(waiting, None)
                if not flights:
                    return
                flight = self._land_first(flights, tally)
                states = self._take(flight)
                yield flight.output, states
        finally:
            # Whoever stops early leaves requests behind, whose extents would be written to later.
            while flights and not self._is_lost:
                self._arena.take_back(self._land_first(flights).extent)

    def _lend(self, request: Request) -> Extent | None:
        hidden = self._identity.target.hidden_size
        return self._arena.lend(2 * request.most_tokens * len(self._captured) * hidden)

    def _submit(self, request: Request, extent: Extent) -> None:
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        place = {"ticket": extent.ticket, "start": extent.start}
        sampling = SamplingParams(
            **request.sampling,
            detokenize=bool(request.sampling.get("stop")),
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={"kv_transfer_params": {REQUEST_FIELD: place}},
        )
        self._engine.add_request(str(extent.ticket), tokens_input(request.input_ids), sampling)

    def _land_first(self, flights: dict[int, _Flight], tally: Tally | None = None) -> _Flight:
        """Take out the oldest request once it is finished and its states are in the arena."""
        ticket, flight = next(iter(flights.items()))
        while flight.output is None or not flight.has_landed:
            is_idle = not self._engine.has_unfinished_requests()
            for landed in self._arena.landed(_LOOK_SECONDS if is_idle else 0.0):
                flights[landed].has_landed = True
            if not is_idle:
                for output in self._step():
                    flights[int(output.request_id)].output = output
                    if tally is not None:
                        num_tokens = len(output.outputs[0].token_ids)
                        tally.add(num_tokens=num_tokens, num_ended=1)
                if tally is not None:
                    states = self._engine.output_processor.request_states.values()
                    tally.tell(sum(s.detokenizer.num_output_tokens() for s in states))
            elif not flight.has_landed:
                self._check_alive()
        return flights.pop(ticket)

    def _step(self) -> Sequence[Any]:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            outputs: Sequence[Any] = self._engine.step()
        except EngineDeadError as error:
            raise self._lost() from error
        return outputs

    def _check_alive(self) -> None:
        if self._engine.engine_core.resources.engine_dead:
            raise self._lost()

    def _take(self, flight: _Flight) -> Captured:
        """A request's states, copied out of the arena."""
        num_tokens = int(flight.output.kv_transfer_params["num_tokens"])
        hidden = self._identity.target.hidden_size
        states_TCH = torch.frombuffer(self._arena.view(flight.extent), dtype=torch.bfloat16)
        states_TCH = states_TCH[: num_tokens * len(self._captured) * hidden]
        states_TCH = states_TCH.view(num_tokens, len(self._captured), hidden)
        captured = Captured(states_TCH[:, self._aux].clone(), states_TCH[:, self._final].clone())
        self._arena.take_back(flight.extent)
        return captured

    def _lost(self) -> EngineLostError:
        self._is_lost = True
        return EngineLostError(
            "the vLLM engine died (its own log, above, may have the reason; if memory is short, a "
            "smaller --batch-tokens helps); run the same command again to continue"
        )
