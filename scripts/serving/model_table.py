"""Write a vLLM version into the package's table of models.

python -m scripts.serving.model_table 0.33 FOLDER     FOLDER: `vllm` of an installation or a wheel
"""

import json
import sys
from pathlib import Path

from specpipe.stages.target.vllm.support import model_table
from specpipe.stages.target.vllm.support.model_source import ModelSource


def main(version: str, folder: str) -> None:
    file = Path(model_table.__file__).with_name(model_table.FILE)
    table = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    table[version] = model_table.models_of(ModelSource(Path(folder)))
    by_age = sorted(table.items(), key=lambda entry: [int(part) for part in entry[0].split(".")])
    file.write_text(json.dumps(dict(by_age), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
