"""The memory between the engine and the writer: bounded, never overwritten, nothing left over."""

import multiprocessing
import os
import subprocess
import sys
from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from specpipe.stages.target.vllm.arena import Arena, ArenaAddress, ArenaWriter, Extent

PAGE = 4096


@given(
    sizes=st.lists(st.integers(1, 5 * PAGE), min_size=1, max_size=60),
    capacity=st.integers(1, 8),
    data=st.data(),
)
def test_what_is_lent_never_overlaps_and_never_takes_more_than_there_is(
    sizes: list[int], capacity: int, data: st.DataObject
) -> None:
    arena = Arena(capacity * PAGE)
    lent: deque[tuple[Extent, int]] = deque()
    try:
        for number, size in enumerate(sizes):
            while (extent := arena.lend(size)) is None:
                assert lent, "nothing is lent, and there is no room"
                _give_back(arena, lent)
            assert extent.num_bytes == size
            assert extent.start + size <= arena.num_bytes
            for other, _ in lent:
                assert (
                    extent.start + size <= other.start
                    or other.start + other.num_bytes <= extent.start
                )
            arena.view(extent)[:] = bytes([number]) * size
            lent.append((extent, number))
            # Only a text that is larger than all there is makes it grow.
            assert arena.num_bytes <= max(capacity * PAGE, -(-max(sizes) // PAGE) * PAGE)
            if data.draw(st.booleans()):
                _give_back(arena, lent)
        while lent:
            _give_back(arena, lent)
    finally:
        arena.close()


def _give_back(arena: Arena, lent: deque[tuple[Extent, int]]) -> None:
    extent, number = lent.popleft()
    assert bytes(arena.view(extent)) == bytes([number]) * extent.num_bytes
    arena.take_back(extent)


def test_room_that_is_given_back_is_lent_again() -> None:
    arena = Arena(4 * PAGE)
    first, second = arena.lend(2 * PAGE), arena.lend(2 * PAGE)
    assert first is not None
    assert second is not None
    assert arena.lend(1) is None
    arena.take_back(first)
    third = arena.lend(PAGE)
    assert third is not None
    assert third.start == 0
    assert arena.lend(2 * PAGE) is None
    arena.close()


def _write(address: ArenaAddress, start: int, ticket: int) -> None:
    writer = ArenaWriter(address)
    writer.view(start, 5)[:] = b"hello"
    writer.say_landed(ticket)


def test_another_process_writes_and_says_so() -> None:
    arena = Arena(PAGE)
    assert list(arena.landed(0.01)) == []
    spawn = multiprocessing.get_context("spawn")
    # The second one is larger than the arena was when the first was lent.
    for size in (100, 3 * PAGE):
        extent = arena.lend(size)
        assert extent is not None
        process = spawn.Process(target=_write, args=(arena.address, extent.start, extent.ticket))
        process.start()
        assert list(arena.landed(60)) == [extent.ticket]
        assert bytes(arena.view(extent)[:5]) == b"hello"
        process.join()
        arena.take_back(extent)
    arena.close()


def test_the_engine_ends_with_the_command() -> None:
    child = (
        "import sys, time; from specpipe.stages.process.parent import end_with_parent;"
        "end_with_parent(int(sys.argv[1])); print('watching', flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(["sleep", "60"])
    with subprocess.Popen(
        [sys.executable, "-c", child, str(parent.pid)], stdout=subprocess.PIPE
    ) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == b"watching\n"
        assert watching.poll() is None
        parent.kill()
        parent.wait()
        assert watching.wait(30) == 1


def test_the_engine_does_not_outlive_a_command_that_is_gone_already() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    code = (
        "import sys, time; from specpipe.stages.process.parent import end_with_parent;"
        "end_with_parent(int(sys.argv[1])); time.sleep(60)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(gone.pid)], check=False, timeout=50)
    assert done.returncode == 1
    assert os.getpid() != gone.pid
