"""The peer's side of a cell: vLLM's speculators 0.9.0, whole, in its own environment.

Its command line, with every default of its own but those that `FORCED` names; it trains, validates
and saves as it does anywhere. The seconds of `train_epoch` are counted, and nothing else of it.
"""

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from scripts.bench.train_peer import without_accelerator, write_dataset

FORCED = {
    "loss-implementation": "eager",  # its fused losses need Triton
    "draft-attn-impl": "sdpa",  # the backward pass of flex attention needs a GPU
    "num-workers": 0,  # one thread
    "mask-token-id": 0,  # without a look into the tokenizer; EAGLE-3 has no use for it
    "on-missing": "raise",  # no server to ask for states
}
"""What a CPU and one thread want otherwise than it is by default."""


def main() -> None:
    values: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(1)
    data = Path(values["data"])
    if not (data / "dataset_info.json").exists():
        write_dataset(data.parent / "rows.json", data)
    import speculators.train.cli as cli  # type: ignore[import-not-found]
    import speculators.train.trainer as trainer  # type: ignore[import-not-found]
    from speculators.train.config import TrainConfig  # type: ignore[import-not-found]

    without_accelerator(torch, trainer)
    counted = {"cpu_seconds": 0.0, "seconds": 0.0, "steps": 0}
    epoch = trainer.Trainer.train_epoch

    def train_epoch(self: Any, *args: Any, **options: Any) -> None:
        cpu, wall = time.process_time(), time.time()
        epoch(self, *args, **options)
        counted["cpu_seconds"] += time.process_time() - cpu
        counted["seconds"] += time.time() - wall
        counted["steps"] = self.global_step

    trainer.Trainer.train_epoch = train_epoch
    settings = FORCED | values["settings"]
    flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    flags += ["--target-layer-ids", *map(str, values["aux"])]
    sys.argv = ["train", "--speculator-type", "eagle3", "--data-path", str(data), *flags]
    cli.main(TrainConfig.resolve(sys.argv[1:]))
    Path(values["counted"]).write_text(json.dumps(counted), encoding="utf-8")


if __name__ == "__main__":
    main()
