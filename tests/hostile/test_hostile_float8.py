"""Float8 files of strangers: scales that are none, formats that are not read, settings that are no JSON."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import convert_models as models
import pytest
import safetensors.torch
import torch
from float8_files import E4M3, E5M2, as_bytes, as_float8
from hostile.refusals import assert_refused

pytestmark = pytest.mark.hostile

L = "double_blocks.0.img_mlp.fc1"
Tensors = dict[str, torch.Tensor]


def put(name: str, value: object, spelling: str = "scale_weight") -> Callable[[], Tensors]:
    """A sound file in which one tensor of a layer is another; None takes it away."""

    def make() -> Tensors:
        tensors = dict(as_float8(models.tencent(), spelling)[0])
        if value is None:
            del tensors[f"{L}.{name}"]
        else:
            tensors[f"{L}.{name}"] = value if isinstance(value, torch.Tensor) else torch.tensor(value)  # fmt: skip
        return tensors

    return make


def quantized(settings: object) -> Callable[[], Tensors]:
    return put("comfy_quant", as_bytes(settings), "comfy_quant")


def text(content: bytes) -> Callable[[], Tensors]:
    return put("comfy_quant", torch.tensor(list(content), dtype=torch.uint8), "comfy_quant")


NAN_CODE = torch.full((128, 32), 0x7F, dtype=torch.uint8)
FILES = {
    **{f"scale {x}": put("scale_weight", x) for x in (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e31, 1e-31, 1e-45)},
    "an integer": put("scale_weight", 1),
    "a float8 scale": put("scale_weight", torch.tensor(1.0).to(E4M3)),
    "a row of scales": put("scale_weight", torch.ones(128)),
    "scales of inputs": put("scale_weight", torch.ones(1, 32)),
    "scales of blocks": put("scale_weight", torch.ones(4, 1)),
    "no number of a scale": put("scale_weight", torch.zeros(0)),
    "one channel is no number": put("scale_weight", torch.cat([torch.ones(127, 1), torch.full((1, 1), math.nan)])),
    "no scale": put("scale_weight", None),
    "no scale, and a format": put("weight_scale", None, "comfy_quant"),
    "two scales": put("fp8_scale", 1.0),
    "no weight": put("weight", None),
    "a marker of a thousand": lambda: as_float8(models.tencent(), "fp8_scale")[0] | {"fp8_scale": torch.zeros(1000)},
    "a marker alone": lambda: models.tencent() | {f"{L}.weight": torch.ones(128, 32).to(E4M3), "scaled_fp8": torch.zeros(2).to(E4M3)},
    "scales of scales": put("weight_scale_2", 1.0, "comfy_quant"),
    "inverse scales": lambda: as_float8(models.tencent(), "plain")[0] | {f"{L}.weight_scale_inv": torch.ones(1, 1)},
    "smoothing": put("pre_quant_scale", torch.ones(32), "comfy_quant"),
    "codes that are no numbers": put("weight", NAN_CODE.view(E4M3)),
    "infinite codes": put("weight", torch.full((128, 32), math.inf).to(E5M2)),
    "a weight in uint8": put("weight", torch.zeros(128, 32, dtype=torch.uint8), "comfy_quant"),
    "nvfp4": quantized({"format": "nvfp4"}),
    "a format that is none": quantized({"format": None}),
    "a format that is a list": quantized({"format": ["float8_e4m3fn"] * 5000}),
    "a format of escapes": quantized({"format": "\x1b[31m"}),
    "no format": quantized({}),
    "a rotation": quantized({"format": "float8_e4m3fn", "convrot": True}),
    "blocks": quantized({"format": "float8_e4m3fn", "group_size": 128}),
    "no JSON": text(b"float8_e4m3fn"),
    "no text": text(b"\xff\xfe"),
    "nothing": text(b""),
    "a list": text(b"[1]"),
    "a key twice": text(b'{"format": "float8_e4m3fn", "format": "float8_e4m3fn"}'),
    "deep": text(b'{"a":' * 9000),
    "70 kB": text(b'{"format": "float8_e4m3fn"}' + b" " * 70_000),
    "settings that are numbers": put("comfy_quant", torch.ones(20), "comfy_quant"),
}  # fmt: skip
HEADERS = {
    "no JSON": "{",
    "a list": "[]",
    "no layers": "{}",
    "layers in a list": '{"layers": ["a"]}',
    "a layer that is a number": '{"layers": {"a": 3}}',
    "int8": '{"layers": {"a": {"format": "int8_blockwise", "group_size": 128}}}',
    "other float8": json.dumps({"layers": {L: {"format": "float8_e5m2"}}}),
    "NaN": '{"layers": {"a": {"format": NaN}}}',
    "deep": '{"layers":' * 9000,
}


def refuse(path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(path), str(folder / "out"), "--config", str(models.config_file(folder))]
    assert_refused(arguments, folder, capsys)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(FILES[name](), path)
    refuse(path, tmp_path, capsys)


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.safetensors"
    tensors = as_float8(models.tencent(), "metadata")[0]
    safetensors.torch.save_file(tensors, path, {"_quantization_metadata": HEADERS[name]})
    refuse(path, tmp_path, capsys)
