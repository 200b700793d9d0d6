"""Weights that are no numbers: found in every dtype and storage, and the tensor is named."""

import convert_models as models
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convert.__main__ import main
from convert.component import open_components
from convert.finite import _BLOCK, count_not_finite
from convert.quantized import Quantization, with_quantization
from convert.sources import Sources
from qsjax.errors import CheckpointError

pytestmark = pytest.mark.hostile
FLOATS = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
NAME = "single_blocks.1.linear2.weight"
NANS = (float("nan"), float("inf"), -float("inf"))


@given(st.sampled_from(FLOATS), st.binary(min_size=8, max_size=64))
def test_counts_what_numpy_counts(kind: type, content: bytes) -> None:
    whole = len(content) // np.dtype(kind).itemsize * np.dtype(kind).itemsize
    array = np.frombuffer(content[:whole], kind)
    with np.errstate(all="ignore"):
        assert count_not_finite(array) == np.count_nonzero(~np.isfinite(array))


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("value", NANS)
@pytest.mark.parametrize("place", [0, _BLOCK - 1, _BLOCK, 2 * _BLOCK + 3])
def test_finds_one_anywhere(kind: type, value: float, place: int) -> None:
    array = np.zeros(2 * _BLOCK + 4, kind)
    assert count_not_finite(array) == 0
    array[place] = value
    assert count_not_finite(array) == 1


@pytest.mark.parametrize("kind", FLOATS)
def test_the_largest_and_the_smallest_numbers_are_finite(kind: type) -> None:
    limits = ml_dtypes.finfo(kind)
    array = np.array([limits.max, limits.min, limits.tiny, 0.0, -0.0, limits.smallest_subnormal], kind)  # fmt: skip
    assert count_not_finite(array) == 0
    assert count_not_finite(np.array([-1, 127], np.int8)) == 0
    assert count_not_finite(np.zeros((0, 3), kind)) == 0


def opened(tmp_path, tensors, dtype=None, quantize=None):
    path = models.save(tmp_path / "dit.safetensors", tensors)
    sources = Sources.find(path, config=models.config_file(tmp_path))
    with open_components(sources, dtype) as components:
        quantization = None if quantize is None else Quantization.named(quantize)
        part = with_quantization(components, quantization)["dit"]
        for row in part.rows:
            part.made(row)


@pytest.mark.parametrize("value", NANS)
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("quantize", [None, "rtn-w4a8", "quarot-w4a8", "rtn-w8a8"])
def test_a_weight_that_is_none_is_named_with_its_number(tmp_path, value, kind, quantize):
    tensors = dict(models.tencent(kind))
    tensors[NAME] = tensors[NAME].clone()
    tensors[NAME][3, 5:7] = value
    count = f"{NAME}' has 2 of {tensors[NAME].numel()} values that are NaN or infinite"
    with pytest.raises(CheckpointError, match=count):
        opened(tmp_path, tensors, quantize=quantize)


@pytest.mark.parametrize("value", [3.4e38, -3.4e38])
def test_a_number_that_is_too_large_for_the_stored_dtype(tmp_path, value):
    tensors = dict(models.tencent(torch.float32))
    tensors[NAME] = tensors[NAME].clone()
    tensors[NAME][3, 5] = value
    opened(tmp_path, tensors)
    with pytest.raises(
        CheckpointError, match=r"single_blocks\.1\.linear2\.kernel in bfloat16 has 1 of"
    ):
        opened(tmp_path, tensors, dtype=np.dtype(ml_dtypes.bfloat16))


def test_a_scale_that_overflows(tmp_path):
    """The weights are finite; what quantization makes of them is not."""
    tensors = dict(models.tencent(torch.float32))
    tensors[NAME] = torch.full_like(tensors[NAME], 3e38)
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        opened(tmp_path, tensors, quantize="quarot-w4a8")


def test_the_command_writes_nothing_and_says_which(tmp_path, capsys):
    tensors = dict(models.diffusers())
    tensors["proj_out.bias"] = torch.full_like(tensors["proj_out.bias"], float("nan"))
    folder = models.save_dit(tmp_path / "transformer", tensors)
    assert main([str(folder), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "tensor 'proj_out.bias' has 16 of 16 values that are NaN or infinite" in error
    assert [path.name for path in tmp_path.iterdir()] == ["transformer"]
