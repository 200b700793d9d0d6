"""GGUF: in float32 what the format's formulas, diffusers and gguf itself make of it, stored as its bfloat16, never another model's."""

import json
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
from flax import nnx
from gguf_files import F32, I32, LIST, PLAIN, TEXT, TYPES, U32, gguf, rotary_pairs, stored
from text.text_tokenizers import write_llama_tokenizer

from convert import Sources, convert, gguf_llama, verify
from convert.component import open_components
from convert.containers import open_source
from convert.keymaps import expand, load_module
from qsjax.dit import load_dit
from qsjax.errors import CheckpointError, InputError
from qsjax.text.config import LlamaConfig

WIDE = replace(models.DIT, hidden_size=256, num_heads=2, rope_axes_dim=(32, 48, 48), num_single_blocks=1)  # fmt: skip
LLAMA = LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-5, rope_theta=5e5, max_position_embeddings=32,
)  # fmt: skip
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


def write(path, tensors, fields=(("general.architecture", TEXT, "hyvid"),), **options):
    path.write_bytes(gguf(tensors, fields, **options))
    return path


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


def text_encoder(config=LLAMA, **without):
    """llama.cpp's file of a LLaMA, and the leaves that its numbers make."""
    rows = list(expand("llama", replace(config, num_hidden_layers=config.num_hidden_layers + 2), "llama_cpp"))  # fmt: skip
    tensors, leaves = {}, {}
    for number, row in enumerate(rows):
        ((name, shape),) = row.sources.items()
        numbers = np.random.default_rng(number).standard_normal(shape)
        kind = "F32" if len(shape) == 1 else "Q8_0"
        _, leaf = stored(kind, shape, numbers)
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        for part, count in heads.items():
            numbers = rotary_pairs(numbers, count) if part in name else numbers
        tensors[name], _ = stored(kind, shape, numbers)
        leaves[row.leaf] = leaf.T if len(shape) == 2 and "embed" not in row.leaf else leaf
    for name, shape in (("output.weight", (64, 64)), ("output_norm.weight", (64,))):
        tensors[name], _ = stored("F16", shape, np.zeros(shape))
    values = {
        "general.architecture": (TEXT, "llama"),
        "tokenizer.ggml.tokens": (LIST, (TEXT, ["a", "", "b" * 3000])),
        "tokenizer.ggml.scores": (LIST, (F32, [0.5] * 100)),
        "llama.vocab_size": (U32, 64),
        "llama.block_count": (U32, 4),
        "llama.attention.head_count": (U32, 4),
        "llama.attention.head_count_kv": (U32, 2),
        "llama.rope.dimension_count": (U32, 16),
        "llama.attention.layer_norm_rms_epsilon": (F32, 1e-5),
        "llama.rope.freq_base": (F32, 5e5),
        "llama.context_length": (U32, 32),
    }
    return tensors, values, leaves


def fields(values):
    return tuple((key, kind, content) for key, (kind, content) in values.items())


def llama_sources(tmp_path, tensors, values):
    path = write(tmp_path / "llama.gguf", tensors, fields(values))
    return Sources(text_encoder=path, tokenizer=write_llama_tokenizer(tmp_path / "t"))


def test_llama(tmp_path):
    tensors, values, leaves = text_encoder()
    sources = llama_sources(tmp_path, tensors, values)
    manifest = convert(sources, tmp_path / "c", progress=False)
    assert manifest.config("llama") == LLAMA.__dict__
    assert verify(tmp_path / "c", sources, progress=False).from_source > 0
    with open_components(sources, np.dtype(np.float32)) as components:
        part = components["llama"]
        for row in part.rows:
            np.testing.assert_allclose(part.leaf(row), leaves[row.leaf], rtol=1e-6, atol=0)
        whole = part.read("blk.0.attn_q.weight")
        for rows in ((0, 64), (3, 5), (15, 17), (40, 41)):
            np.testing.assert_array_equal(
                part.read("blk.0.attn_q.weight", rows), whole[slice(*rows)]
            )


def test_llama_of_the_published_shapes_needs_no_metadata(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_llama, "published", lambda name: replace(LLAMA, vocab_size=99))
    tensors, _, _ = text_encoder()
    with open_components(llama_sources(tmp_path, tensors, {}), None) as components:
        assert components["llama"].config == LLAMA
    monkeypatch.undo()
    with (
        pytest.raises(InputError, match=r"does not say llama\.attention\.head_count"),
        open_components(llama_sources(tmp_path, tensors, {}), None),
    ):
        pass


WRONG = {
    "architecture": ({"general.architecture": (TEXT, "gemma")}, InputError, "architecture 'gemma'"),
    "rotary scaling": ({"llama.rope.scaling.type": (TEXT, "yarn")}, InputError, "rope.scaling.type = 'yarn'"),
    "experts": ({"llama.expert_count": (U32, 8)}, InputError, "expert_count = 8"),
    "vocabulary": ({"llama.vocab_size": (U32, 65)}, CheckpointError, "vocab_size = 65 in its metadata.* say 64"),
    "layers": ({"llama.block_count": (U32, 5)}, CheckpointError, "num_hidden_layers = 5 .* say 4"),
    "width": ({"llama.embedding_length": (U32, 32)}, CheckpointError, "hidden_size = 32 .* say 64"),
    "heads": ({"llama.attention.head_count": (U32, 8)}, CheckpointError, "say"),
    "no heads": ({"llama.attention.head_count": (U32, 0)}, InputError, "num_attention_heads"),
    "heads of each layer": ({"llama.attention.head_count": (LIST, (U32, [4] * 4))}, CheckpointError, "no num_attention_heads"),
    "rotary part": ({"llama.rope.dimension_count": (U32, 8)}, CheckpointError, "head_dim = 8 .* say 16"),
    "two head sizes": ({"llama.attention.key_length": (U32, 8)}, CheckpointError, "no head_dim"),
    "a text": ({"llama.context_length": (TEXT, "32")}, CheckpointError, "no max_position_embeddings"),
    "infinite": ({"llama.rope.freq_base": (F32, float("inf"))}, InputError, "rope_theta"),
    "huge": ({"llama.context_length": (U32, 2**32 - 1)}, InputError, "max_position_embeddings"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_llama_whose_metadata_contradict_it(name, tmp_path):
    tensors, values, _ = text_encoder()
    change, error, message = WRONG[name]
    sources = llama_sources(tmp_path, tensors, values | change)
    with pytest.raises(error, match=message), open_components(sources, None):
        pass


def test_config_json_is_compared_with_the_metadata(tmp_path):
    tensors, values, _ = text_encoder()
    sources = llama_sources(tmp_path, tensors, values)
    config = {"model_type": "llama", **replace(LLAMA, rope_theta=1e4).to_transformers()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with (
        pytest.raises(CheckpointError, match=r"rope_theta = 500000\.0 in its metadata"),
        open_components(sources, None),
    ):
        pass


def test_llama_with_scaled_rotary_frequencies(tmp_path):
    tensors, values, _ = text_encoder()
    tensors["rope_freqs.weight"], _ = stored("F32", (8,), np.ones(8))
    with (
        pytest.raises(InputError, match=r"rope_freqs\.weight"),
        open_components(llama_sources(tmp_path, tensors, values), None),
    ):
        pass


def test_without_gguf(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    path = tmp_path / "a.gguf"
    path.touch()  # what is in it does not matter
    with pytest.raises(InputError, match=r"needs the package gguf; .*pip install 'qsjax\[gguf\]'"):
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


def test_llama_cpp_tensors_in_memory_are_refused():
    tensors = {name: np.zeros(shape, np.float32) for row in expand("llama", LLAMA, "llama_cpp") for name, shape in row.sources.items()}  # fmt: skip
    with pytest.raises(CheckpointError, match="another order"):
        load_module(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), "llama", None, tensors, LLAMA)
