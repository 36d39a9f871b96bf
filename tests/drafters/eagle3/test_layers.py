"""Which auxiliary layers EAGLE-3 reads where nobody names them."""

import pytest

from specpipe.schemas.drafters.eagle3 import Eagle3Settings


@pytest.mark.parametrize(
    ("num_layers", "ours", "undeclared"),
    [
        (4, (1, 2, 3), (1, 2, 3)),
        (5, (1, 3, 4), (1, 3, 4)),
        (6, (1, 3, 5), (1, 3, 5)),
        (7, (1, 4, 6), (2, 3, 4)),
        (8, (2, 4, 7), (2, 4, 5)),
        (32, (2, 16, 31), (2, 16, 29)),
    ],
)
def test_the_last_of_them_enters_the_last_layer(
    num_layers: int, ours: tuple[int, ...], undeclared: tuple[int, ...]
) -> None:
    assert Eagle3Settings.default_layers(num_layers) == ours
    assert Eagle3Settings.undeclared_layers(num_layers) == undeclared


def test_a_target_of_three_layers_has_none() -> None:
    with pytest.raises(ValueError, match="has no three auxiliary layers"):
        Eagle3Settings.default_layers(3)


@pytest.mark.parametrize(
    ("stored", "chosen"),
    [
        ((2, 4, 5, 7), (2, 4, 7)),
        ((2, 3, 4, 5), (2, 4, 5)),  # as dumps of before have it
        ((1, 3, 8), (1, 3)),
        ((8,), (8,)),
    ],
)
def test_of_a_dump_the_usual_ones_are_read_or_all_below_the_last(
    stored: tuple[int, ...], chosen: tuple[int, ...]
) -> None:
    assert Eagle3Settings.chosen_layers(stored, 8) == chosen
