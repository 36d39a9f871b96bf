"""The last layer's output at verifier rows, for drafters that take it nowhere else.

A dump of logits mode `final` holds it, before the final norm, whatever its auxiliary layers are.

Legend: T tokens, S verifier rows, L aux layers, H hidden size.
"""

from dataclasses import replace

import numpy as np

from specpipe.schemas.drafters.base import DrafterSettings
from specpipe.schemas.records.dump import DumpIdentity
from specpipe.schemas.records.sample import verifier_rows
from specpipe.stages.samples.batch import DrafterSample


def layers_for(drafter: type[DrafterSettings], identity: DumpIdentity) -> tuple[int, ...]:
    """Layer ids that a drafter of these settings may take of a dump, ascending."""
    if not drafter.reads_starts_alone or identity.logits != "final":
        return identity.layers
    return tuple(sorted({*identity.layers, identity.target.num_layers}))


def with_final_layer(sample: DrafterSample) -> DrafterSample:
    """The sample with the final state as one more auxiliary layer, the last: 0 at positions that
    are no verifier rows."""
    states = sample.states
    assert states.final_SH is not None, "the logits mode of the dump is final"
    num_tokens, _, width = states.aux_TLH.shape
    final_T1H = np.zeros((num_tokens, 1, width), states.aux_TLH.dtype)
    final_T1H[verifier_rows(sample.loss_mask), 0] = states.final_SH
    aux_TLH = np.concatenate([states.aux_TLH, final_T1H], axis=1)
    return replace(sample, states=replace(states, aux_TLH=aux_TLH))
