"""Who made an output: versions, command line, machine; written beside it, never with a secret."""

import json
import platform
import re
import sys
import time
from typing import Any

from specpipe.schemas.versions import versions

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
_SECRET_QUERY = re.compile(r"(?i)([?&][^=&\s]*(?:key|token|secret|signature|sig)[^=&\s]*=)[^&\s]+")


def without_secrets(text: str) -> str:
    """Text with the credentials and secret query values of the URLs in it taken out."""
    return _SECRET_QUERY.sub(r"\1***", _CREDENTIALS.sub("***@", text))


def provenance(config: dict[str, Any]) -> bytes:
    """provenance.json: resolved settings, versions, command line, machine and time."""
    record = {
        "command": [without_secrets(argument) for argument in sys.argv],
        "config": json.loads(without_secrets(json.dumps(config))),
        "versions": versions(),
        "platform": platform.platform(),
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return json.dumps(record, indent=2).encode()
