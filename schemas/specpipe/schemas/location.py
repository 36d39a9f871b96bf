"""Paths and URLs: as they may be shown and written, and those that must be local."""

import re
from pathlib import Path

from specpipe.schemas.errors import ConfigError

# Everything up to the last @, since passwords hold @ and / too; a colon that begins a port is none.
_USER_AND_PASSWORD = re.compile(r"(?<=://)[^/\s\"'@]*:(?!\d{1,5}/)[^\s\"']*@")
_HTTP_TOKEN = re.compile(r"(https?://)[^/\s\"'@]+@")
# Signatures and tokens stand in queries and fragments.
_QUERY = re.compile(r"(\w://[^\s?#\"']*)[?#][^\s\"']*")


def without_credentials(text: str) -> str:
    """Text with the user:password, the query and the fragment of every URL in it taken out.

    A lone name before the @ is a token for http, and no secret elsewhere:
    abfs://container@account.
    """
    text = _HTTP_TOKEN.sub(r"\1", _USER_AND_PASSWORD.sub("", text))
    return _QUERY.sub(r"\1", text)


def local_path(location: str, why: str) -> Path:
    """The path of a local location; raises ConfigError, which says why, for any other."""
    if "://" in location and not location.startswith("file://"):
        raise ConfigError(f"{without_credentials(location)}: {why}")
    return Path(location.removeprefix("file://"))
