"""The scales of a dump of int8 states, from the first texts of its plan.

Legend: T tokens, L aux layers, H hidden size.
"""

from itertools import islice

import torch

from specpipe.schemas.records.dump import AUX_SCALES_FILE
from specpipe.stages.dump_plan.prepared import Prepared
from specpipe.stages.storage.shard.scales import AuxScales, read_scales, write_scales
from specpipe.stages.target.backend import Backend, bfloat16_bits

CALIBRATION_TOKENS = 16384
"""The root mean square of a channel is known to a percent from as many tokens."""


def dump_scales(prepared: Prepared, backend: Backend) -> AuxScales | None:
    """The dump's scales, made of its first shard by whoever comes first; None without int8 states.

    States that are not finite do not count. Raises IntegrityError where the scales in the store are
    damaged.
    """
    folder, identity = prepared.folder, prepared.identity
    if identity.states_dtype != "int8":
        return None
    if folder.exists(AUX_SCALES_FILE):
        return read_scales(folder, identity)
    longest = max(len(sample.input_ids) for sample in prepared.plan[0])
    samples = islice(reversed(prepared.plan[0]), max(1, CALIBRATION_TOKENS // longest))
    states = [captured.aux_TLH for captured in backend.capture(list(samples))]
    aux_TLH = torch.cat([aux for aux in states if bool(aux.isfinite().all())])
    return write_scales(folder, identity, AuxScales.from_states(bfloat16_bits(aux_TLH)))
