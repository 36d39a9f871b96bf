"""Errors of stores: which are transient and retried, and the advice for the others.

Errors are classified by their attributes (errno, HTTP status, S3's code) and by the names of their
classes, so that no store's library is imported.
"""

import errno
import http.client
import io
import ssl

_SPACE = (errno.ENOSPC, errno.EDQUOT)
_RIGHTS = (errno.EACCES, errno.EPERM, errno.EROFS)
_STAY = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    io.UnsupportedOperation,
    ssl.SSLCertVerificationError,
)
_PASS = (TimeoutError, ConnectionError, EOFError, http.client.HTTPException)
_LOCAL_ERRNOS = (errno.EINTR, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT)
_REMOTE_ERRNOS = (
    None,  # Raised by a library, not by the operating system.
    *_LOCAL_ERRNOS,
    errno.EIO,
    errno.EBUSY,
    errno.EREMOTEIO,
    errno.EPIPE,
    errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.ECONNABORTED,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENOBUFS,
)
# Of 400s, which otherwise say that the request itself is wrong.
_S3_CODES = (
    "RequestTimeout",
    "IncompleteBody",
    "BadDigest",
    "XAmzContentSHA256Mismatch",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
)
# 408 timeout, 409 two requests at once, 425 too early, 429 too many.
_HTTP_CLIENT_PASS = (408, 409, 425, 429)
# 501 not implemented, 505 HTTP version, 507 no space.
_HTTP_SERVER_STAY = (501, 505, 507)
_CLASSES_STAY = ("botocore.exceptions.SSLError", "botocore.exceptions.InvalidProxiesConfigError")
_CLASSES_PASS = (
    "botocore.exceptions.HTTPClientError",
    "botocore.exceptions.IncompleteReadError",
    "botocore.parsers.ResponseParserError",
    "aiohttp.client_exceptions.ClientConnectionError",
    "aiohttp.client_exceptions.ClientPayloadError",
    "urllib3.exceptions.HTTPError",
    "azure.core.exceptions.ServiceRequestError",
    "azure.core.exceptions.ServiceResponseError",
    "google.auth.exceptions.TransportError",
)


def is_transient(error: BaseException) -> bool:
    """Whether a remote store may answer the same request in a while."""
    classes = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    if classes.intersection(_CLASSES_STAY):
        return False
    # Before the status: aiohttp gives the cause of a cut answer a 400 of its own.
    if s3_code(error) in _S3_CODES or classes.intersection(_CLASSES_PASS):
        return True
    status = http_status(error)
    if status is not None:
        return status in _HTTP_CLIENT_PASS or (status >= 500 and status not in _HTTP_SERVER_STAY)
    if isinstance(error, _STAY):
        return False
    if isinstance(error, _PASS):
        return True
    return isinstance(error, OSError) and error.errno in _REMOTE_ERRNOS


def is_transient_locally(error: BaseException) -> bool:
    """Whether a local disk, or a network file system mounted like one, only stumbled."""
    return isinstance(error, OSError) and error.errno in _LOCAL_ERRNOS


def http_status(error: BaseException | None) -> int | None:
    """The HTTP status that an error, or what caused it, stands for."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):  # botocore
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:  # aiohttp, azure, gcsfs, requests
            status = next(
                (
                    getattr(of, name)
                    for of in (error, response)
                    for name in ("status", "status_code", "code")
                    if isinstance(getattr(of, name, None), int)
                ),
                None,
            )
        if isinstance(status, int) and status >= 400:
            return status
        error = error.__cause__
    return None


def s3_code(error: BaseException | None) -> str | None:
    """S3's own word for the error, such as SlowDown."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code"))
        error = error.__cause__
    return None


def advice(error: BaseException, disk: str = "there") -> str:
    """What somebody can do about an error that stays."""
    number = error.errno if isinstance(error, OSError) else None
    if number in _SPACE or http_status(error) == 507:
        return f"free some space {disk} and run the same command again"
    if isinstance(error, PermissionError) or number in _RIGHTS:
        return f"get the right to do that {disk} and run the same command again"
    if "Credentials" in type(error).__name__:
        return "give the credentials by environment or profile and run the same command again"
    return "run the same command again when that is put right"
