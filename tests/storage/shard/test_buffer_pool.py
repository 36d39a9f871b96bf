"""Memory that is used again: only when nobody can see it any more, and within its bound."""

import gc
import threading
from collections import deque

import numpy as np
import torch

from specpipe.stages.storage.shard.buffer_pool import BufferPool

U16 = np.dtype(np.uint16)


def address(values: np.ndarray[tuple[int, ...], np.dtype[np.uint16]]) -> int:
    return int(values.__array_interface__["data"][0])


def test_memory_is_used_again_once_the_last_view_is_gone() -> None:
    pool = BufferPool(10**6)
    first = pool.array((100, 3, 8), U16)
    first[...] = 7
    where, view = address(first), first[10:20, 1]
    tensor = torch.from_numpy(first[50:].view(np.int16))
    del first
    for holder in ("view", "tensor"):
        other = pool.array((100, 3, 8), U16)
        assert address(other) != where, holder
        other[...] = 9
        assert (view == 7).all()
        assert bool((tensor == 7).all())
        del other
        if holder == "view":
            del view
            view = np.full(3, 7, np.uint16)
    del tensor
    again = {address(array) for array in [pool.array((100, 3, 8), U16) for _ in range(2)]}
    assert where in again


def test_a_much_larger_buffer_is_not_taken() -> None:
    pool = BufferPool(10**6)
    big = pool.array((1000,), U16)
    where = address(big)
    del big
    small = pool.array((100,), U16)
    assert address(small) != where
    assert address(pool.array((900,), U16)) == where


def test_free_memory_goes_where_new_does_not_fit_beside_it() -> None:
    pool = BufferPool(3000)
    arrays = [pool.array((500,), U16) for _ in range(3)]
    del arrays
    larger = pool.array((1000,), U16)
    assert pool._num_bytes <= 3000
    over = pool.array((2000,), U16)
    # What is in use stays; there is nothing free beside it.
    assert pool._num_bytes == larger.nbytes + over.nbytes
    assert pool._free == []


def test_many_threads_never_see_each_others_arrays() -> None:
    pool = BufferPool(200_000)
    wrong: list[int] = []

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        held: deque[tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint16]], int]] = deque()
        for turn in range(300):
            values = pool.array((int(rng.integers(1000, 1300)), 2), U16)
            mark = number * 1000 + turn
            values[...] = mark
            held.append((values[3:-3], mark))
            if len(held) > 4:
                view, expected = held.popleft()
                if not (view == expected).all():
                    wrong.append(expected)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert wrong == []
