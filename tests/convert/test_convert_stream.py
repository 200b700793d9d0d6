"""Conversion: the same checkpoint from every container, whatever dtype is asked for."""

import hashlib
import json
import shutil

import convert_models as models
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx
from text.text_tokenizers import write_llama_tokenizer

from convert import Sources, convert, verify
from qsjax.checkpoint import Manifest, digest
from qsjax.dit import load_dit
from qsjax.errors import CheckpointError, InputError
from qsjax.text.config import LlamaConfig

LLAMA = LlamaConfig(
    vocab_size=50, hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
    num_key_value_heads=1, head_dim=4, rms_norm_eps=1e-5, rope_theta=1e4, max_position_embeddings=32,
)  # fmt: skip


def convert_dit(path, destination, **options):
    sources = Sources(transformer=path, config=options.pop("config", None))
    return convert(sources, destination, progress=False, **options)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The checkpoint of the tiny DiT from a diffusers folder with one file."""
    folder = tmp_path_factory.mktemp("reference")
    return convert_dit(models.save_dit(folder / "transformer"), folder / "checkpoint")


def save_shards(folder):
    tensors, weight_map = models.diffusers(), {}
    names = list(tensors)
    for k, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"diffusion_pytorch_model-{k:05d}-of-00002.safetensors"
        models.save(folder / file, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    total = sum(t.nbytes for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(models.DIT.to_diffusers()))
    return folder


def save_pt(path, content):
    torch.save(content, path)
    return path


CONTAINERS = {
    "diffusers shards": lambda folder: save_shards(folder / "shards"),
    "pt bare": lambda folder: save_pt(folder / "bare.pt", models.tencent()),
    "pt module": lambda folder: save_pt(folder / "m.pt", {"module": models.tencent(), "step": 7}),
    "comfy a": lambda folder: models.save(folder / "a.safetensors", models.tencent()),
    "comfy b": lambda folder: models.save(folder / "b.safetensors", models.comfy()),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_gives_the_same_checkpoint(container, reference, tmp_path):
    path = CONTAINERS[container](tmp_path)
    config = None if path.is_dir() else models.config_file(tmp_path)
    manifest = convert_dit(path, tmp_path / "checkpoint", config=config)
    assert models.digests(manifest) == models.digests(reference)
    assert manifest.config("dit") == reference.config("dit")


def test_fp8_container_is_the_conversion_of_its_own_dequantized_weights(tmp_path):
    stored, scales, plain = {}, {}, {}
    for name, tensor in models.tencent().items():
        if tensor.ndim == 2 and ("double_blocks" in name or "single_blocks" in name):
            scale = tensor.abs().max().float() / 448
            stored[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
            scales[name.removesuffix(".weight")] = scale
            plain[name] = stored[name].to(torch.bfloat16) * scale.to(torch.bfloat16)
        else:
            stored[name] = plain[name] = tensor
    save_pt(tmp_path / "w_map.pt", scales)
    config = models.config_file(tmp_path)
    quantized = convert_dit(save_pt(tmp_path / "w.pt", stored), tmp_path / "fp8", config=config)
    path = models.save(tmp_path / "plain.safetensors", plain)
    expected = convert_dit(path, tmp_path / "plain", config=config)
    assert models.digests(quantized) == models.digests(expected)
    assert quantized.data["components"]["dit"]["source"]["container"] == "torch .pt fp8"


def test_vae_pt_equals_safetensors(tmp_path):
    tensors = models.random_tensors("vae", models.VAE, "hunyuan", dtype=torch.float32)
    folder = tmp_path / "vae"
    models.save(folder / "diffusion_pytorch_model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(models.VAE.to_diffusers()))
    first = convert(Sources(vae=folder), tmp_path / "a", progress=False)
    tencent = tmp_path / "pt"
    tencent.mkdir()
    named = {f"vae.{name}": tensor for name, tensor in tensors.items()}
    save_pt(tencent / "pytorch_model.pt", {"state_dict": named})
    values = models.VAE.to_diffusers() | {
        "_class_name": "AutoencoderKLCausal3D",
        "time_compression_ratio": 4,
        "sample_size": 256,
        "sample_tsize": 64,
        "down_block_types": ["DownEncoderBlockCausal3D"] * 3,
    }
    del values["temporal_compression_ratio"]
    (tencent / "config.json").write_text(json.dumps(values))
    second = convert(Sources(vae=tencent / "pytorch_model.pt"), tmp_path / "b", progress=False)
    assert models.digests(first, "vae") == models.digests(second, "vae")
    assert first.config("vae") == second.config("vae")
    assert first.data["tiling"] == {
        "frames": 64, "frame_stride": 48, "pixels": 256, "pixel_stride": 192,
    }  # fmt: skip
    kernel = tensors["decoder.conv_in.conv.weight"].permute(2, 3, 4, 1, 0).contiguous().numpy()
    assert models.digests(second, "vae")["decoder.conv_in.kernel"][2] == digest(kernel)


def test_restored_dit_has_the_torch_weights(reference):
    dit = load_dit(reference.directory)
    kernels = nnx.state(dit)["single_blocks"]["linear1"]["kernel"].get_value()
    expected = torch.stack(
        [models.tencent()[f"single_blocks.{i}.linear1.weight"].T for i in range(2)]
    )
    np.testing.assert_array_equal(kernels.astype(np.float32), expected.float())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dtype(dtype, tmp_path):
    path = models.save_dit(tmp_path / "transformer", models.diffusers(torch.float32))
    manifest = convert_dit(path, tmp_path / "checkpoint", dtype=dtype)
    source = models.tencent(torch.float32)["double_blocks.0.img_mlp.fc1.weight"].numpy().T
    expected = np.ascontiguousarray(source.astype(np.dtype(dtype)))
    assert models.digests(manifest)["double_blocks.0.img.fc1.kernel"] == (
        (32, 128), dtype, digest(expected),
    )  # fmt: skip


def test_items_stay_within_blocks_and_under_the_limit(reference, tmp_path):
    path = reference.directory.parent / "transformer"
    small = convert_dit(path, tmp_path / "small", item_bytes=30_000)
    assert models.digests(small) == models.digests(reference)
    items = reference.data["components"]["dit"]["items"]
    assert {"double_blocks.0.img", "double_blocks.0.txt", "single_blocks.0", "single_blocks.1"} <= set(items)  # fmt: skip
    for item, leaves in small.data["components"]["dit"]["items"].items():
        nbytes = [int(np.prod(s["shape"])) * 2 for s in leaves.values()]
        assert sum(nbytes) <= 30_000 or len(nbytes) == 1, item


def llama_folder(folder, dtype=torch.float16):
    tensors = models.random_tensors(
        "llama", LLAMA, "transformers", prefix="language_model.model.", dtype=dtype
    )
    unused = {
        "language_model.lm_head.weight": torch.zeros(50, 8),
        "vision_tower.a.weight": torch.zeros(2),
    }
    models.save(folder / "model.safetensors", tensors | unused)
    (folder / "config.json").write_text(json.dumps(LLAMA.to_transformers()))
    write_llama_tokenizer(folder)
    return tensors


def test_embedding_in_row_ranges_and_ignored_tensors(tmp_path):
    tensors = llama_folder(tmp_path / "text_encoder")
    sources = Sources.find(text_encoder=tmp_path / "text_encoder")
    manifest = convert(sources, tmp_path / "checkpoint", progress=False, item_bytes=300)
    ranges = [
        spec["rows"] for _, leaf, spec in manifest.leaves("llama") if leaf == "embed.embedding"
    ]
    assert ranges == [[0, 18], [18, 36], [36, 50]]
    source = manifest.data["components"]["llama"]["source"]
    assert source["ignored"] == ["language_model.lm_head.weight", "vision_tower.a.weight"]
    assert source["prefix"] == "language_model.model."
    assert manifest.data["prompt"]["crop_start"] == 95
    table = tensors["language_model.model.embed_tokens.weight"].numpy()
    stored = [
        spec["sha256"] for _, leaf, spec in manifest.leaves("llama") if leaf == "embed.embedding"
    ]
    assert stored == [digest(table[start:stop]) for start, stop in ranges]
    for path in (tmp_path / "checkpoint/tokenizers/llama").iterdir():
        assert path.read_bytes() == (tmp_path / "text_encoder" / path.name).read_bytes()
    found = verify(tmp_path / "checkpoint", sources, progress=False)
    assert (found.leaves, found.from_source, found.files) == (12, 12, 2)


def test_manifest_tells_where_everything_came_from(reference):
    part = reference.data["components"]["dit"]
    weights = reference.directory.parent / "transformer/diffusion_pytorch_model.safetensors"
    assert (
        part["source"]["sha256"][weights.name] == hashlib.sha256(weights.read_bytes()).hexdigest()
    )
    assert part["source"]["layout"] == "diffusers"
    assert part["source"]["tensors"] == part["source"]["used"] == len(models.diffusers())
    assert part["parameters"] == sum(t.numel() for t in models.diffusers().values())
    assert part["bytes"] == 2 * part["parameters"]
    assert reference.data["scheduler"] == {"shift": 7.0}
    assert {"jax", "flax", "orbax-checkpoint"} <= set(reference.data["libraries"])
    assert str(reference.directory.parent) not in json.dumps(reference.data)
    stored = Manifest.read(reference.directory).data
    assert stored == json.loads(json.dumps(reference.data))


def test_bad_tensors_are_reported_together_and_nothing_is_written(tmp_path):
    tensors = dict(models.diffusers())
    del tensors["proj_out.bias"]
    tensors["extra.weight"] = torch.zeros(3)
    tensors["context_embedder.proj_in.weight"] = tensors["context_embedder.proj_in.weight"].T
    path = models.save_dit(tmp_path / "transformer", tensors)
    with pytest.raises(CheckpointError) as error:
        convert_dit(path, tmp_path / "checkpoint")
    for part in ("missing: proj_out.bias [16]", "surplus: extra.weight [3]",
                 "context_embedder.proj_in.weight expected [32, 12] found [12, 32]"):  # fmt: skip
        assert part in str(error.value)
    assert not list(tmp_path.glob("checkpoint*"))


def test_weights_that_do_not_fit_the_default_preset(tmp_path):
    path = models.save(tmp_path / "small.safetensors", models.tencent())
    with pytest.raises(
        CheckpointError, match=r"preset hunyuan-video-13b.*has at most 3 blocks.* 20 as"
    ):
        convert_dit(path, tmp_path / "checkpoint")


def test_integer_weights_are_refused(tmp_path):
    tensors = models.diffusers() | {"proj_out.bias": torch.zeros(16, dtype=torch.int32)}
    path = models.save_dit(tmp_path / "transformer", tensors)
    with pytest.raises(CheckpointError, match=r"proj_out\.bias int32"):
        convert_dit(path, tmp_path / "checkpoint")


def test_parts_of_different_dtypes_need_a_dtype(tmp_path):
    name = "single_transformer_blocks.0.attn.to_k.weight"
    tensors = models.diffusers() | {name: models.diffusers()[name].float()}
    path = models.save_dit(tmp_path / "transformer", tensors)
    with pytest.raises(CheckpointError, match=r"different dtypes .*`dtype`"):
        convert_dit(path, tmp_path / "checkpoint")
    manifest = convert_dit(path, tmp_path / "checkpoint", dtype="float32", overwrite=True)
    assert {spec[1] for spec in models.digests(manifest).values()} == {"float32"}


def test_unknown_dtype(tmp_path):
    path = models.save_dit(tmp_path / "transformer")
    with pytest.raises(InputError, match="no dtype 'bfloat'; did you mean 'bfloat16'"):
        convert_dit(path, tmp_path / "checkpoint", dtype="bfloat")


def test_verify_names_the_leaf_that_differs(reference, tmp_path):
    path = models.save_dit(tmp_path / "transformer", models.diffusers() | {
        "proj_out.bias": models.diffusers()["proj_out.bias"] + 1
    })  # fmt: skip
    with pytest.raises(CheckpointError, match=r"1 of \d+ leaves.*final.linear.bias is not what the source holds"):  # fmt: skip
        verify(reference.directory, Sources(transformer=path), progress=False)
    manifest = Manifest.read(reference.directory)
    manifest.data["components"]["dit"]["items"]["ends"]["final.linear.bias"]["sha256"] = "0" * 64
    copy = tmp_path / "checkpoint"
    copy.mkdir()
    (copy / "manifest.json").write_text(json.dumps(manifest.data))
    shutil.copytree(reference.directory / "dit", copy / "dit")
    with pytest.raises(CheckpointError, match=r"final\.linear\.bias is not what was written"):
        verify(copy, progress=False)


def test_numpy_reference_is_torch():
    tensor = models.tencent()["img_in.proj.bias"]
    array = models.numpy_of({"a": tensor})["a"]
    assert array.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(array.astype(np.float32), tensor.float())
