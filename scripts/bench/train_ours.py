"""Our side of the training benchmark: `specpipe train` itself, halted after each step."""

import torch

from scripts.bench.paced import Gate, asked
from scripts.bench.train_watch import StepWatch
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.train.run import run


def main() -> None:
    values = asked()
    torch.set_num_threads(values["threads"])
    gate = Gate(StepWatch())

    def progress(step: int, _: int, figures: dict[str, float]) -> None:
        if "loss" in figures:
            gate.step(round(figures["tokens"]), figures["loss"], figures["data_wait"])
        elif step == 0:
            gate.ready()  # the evaluation before the first step is over

    run(TrainConfig(**values["config"]), progress=progress)


if __name__ == "__main__":
    main()
