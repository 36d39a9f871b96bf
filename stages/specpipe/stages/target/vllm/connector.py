"""Runs inside vLLM: takes each finished request's states out of the cache and into the arena.

vLLM's `extract_hidden_states` keeps the states of the layers that are asked for in a cache of its
own, block by block, like keys and values. The scheduler's half of this connector notes the blocks
of a request that has finished and keeps them from being freed; the worker's half copies them into
the extent that the command has lent for the request, and says so.

Legend: T tokens, L captured layers, B tokens of a block, H hidden size.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from vllm.config import get_layers_from_vllm_config
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
from vllm.model_executor.models.extract_hidden_states import CacheOnlyAttentionLayer
from vllm.v1.kv_cache_interface import HiddenStateCacheSpec

from specpipe.stages.process.parent import end_with_parent
from specpipe.stages.target.vllm.arena import REQUEST_FIELD, ArenaAddress, ArenaWriter


@dataclass(frozen=True, slots=True)
class Finished:
    """A request whose states are to be copied."""

    request_id: str
    ticket: int
    start: int
    """Of its extent in the arena."""
    num_tokens: int
    """The first of its tokens, all of which the target has read."""
    block_ids: list[int]


@dataclass
class FinishedRequests(KVConnectorMetadata):  # type: ignore[misc]
    """Message from the scheduler's half to the worker's, in every step."""

    requests: list[Finished] = field(default_factory=list)


class StatesConnector(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]
    """vLLM makes one in the scheduler's process and one in each worker's."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        extra = vllm_config.kv_transfer_config.kv_connector_extra_config
        address = ArenaAddress.from_dict(extra["arena"])
        end_with_parent(address.pid)
        self._group = _group_of_states(kv_cache_config)
        self._finished: list[Finished] = []
        self._writer = ArenaWriter(address) if role == KVConnectorRole.WORKER else None
        self._cache: Tensor | None = None
        self._copying: dict[str, tuple[int, Any]] = {}

    # What the scheduler's process calls.

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        return 0, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Nothing is ever loaded."""

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Keep the blocks of a request until its states are copied; its outputs say how many
        tokens those are of."""
        extent = (request.kv_transfer_params or {}).get(REQUEST_FIELD)
        if extent is None or not self._group < len(block_ids):
            return False, None
        # The last token was sampled and never read, unless a prompt is all there is.
        num_tokens = max(request.num_prompt_tokens, request.num_tokens - 1)
        self._finished.append(
            Finished(
                request_id=request.request_id,
                ticket=extent["ticket"],
                start=extent["start"],
                num_tokens=num_tokens,
                block_ids=list(block_ids[self._group]),
            )
        )
        return True, {"num_tokens": num_tokens}

    def request_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished_all_groups(request, (block_ids,))

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        finished, self._finished = self._finished, []
        return FinishedRequests(finished)

    # What a worker's process calls.

    def get_finished_count(self) -> int:
        """One worker of all writes, and reports a request."""
        return 1

    def register_kv_caches(self, kv_caches: dict[str, Tensor]) -> None:
        layers = get_layers_from_vllm_config(
            self._vllm_config, CacheOnlyAttentionLayer, list(kv_caches)
        )
        # The states are the same on all ranks of a tensor-parallel group; the stages of a pipeline
        # before the last have none.
        if layers and get_tensor_model_parallel_rank() == 0:
            (name,) = layers
            self._cache = kv_caches[name]

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Nothing is ever loaded."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is ever loaded."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: Tensor, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """States are taken when a request has finished, not layer by layer."""

    def wait_for_save(self) -> None:
        """Blocks are kept from being freed, so no step has to wait."""

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Copy what has finished, and report the requests whose blocks may go."""
        if self._cache is None:
            return None, None
        metadata = self._get_connector_metadata() if self.has_connector_metadata() else None
        for request in metadata.requests if isinstance(metadata, FinishedRequests) else ():
            self._copying[request.request_id] = (request.ticket, self._copy(request))
        done = [
            request_id
            for request_id, (_, copied) in self._copying.items()
            if copied is None or copied.query()
        ]
        for request_id in done:
            ticket, _ = self._copying.pop(request_id)
            assert self._writer is not None
            self._writer.say_landed(ticket)
        return set(done) or None, None

    def _copy(self, request: Finished) -> Any:
        """Copy a request's states, bfloat16 [T, L, H]; on a GPU, what tells when that is done."""
        assert self._cache is not None
        assert self._writer is not None
        _, num_layers, block_tokens, hidden = self._cache.shape
        shape_TLH = (request.num_tokens, num_layers, hidden)
        num_bytes = 2 * request.num_tokens * num_layers * hidden
        target_TLH = torch.frombuffer(
            self._writer.view(request.start, num_bytes), dtype=torch.bfloat16
        ).view(shape_TLH)
        if self._cache.is_cuda:
            return _copy_from_gpu(self._cache, request.block_ids, target_TLH)
        for start, block_LBH in _blocks(self._cache, request.block_ids, block_tokens):
            part_BLH = target_TLH[start : start + block_tokens]
            part_BLH.copy_(block_LBH[:, : len(part_BLH)].transpose(0, 1))
        return None


def _blocks(cache: Tensor, block_ids: list[int], block_tokens: int) -> Iterable[tuple[int, Tensor]]:
    """(first token, [L, B, H]) of each block."""
    return ((at * block_tokens, cache[block_id]) for at, block_id in enumerate(block_ids))


def _copy_from_gpu(cache: Tensor, block_ids: list[int], target_TLH: Tensor) -> Any:
    """Gather the blocks on the GPU, and copy them while the target goes on."""
    stream = _copy_stream(cache.device)
    stream.wait_stream(torch.cuda.current_stream(cache.device))
    with torch.cuda.stream(stream):
        ids = torch.tensor(block_ids, device=cache.device)
        num_blocks, (_, num_layers, block_tokens, hidden) = len(block_ids), cache.shape
        whole = cache[ids].transpose(1, 2).reshape(num_blocks * block_tokens, num_layers, hidden)
        states_TLH = whole[: len(target_TLH)].to(torch.bfloat16)
        # Pinned memory of torch's own, reused by it; the arena cannot be pinned for every driver.
        pinned_TLH = torch.empty(target_TLH.shape, dtype=torch.bfloat16, pin_memory=True)
        pinned_TLH.copy_(states_TLH, non_blocking=True)
        event = torch.cuda.Event()
        event.record(stream)
    return _Landing(event, pinned_TLH, target_TLH)


class _Landing:
    """A copy from the GPU in progress."""

    def __init__(self, event: torch.cuda.Event, pinned_TLH: Tensor, target_TLH: Tensor) -> None:
        self._event, self._pinned_TLH, self._target_TLH = event, pinned_TLH, target_TLH
        self._done = _threads.submit(self._land)

    def query(self) -> bool:
        """Whether the states are in the arena. Raises what went wrong on the way."""
        if not self._done.done():
            return False
        self._done.result()
        return True

    def _land(self) -> None:
        self._event.synchronize()
        self._target_TLH.copy_(self._pinned_TLH)


_threads = ThreadPoolExecutor(2, thread_name_prefix="specpipe-states")
_streams: dict[torch.device, torch.cuda.Stream] = {}


def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]


def _group_of_states(kv_cache_config: Any) -> int:
    """Which of the engine's cache groups holds the states."""
    groups = kv_cache_config.kv_cache_groups if kv_cache_config is not None else []
    found = [
        at
        for at, group in enumerate(groups)
        if isinstance(group.kv_cache_spec, HiddenStateCacheSpec)
    ]
    if not found and len(groups) == 1:
        return 0
    if len(found) != 1:
        raise ValueError(f"{len(found)} of vLLM's {len(groups)} cache groups hold hidden states")
    return found[0]
