"""GSM8K as conversations."""

import json
import re
from pathlib import Path

Conversation = list[dict[str, str]]


def read_conversations(path: Path) -> list[Conversation]:
    """GSM8K lines as two-message conversations, without the calculator marks `<<48/2=24>>`."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": re.sub(r"<<[^>]*>>", "", row["answer"])},
        ]
        for row in rows
    ]
