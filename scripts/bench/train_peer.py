"""The other side of the training benchmark: vLLM's speculators 0.9.0, in its own environment.

Its own model, dataset, packing, collation, optimiser and `Trainer.train_epoch` run; after each
step, where it reports its metrics, the gate waits. What does not work without an accelerator is
replaced (`without_accelerator`): the device, a synchronisation, and the type that autocast asks
for. There it trains with eager losses and SDPA, since its fused losses need Triton and the
backward pass of flex attention a GPU; on a GPU it is left as it is, with both.
"""

import json
import logging
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from scripts.bench.paced import Gate, asked


def main() -> None:
    values = asked()
    gate = Gate()
    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(values["threads"])
    root = Path(values["root"])
    data = root / "data"
    if not (data / "dataset_info.json").exists():
        write_dataset(root / "rows.json", data)
    on_gpu = torch.cuda.is_available()
    import speculators.train.cli as cli  # type: ignore[import-not-found]
    import speculators.train.trainer as trainer  # type: ignore[import-not-found]
    from speculators.train.config import TrainConfig  # type: ignore[import-not-found]

    if not on_gpu:
        without_accelerator(torch, trainer)

    def run_training(self: Any) -> None:
        trainer.metric_logger.addHandler(_Steps(gate))
        trainer.metric_logger.setLevel(logging.INFO)
        gate.ready()
        epoch = 0
        while True:
            self.train_epoch(epoch)
            epoch += 1

    trainer.Trainer.run_training = run_training
    sys.argv = _arguments(values, root, on_gpu)
    cli.main(TrainConfig.resolve(sys.argv[1:]))


class _Steps(logging.Handler):
    """Hears of every step."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate

    def emit(self, record: logging.LogRecord) -> None:
        message = record.msg
        if isinstance(message, dict) and "train" in message:
            profile = message["profile"]
            tokens = round(profile["tokens_per_s"] * profile["step_ms"] / 1000)
            self._gate.step(tokens, message["train"]["loss"])


def _arguments(values: dict[str, Any], root: Path, on_gpu: bool) -> list[str]:
    options: dict[str, Any] = {
        "speculator-type": values["drafter"],
        "verifier-name-or-path": values["target"],
        "data-path": root / "data",
        "on-missing": "raise",
        "total-seq-len": values["pack_tokens"],
        "epochs": 10**6,
        "max-steps": 10**6,
        "log-freq": 1,
        "num-workers": values["workers"],
        "save-path": root / "checkpoints",
        "log-dir": root / "logs",
        "loss-fn": "kl_div",
        "loss-implementation": "fused" if on_gpu else "eager",
        "hidden-states-dtype": "bfloat16" if on_gpu else "float32",
        "optimizer": "adamw",
        "lr": 1e-4,
        **_steps(values),
        "seed": 0,
    }
    layers = ["--target-layer-ids", *map(str, values["aux"])]
    if values["drafter"] == "mtp":  # the layer is the target's: nothing else can be asked for
        layers = []
    else:
        options |= {"mask-token-id": 0, "num-layers": 1}
        options["draft-attn-impl"] = "simple_flex_attention" if on_gpu else "sdpa"
        if values["draft_vocab"] is not None:
            options["draft-vocab-size"] = values["draft_vocab"]
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return ["train", *flags, *layers]


def _steps(values: dict[str, Any]) -> dict[str, Any]:
    """How many tokens are drafted, in its words for the drafter."""
    if values["drafter"] == "mtp":
        return {"num-speculative-steps": values["num_heads"]}
    if values["drafter"] == "peagle":
        # Ours takes as many of each text, and theirs of each pack.
        return {"num-depths": values["num_heads"], "max-anchors": values["pack_tokens"]}
    if values["drafter"] == "dflash":
        # Half of a pack is supervised; with more, theirs computes padded blocks too.
        return {
            "block-size": values["num_heads"] + 1,
            "max-anchors": values["pack_tokens"] // 2,
            "per-position-loss-weight": "fixed-exp-decay",
        }
    return {"ttt-steps": values["num_heads"], "ttt-step-loss-decay": values["head_decay"]}


def write_dataset(rows: Path, data: Path) -> None:
    """The Arrow dataset and the token counts that its `prepare-data` leaves; the states move in."""
    import torch
    from datasets import Dataset  # type: ignore[import-not-found]

    columns = json.loads(rows.read_text())
    dataset = Dataset.from_dict(columns)
    dataset.set_format(type="torch", columns=["input_ids", "loss_mask"], output_all_columns=True)
    dataset.save_to_disk(str(data))
    counts: Counter[int] = Counter()
    for ids, mask in zip(columns["input_ids"], columns["loss_mask"], strict=True):
        counts.update(token for token, supervised in zip(ids, mask, strict=True) if supervised)
    torch.save(dict(counts), data / "token_freq.pt")
    (rows.parent / "hidden_states").rename(data / "hidden_states")


def without_accelerator(torch: Any, trainer: Any) -> None:
    """Let its trainer run where there is none."""
    cpu = torch.device("cpu")
    trainer.get_local_rank = lambda: cpu
    torch.accelerator.synchronize = lambda *_, **__: None
    init = trainer.Trainer.__init__

    def init_on_cpu(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        self.device_type = "cpu"

    trainer.Trainer.__init__ = init_on_cpu


if __name__ == "__main__":
    main()
