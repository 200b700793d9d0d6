import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from text_oracles import CLIP, our_clip, relative_error, torch_clip

from qsjax.errors import InputError
from qsjax.params import parameters
from qsjax.text import Clip

RELATIVE = 1e-5
HIGHEST = CLIP.vocab_size - 1


def _ids(eos, pad):
    """Prompts of 14, 5 and 0 words, with ids on both sides of `eos` when that is not the highest."""
    ids = np.full((3, CLIP.max_position_embeddings), pad, np.int32)
    words = np.random.default_rng(2).permutation([i for i in range(3, HIGHEST) if i != eos])
    for row, count in enumerate((14, 5, 0)):
        ids[row, : count + 2] = [words[-1], *words[:count], eos]
    return ids


@jax.jit
def _apply(clip, ids):
    return clip(ids)


def _reference(model, ids):
    with torch.no_grad():
        return model(torch.tensor(ids).long()).pooler_output.numpy()


@pytest.mark.parametrize(
    ("activation", "epsilon", "eos_token_id", "eos"),
    [("quick_gelu", 1e-5, 20, 20), ("gelu", 0.02, 2, HIGHEST)],
    ids=["first end-of-text", "highest id"],
)
def test_pooled_vector_matches_transformers(activation, epsilon, eos_token_id, eos):
    config = dataclasses.replace(
        CLIP, hidden_act=activation, layer_norm_eps=epsilon, eos_token_id=eos_token_id
    )
    model = torch_clip(config)
    clip = our_clip(model, config)
    for pad in (eos, 0):
        ids = _ids(eos, pad)
        ours = _apply(clip, jnp.asarray(ids))
        assert ours.dtype == jnp.float32
        assert relative_error(ours, _reference(model, ids)) <= RELATIVE


def test_bfloat16_stays_close_and_keeps_its_dtype():
    model, ids = torch_clip(), _ids(HIGHEST, HIGHEST)
    ours = _apply(our_clip(model, dtype=jnp.bfloat16), jnp.asarray(ids))
    assert ours.dtype == jnp.bfloat16
    assert relative_error(ours.astype(jnp.float32), _reference(model, ids)) <= 0.05


def test_more_tokens_than_positions_are_refused():
    clip = our_clip(torch_clip())
    with pytest.raises(InputError, match="17 tokens were given, the model has 16 positions"):
        clip(jnp.zeros((1, 17), jnp.int32))


def test_parameters_are_named_and_shaped_as_documented():
    module = nnx.eval_shape(lambda: Clip(CLIP, rngs=nnx.Rngs(0)))
    found = {name: leaf.shape for name, leaf in parameters(module).items()}
    n, width, inner = CLIP.num_hidden_layers, CLIP.hidden_size, CLIP.intermediate_size
    linears = {"q_proj": (width, width), "k_proj": (width, width), "v_proj": (width, width)}
    linears |= {"out_proj": (width, width), "fc1": (width, inner), "fc2": (inner, width)}
    shapes = {"token_embed.embedding": (CLIP.vocab_size, width)}
    shapes |= {"position_embed.embedding": (CLIP.max_position_embeddings, width)}
    shapes |= {f"final_norm.{leaf}": (width,) for leaf in ("scale", "bias")}
    for norm in ("norm1", "norm2"):
        shapes |= {f"layers.{norm}.{leaf}": (n, width) for leaf in ("scale", "bias")}
    for name, shape in linears.items():
        shapes |= {f"layers.{name}.kernel": (n, *shape), f"layers.{name}.bias": (n, shape[1])}
    assert found == shapes
