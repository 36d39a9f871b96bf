"""Ready draft vocabularies from files, as other programs write them."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from specpipe.schemas.errors import ConfigError
from specpipe.stages.acceptance.draft_vocab import VocabMap
from specpipe.stages.acceptance.draft_vocab_file import read_vocab_file

V = 12
IDS = [1, 2, 5, 11]
OFFSETS = [1, 1, 3, 8]
MASK = [token in IDS for token in range(V)]


def written(folder: Path, name: str, **arrays: Any) -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        save_file({key: torch.as_tensor(value) for key, value in arrays.items()}, path)
    else:
        np.save(path, next(iter(arrays.values())))
    return path


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        ("map.safetensors", {"d2t": OFFSETS, "t2d": MASK}),
        ("map.safetensors", {"d2t": torch.tensor(OFFSETS, dtype=torch.int32)}),
        ("map.safetensors", {"t2d": MASK, "lm_head.weight": [1.0]}),
        ("d2t.npy", {"d2t": np.array(OFFSETS)}),
        ("t2d.npy", {"t2d": np.array(MASK)}),
        ("tokens.npy", {"ids": np.array(IDS, dtype=np.int32)}),
    ],
)
def test_every_form_is_the_same_map(tmp_path: Path, name: str, arrays: dict[str, Any]) -> None:
    vocab = read_vocab_file(written(tmp_path, name, **arrays), V)
    assert vocab.target_ids_D.tolist() == IDS
    assert vocab.target_ids_D.dtype == torch.int64
    assert vocab.vocab_size == V


@given(ids=st.sets(st.integers(0, 30), min_size=1), form=st.integers(0, 3))
def test_any_map_round_trips(
    tmp_path_factory: pytest.TempPathFactory, ids: set[int], form: int
) -> None:
    vocab = VocabMap(torch.tensor(sorted(ids)), 31)
    tensors = vocab.tensors()
    forms: list[tuple[str, dict[str, Any]]] = [
        ("map.safetensors", tensors),
        ("d2t.npy", {"d2t": tensors["d2t"].numpy()}),
        ("t2d.npy", {"t2d": tensors["t2d"].numpy()}),
        ("ids.npy", {"ids": vocab.target_ids_D.numpy()}),
    ]
    name, arrays = forms[form]
    path = written(tmp_path_factory.mktemp("vocab"), name, **arrays)
    assert torch.equal(read_vocab_file(path, 31).target_ids_D, vocab.target_ids_D)


@pytest.mark.parametrize(
    ("name", "arrays", "words"),
    [
        ("map.safetensors", {"d2t": IDS, "t2d": MASK}, "offsets|do not describe"),
        ("map.safetensors", {"x": [1]}, "neither d2t nor t2d"),
        ("map.safetensors", {"t2d": MASK[:-1]}, r"t2d is bool \[11\].*bool \[12\]"),
        ("map.safetensors", {"d2t": [0.0, 1.0]}, r"d2t is float32 \[2\].*whole numbers"),
        ("map.safetensors", {"d2t": [[0, 1]]}, r"int64 \[1, 2\]"),
        ("map.safetensors", {"d2t": [0, 0, -2]}, "ascending"),
        ("map.safetensors", {"d2t": [0, 11]}, "outside the vocabulary of 12"),
        ("t2d.npy", {"t2d": np.zeros(V, bool)}, r"d2t is int64 \[0\]"),
        ("ids.npy", {"ids": np.array([5, 2])}, "ascending"),
        ("ids.npy", {"ids": np.array([5, 5])}, "ascending"),
        ("ids.npy", {"ids": np.array([5, V])}, "outside the vocabulary of 12"),
        ("ids.npy", {"ids": np.arange(V + 1)}, r"1 to 12 whole numbers"),
    ],
)
def test_other_files_are_refused(
    tmp_path: Path, name: str, arrays: dict[str, Any], words: str
) -> None:
    path = written(tmp_path, name, **arrays)
    with pytest.raises(ConfigError, match=words) as raised:
        read_vocab_file(path, V)
    assert str(path) in str(raised.value)


def test_d2t_must_agree_with_the_t2d_beside_it(tmp_path: Path) -> None:
    path = written(tmp_path, "d2t.npy", d2t=np.array(OFFSETS))
    written(tmp_path, "t2d.npy", t2d=np.array(MASK))
    assert read_vocab_file(path, V).target_ids_D.tolist() == IDS
    # The ids themselves: ascending offsets too, but of other tokens.
    written(tmp_path, "d2t.npy", d2t=np.array(IDS[:3]))
    with pytest.raises(ConfigError, match="do not describe the same"):
        read_vocab_file(path, V)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "opened",)

    for name in ("d2t.pt", "d2t.npy"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(ConfigError, match=r"pickle|cannot be read"):
            read_vocab_file(tmp_path / name, V)
    np.save(tmp_path / "ids.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_vocab_file(tmp_path / "ids.npy", V)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_vocab_file(tmp_path / "nowhere.npy", V)
    assert not (tmp_path / "opened").exists()
