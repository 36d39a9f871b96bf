"""The starts that a step trains on, where the drafter does not train on all of them."""

import hashlib

import numpy as np
import numpy.typing as npt

from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.drafters.registry import architecture
from specpipe.stages.samples.batch import ChooseRows, Rows
from specpipe.stages.train.data.order import PlannedRead


def chosen_starts(config: TrainConfig, read: PlannedRead) -> ChooseRows | None:
    """A choice that is a function of the seed, the step and the sample; None: all are taken, as in
    an evaluation."""
    kind = architecture(config.drafter.kind)
    needs_emitted = config.drafter.reads_starts_alone
    if read.step is None or not (kind.samples_starts or needs_emitted):
        return None

    def choose(number: int, rows_KN: Rows, emitted_N: npt.NDArray[np.bool_]) -> Rows:
        ref = read.refs[number]
        # By the sample's place: another number of ranks gives it to another batch.
        identity = f"{config.seed} {read.step} {ref.shard_id} {ref.index}"
        seed = hashlib.sha256(identity.encode()).digest()
        if needs_emitted:
            rows_KN = rows_KN & emitted_N
        return kind.choose_rows(config, rows_KN, np.random.default_rng(list(seed)))

    return choose
