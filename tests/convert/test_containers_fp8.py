"""HunyuanVideo's float8 files: bit for bit what torch computes, and never without scales."""

import ml_dtypes
import numpy as np
import pytest
import torch

from convert.containers import open_source
from convert.containers.float8 import dequantize
from convert.finite import count_not_finite
from qsjax.errors import CheckpointError

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def weights():
    generator = torch.Generator().manual_seed(0)
    return {
        "double_blocks.0.img_mod.linear.weight": (30 * torch.randn(8, 5, generator=generator)).to(E4M3),
        "single_blocks.0.linear1.weight": (30 * torch.randn(6, 4, generator=generator)).to(E4M3),
        "single_blocks.0.linear1.bias": torch.randn(6, generator=generator).bfloat16(),
    }  # fmt: skip


def scales():
    return {
        "double_blocks.0.img_mod.linear": torch.tensor(0.0123),
        "single_blocks.0.linear1": torch.tensor([0.0041], dtype=torch.bfloat16),
    }


def save(folder, tensors, table):
    torch.save({"module": tensors}, folder / "states_fp8.pt")
    if table is not None:
        torch.save(table, folder / "states_fp8_map.pt")
    return folder / "states_fp8.pt"


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize(
    "scale_dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64]
)
def test_dequantization_equals_torch_bit_for_bit(dtype, scale_dtype):
    codes = torch.arange(256, dtype=torch.uint8).view(dtype)
    generator = torch.Generator().manual_seed(1)
    some = torch.exp(8 * torch.randn(200, generator=generator, dtype=torch.float64)).to(scale_dtype)
    some = some[torch.isfinite(some)]
    stored = (
        codes.view(torch.uint8).numpy().view(getattr(ml_dtypes, str(dtype).removeprefix("torch.")))
    )
    for scale in some:
        expected = codes.to(torch.bfloat16) * scale.to(torch.bfloat16)
        result = dequantize(stored, scale.item())
        nan = torch.isnan(expected).numpy()
        np.testing.assert_array_equal(np.isnan(result), nan)
        np.testing.assert_array_equal(
            result.view(np.uint16)[~nan], expected.view(torch.uint16).numpy()[~nan]
        )


def test_the_container_shows_bfloat16(tmp_path):
    path = save(tmp_path, weights(), scales())
    for place in (path, tmp_path):
        with open_source(place, "dit") as source:
            assert source.container == "torch .pt fp8"
            assert source.files == (path, tmp_path / "states_fp8_map.pt")
            for name, stored in weights().items():
                assert source.tensors[name].dtype == ml_dtypes.bfloat16
                scale = scales().get(name.removesuffix(".weight"))
                expected = stored.bfloat16() * (1 if scale is None else scale.bfloat16())
                np.testing.assert_array_equal(
                    source.read(name).view(np.uint16), expected.view(torch.uint16).numpy()
                )


def test_tables_longer_than_a_chunk(monkeypatch):
    monkeypatch.setattr("convert.containers.float8._CHUNK", 100)
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 120, (31, 17), np.uint8).view(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(
        dequantize(stored, 0.5).astype(np.float32), stored.astype(np.float32) / 2
    )


def without(table, name):
    return {key: value for key, value in table.items() if key != name}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, r"holds 2 float8 tensors, and their scales are not there; put states_fp8_map.pt"),
        (without(scales(), "single_blocks.0.linear1"), "no scale for 'single_blocks.0.linear1.weight'"),
        ({**scales(), "other": torch.tensor(1.0)}, "a scale for 'other', which is not float8"),
        ({**scales(), "single_blocks.0.linear1": torch.ones(6)}, r"is float32 \(6,\)"),
        ({**scales(), "single_blocks.0.linear1": torch.tensor(1)}, "is int64"),
        ({**scales(), "single_blocks.0.linear1": torch.tensor(float("nan"))}, "is nan"),
        ({**scales(), "single_blocks.0.linear1": 0.5}, "no scale for"),
    ],
)  # fmt: skip
def test_scales_that_do_not_fit(tmp_path, table, message):
    path = save(tmp_path, weights(), table)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_source(path, "dit")
    assert "\n" not in str(caught.value)


def test_nan_codes_stay_nan():
    codes = np.array([0x7F, 0xFF], np.uint8).view(ml_dtypes.float8_e4m3fn)
    weights = dequantize(codes, 2.0)
    assert np.isnan(weights).all()
    assert count_not_finite(weights) == 2  # and so a conversion stops
