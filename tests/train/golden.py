"""Loss curves that are to stay: 20 steps of each loss, from a tiny dump that is made anew.

    OMP_NUM_THREADS=1 python -m tests.train.golden            compare bit for bit with the file
    OMP_NUM_THREADS=1 python -m tests.train.golden --write    write the file anew

CPUs differ in the last bits (test_golden_curve.py allows for that): bits are compared on the
machine that wrote the file, or on any one by `--write` before a change and a comparison after it.
"""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from specpipe.stages.storage.store.crc import crc32c
from specpipe.stages.train.run import run
from tests.train.conftest import config_of, read_metrics, write_dump

FILE = Path(__file__).parents[1] / "golden" / "loss-curves.json"
STATES = " and state_loss=3"
LOSSES = (
    *("kl", "lk_alpha", "lk_hybrid", "ce", "tv", "kl=0.5,lk_alpha=0.3,ce=0.2"),
    f"lk_hybrid{STATES}",
)
NUM_STEPS = 20


@dataclass(frozen=True)
class Curve:
    """What a run came to."""

    losses: list[float]
    """draft_loss of each step."""
    norms: dict[str, float]
    """Of each trained tensor at the end, in float64."""
    crcs: dict[str, str]
    """crc32c of each trained tensor's bytes at the end; of no use on another machine."""


def curve(loss: str, dump: Path, out: Path) -> Curve:
    """Train for 20 steps, on one thread."""
    config = config_of(
        dump=str(dump),
        out=str(out),
        loss=loss.removesuffix(STATES),
        state_loss=3 if loss.endswith(STATES) else 0,
        max_steps=NUM_STEPS,
        warmup_ratio=0.2,
        eval_every=NUM_STEPS,
    )
    run(config)
    steps = [row for row in read_metrics(out) if "eval" not in row]
    folder = out / "checkpoints" / (out / "latest").read_text()
    tensors = load_file(folder / "model.safetensors")
    return Curve(
        losses=[row["draft_loss"] for row in steps],
        norms={name: float(tensor.double().norm()) for name, tensor in tensors.items()},
        crcs={name: f"{crc32c(t.numpy().tobytes()):08x}" for name, t in tensors.items()},
    )


def stored() -> dict[str, Curve]:
    """The file's, by loss; its floats are hexadecimal, which is all of their bits."""

    def read(losses: list[str], norms: dict[str, str], crcs: dict[str, str]) -> Curve:
        by_name = {name: float.fromhex(norm) for name, norm in norms.items()}
        return Curve([float.fromhex(loss) for loss in losses], by_name, crcs)

    curves = json.loads(FILE.read_text(encoding="utf-8"))
    return {loss: read(**curve) for loss, curve in curves.items()}


def store(curves: dict[str, Curve]) -> None:
    content = {
        name: {
            "losses": [loss.hex() for loss in curve.losses],
            "norms": {tensor: norm.hex() for tensor, norm in curve.norms.items()},
            "crcs": curve.crcs,
        }
        for name, curve in curves.items()
    }
    FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        dump = write_dump(Path(folder))
        curves = {loss: curve(loss, dump, Path(folder, str(n))) for n, loss in enumerate(LOSSES)}
    if "--write" in sys.argv:
        store(curves)
        return 0
    differing = [loss for loss, curve in stored().items() if curves.get(loss) != curve]
    print(f"differ in bits: {', '.join(differing)}" if differing else "equal bit for bit")
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())
