"""A LLaMA of llama.cpp's: its metadata against its shapes, queries and keys put back in order, and what it computes."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from gguf_files import F32, LIST, TEXT, U32, rotary_pairs, stored, write
from safetensors.torch import save_file
from text.text_tokenizers import write_llama_tokenizer

from convert import Sources, convert, gguf_llama, verify
from convert.component import open_components
from convert.keymaps import expand, load_module
from qsjax.checkpoint import Manifest, restore
from qsjax.errors import CheckpointError, InputError
from qsjax.text import Llama
from qsjax.text.config import LlamaConfig

LLAMA = LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-5, rope_theta=5e5, max_position_embeddings=32,
)  # fmt: skip
WHOLE = replace(LLAMA, num_hidden_layers=LLAMA.num_hidden_layers + 2)
"""The encoder stops two layers before the end, and files have them all."""


def text_encoder(config=LLAMA):
    """llama.cpp's file of a LLaMA, and the leaves that its numbers make."""
    rows = list(expand("llama", WHOLE, "llama_cpp"))
    tensors, leaves = {}, {}
    for number, row in enumerate(rows):
        ((name, shape),) = row.sources.items()
        numbers = np.random.default_rng(number).standard_normal(shape) / len(shape) ** 2
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


@jax.jit
def states(llama, ids):
    return llama(ids, jnp.ones(ids.shape, bool))


def test_the_float32_model_computes_what_the_same_weights_do_as_safetensors(tmp_path):
    """A LLaMA of transformers whose weights are those of the file, before and after they are written as safetensors."""
    tensors, values, leaves = text_encoder()
    model = transformers.LlamaModel(transformers.LlamaConfig(**LLAMA.to_transformers())).eval()
    named = {
        name: torch.from_numpy(np.ascontiguousarray(leaves[row.leaf].T if "kernel" in row.leaf else leaves[row.leaf]))
        for row in expand("llama", WHOLE, "transformers")
        for name in row.sources
    }  # fmt: skip
    missing, surplus = model.load_state_dict(named, strict=False)
    assert (missing, surplus) == (["norm.weight"], [])
    folder = tmp_path / "plain"
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | LLAMA.to_transformers()))  # fmt: skip
    given = llama_sources(tmp_path, tensors, values)
    ids = np.random.default_rng(0).integers(0, LLAMA.vocab_size, (2, 9)).astype(np.int32)
    found = {}
    for name, source in (("gguf", given), ("plain", replace(given, text_encoder=folder))):
        convert(source, tmp_path / f"c-{name}", dtype="float32", progress=False)
        module = nnx.eval_shape(lambda: Llama(LLAMA, dtype=jnp.float32, rngs=nnx.Rngs(0)))
        llama = restore(Manifest.read(tmp_path / f"c-{name}"), "llama", module, progress=False)
        found[name] = np.asarray(states(llama, ids))
    with torch.no_grad():
        hidden = model(torch.tensor(ids).long(), output_hidden_states=True).hidden_states
    scale = abs(found["plain"]).max()
    np.testing.assert_allclose(found["gguf"] / scale, found["plain"] / scale, atol=1e-4, rtol=0)
    np.testing.assert_allclose(found["gguf"] / scale, hidden[-3].numpy() / scale, atol=1e-4, rtol=0)
    # With rows in llama.cpp's order it would be another model.
    for part, heads in (("q", LLAMA.num_attention_heads), ("k", LLAMA.num_key_value_heads)):
        name = f"layers.0.self_attn.{part}_proj.weight"
        wrong = torch.from_numpy(rotary_pairs(named[name].numpy(), heads))
        model.load_state_dict(model.state_dict() | {name: wrong})
        with torch.no_grad():
            other = model(torch.tensor(ids).long(), output_hidden_states=True).hidden_states[-3]
        assert abs(other.numpy() - found["gguf"]).max() > 1e-2 * scale
        model.load_state_dict(model.state_dict() | {name: named[name]})


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


def test_llama_cpp_tensors_in_memory_are_refused():
    tensors = {name: np.zeros(shape, np.float32) for row in expand("llama", LLAMA, "llama_cpp") for name, shape in row.sources.items()}  # fmt: skip
    with pytest.raises(CheckpointError, match="another order"):
        load_module(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), "llama", None, tensors, LLAMA)
