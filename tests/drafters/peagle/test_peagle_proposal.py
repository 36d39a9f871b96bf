"""The trained drafter, its files in both formats, and the plain implementation: one drafter.

Legend: K heads, N starts, T tokens, V vocabulary, D draft vocabulary.
"""

from pathlib import Path

import pytest
import torch

from specpipe.schemas.drafters.base import DrafterShape
from specpipe.schemas.drafters.registry import shape_of_json
from specpipe.stages.acceptance.draft_vocab import VocabMap
from specpipe.stages.drafters.artifact_format import Drafter
from specpipe.stages.drafters.peagle.architecture import ARCHITECTURE
from specpipe.stages.drafters.peagle.model import Peagle
from specpipe.stages.drafters.reading import read_artifact
from specpipe.stages.samples.batch import make_batch
from tests.drafters.peagle.toys import embedding, random_weights, shape_of
from tests.drafters.toys import DRAFT_IDS, Given, V, random_sample

K = 6
MASK_T = [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]
VARIANTS: list[dict[str, object]] = [
    {},
    {"norm_before_residual": False},
    {"norm_before_fc": False},
    {"num_layers": 2},
    {"num_layers": 4, "layer_type": "qwen3"},
    {"layer_type": "qwen3", "aux_layers": (1, 2, 3, 5)},
    {"sliding_window": 3, "num_layers": 2},
    {"sliding_window": 8},
    {"draft_vocab_size": len(DRAFT_IDS)},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_the_files_are_the_drafter_that_is_trained(
    changes: dict[str, object], tmp_path: Path
) -> None:
    shape = shape_of(**changes)  # type: ignore[arg-type]
    ids_D = torch.tensor(DRAFT_IDS) if shape.draft_vocab_size < V else torch.arange(V)
    target = Given(embedding(), embedding(1))
    model = Peagle(shape, target.embedding_VH)
    random_weights(model, 0)
    vocab = VocabMap(ids_D, V).tensors()
    tensors = ARCHITECTURE.artifact_tensors(shape, model.state_dict(), vocab, target)
    sample = random_sample(MASK_T, target.lm_head_VH, 0, num_aux=shape.num_aux)
    batch = make_batch([sample], K)
    hidden_KNH = model.double()(batch)
    aux_TLH = batch.aux_TLH
    for format in ARCHITECTURE.formats.values():
        if format.inexpressible(shape):
            continue
        folder = tmp_path / format.name
        folder.mkdir()
        format.write(folder, format.config(Drafter(shape, "target", "X", K)), tensors)
        read = read_artifact(str(folder))
        assert read.shape == shape
        assert torch.equal(read.vocab().target_ids_D, ids_D)
        _same_weights(ARCHITECTURE.model_weights(read, target), model)
        plain = ARCHITECTURE.proposal(folder, target).double()
        first, last = int(batch.starts_N[0]), int(batch.starts_N[-1]) + 1
        plain_KRH = plain.hidden(batch.input_ids_T, aux_TLH, first, last, K)
        for k in range(1, K + 1):
            used_N = batch.rows_KN[k - 1] >= 0
            ours = model.lm_head(hidden_KNH[k - 1, used_N])
            theirs = plain.logits(plain_KRH[k - 1, batch.starts_N[used_N] - first], k)
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def _same_weights(weights: dict[str, torch.Tensor], model: Peagle) -> None:
    expected = model.state_dict()
    assert set(weights) == set(expected)
    for name, weight in weights.items():
        assert torch.equal(weight.double(), expected[name].double()), name


def test_a_shape_is_the_same_after_it_was_stored() -> None:
    shape = shape_of(num_layers=3, sliding_window=9)
    stored: DrafterShape = shape_of_json(shape.model_dump_json().encode())
    assert stored == shape
