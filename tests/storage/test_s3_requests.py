"""What each operation on S3 costs in requests, and that writing once is the server's decision."""

from specpipe.stages.storage.folder import Folder
from tests.s3 import S3Server


def test_a(s3_server: S3Server, s3_root: str) -> None:
    folder = Folder.open(s3_root)

    def show(what, f):
        s3_server.requests.clear()
        try:
            r = f()
        except Exception as e:
            r = repr(e)
        print(
            what,
            [
                (
                    q.method,
                    q.path.split("/", 2)[-1],
                    q.query,
                    q.headers.get("range"),
                    q.headers.get("if-none-match"),
                )
                for q in s3_server.requests
            ],
            str(r)[:200],
        )

    show("write", lambda: folder.write("a/b", b"0123456789"))
    show("create", lambda: folder.create("a/c", b"0123456789"))
    show("create again", lambda: folder.create("a/c", b"0123456789"))
    show("read", lambda: folder.read("a/b"))
    show("range", lambda: folder.read("a/b", 0, 11))
    show("range2", lambda: folder.read("a/b", 2, 5))
    show("beyond", lambda: folder.read("a/b", 20, 25))
    show("size", lambda: folder.size("a/b"))
    show("missing", lambda: folder.size("a/missing"))
    show("read missing", lambda: folder.read("a/missing", 0, 3))
    show("sizes", lambda: folder.sizes())
    show("remove", lambda: folder.remove("a/b"))
    show("remove", lambda: folder.remove("a"))
    show("sizes", lambda: folder.sizes())
    folder.write("empty", b"")
    show("read empty", lambda: folder.read("empty"))
    show("read empty", lambda: folder.read("empty", 0, 1))
