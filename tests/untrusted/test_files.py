"""Files of strangers: pipes, devices, folders, too much, and other packages' errors."""

import errno
import os
import socket
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from specpipe.schemas.errors import ConfigError, IntegrityError, SpecpipeError, StoreError
from specpipe.stages.untrusted.files import read_file
from specpipe.stages.untrusted.foreign import foreign_call
from specpipe.stages.untrusted.tensors import load_tensors, opened_tensors


def test_a_pipe_in_place_of_a_file_ends_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(IntegrityError, match="pipe is a pipe"):
        read_file(tmp_path / "pipe")
    with pytest.raises(IntegrityError, match="no readable safetensors file"):
        load_tensors(tmp_path / "pipe", "weights")
    with (
        pytest.raises(IntegrityError, match="no readable safetensors file"),
        opened_tensors(tmp_path / "pipe", "weights"),
    ):
        pass


def test_a_socket_is_no_file(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
        with pytest.raises(IntegrityError, match="a socket or a device, not a file"):
            read_file(tmp_path / "socket")


def test_what_a_person_names_may_be_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b"a" * 2**20,))
    writer.start()
    assert read_file(tmp_path / "pipe", or_pipe=True) == b"a" * 2**20
    writer.join()


def test_a_device_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "zero").symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="not a file"):
        read_file(tmp_path / "zero", ConfigError)


def test_no_more_is_read_than_allowed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(11))
    assert read_file(tmp_path / "file", most_bytes=11) == bytes(11)
    with pytest.raises(IntegrityError, match="more than 10 bytes"):
        read_file(tmp_path / "file", most_bytes=10)
    assert read_file(tmp_path / "file", most_bytes=None) == bytes(11)


@pytest.mark.parametrize("name", ["missing", "file/below", ".", "n\0ul"])
def test_what_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError):
        read_file(tmp_path / name, ConfigError)


@pytest.mark.parametrize(
    "error", [KeyError("a"), AssertionError(), RecursionError(), ImportError("x\ny"), MemoryError()]
)
def test_whatever_a_loader_raises_is_one_line(error: Exception) -> None:
    with (
        pytest.raises(ConfigError, match="the target: ") as refused,
        foreign_call("the target", ConfigError),
    ):
        raise error
    assert "\n" not in str(refused.value)


def test_our_own_errors_and_the_disk_pass_through() -> None:
    with pytest.raises(IntegrityError), foreign_call("x", ConfigError):
        raise IntegrityError("ours")
    with pytest.raises(StoreError, match="a/b"), foreign_call("x", ConfigError):
        raise PermissionError(errno.EACCES, "Permission denied", "a/b")
    with pytest.raises(StoreError, match="too large"), foreign_call("x", ConfigError):
        raise OSError(errno.EFBIG, "File too large", "a/b")


@pytest.mark.parametrize("data", [b"", b"\xff" * 16, (2**40).to_bytes(8, "little") + b"{}"])
def test_damaged_safetensors_are_refused(tmp_path: Path, data: bytes) -> None:
    refusals: list[SpecpipeError] = []
    (tmp_path / "file").write_bytes(data)
    for source in (data, tmp_path / "file"):
        with pytest.raises(ConfigError, match="weights is no") as refused:
            load_tensors(source, "weights", ConfigError)
        refusals.append(refused.value)
    save_file({"a": torch.ones(2)}, tmp_path / "good")
    assert load_tensors(tmp_path / "good", "weights")["a"].tolist() == [1, 1]
    with opened_tensors(tmp_path / "good", "weights") as file:
        assert list(file.keys()) == ["a"]
    for missing in ("b", "a\0"):
        with (
            pytest.raises(IntegrityError, match="weights is no"),
            opened_tensors(tmp_path / "good", "weights") as file,
        ):
            file.get_tensor(missing)
