"""LoRA files of strangers: of other kinds, for other models, with halves that are missing, and numbers that are none."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import convert_models as models
import lora_files
import pytest
import safetensors.torch
import torch

from convert.__main__ import main

pytestmark = pytest.mark.hostile

LAYER = "double_blocks.0.img_attn_qkv"
K = f"lora_unet_{LAYER.replace('.', '_')}"
D = f"transformer.{LAYER}"
Tensors = dict[str, torch.Tensor]


def with_(*changes: tuple[str, torch.Tensor | None], spelling: str = "kohya") -> Callable[[], Tensors]:  # fmt: skip
    """A sound file with some tensors changed, added, or taken away."""

    def make() -> Tensors:
        tensors = lora_files.in_tencents_names(spelling, layers=(LAYER, "single_blocks.1.linear1"))[0]  # fmt: skip
        for name, tensor in changes:
            tensors.pop(name, None)
            if tensor is not None:
                tensors[name] = tensor
        return tensors

    return make


def alpha(*values: float, dtype: torch.dtype = torch.float32) -> Callable[[], Tensors]:
    return with_((f"{K}.alpha", torch.tensor(values if len(values) > 1 else values[0], dtype=dtype)))  # fmt: skip


def full(number: float, *shape: int) -> torch.Tensor:
    return torch.full(shape, number)


DOWN, UP = f"{K}.lora_down.weight", f"{K}.lora_up.weight"
FILES = {
    "nothing": dict,
    "a transformer": lambda: dict(models.tencent()),
    "DoRA of PEFT": with_((f"{D}.lora_magnitude_vector", torch.ones(96)), spelling="transformer"),
    "DoRA of kohya": with_((f"{K}.dora_scale", torch.ones(96, 1))),
    "LoHa": with_((f"{K}.hada_w1_a", torch.ones(96, 4))),
    "LoKr": with_((f"{K}.lokr_w1", torch.ones(4, 4))),
    "OFT": with_((f"{K}.oft_blocks", torch.ones(4, 4))),
    "GLoRA": with_((f"{K}.a1.weight", torch.ones(4, 4))),
    "Tucker": with_((f"{K}.lora_mid.weight", torch.ones(4, 4))),
    "a difference": with_((f"diffusion_model.{LAYER}.diff", torch.ones(96, 32))),
    "a difference of biases": with_((f"diffusion_model.{LAYER}.diff_b", torch.ones(96))),
    "whole tensors": with_((f"diffusion_model.{LAYER}.set_weight", torch.ones(96, 32))),
    "biases": with_((f"{D}.lora_B.bias", torch.ones(96)), spelling="transformer"),
    "a text encoder": with_(("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", torch.ones(4, 32))),
    "a text encoder of diffusers": with_(("text_encoder.layers.0.mlp.fc1.lora_A.weight", torch.ones(4, 32))),
    "a block that is not there": with_(("lora_unet_double_blocks_7_img_attn_qkv.lora_down.weight", torch.ones(4, 32))),
    "another model": lambda: {"transformer.blocks.0.attn1.to_q.lora_A.weight": torch.ones(4, 32)},
    "a norm": with_(("transformer.double_blocks.0.img_attn_q_norm.lora_A.weight", torch.ones(4, 32))),
    "image to video": lambda: {f"transformer.img_in.proj.lora_{k}.weight": torch.ones(s) for k, s in (("A", (4, 9, 1, 2, 2)), ("B", (32, 4, 1, 1, 1)))},
    "a key that is none": with_(("readme", torch.ones(1))),
    "a key of a megabyte": with_(("x" * (1 << 20), torch.ones(1))),
    "no down": with_((DOWN, None)),
    "no up": with_((UP, None)),
    "alpha alone": with_((DOWN, None), (UP, None)),
    "another width": with_((DOWN, torch.ones(4, 31))),
    "another height": with_((UP, torch.ones(95, 4))),
    "two ranks": with_((DOWN, torch.ones(5, 32))),
    "no rank": with_((DOWN, torch.ones(0, 32)), (UP, torch.ones(96, 0))),
    "a number": with_((DOWN, torch.tensor(1.0))),
    "a convolution": with_((DOWN, torch.ones(4, 32, 1, 1)), (UP, torch.ones(96, 4, 1, 1))),
    "integers": with_((DOWN, torch.ones(4, 32, dtype=torch.int32))),
    "float8": with_((DOWN, torch.ones(4, 32).to(torch.float8_e4m3fn))),
    "twice": with_((f"{D}.lora_A.weight", torch.ones(4, 32)), (f"{D}.lora_B.weight", torch.ones(96, 4))),
    "a part is missing": with_((f"{K}.lora_down.1.weight", None), spelling="kohya split"),
    "a part is one too many": with_((f"{K}.lora_down.3.weight", torch.ones(4, 32)), (f"{K}.lora_up.3.weight", torch.ones(32, 4)), spelling="kohya split"),
    "split and whole": with_((DOWN, torch.ones(4, 32)), (UP, torch.ones(96, 4)), spelling="kohya split"),
    "parts of a modulation": lambda: {f"lora_unet_final_layer_adaLN_modulation_1.lora_{k}.{i}.weight": torch.ones(4 if k == "down" else 32, 32 if k == "down" else 4) for k in ("down", "up") for i in range(2)},
    "NaN": with_((DOWN, full(math.nan, 4, 32))),
    "infinity": with_((UP, full(-math.inf, 96, 4))),
    "more than float64 multiplies": with_((UP, full(1, 96, 4).double() * 1e300), (DOWN, full(1, 4, 32).double() * 1e300)),
    "more than float32 holds": with_((UP, full(3e38, 96, 4)), (DOWN, full(3e38, 4, 32))),
    "alpha of 0": alpha(0.0),
    "a negative alpha": alpha(-1.0),
    "alpha that is none": alpha(math.nan),
    "two alphas": alpha(1.0, 2.0),
    "alpha of 1e30": alpha(1e30),
    "an alpha that is true": alpha(True, dtype=torch.bool),
}  # fmt: skip
CONFIGURATIONS = {
    "no JSON": "{",
    "a list": "[1]",
    "DoRA": '{"transformer.use_dora": true}',
    "alpha of text": '{"transformer.lora_alpha": "8"}',
    "alpha of true": '{"transformer.lora_alpha": true}',
    "no alpha": '{"transformer.lora_alpha": 0}',
    "alpha that is none": '{"transformer.lora_alpha": NaN}',
    "a pattern": json.dumps({"transformer.alpha_pattern": {"(a+)+$": 1}}),
    "half of a character": r'{"transformer.lora_alpha": "\ud800"}',
    "roots of text": '{"transformer.use_rslora": "false"}',
    "a pattern of no layer": json.dumps({"transformer.alpha_pattern": {"nowhere": 1}}),
    "a pattern of half a character": r'{"transformer.alpha_pattern": {"\ud800": 1}}',
    "LoHa": '{"transformer.peft_type": "LOHA"}',
    "a list of kinds": '{"transformer.peft_type": []}',
    "PiSSA": '{"transformer.init_lora_weights": "pissa_niter_16"}',
    "LoftQ": '{"transformer.init_lora_weights": "loftq"}',
    "patterns in a list": json.dumps({"transformer.alpha_pattern": ["a"]}),
    "deep": '{"a":' * 9000,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A transformer and its sizes, as arguments."""
    folder = tmp_path_factory.mktemp("base")
    path = models.save(folder / "a.safetensors", models.tencent())
    return [str(path), "--config", str(models.config_file(folder))]


def refuse(base: list[str], folder: Path, given: str, capsys: pytest.CaptureFixture[str]) -> str:
    """One sentence, exit status 2, and nothing left."""
    before = sorted(folder.rglob("*"))
    assert main([base[0], str(folder / "out"), *base[1:], "--lora", given]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert err.strip().isprintable()
    assert len(err) < 1300
    assert sorted(folder.rglob("*")) == before
    return err


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_refused(
    name: str, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "l.safetensors"
    safetensors.torch.save_file(FILES[name](), path)
    assert str(path) in refuse(base, tmp_path, str(path), capsys)


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("where", ["header", "beside"])
def test_a_configuration_that_is_refused(
    name: str, where: str, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, text = tmp_path / "adapter_model.safetensors", CONFIGURATIONS[name]
    tensors = lora_files.in_tencents_names("transformer")[0]
    if where == "header":
        safetensors.torch.save_file(tensors, path, {"lora_adapter_metadata": text})
    else:
        safetensors.torch.save_file(tensors, path)
        (tmp_path / "adapter_config.json").write_text(text.replace("transformer.", ""))
    refuse(base, tmp_path, str(path), capsys)


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to nothing", "device"])
def test_a_configuration_that_is_no_file(
    kind: str, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without what it says, alpha would be another one."""
    path, beside = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    safetensors.torch.save_file(lora_files.in_tencents_names("transformer")[0], path)
    {
        "pipe": lambda: os.mkfifo(beside),
        "folder": beside.mkdir,
        "link to nothing": lambda: beside.symlink_to(tmp_path / "absent"),
        "device": lambda: beside.symlink_to("/dev/zero"),
    }[kind]()
    refuse(base, tmp_path, str(path), capsys)


@pytest.mark.parametrize("text", [r'"\ud800"', r'"{\"a\": \"\ud800\"}"', "3", "null", "{}"])
def test_metadata_that_are_none(
    text: str, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of a character is JSON, and no text."""
    path = tmp_path / "l.safetensors"
    safetensors.torch.save_file(lora_files.in_tencents_names("transformer")[0], path)
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = content[8:end].rstrip()[:-1] + b',"__metadata__":{"lora_adapter_metadata":%b}}' % text.encode()  # fmt: skip
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])
    refuse(base, tmp_path, str(path), capsys)


PLACES = {
    "a pipe": lambda path: __import__("os").mkfifo(path),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "no safetensors": lambda path: path.write_bytes(b"\x00" * 100),
    "a header only": lambda path: path.write_bytes((1 << 40).to_bytes(8, "little")),
    "an empty folder": lambda path: path.mkdir(),
    "a link to nothing": lambda path: path.symlink_to(path.with_name("absent")),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_place_that_is_no_file(
    name: str, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PLACES[name](tmp_path / "l.safetensors")
    refuse(base, tmp_path, str(tmp_path / "l.safetensors"), capsys)


@pytest.mark.parametrize(
    "given",
    ["{}:", "{}:nan", "{}:inf", "{}:1e9", "{}:1:2", "{}:strong", "{}.bin", "{}/x", "", ":", ":1", "hf://a", "hf://a/../b:1", "x" * 5000, "\x1b[31m"],
)  # fmt: skip
def test_options_that_are_refused(
    given: str, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "l.safetensors"
    safetensors.torch.save_file(lora_files.in_tencents_names("kohya")[0], path)
    refuse(base, tmp_path, given.format(path), capsys)
