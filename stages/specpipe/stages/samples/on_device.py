"""Batches on the device; each is copied while the previous one is computed."""

from collections.abc import Iterable, Iterator

import torch

from specpipe.stages.samples.batch import Batch


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on `device`, in order; at most two of them are there at a time.

    On CUDA the copies have a stream of their own, and overlap with the work where the batches are
    pinned. On a CPU these are the batches themselves.
    """
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    copies = torch.cuda.Stream(device)
    ahead: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(copies):
            moved = batch.to(device)
            copied = copies.record_event()
        if ahead is not None:
            yield _arrived(*ahead)
        ahead = moved, copied
    if ahead is not None:
        yield _arrived(*ahead)


def _arrived(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """The batch, once it is there; its memory is kept until the work on it is done."""
    current = torch.cuda.current_stream()
    current.wait_event(copied)
    for tensor in batch.tensors().values():
        tensor.record_stream(current)
    return batch
