"""The export of a quantized checkpoint, read with NumPy and the words of docs/format.md."""

import json
from dataclasses import replace

import convert_models as models
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.torch

from convert import Sources, convert, export
from convert.containers import open_source
from pallas_kernels import pack
from qsjax.checkpoint import load_item, sealed
from qsjax.errors import CheckpointError, InputError
from qsjax.quant import Precision, QuantizedLinear
from qsjax.quant.branched import BranchedLinear

# Odd numbers of rows: integers are padded.
CONFIG = replace(models.DIT, text_dim=13, num_single_blocks=1)
RECIPE = """
rotation = "block"
rotation_size = 16
[blocks]
weights = 4
activations = 8
[modulation]
weights = 8
group = 16
[refiner]
weights = 6
"""


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized")
    tensors = models.random_tensors("dit", CONFIG, "tencent")
    path = models.save(folder / "a.safetensors", tensors)
    (folder / "mixed.toml").write_text(RECIPE)
    sources = Sources(transformer=path, config=models.config_file(folder, CONFIG))
    options = {"quantize": f"quarot-{folder / 'mixed.toml'}", "progress": False}
    return convert(sources, folder / "checkpoint", item_bytes=40_000, **options)


@pytest.fixture(scope="module")
def exported(quantized):
    out = quantized.directory.with_name("exported")
    export(quantized.directory, out, progress=False)
    return out / "transformer"


def load(folder):
    """All tensors, and the metadata of the last file."""
    tensors, metadata = {}, {}
    for path in sorted(folder.glob("quantized_model*.safetensors")):
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors |= safetensors.torch.load_file(path)
    return models.numpy_of(tensors), metadata


def nibbles(packed):
    low = (packed.astype(np.int32) & 15) - 16 * (packed.astype(np.int32) & 8 > 0)
    return np.concatenate([low, packed.astype(np.int32) >> 4])


def integers(layer, rows, bits):
    if bits == 8:
        return layer["packed"].astype(np.int32)
    whole = nibbles(layer["packed"])
    if bits == 6:
        low = layer["low_bits"].view(np.uint8).astype(np.int32)
        whole = 4 * whole + np.concatenate([low >> shift & 3 for shift in (0, 2, 4, 6)])
    return whole[:rows]


def output(layer, x, *, rows, bits, activations):
    """docs/format.md, step by step."""
    y = x / layer["smoothing"] if "smoothing" in layer else x
    if "rotation" in layer:
        y = y.reshape(len(x), -1, len(layer["rotation"]))
        if "mix" in layer:
            y = np.einsum("mir,ij->mjr", y, layer["mix"])
        y = (y @ layer["rotation"]).reshape(x.shape)
    s = np.ones((len(x), 1), np.float32)
    if activations < 16:
        top = 2 ** (activations - 1) - 1
        a = np.maximum(abs(y).max(1, keepdims=True), np.float32(1e-30)) * layer.get("clip", np.float32(1))  # fmt: skip
        y, s = np.clip(np.round(y * (top / a)), -top - 1, top), a / top
    w = integers(layer, rows, bits).astype(np.float32)
    out = s * (y @ (w * np.repeat(layer["scale"], rows // len(layer["scale"]), 0)))
    out = out + layer.get("bias", 0)
    return out + x @ layer["branch_in"] @ layer["branch_out"] if "branch_in" in layer else out


def test_it_holds_the_leaves_of_the_checkpoint(quantized, exported):
    tensors, metadata = load(exported)
    expected = {}
    for item in quantized.component("dit").items:
        expected |= load_item(quantized, "dit", item)
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(tensors[name], np.asarray(array))
    assert (metadata["format"], metadata["format_version"]) == ("qsjax-quantized", "1")
    assert metadata["method"] == "quarot"
    assert json.loads(metadata["recipe"])["blocks"] == {"weights": 4, "activations": 8, "group": 0}
    assert json.loads(metadata["config"]) == CONFIG.to_diffusers()
    assert json.loads((exported / "config.json").read_text()) == CONFIG.to_diffusers()


def test_layers_compute_what_the_document_says(exported):
    tensors, metadata = load(exported)
    layers = json.loads(metadata["layers"])
    assert {name for name in tensors if name.endswith(".packed")} == {f"{n}.packed" for n in layers}
    chosen = ["double_blocks.0.img.qkv", "double_blocks.0.txt.fc2", "double_blocks.0.img.modulation",
              "single_blocks.0.linear1", "single_blocks.0.linear2.attention", "single_blocks.0.linear2.mlp",
              "refiner.blocks.0.qkv", "refiner.proj_in"]  # fmt: skip
    for name in chosen:
        facts = layers[name]
        layer = {n.removeprefix(f"{name}."): a for n, a in tensors.items() if n.rpartition(".")[0] == name}  # fmt: skip
        check(layer, facts["bits"], **facts)


def check(layer, weights, *, rows, bits, activations, build=QuantizedLinear):
    group = 0 if len(layer["scale"]) == 1 else rows // len(layer["scale"])
    precision = Precision(weights=weights, activations=activations, group=group)
    leaves = {name: jnp.asarray(leaf) for name, leaf in layer.items()}
    ours = build(leaves, rows=rows, precision=precision, dtype=np.float32)
    x = np.random.default_rng(0).standard_normal((5, rows)).astype(np.float32)
    found = output(layer, x, rows=rows, bits=bits, activations=activations)
    np.testing.assert_allclose(found, ours(jnp.asarray(x)), rtol=1e-5, atol=1e-5 * abs(found).max())


@pytest.mark.parametrize("weights", [3, 6, 8])
def test_a_layer_with_all_that_a_layer_can_have(weights):
    chance, rows = np.random.default_rng(1), 24
    normal = lambda *shape: chance.standard_normal(shape).astype(np.float32)  # noqa: E731
    limit = 2 ** (weights - 1)
    bits = Precision(weights=weights).container
    packed = pack(chance.integers(-limit, limit, (rows, 10), np.int8), bits=bits)
    layer = dict(zip(("packed", "low_bits"), map(np.asarray, packed.planes), strict=False))
    layer |= {
        "scale": abs(normal(1, 10)), "bias": normal(10), "smoothing": abs(normal(rows)) + 1, "clip": np.float32([0.7]),
        "rotation": np.linalg.qr(normal(8, 8))[0], "mix": np.linalg.qr(normal(3, 3))[0],
        "branch_in": normal(rows, 1), "branch_out": normal(1, 10),
    }  # fmt: skip
    check(layer, weights, rows=rows, bits=bits, activations=8, build=BranchedLinear)


def test_shards_of_one_leaf_at_a_time(quantized, exported, tmp_path, monkeypatch):
    from convert import quantized_source

    read, read_item = [], quantized_source.read_item

    def count(manifest, component, item, leaves):
        read.extend(leaves)
        return read_item(manifest, component, item, leaves)

    monkeypatch.setattr(quantized_source, "read_item", count)
    files = export(quantized.directory, tmp_path / "out", progress=False, shard_bytes=30_000)
    assert len(files) > 3
    tensors, _ = load(exported)
    assert sorted(read) == sorted(tensors)
    again, _ = load(tmp_path / "out/transformer")
    for name, array in tensors.items():
        np.testing.assert_array_equal(again[name], array)


def test_the_same_export_finds_its_work_done(quantized, exported, caplog):
    with caplog.at_level("INFO", logger="qsjax"):
        export(quantized.directory, exported.parent, progress=False)
    assert "is there already" in caplog.text
    with pytest.raises(InputError, match="exists already"):
        export(quantized.directory, exported.parent, progress=False, shard_bytes=1e4)


def test_it_is_not_converted_again(exported):
    with pytest.raises(InputError, match="is the export of a quantized transformer"):
        open_source(exported, "dit")


def altered(change):
    def change_items(data):
        dit = data["components"]["dit"]
        change(dit, next(items for items in dit["items"].values() if any(n.endswith("img.qkv.packed") for n in items)))  # fmt: skip

    return change_items


QKV = "double_blocks.0.img.qkv"
DAMAGED = {
    "other sizes": (lambda dit, item: dit["config"].update(num_single_blocks=2), "of some blocks"),
    "another recipe": (lambda dit, item: dit["recipe"]["blocks"].update(weights=8), "should have the shape"),
    "a leaf is absent": (lambda dit, item: item.pop(f"{QKV}.scale"), "scale is absent"),
    "a leaf of nothing": (lambda dit, item: item.update({"double_blocks.9.img.qkv.scale": item[f"{QKV}.scale"]}), "no part of it"),
    "a dtype": (lambda dit, item: item[f"{QKV}.packed"].update(dtype="uint8"), "should not be uint8"),
    "clips": (lambda dit, item: dit.update(clipped=True), "clip is absent"),
    "an override of nothing": (lambda dit, item: dit["recipe"].update(overrides=[{"pattern": "nothing", "precision": {"weights": 8}}]), "matches no layer"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_checkpoint_that_does_not_fit_itself(name, quantized, tmp_path):
    change, message = DAMAGED[name]
    data = json.loads(json.dumps(quantized.data))
    altered(change)(data)
    (tmp_path / "manifest.json").write_text(json.dumps(sealed(data)))
    with pytest.raises(CheckpointError, match=message):
        export(tmp_path, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
