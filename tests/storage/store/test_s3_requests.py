"""What each operation on S3 costs in requests, and that writing once is the server's decision."""

from collections.abc import Callable

import pytest

from specpipe.schemas.errors import IntegrityError
from specpipe.stages.storage.store.folder import Folder
from tests.s3 import S3Server

Cost = list[tuple[str, str | None]]
"""Method and range of each request."""


@pytest.fixture
def cost(s3_server: S3Server) -> Callable[[Callable[[], object]], Cost]:
    def of(action: Callable[[], object]) -> Cost:
        s3_server.clear()
        action()
        return [(request.method, request.headers.get("range")) for request in s3_server.requests]

    return of


def test_one_request_for_each_object(
    s3_root: str, cost: Callable[[Callable[[], object]], Cost]
) -> None:
    folder = Folder.open(s3_root)
    assert cost(lambda: folder.write("a/b", b"0123456789")) == [("PUT", None)]
    assert cost(lambda: folder.create("a/c", b"0123456789")) == [("PUT", None)]
    # Of a known size: without asking for it.
    assert cost(lambda: folder.read("a/b", 0, 11, num_expected=10)) == [("GET", "bytes=0-10")]
    assert cost(lambda: folder.read("a/b", 2, 5)) == [("GET", "bytes=2-4")]
    blocks = cost(lambda: folder.read_blocks("a/b", 4, [3, 2], lambda number, block: None))
    assert blocks == [("GET", "bytes=4-8")]
    assert cost(lambda: folder.size("a/b")) == [("HEAD", None)]
    assert cost(lambda: folder.read("a/b")) == [("HEAD", None), ("GET", "bytes=0-9")]
    assert cost(folder.list) == [("GET", None)]


def test_create_only_is_decided_by_the_server(s3_server: S3Server, s3_root: str) -> None:
    folder = Folder.open(s3_root)
    assert folder.create("manifest", b"first")
    assert [request.headers["if-none-match"] for request in s3_server.requests] == ["*"]
    s3_server.clear()
    assert not folder.create("manifest", b"second")
    # Not by a look beforehand, which another writer could come after.
    assert s3_server.methods() == ["PUT"]
    assert folder.read("manifest") == b"first"


def test_what_is_missing_or_ends_early(s3_server: S3Server, s3_root: str) -> None:
    folder = Folder.open(s3_root)
    folder.write("object", b"0123456789")
    folder.write("empty", b"")
    assert folder.read("object", 20, 25) == b""
    assert folder.read("object", 8, 20) == b"89"
    assert folder.read("empty") == folder.read("empty", 0, 1) == b""
    s3_server.clear()
    with pytest.raises(IntegrityError, match="missing is missing"):
        folder.read("missing", 0, 3)
    assert set(s3_server.methods()) <= {"GET", "HEAD"}
    assert folder.size("missing") is None
