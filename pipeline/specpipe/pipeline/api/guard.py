"""Check of every request before it is read: its token and its size."""

import hashlib
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from specpipe.pipeline.api.objects import error_object

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/health",)
UPLOADS = "/v1/files"
MOST_JSON_BYTES = 2**20
"""Of the body of any other request, which is held in memory."""


class Guard:
    """ASGI middleware: 401 without the token, 413 for a body that is too large."""

    def __init__(self, app: App, token: str, most_bytes: int) -> None:
        self._app, self._most_bytes = app, most_bytes
        self._digest = hashlib.sha256(token.encode()).digest()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if scope["path"] not in OPEN_PATHS and not self._is_known(headers.get(b"authorization")):
            # The same whatever was asked for: it tells nothing of what is here.
            answer = JSONResponse(
                error_object("the bearer token is missing or wrong", code="invalid_api_key"),
                status_code=401,
                headers={"WWW-Authenticate": "Bearer"},
            )
            await answer(scope, receive, send)
            return
        most = self._most_bytes if scope["path"] == UPLOADS else MOST_JSON_BYTES
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > most:
            answer = JSONResponse(error_object(_too_large(most)), status_code=413)
            await answer(scope, receive, send)
            return
        await self._app(scope, _counted(receive, most), send)

    def _is_known(self, header: bytes | None) -> bool:
        kind, _, token = (header or b"").partition(b" ")
        digest = hashlib.sha256(token.strip()).digest()
        return hmac.compare_digest(digest, self._digest) and kind.lower() == b"bearer"


def _counted(receive: Receive, most: int) -> Receive:
    """The body counted as it comes: its length may be a lie, or not be given."""
    left = most

    async def counted() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise HTTPException(413, _too_large(most))
        return message

    return counted


def _too_large(most: int) -> str:
    return f"the request is over {most // 2**20} MiB, this server's limit"
