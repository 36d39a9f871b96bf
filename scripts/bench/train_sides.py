"""How both sides are started on the same target, texts and settings."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from scripts.bench.paced import Paced
from scripts.bench.train_material import TargetShape
from specpipe.schemas.settings.train import TrainConfig

NEVER = 10**6
"""Steps: more than are made."""


@dataclass(frozen=True, slots=True)
class Setup:
    """A training of either side."""

    root: Path
    """What `train_material.make` wrote."""
    shape: TargetShape
    num_heads: int
    pack_tokens: int
    threads: int
    draft_vocab: int
    drafter: str = "eagle3"

    def at(self, **changes: Any) -> "Setup":
        return replace(self, **changes)


def config_of(setup: Setup, loss: str, **settings: Any) -> TrainConfig:
    """Ours: one pack a step; nothing but steps once they have begun."""
    return TrainConfig(
        dump=str(setup.root / "dump"),
        eval_dump=str(setup.root / "eval"),
        out=str(Path(mkdtemp(dir=setup.root, prefix="run-")) / "run"),
        drafter={"kind": setup.drafter} | ({} if setup.drafter == "mtp" else {"num_layers": 1}),
        loss=loss,
        head_weights="static",  # as theirs
        num_heads=setup.num_heads,
        draft_vocab_size=None if setup.drafter == "mtp" else setup.draft_vocab,
        batch_tokens=setup.pack_tokens,
        max_steps=NEVER,
        eval_every=NEVER,
        checkpoint_every=NEVER,
        dtype="bfloat16" if torch.cuda.is_available() else "float32",
        **settings,
    )


def ours(setup: Setup, loss: str, **settings: Any) -> Paced:
    values = {
        "threads": setup.threads,
        "config": config_of(setup, loss, **settings).model_dump(),
    }
    return Paced(sys.executable, "scripts.bench.train_ours", values, _threads(setup))


def theirs(setup: Setup, python: str, workers: int = 0) -> Paced:
    """Speculators, with `kl`; `workers` read its data ahead (0: between the steps)."""
    whole = setup.draft_vocab == setup.shape.vocab
    values = {
        "threads": setup.threads,
        "root": str(setup.root / "theirs"),
        "target": str(setup.root / "target"),
        "aux": setup.shape.aux,
        "num_heads": setup.num_heads,
        "pack_tokens": setup.pack_tokens,
        "head_decay": TrainConfig.model_fields["head_decay"].default,
        "draft_vocab": None if whole else setup.draft_vocab,
        "workers": workers,
        "drafter": setup.drafter,
    }
    return Paced(python, "scripts.bench.train_peer", values, _threads(setup))


def _threads(setup: Setup) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(setup.threads), "TOKENIZERS_PARALLELISM": "false"}
