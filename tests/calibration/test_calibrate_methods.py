from dataclasses import replace

import pytest

from qsjax.calibration import METHODS, Method, method
from qsjax.calibration.variables import effective_recipe
from qsjax.errors import InputError
from qsjax.quant import Recipe


def test_names_are_keys():
    assert all(name == one.name for name, one in METHODS.items())
    assert method("msad").learns
    assert not method("rtn").learns


@pytest.mark.parametrize(
    ("video", "window", "rows"), [(576, 16, 64), (33_000, 128, 256), (20, 4, 16), (8, 4, 8)]
)
def test_window_and_rows_follow_the_number_of_tokens(video, window, rows):
    sized = method("msad").sized(video)
    assert (sized.window, sized.local_rows) == (window, rows)


def test_given_sizes_stay():
    sized = Method(name="mine", window=7, local_rows=9).sized(576)
    assert (sized.window, sized.local_rows) == (7, 9)


def test_full_attention_takes_all_rows():
    assert method("full-attention").sized(576).local_rows == 576


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rows": "salent"}, "did you mean 'salient'"),
        ({"inputs": "float"}, "no inputs 'float'"),
        ({"rotation_kind": "hadamrd"}, "did you mean 'hadamard'"),
        ({"epochs": 0}, "epochs=0"),
        ({"window": -1}, "window=-1"),
    ],
)
def test_unfitting_values(values, message):
    with pytest.raises(InputError, match=message):
        Method(name="mine", **values)


@pytest.mark.parametrize(
    ("name", "given", "rotation"),
    [
        ("quarot", "block", "hadamard"),
        ("msad", "kronecker", "kronecker"),
        ("quarot", "none", "none"),
        ("rtn", "block", "none"),
    ],
)
def test_the_recipe_that_a_checkpoint_gets_names_the_rotation_of_the_method(name, given, rotation):
    recipe = effective_recipe(replace(Recipe.load("w4a8"), rotation=given), method(name))
    assert recipe.rotation == rotation
    assert recipe.rotation_signs == (rotation != "none")


def test_unknown_method_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'msad'"):
        method("masd")
