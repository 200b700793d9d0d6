"""Float8 safetensors: in float32 what torch makes of them, stored as its bfloat16, and never without the scales they need."""

import json
from dataclasses import replace

import convert_models as models
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from dit.dit_pairs import SMALL, diffusers_dit, inputs, run_diffusers, run_ours
from float8_files import E4M3, E5M2, SPELLINGS, as_bytes, as_float8
from text.text_tokenizers import write_clip_tokenizer, write_llama_tokenizer

from convert import Sources, convert, known_text_encoders, verify
from convert.component import open_components
from convert.containers import TensorInfo, open_source
from convert.keymaps import expand
from convert.known_text_encoders import known_text_encoder, published
from qsjax.dit import load_dit
from qsjax.errors import CheckpointError, InputError
from qsjax.text.config import ClipConfig, LlamaConfig

LLAMA = LlamaConfig(
    vocab_size=50, hidden_size=8, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2,
    num_key_value_heads=1, head_dim=4, rms_norm_eps=1e-5, rope_theta=5e5, max_position_embeddings=32,
)  # fmt: skip
CLIP = ClipConfig(
    vocab_size=600, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=12, hidden_act="quick_gelu", layer_norm_eps=1e-5, eos_token_id=599,
)  # fmt: skip


def save(path, tensors, spelling):
    stored, metadata, expected = as_float8(tensors, spelling)
    safetensors.torch.save_file(stored, path, metadata)
    return expected


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_weights_are_torchs(spelling, tmp_path):
    path = tmp_path / "a.safetensors"
    expected = save(path, models.tencent(torch.float32), spelling)
    with open_source(path, "dit") as source:
        assert source.container == f"safetensors {'' if 'plain' in spelling else 'scaled '}fp8"
        assert set(source.tensors) == set(expected)
        for name, tensor in expected.items():
            found = source.read(name)
            assert found.dtype == source.tensors[name].dtype
            np.testing.assert_allclose(found.astype(np.float32), tensor, rtol=1e-6, atol=0)
            if tensor.ndim > 1 and found.shape[0] > 6:
                np.testing.assert_array_equal(source.read(name, (2, 6)), found[2:6])


@pytest.mark.parametrize("spelling", ["plain", "plain e5m2", "comfy_quant", "channels"])
def test_a_checkpoint_holds_them_in_bfloat16(spelling, tmp_path):
    path, config = tmp_path / "a.safetensors", models.config_file(tmp_path)
    expected = save(path, models.tencent(), spelling)
    sources = Sources(transformer=path, config=config)
    manifest = convert(sources, tmp_path / "fp8", progress=False)
    plain = {name: tensor.bfloat16() for name, tensor in expected.items()}
    same = Sources(transformer=models.save(tmp_path / "b.safetensors", plain), config=config)
    assert models.digests(manifest) == models.digests(convert(same, tmp_path / "b", progress=False))
    assert verify(tmp_path / "fp8", sources, progress=False).from_source > 0
    source = manifest.data["components"]["dit"]["source"]
    inputs = [name for name in source["ignored"] if name.endswith(("scale_input", "input_scale"))]
    assert inputs == source["ignored"]
    assert bool(inputs) == ("plain" not in spelling)


@pytest.mark.parametrize(
    "prefix", ["model.model.", "model.diffusion_model.", "diffusion_model.", ""]
)
@pytest.mark.parametrize("named", ["tencent", "comfy"])
def test_prefixes_of_comfyui(prefix, named, tmp_path):
    rename = models.comfy_name if named == "comfy" else str
    tensors = {f"{prefix}{rename(name)}": tensor for name, tensor in models.tencent().items()}
    path = tmp_path / "a.safetensors"
    stored, _, expected = as_float8(tensors, "scale_weight")
    stored[f"{prefix}scaled_fp8"] = stored.pop("scaled_fp8")
    safetensors.torch.save_file(stored, path)
    with open_components(
        Sources(transformer=path, config=models.config_file(tmp_path)), None
    ) as parts:
        assert parts["dit"].layout == (named, prefix)
        name = f"{prefix}{rename('single_blocks.1.linear1.weight')}"
        np.testing.assert_allclose(parts["dit"].read(name), expected[name], rtol=1e-6)


def test_what_is_asked_for_is_made_of_float32(tmp_path):
    """float32 on request and what quantizes see no bfloat16 on the way; verification makes them again."""
    path, config = tmp_path / "a.safetensors", models.config_file(tmp_path)
    expected = save(path, models.tencent(torch.float32), "comfy_quant")
    sources = Sources(transformer=path, config=config)
    whole = Sources(transformer=models.save(tmp_path / "b.safetensors", expected), config=config)
    for options in ({"dtype": "float32"}, {"quantize": "rtn-w4a8", "dtype": "float32"}):
        place = tmp_path / str(len(options))
        found = convert(sources, place, progress=False, **options)
        assert models.digests(found) == models.digests(
            convert(whole, tmp_path / f"whole{len(options)}", progress=False, **options)
        )
        assert verify(place, sources, progress=False).from_source > 0


def test_large_tensors_are_cast_in_ranges_of_rows(tmp_path, monkeypatch):
    path, config = tmp_path / "a.safetensors", models.config_file(tmp_path)
    save(path, models.tencent(), "scale_weight")
    sources = Sources(transformer=path, config=config)
    whole = convert(sources, tmp_path / "whole", progress=False)
    monkeypatch.setattr("convert.component._CHUNK", 1000)
    largest = []
    with open_components(sources, None) as components:
        part = components["dit"]
        read = part.source.read
        monkeypatch.setattr(
            part.source,
            "read",
            lambda name, rows=None: largest.append(read(name, rows).nbytes) or read(name, rows),
        )
        row = next(row for row in part.rows if row.leaf == "single_blocks.0.linear1.kernel")
        assert part.leaf(row).nbytes == 32 * 224 * 2
    assert len(largest) > 10
    assert max(largest) <= 1024
    ranged = convert(sources, tmp_path / "ranged", progress=False)
    assert models.digests(ranged) == models.digests(whole)


def test_the_float32_model_computes_what_diffusers_does(tmp_path):
    """diffusers' model with the weights as torch reads them, and ours converted from the file."""
    model = diffusers_dit(SMALL)
    path = tmp_path / "transformer/a.safetensors"
    path.parent.mkdir()
    (path.parent / "config.json").write_text(json.dumps(SMALL.to_diffusers()))
    stored = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    model.load_state_dict(save(path, stored, "scale_weight"))
    convert(Sources(transformer=path.parent), tmp_path / "c", dtype="float32", progress=False)
    given = inputs(SMALL)
    found = run_ours(load_dit(tmp_path / "c", dtype=jnp.float32), given)
    np.testing.assert_allclose(found, run_diffusers(model, given), atol=1e-4, rtol=0)


@pytest.mark.parametrize("spelling", ["no float8", "plain", "scale_weight", "comfy_quant"])
def test_text_encoders_in_single_files(spelling, tmp_path, monkeypatch):
    monkeypatch.setattr(
        known_text_encoders, "published", lambda name: {"llama": LLAMA, "clip": CLIP}[name]
    )
    llama = replace(LLAMA, vocab_size=64)  # of a model that was tuned on more tokens
    expected, paths = {}, {}
    for name, config, prefix in (("llama", llama, "model."), ("clip", CLIP, "text_model.")):
        rows = expand(name, replace(config, num_hidden_layers=6) if name == "llama" else config, "transformers", prefix)  # fmt: skip
        tensors = {n: torch.randn(s, generator=torch.Generator().manual_seed(0)).half() for row in rows for n, s in row.sources.items()}  # fmt: skip
        unused = {
            "llama": {"lm_head.weight": torch.zeros(64, 8), "model.norm.weight": torch.ones(8)},
            "clip": {"text_model.embeddings.position_ids": torch.arange(12)[None]},
        }[name]
        paths[name] = tmp_path / f"{name}.safetensors"
        expected[name] = save(paths[name], tensors, spelling)
        stored = safetensors.torch.load_file(paths[name]) | {
            key: tensor.half() if tensor.is_floating_point() else tensor
            for key, tensor in unused.items()
        }
        safetensors.torch.save_file(stored, paths[name])
    sources = Sources(
        text_encoder=paths["llama"],
        text_encoder_2=paths["clip"],
        tokenizer=write_llama_tokenizer(tmp_path / "t"),
        tokenizer_2=write_clip_tokenizer(tmp_path / "t2"),
    )
    manifest = convert(sources, tmp_path / "c", progress=False)
    assert manifest.config("llama") == llama.__dict__
    assert manifest.config("clip") == CLIP.__dict__
    assert verify(tmp_path / "c", sources, progress=False).from_source > 0
    with open_components(sources, np.dtype(np.float32)) as components:
        for name, part in components.items():
            for row in part.rows:
                (tensor,) = row.sources
                kernel = part.leaf(row)
                np.testing.assert_allclose(
                    kernel.T if row.transform == "linear" else kernel,
                    expected[name][tensor], rtol=1e-6, atol=0,
                )  # fmt: skip


def shapes(component, config, prefix, **change):
    rows = expand(component, replace(config, **change), "transformers", prefix)
    info = np.dtype(np.float16)
    return {n: TensorInfo(s, info) for row in rows for n, s in row.sources.items()}


def test_which_text_encoders_shapes_tell():
    llama, clip = published("llama"), published("clip")
    whole = shapes("llama", llama, "model.", num_hidden_layers=34)
    assert known_text_encoder("llama", whole) == llama
    tuned = shapes("llama", llama, "", num_hidden_layers=34, vocab_size=128_256)
    assert known_text_encoder("llama", tuned) == replace(llama, vocab_size=128_256)
    for change in (
        {"num_hidden_layers": 32},  # two are gone: of which model is it?
        {"num_hidden_layers": 36},
        {"num_hidden_layers": 34, "num_key_value_heads": 32},
        {"num_hidden_layers": 34, "intermediate_size": 11_008},
        {"num_hidden_layers": 34, "hidden_size": 2048},
    ):
        assert known_text_encoder("llama", shapes("llama", llama, "model.", **change)) is None
    assert known_text_encoder("clip", shapes("clip", clip, "text_model.")) == clip
    for change in ({"hidden_size": 1536}, {"intermediate_size": 4096}, {"vocab_size": 49_409}):
        assert known_text_encoder("clip", shapes("clip", clip, "text_model.", **change)) is None
    assert known_text_encoder("llama", {}) is None


def test_a_text_encoder_that_shapes_do_not_tell(tmp_path):
    path = models.save(
        tmp_path / "a.safetensors", {"model.embed_tokens.weight": torch.zeros(50, 8)}
    )
    sources = Sources(text_encoder=path, tokenizer=write_llama_tokenizer(tmp_path / "t"))
    with (
        pytest.raises(InputError, match=r"no config\.json beside .* not those of HunyuanVideo's"),
        open_components(sources, None),
    ):
        pass


ONE = torch.ones(4, 4).to(E4M3)
REFUSED = {
    "scale_weight": ({"a.weight": ONE, "scaled_fp8": torch.zeros(0)}, "no scale for 'a.weight'"),
    "one of two": ({"a.weight": ONE, "b.weight": ONE.clone(), "a.fp8_scale": torch.tensor(1.0)}, "no scale for 'b.weight'"),
    "two scales": ({"a.weight": ONE, "a.scale_weight": torch.tensor(1.0), "a.weight_scale": torch.tensor(1.0)}, "'a' has two scales"),
    "not float8": ({"a.weight": torch.ones(4, 4), "a.scale_weight": torch.tensor(2.0)}, "a scale for 'a', whose weight is float32"),
    "other format": ({"a.weight": ONE, "a.comfy_quant": as_bytes({"format": "nvfp4"})}, "'a' is quantized as 'nvfp4'"),
    "int8": ({"a.weight": torch.ones(4, 4).char(), "a.comfy_quant": as_bytes({"format": "int8_tensorwise"})}, "quantized as 'int8_tensorwise'"),
    "rotated": ({"a.weight": ONE, "a.comfy_quant": as_bytes({"format": "float8_e4m3fn", "convrot": True})}, "with 'convrot'"),
    "the other float8": ({"a.weight": ONE, "a.weight_scale": torch.tensor(1.0), "a.comfy_quant": as_bytes({"format": "float8_e5m2"})}, "should be float8_e5m2"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, tmp_path):
    tensors, message = REFUSED[name]
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=message):
        open_source(tmp_path / "a.safetensors", "dit")


def test_a_scale_of_one_on_another_dtype_says_nothing(tmp_path):
    tensors = {"a.weight": torch.ones(4, 4), "a.scale_weight": torch.tensor(1.0)}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    with open_source(tmp_path / "a.safetensors", "dit") as source:
        assert set(source.tensors) == {"a.weight"}


def test_formats_in_the_header(tmp_path):
    layers = {"a": {"format": "mxfp8"}}
    metadata = {"_quantization_metadata": json.dumps({"layers": layers})}
    safetensors.torch.save_file({"a.weight": ONE}, tmp_path / "a.safetensors", metadata)
    with pytest.raises(CheckpointError, match="quantized as 'mxfp8'"):
        open_source(tmp_path / "a.safetensors", "dit")


@pytest.mark.parametrize(("dtype", "bad"), [(E4M3, "nan"), (E5M2, "inf")])
def test_weights_that_are_no_numbers(dtype, bad, tmp_path):
    tensors = models.tencent() | {"img_in.proj.bias": torch.full((32,), float(bad)).to(dtype)}
    path = models.save(tmp_path / "a.safetensors", tensors)
    sources = Sources(transformer=path, config=models.config_file(tmp_path))
    with pytest.raises(CheckpointError, match=r"img_in\.proj\.bias.* has 32 of 32 values"):
        convert(sources, tmp_path / "c", progress=False)
