"""What every request passes before anything reads it: its token, and its size."""

import hashlib
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import JSONResponse

from specpipe.pipeline.api.objects import error_object

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/health",)


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
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._most_bytes:
            await self._too_large()(scope, receive, send)
            return
        await _Counted(self._app, self._most_bytes, self._too_large()).run(scope, receive, send)

    def _is_known(self, header: bytes | None) -> bool:
        kind, _, token = (header or b"").partition(b" ")
        digest = hashlib.sha256(token.strip()).digest()
        return hmac.compare_digest(digest, self._digest) and kind.lower() == b"bearer"

    def _too_large(self) -> JSONResponse:
        most = self._most_bytes // 2**20
        return JSONResponse(
            error_object(f"the request is over {most} MiB, the limit of this server"),
            status_code=413,
            headers={"Connection": "close"},
        )


class _Counted:
    """One request whose body is counted as it comes: its length may be a lie, or not be given."""

    def __init__(self, app: App, most_bytes: int, too_large: JSONResponse) -> None:
        self._app, self._left, self._too_large = app, most_bytes, too_large
        self._has_answered = False

    async def run(self, scope: Message, receive: Receive, send: Send) -> None:
        async def counted() -> Message:
            message = await receive()
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                raise _TooLargeError
            return message

        async def watched(message: Message) -> None:
            self._has_answered = True
            await send(message)

        try:
            await self._app(scope, counted, watched)
        except _TooLargeError:
            if not self._has_answered:
                await self._too_large(scope, receive, send)


class _TooLargeError(Exception):
    """The body is over the limit."""
