"""Which trainings the study of defaults compares: one coordinate at a time, beside the defaults."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from scripts.quality.cell import Settings

DEFAULT = "default"
EAGLE3 = "eagle3"

_NORMS = ("norm_before_residual", "norm_before_fc")

COORDINATES: Mapping[str, Mapping[str, Settings]] = {
    "optimizer": {
        f"{name}-{rate}": {"optimizer": name, "learning_rate": rate}
        for name, rates in {
            "muon": (2e-3, 4e-3, 1.5e-2, 3e-2),
            "adamw": (4e-4, 1e-3, 2e-3, 4e-3, 8e-3),
        }.items()
        for rate in rates
    },
    "muon": {
        "momentum-0.85": {"muon_momentum": 0.85},
        "momentum-0.95": {"muon_momentum": 0.95},
        **{f"muon-part-{rate}": {"muon_learning_rate": rate} for rate in (2e-3, 1e-2)},
    },
    "betas": {
        "0.9-0.99": {"adam_betas": (0.9, 0.99)},
        "0.95-0.95": {"adam_betas": (0.95, 0.95)},
    },
    "decay": {f"{decay}": {"muon_weight_decay": decay} for decay in (0.0, 0.1, 0.3, 1.0, 3.0)},
    "states": {f"{weight}": {"state_loss": weight} for weight in (0.0, 1.0, 3.0, 30.0)},
    "start": {"fresh": {"fresh_layer": True}},
    "clip": {f"{norm}": {"max_grad_norm": norm} for norm in (0.1, 1.0, 10.0)},
    "warmup": {f"{share}": {"warmup_ratio": share} for share in (0.0, 0.01, 0.1)},
    "schedule": {
        **{name: {"schedule": name} for name in ("cosine", "linear", "constant")},
        **{f"wsd-{share}": {"wsd_decay": share} for share in (0.2, 0.6)},
    },
    "batch": {f"{tokens}": {"batch_tokens": tokens} for tokens in (256, 1024, 2048, 8192)},
    "norms": {
        "none": dict.fromkeys(_NORMS, False),
        **{f"no-{name}": {name: False} for name in _NORMS},
        "norm_output": {"norm_output": True},
        "fc_norm": {"norm_before_fc": False, "fc_norm": True},
    },
    "layer": {"qwen3": {"layer_type": "qwen3"}, "two": {"num_layers": 2}},
    "loss": {
        "kl": {"loss": "kl"},
        "lk_alpha": {"loss": "lk_alpha"},
        "ce": {"loss": "ce"},
        "tv": {"loss": "tv"},
        "kl-tv": {"loss": {"kl": 0.5, "tv": 0.5}},
        **{f"eta-{eta}": {"eta": eta} for eta in (1.0, 6.0)},
        "lambda-token": {"lambda_scope": "token"},
    },
    "heads": {
        "survival": {"head_weights": "survival"},
        "decay-0.6": {"head_decay": 0.6},
        "decay-1": {"head_decay": 1.0},
        "K-5": {"num_heads": 5},
        "K-7": {"num_heads": 7},
    },
}
"""What is changed of EAGLE-3, by coordinate and name."""


BLOCKS: Settings = {"num_heads": 7, "num_layers": 2, "max_steps": 200}
"""What is set of drafters that draft in one pass, beside what is changed."""

_PUBLISHED: Settings = {"head_weights": "static", "head_decay": math.exp(-1 / 4)}
"""DFlash's and DSpark's weights, for blocks of 8 slots: exp(-(k - 1) / 4)."""

BLOCK_COORDINATES: Mapping[str, Mapping[str, Settings]] = {
    "loss": {
        "kl": {"loss": "kl"},
        "lk_alpha": {"loss": "lk_alpha"},
        "lk_hybrid-static": {"head_weights": "static"},
        "lk_hybrid-survival": {"head_weights": "survival"},
        "lk_hybrid-dpace": {"head_weights": "dpace"},
        "ce (DFlash)": {"loss": "ce"} | _PUBLISHED,
        "ce-dpace (D-PACE)": {"loss": "ce", "head_weights": "dpace"},
        "ce-tv (DSpark)": {"loss": "dspark"} | _PUBLISHED,
    }
}
"""Of drafters that draft in one pass: our losses, and those that were published for blocks."""


@dataclass(frozen=True)
class StudyCell:
    """A training with one thing changed."""

    material: str
    drafter: str
    coordinate: str
    choice: str
    seed: int
    settings: Settings = field(hash=False, compare=False)

    @property
    def name(self) -> str:
        kind = () if self.drafter == EAGLE3 else (self.drafter,)
        return "-".join((self.material, *kind, self.coordinate, self.choice, str(self.seed)))


def study_cells(
    materials: Sequence[str], drafter: str, seeds: Sequence[int], common: Settings
) -> Iterator[StudyCell]:
    """All cells, seed by seed."""
    every = COORDINATES if drafter == EAGLE3 else BLOCK_COORDINATES
    for seed in seeds:
        for material in materials:
            given = (common if drafter == EAGLE3 else BLOCKS | common) | {"seed": seed}
            yield StudyCell(material, drafter, DEFAULT, DEFAULT, seed, given)
            for coordinate, choices in every.items():
                for choice, settings in choices.items():
                    yield StudyCell(material, drafter, coordinate, choice, seed, given | settings)
