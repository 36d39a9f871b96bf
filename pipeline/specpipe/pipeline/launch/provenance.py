"""Who made an output: versions, command line, machine; written beside it, never with a secret."""

import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

from specpipe.schemas.location import without_credentials
from specpipe.schemas.records.checkpoint import PROVENANCE_FILE
from specpipe.schemas.settings.stages import Config
from specpipe.schemas.versions import versions


def provenance(config: dict[str, Any]) -> bytes:
    """provenance.json: resolved settings, versions, command line, machine and time."""
    record = {
        "command": [without_credentials(argument) for argument in sys.argv],
        "config": json.loads(without_credentials(json.dumps(config))),
        "versions": versions(),
        "platform": platform.platform(),
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return json.dumps(record, indent=2).encode()


def write_provenance(folder: Path, config: Config) -> None:
    """Write provenance.json into a local folder. Raises StoreError."""
    from specpipe.stages.storage.store.local_disk import write_file

    write_file(folder / PROVENANCE_FILE, provenance(config.model_dump(mode="json")))
