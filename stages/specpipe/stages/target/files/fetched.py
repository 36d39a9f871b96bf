"""Files of a dump's target in a temporary folder, for libraries that read folders."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def fetched(read: Callable[[str], bytes], names: Iterable[str]) -> Iterator[Path]:
    """A folder with these files; `read` gives those of the dump's `target/`."""
    with TemporaryDirectory(prefix="specpipe-target-") as folder:
        for name in names:
            (Path(folder) / name).write_bytes(read(name))
        yield Path(folder)
