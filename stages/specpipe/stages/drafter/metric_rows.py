"""The rows of a run's metrics.jsonl."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specpipe.schemas.checkpoint import METRICS_FILE


def metric_rows(run: Path) -> Iterator[dict[str, Any]]:
    """Each row in its order, none where there is no file; a line that a kill tore is no row."""
    path = run / METRICS_FILE
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row: dict[str, Any] = json.loads(line)
        except ValueError:
            return
        yield row
