"""What can befall an object, on any store, and what has to follow from it.

Everything goes through a Folder, so that one matrix serves local disks and object stores.
"""

from collections.abc import Callable, Iterable

import pytest

from specpipe.schemas.dump import DUMP_FILE, INDEX_FILE
from specpipe.schemas.errors import ConfigError, IntegrityError, UnfinishedError
from specpipe.stages.storage.folder import Folder
from specpipe.stages.storage.verify import verify
from tests.storage.tiny import use_everything

Damage = Callable[[Folder, str], None]


def copy_objects(source: Folder, target: Folder) -> None:
    """Every object of one folder, as it is, to another."""
    for key in source.list():
        target.write(key, source.read(key))


def flip(at: Callable[[int], int]) -> Damage:
    """Flip a bit of the byte `at(size)`."""

    def damage(folder: Folder, key: str) -> None:
        data = bytearray(folder.read(key))
        data[at(len(data))] ^= 0x10
        folder.write(key, bytes(data))

    return damage


def truncate(to: Callable[[int], int]) -> Damage:
    """Cut to `to(size)` bytes."""

    def damage(folder: Folder, key: str) -> None:
        data = folder.read(key)
        folder.write(key, data[: to(len(data))])

    return damage


def lengthen(folder: Folder, key: str) -> None:
    folder.write(key, folder.read(key) + b"\0")


DAMAGES: dict[str, Damage] = {
    "first byte flipped": flip(lambda size: 0),
    "middle byte flipped": flip(lambda size: size // 2),
    "last byte flipped": flip(lambda size: size - 1),
    "removed": lambda folder, key: folder.remove(key),
    "short by a byte": truncate(lambda size: size - 1),
    "half": truncate(lambda size: size // 2),
    "emptied": truncate(lambda size: 0),
    "longer by a byte": lengthen,
}


def assert_every_damage_shows(root: str, kind: str, keys: Iterable[str]) -> None:
    """Damage each of the objects in turn: verify names it and no other, and no reader uses it.

    `root` is that of a sound dump, and is left sound.
    """
    folder = Folder.open(root)
    for key in keys:
        written = folder.read(key)
        DAMAGES[kind](folder, key)
        assert_damage_shows(root, kind, key)
        folder.write(key, written)
    assert verify(root).damages == ()
    use_everything(root)


def assert_damage_shows(root: str, kind: str, key: str) -> None:
    report = verify(root)
    if (kind, key) == ("removed", INDEX_FILE):
        assert report.damages == ()
        assert not report.complete
        with pytest.raises(UnfinishedError, match="unfinished"):
            use_everything(root)
        return
    assert [damage.key for damage in report.damages] == [key], report
    expected = ConfigError if (kind, key) == ("removed", DUMP_FILE) else IntegrityError
    with pytest.raises(expected, match=key.rpartition("/")[2]):
        use_everything(root)
