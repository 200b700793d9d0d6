"""Quantization on the way from PyTorch files: the right numbers, everything that a conversion promises, nothing else touched."""

import json
import shutil

import convert_models as models
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from convert import Sources, convert, verify
from convert.__main__ import main
from qsjax.checkpoint import CheckpointWriter, Manifest, load_item, sealed
from qsjax.config import from_mapping
from qsjax.dit import load_dit
from qsjax.errors import CheckpointError, InputError
from qsjax.quant import SITES, Precision, Recipe, Transform
from qsjax.quant.sites import start_rotation
from qsjax.quant.storage import linear_leaves, site_leaves

WIDTH, MLP, HEAD = models.DIT.hidden_size, models.DIT.mlp_size, models.DIT.head_dim


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return Sources(transformer=models.save_dit(tmp_path_factory.mktemp("source") / "transformer"))


@pytest.fixture(scope="module")
def quarot(source, tmp_path_factory):
    """Rotated, with rows that straddle nothing: heads of 16, runs of 16."""
    folder = tmp_path_factory.mktemp("quarot")
    recipe = write_recipe(folder, 'rotation = "kronecker"\nrotation_size = 16\n')
    return convert(source, folder / "c", quantize=f"quarot-{recipe}", progress=False)


def write_recipe(folder, text, name="mine"):
    path = folder / f"{name}.toml"
    tables = "[blocks]\nweights = 4\nactivations = 8\n[modulation]\nweights = 6\n[refiner]\nweights = 8\n"
    path.write_text(text + tables)
    return path


def stored(manifest, component="dit"):
    items = {item for item, _, _ in manifest.leaves(component)}
    return {
        leaf: np.asarray(value)
        for item in items
        for leaf, value in load_item(manifest, component, item).items()
    }


def torch_kernel(name):
    return jnp.asarray(models.numpy_of({"x": models.tencent()[f"{name}.weight"]})["x"].T)


def torch_bias(name):
    return jnp.asarray(models.numpy_of({"x": models.tencent()[f"{name}.bias"]})["x"])


TENCENT = {
    "double_blocks.0.img.qkv": "double_blocks.0.img_attn_qkv",
    "double_blocks.0.txt.proj": "double_blocks.0.txt_attn_proj",
    "double_blocks.0.txt.fc1": "double_blocks.0.txt_mlp.fc1",
    "double_blocks.0.img.fc2": "double_blocks.0.img_mlp.fc2",
    "single_blocks.1.linear1": "single_blocks.1.linear1",
    "single_blocks.1.linear2": "single_blocks.1.linear2",
}


@pytest.mark.parametrize("path", TENCENT)
def test_blocks_hold_what_their_site_makes_of_the_torch_weights(path, quarot):
    leaves = stored(quarot)
    kind, number, layer = path.split(".", 2)
    recipe = from_mapping(Recipe, quarot.data["components"]["dit"]["recipe"], source="manifest")
    transforms = {
        site.transform: Transform(None, start_rotation(site, recipe, WIDTH, MLP, HEAD))
        for site in SITES[kind]
    }
    assert all(transform.rotation is not None for transform in transforms.values())
    for site in SITES[kind]:
        if site.linear != layer:
            continue
        expected = site_leaves(
            site,
            torch_kernel(TENCENT[path]),
            torch_bias(TENCENT[path]),
            transforms,
            recipe.blocks,
            WIDTH,
        )
        start = f"{kind}.{number}.{site.layer}."
        found = {name.removeprefix(start): leaf for name, leaf in leaves.items() if name.startswith(start)}  # fmt: skip
        assert found.keys() == expected.keys()
        for name, leaf in expected.items():
            np.testing.assert_array_equal(found[name], leaf)


def test_other_layers_are_rounded_and_the_rest_is_as_it_was(quarot, source, tmp_path):
    leaves = stored(quarot)
    for path, name, bits in (
        ("single_blocks.0.modulation", "single_blocks.0.modulation.linear", 6),
        ("refiner.blocks.0.fc1", "txt_in.individual_token_refiner.blocks.0.mlp.fc1", 8),
        ("refiner.proj_in", "txt_in.input_embedder", 8),
    ):
        expected = linear_leaves(torch_kernel(name), Precision(weights=bits))
        assert ("low_bits" in expected) == (bits == 6)
        for leaf, value in expected.items():
            np.testing.assert_array_equal(leaves[f"{path}.{leaf}"], value)
        bias = torch_bias(name).astype(jnp.float32)
        np.testing.assert_array_equal(leaves[f"{path}.bias"], bias)
        assert leaves[f"{path}.bias"].dtype == np.float32
    plain = models.digests(convert(source, tmp_path / "plain", progress=False))
    quantized = models.digests(quarot)
    same = plain.keys() & quantized.keys()
    assert {leaf for leaf in same if plain[leaf] == quantized[leaf]} == {
        leaf
        for leaf in plain
        if "norm" in leaf
        or leaf.startswith(("patch_embed", "time_embed", "pooled_embed", "guidance_embed", "final"))
    }


def test_manifest(quarot):
    part = quarot.data["components"]["dit"]
    assert (part["method"], part["recipe"]["name"], part["clipped"]) == ("quarot", "mine", False)
    assert part["recipe"]["smoothing"] is False
    assert part["parameters"] == sum(t.numel() for t in models.diffusers().values())
    sizes = [np.asarray(leaf).nbytes for leaf in stored(quarot).values()]
    assert part["bytes"] == sum(sizes)
    assert {"qsjax", "jax"} <= set(quarot.data["libraries"])
    assert load_dit(quarot.directory).config == models.DIT


def test_only_the_transformer_is_quantized(tmp_path):
    tensors = models.random_tensors("vae", models.VAE, "hunyuan")
    models.save(tmp_path / "vae/diffusion_pytorch_model.safetensors", tensors)
    (tmp_path / "vae/config.json").write_text(json.dumps(models.VAE.to_diffusers()))
    sources = Sources(transformer=models.save_dit(tmp_path / "dit"), vae=tmp_path / "vae")
    manifest = convert(sources, tmp_path / "c", quantize="rtn-w4a8", progress=False)
    assert {spec[1] for spec in models.digests(manifest, "vae").values()} == {"bfloat16"}
    assert "recipe" not in manifest.data["components"]["vae"]
    found = verify(tmp_path / "c", sources, progress=False)
    assert found.leaves == found.from_source
    with pytest.raises(InputError, match="none is to be converted"):
        convert(Sources(vae=tmp_path / "vae"), tmp_path / "d", quantize="rtn-w4a8", progress=False)


def test_dtype_is_for_what_stays_floating(source, quarot, tmp_path):
    """Weights are quantized from the source's own numbers, not from what the rest is rounded to."""
    folder = models.save_dit(tmp_path / "wide", models.diffusers(torch.float32))
    wide = Sources(transformer=folder)
    narrow = convert(wide, tmp_path / "a", quantize="rtn-w4a8", dtype="bfloat16", progress=False)
    full = convert(wide, tmp_path / "b", quantize="rtn-w4a8", progress=False)
    a, b = models.digests(narrow), models.digests(full)
    assert {leaf for leaf in a if a[leaf] != b[leaf]} == {leaf for leaf in a if a[leaf][1] == "bfloat16"}  # fmt: skip


def test_interrupted_it_goes_on_and_another_recipe_does_not(source, tmp_path, monkeypatch):
    expected = convert(source, tmp_path / "whole", quantize="rtn-w4a8", progress=False)
    written, write = [], CheckpointWriter.write_item

    def count(self, component, item, leaves, **options):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(item)
        write(self, component, item, leaves, **options)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointWriter, "write_item", count)
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "c", quantize="rtn-w4a8", progress=False)
    for quantize in ("rtn-w8a8", "quarot-w4a8", None):
        with pytest.raises(InputError, match="unfinished conversion of other sources"):
            convert(source, tmp_path / "c", quantize=quantize, progress=False)
    monkeypatch.setattr(
        CheckpointWriter,
        "write_item",
        lambda self, component, item, *args, **options: (
            written.append(item),
            write(self, component, item, *args, **options),
        ),
    )
    manifest = convert(source, tmp_path / "c", quantize="rtn-w4a8", progress=False)
    assert models.digests(manifest) == models.digests(expected)
    assert len(written) == len(set(written)) == len(manifest.data["components"]["dit"]["items"])


def test_verify(quarot, source, tmp_path):
    found = verify(quarot.directory, source, progress=False)
    assert found.leaves == found.from_source == len(models.digests(quarot))
    name = "single_transformer_blocks.0.attn.to_k.weight"
    tensors = models.diffusers() | {name: models.diffusers()[name].flip(0)}
    other = Sources(transformer=models.save_dit(tmp_path / "transformer", tensors))
    with pytest.raises(CheckpointError, match=r"2 of \d+ leaves.*single_blocks.0.linear1.scale is not what the source holds"):  # fmt: skip
        verify(quarot.directory, other, progress=False)


def test_verify_of_a_calibrated_checkpoint_needs_no_source(quarot, source, tmp_path):
    manifest = Manifest.read(quarot.directory)
    del manifest.data["components"]["dit"]["method"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest.data))
    shutil.copytree(quarot.directory / "dit", tmp_path / "dit")
    assert verify(tmp_path, progress=False).from_source == 0
    with pytest.raises(InputError, match="was calibrated"):
        verify(tmp_path, source, progress=False)


def test_a_conversion_that_does_not_mention_signs_has_none(quarot, source, tmp_path):
    """As all have that were made before there were signs."""
    recipe = write_recipe(tmp_path, "rotation_size = 16\nrotation_signs = false\n")
    plain = convert(source, tmp_path / "c", quantize=f"quarot-{recipe}", progress=False)

    def silent(manifest, folder):
        folder.mkdir()
        data = json.loads((manifest.directory / "manifest.json").read_text())
        del data["components"]["dit"]["recipe"]["rotation_signs"]
        (folder / "manifest.json").write_text(json.dumps(sealed(data)))
        shutil.copytree(manifest.directory / "dit", folder / "dit")
        return folder

    found = verify(silent(plain, tmp_path / "plain"), source, progress=False)
    assert found.leaves == found.from_source > 0
    with pytest.raises(CheckpointError, match="is not what the source holds"):
        verify(silent(quarot, tmp_path / "signed"), source, progress=False)


@pytest.mark.parametrize(
    ("quantize", "message"),
    [
        ("w4a8", "is not METHOD-RECIPE"),
        ("rtn", "is not METHOD-RECIPE"),
        ("msad-w4a8", "methods without calibration are rtn, quarot"),
        ("rtn-w4a9", "did you mean 'w4a8'"),
        ("rtn-absent.toml", "cannot be opened"),
        ("quarot-bf16", "name rtn-bf16"),
    ],
)
def test_bad_names(quantize, message, source, tmp_path):
    with pytest.raises(InputError, match=message):
        convert(source, tmp_path / "c", quantize=quantize, progress=False)
    assert not list(tmp_path.iterdir())


def test_an_override_that_matches_nothing(source, tmp_path):
    recipe = write_recipe(
        tmp_path,
        '[[overrides]]\npattern = "double_block.img.qkv"\nprecision = { weights = 8, activations = 8 }\n',
    )
    with pytest.raises(InputError, match=r"matches no layer; did you mean 'double_blocks\.img\.qkv'"):  # fmt: skip
        convert(source, tmp_path / "c", quantize=f"rtn-{recipe}", progress=False)


def test_overrides_and_what_they_take_v_s_rotation_from(source, tmp_path):
    """A float txt.qkv cannot take the rotation of V: then img's is not rotated either, and proj gets no rows turned."""
    text = 'rotation_size = 16\n[[overrides]]\npattern = "double_blocks.txt.qkv"\nprecision = { weights = 16 }\n'
    recipe = write_recipe(tmp_path, text)
    manifest = convert(source, tmp_path / "c", quantize=f"quarot-{recipe}", progress=False)
    leaves = stored(manifest)
    assert leaves["double_blocks.0.txt.qkv.kernel"].dtype == jnp.bfloat16
    expected = linear_leaves(
        torch_kernel("double_blocks.0.img_attn_proj"), Precision(weights=4, activations=8)
    )
    np.testing.assert_array_equal(leaves["double_blocks.0.img.proj.packed"], expected["packed"])
    np.testing.assert_array_equal(
        leaves["double_blocks.0.img.qkv.bias"],
        torch_bias("double_blocks.0.img_attn_qkv").astype(jnp.float32),
    )
    turned = np.asarray(torch_bias("single_blocks.0.linear1").astype(jnp.float32))
    assert (leaves["single_blocks.0.linear1.bias"] != turned).sum() == WIDTH
    assert load_dit(tmp_path / "c").double_blocks.txt.qkv.kernel.get_value().dtype == jnp.bfloat16
    assert verify(tmp_path / "c", source, progress=False).from_source == len(leaves)


def test_command_line(source, tmp_path, capsys):
    arguments = [str(source.transformer), str(tmp_path / "c"), "--quantize", "rtn-w4a8"]
    assert main([*arguments, "--verify"]) == 0
    text = capsys.readouterr().out
    assert "dit is quantized: rtn, recipe w4a8" in text
    assert "made again from the source" in text
    assert main([*arguments, "--verify", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["verified"]
    assert report["from_source"] == report["leaves"]
    assert main([*arguments[:3], "rtn-w8a8", "--verify"]) == 2
    assert "its transformer is not rtn-w8a8" in capsys.readouterr().err
    assert main([str(tmp_path / "c"), str(tmp_path / "out"), "--export"]) == 0
    assert "quantized_model" in capsys.readouterr().out
    assert main([*arguments, "--export"]) == 2
    assert "run it without --quantize" in capsys.readouterr().err
