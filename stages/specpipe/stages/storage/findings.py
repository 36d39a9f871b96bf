"""What a verification has found so far."""

from collections.abc import Callable
from dataclasses import dataclass

from specpipe.schemas.dump import ObjectEntry
from specpipe.schemas.errors import IntegrityError
from specpipe.stages.storage.folder import HOW_TO_REPAIR, Folder
from specpipe.stages.storage.objects import check_object, check_size


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with one object; `key` is relative to the dump's root."""

    key: str
    problem: str


class Findings:
    """The first problem of each object, and how far the reading has come."""

    def __init__(self, folder: Folder, progress: Callable[[int, int], None]) -> None:
        self.folder = folder
        self.sizes = folder.sizes()
        """Every object that there is, listed or not."""
        self.num_bytes = 0
        """Bytes there are to read."""
        self._num_read = 0
        self._progress = progress
        self._problems: dict[str, str] = {}

    def note(self, key: str, problem: str | IntegrityError) -> None:
        """Keep the first problem of an object, without what the report says anyway."""
        text = str(problem).removeprefix(self.folder.where(key)).removesuffix(f"; {HOW_TO_REPAIR}")
        self._problems.setdefault(key, text.lstrip(": "))

    def is_sound(self, key: str) -> bool:
        return key not in self._problems

    def damages(self) -> tuple[Damage, ...]:
        return tuple(Damage(key, problem) for key, problem in sorted(self._problems.items()))

    def advance(self, num_bytes: int) -> None:
        """Report that many more bytes as read."""
        self._num_read += num_bytes
        self._progress(self._num_read, self.num_bytes)

    def check_object(self, entry: ObjectEntry) -> bool:
        """Read an object and check size and crc32c; True if it is sound."""
        if self.check_size(entry):
            try:
                check_object(self.folder, entry, self.advance)
            except IntegrityError as error:
                self.note(entry.key, error)
        return self.is_sound(entry.key)

    def check_size(self, entry: ObjectEntry) -> bool:
        """Whether the object exists and has the size it was written with."""
        if entry.key not in self.sizes:
            self.note(entry.key, "is missing")
            return False
        try:
            check_size(self.folder, entry, self.sizes[entry.key])
        except IntegrityError as error:
            self.note(entry.key, error)
        return self.sizes[entry.key] == entry.size
