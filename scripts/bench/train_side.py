"""One training run of part f, in a process of its own."""

from scripts.bench.child import Values, serve_parent
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.train.run import run


def answer(asked: Values) -> Values:
    result = run(TrainConfig(**asked))
    return {
        "steps": result.steps,
        "num_tokens": result.num_tokens,
        "loss": result.draft_loss_last,
        "seconds": result.seconds,
        "data_wait": result.data_wait,
    }


if __name__ == "__main__":
    serve_parent(answer)
