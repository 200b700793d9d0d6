"""GGUF: in float32 what the format's formulas, diffusers and gguf itself make of it, stored as its bfloat16, never another model's."""

import sys
from dataclasses import replace
from functools import cache

import convert_models as models
import gguf as package
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from dit.dit_pairs import diffusers_dit, inputs, run_diffusers, run_ours
from gguf_files import I32, LIST, PLAIN, TEXT, TYPES, stored, write

from convert import Sources, convert, verify
from convert.component import open_components
from convert.containers import open_source
from qsjax.dit import load_dit
from qsjax.errors import InputError

WIDE = replace(models.DIT, hidden_size=256, num_heads=2, rope_axes_dim=(32, 48, 48), num_single_blocks=1)  # fmt: skip
QUANTIZED = ("Q4_K", "Q8_0", "Q4_0")


@cache
def transformer():
    """Tencent's names in all types: the file's tensors, and what they stand for."""
    tensors, expected = {}, {}
    for number, (name, tensor) in enumerate(
        models.random_tensors("dit", WIDE, "tencent", dtype=torch.float32).items()
    ):
        numbers, kind = 0.02 * tensor.numpy(), "F32"
        if tensor.ndim == 1 and "norm" in name:
            numbers += 1
        elif "_blocks" in name and tensor.ndim == 2:
            kind = QUANTIZED[number % 3]
        elif tensor.ndim == 2:
            kind = ("F16", "BF16")[number % 2]
        tensors[name], expected[name] = stored(kind, tensor.shape, numbers, number)
    return tensors, expected


def test_weights_are_those_of_the_formulas(tmp_path):
    tensors, expected = transformer()
    path = write(tmp_path / "a.gguf", tensors)
    with open_source(path, "dit") as source:
        assert source.container == "gguf (Q4_0, Q4_K, Q8_0)"
        assert list(source.tensors) == list(expected)
        for name, numbers in expected.items():
            found = source.read(name)
            assert found.dtype == source.tensors[name].dtype
            np.testing.assert_allclose(found.astype(np.float32), numbers, rtol=1e-6, atol=1e-9)
            if numbers.ndim > 1 and found.shape[0] > 6:
                np.testing.assert_array_equal(source.read(name, (2, 6)), found[2:6])


# Where a block has its scales, float16.
DIFFUSERS = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip
OTHERS = {
    "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ3_XXS": (0,), "IQ1_S": (0,), "IQ3_S": (0,), "IQ2_S": (0,), "TQ1_0": (52,),
    "TQ2_0": (64,), "IQ1_M": (), "MXFP4": (),
}  # fmt: skip


@pytest.mark.parametrize("name", [*DIFFUSERS, *OTHERS])
def test_every_type_is_read_in_parts(name, tmp_path, monkeypatch):
    """By diffusers where it has the type, by gguf at once otherwise."""
    from diffusers.quantizers.gguf.utils import dequantize_functions

    kind = package.GGMLQuantizationType[name]
    elements, nbytes = package.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(0).integers(0, 96, (6, 512 // elements, nbytes), np.uint8)
    for place in {**DIFFUSERS, **OTHERS}[name]:
        blocks[..., place : place + 2] = np.float16([3e-3]).view(np.uint8)
    if name in DIFFUSERS:
        flat = torch.from_numpy(blocks.reshape(-1, nbytes))
        expected = dequantize_functions[kind](flat, elements, nbytes, torch.float32)
        expected = expected.float().numpy().reshape(6, 512)
    else:
        expected = package.dequantize(blocks.reshape(6, -1), kind)
    path = write(tmp_path / "a.gguf", {"a": (kind.value, (6, 512), blocks.tobytes())})
    monkeypatch.setattr("convert.containers.gguf_file._CHUNK", 700)
    with open_source(path, "dit") as source:
        found = source.read("a")
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(source.read("a", (1, 4)), found[1:4])


def test_plain_types(tmp_path):
    plain = {kind: stored(kind, (3, 32), np.ones((3, 32)))[0] for kind in PLAIN}
    with open_source(write(tmp_path / "a.gguf", plain), "dit") as source:
        for name, dtype in PLAIN.items():
            np.testing.assert_array_equal(source.read(name, (1, 3)), np.ones((2, 32), dtype))


def test_a_checkpoint_holds_them_in_bfloat16(tmp_path):
    tensors, expected = transformer()
    sources = Sources(
        transformer=write(tmp_path / "a.gguf", tensors, (("general.architecture", TEXT, "flux"),)),
        config=models.config_file(tmp_path, WIDE),
    )
    manifest = convert(sources, tmp_path / "gguf", progress=False)
    plain = {}
    for name, numbers in expected.items():
        tensor = torch.from_numpy(numbers.copy())
        kind = {number: kind for kind, (number, _, _) in TYPES.items()}[tensors[name][0]]
        plain[name] = tensor.to(
            {"F32": torch.float32, "F16": torch.float16}.get(kind, torch.bfloat16)
        )
    whole = models.save(tmp_path / "b.safetensors", plain)
    same = convert(replace(sources, transformer=whole), tmp_path / "b", progress=False)
    assert models.digests(manifest) == models.digests(same)
    assert verify(tmp_path / "gguf", sources, progress=False).from_source > 0
    # What quantizes sees no bfloat16 on the way.
    whole = models.save(tmp_path / "c.safetensors", {n: torch.from_numpy(a.copy()) for n, a in expected.items()})  # fmt: skip
    options = {"quantize": "rtn-w4a8", "dtype": "float32", "progress": False}
    manifest = convert(sources, tmp_path / "q", **options)
    same = convert(replace(sources, transformer=whole), tmp_path / "c", **options)
    assert models.digests(manifest) == models.digests(same)


def test_the_float32_model_computes_what_diffusers_does(tmp_path):
    tensors, expected = transformer()
    model = diffusers_dit(WIDE)
    renamed = models.by_diffusers({n: torch.from_numpy(a.copy()) for n, a in expected.items()}, 256)
    model.load_state_dict(renamed)
    path = write(tmp_path / "a.gguf", tensors)
    sources = Sources(transformer=path, config=models.config_file(tmp_path, WIDE))
    convert(sources, tmp_path / "c", dtype="float32", progress=False)
    given = inputs(WIDE)
    found = run_ours(load_dit(tmp_path / "c", dtype=jnp.float32), given)
    np.testing.assert_allclose(found, run_diffusers(model, given), atol=1e-4, rtol=0)


PATCH = "img_in.proj.weight"


@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        ((256, 16), ()),
        ((256, 4, 2, 2), ()),
        ((1024, 4), ((f"comfy.gguf.orig_shape.{PATCH}", LIST, (I32, [256, 4, 1, 2, 2])),)),
    ],
)
def test_a_patch_kernel_of_fewer_dimensions(shape, fields, tmp_path):
    tensors, expected = transformer()
    kind, _, data = tensors[PATCH]
    path = write(tmp_path / "a.gguf", tensors | {PATCH: (kind, shape, data)}, fields)
    sources = Sources(transformer=path, config=models.config_file(tmp_path, WIDE))
    with open_components(sources, None) as components:
        part = components["dit"]
        row = next(row for row in part.rows if PATCH in row.sources)
        np.testing.assert_array_equal(part.leaf(row), expected[PATCH].reshape(256, -1).T)


def test_without_gguf(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    path = tmp_path / "a.gguf"
    path.touch()  # what is in it does not matter
    with pytest.raises(InputError, match=r"needs the package gguf; .*pip install '\.\[gguf\]'"):
        open_source(path, "dit")


def test_which_file_of_a_folder(tmp_path):
    tensor, _ = stored("F32", (2, 2), np.ones((2, 2)))
    write(tmp_path / "a.gguf", {"a": tensor})
    with open_source(tmp_path, "dit") as source:
        assert source.files == (tmp_path / "a.gguf",)
    write(tmp_path / "b.gguf", {"a": tensor})
    with pytest.raises(InputError, match=r"a\.gguf, b\.gguf; name one"):
        open_source(tmp_path, "dit")
    models.save(tmp_path / "c.safetensors", {"a": torch.ones(2)})
    with open_source(tmp_path, "dit") as source:
        assert source.container == "safetensors"
