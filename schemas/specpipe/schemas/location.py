"""Paths and URLs as they may be shown and written: without what is secret in them."""

import re

_USER_AND_PASSWORD = re.compile(r"(?<=://)[^/\s\"']*:[^/\s\"']*@")
# Signatures and tokens stand in queries and fragments.
_QUERY = re.compile(r"(\w://[^\s?#\"']*)[?#][^\s\"']*")


def without_credentials(text: str) -> str:
    """Text with the user:password, the query and the fragment of every URL in it taken out.

    A lone name before the @ is no secret: abfs://container@account.
    """
    return _QUERY.sub(r"\1", _USER_AND_PASSWORD.sub("", text))
