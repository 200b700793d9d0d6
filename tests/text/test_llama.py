import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from text_oracles import LLAMA, our_llama, relative_error, torch_llama

from qsjax.params import parameters
from qsjax.text import Llama
from qsjax.text.llama import rotary_tables

RELATIVE = 1e-5


def _batch(length=21, valid=(21, 9, 1)):
    ids = np.random.default_rng(1).integers(0, LLAMA.vocab_size, (len(valid), length))
    mask = np.arange(length)[None] < np.array(valid)[:, None]
    return ids.astype(np.int32), mask


@jax.jit
def _apply(llama, ids, mask):
    return llama(ids, mask)


def _run(llama, ids, mask):
    return _apply(llama, jnp.asarray(ids), jnp.asarray(mask))


def _reference(model, ids, mask):
    with torch.no_grad():
        out = model(torch.tensor(ids).long(), torch.tensor(mask).long(), output_hidden_states=True)
    assert len(out.hidden_states) == LLAMA.num_hidden_layers + 1
    return out.hidden_states[-3].numpy()


def test_states_match_transformers_on_every_valid_token():
    model, (ids, mask) = torch_llama(), _batch()
    ours = _run(our_llama(model), ids, mask)
    reference = _reference(model, ids, mask)
    assert ours.dtype == jnp.float32
    assert relative_error(np.asarray(ours)[mask], reference[mask]) <= RELATIVE


def test_bfloat16_stays_close_and_keeps_its_dtype():
    model, (ids, mask) = torch_llama(), _batch()
    reference = _reference(model, ids, mask)[mask]
    ours = _run(our_llama(model, dtype=jnp.bfloat16), ids, mask)
    assert ours.dtype == jnp.bfloat16
    assert relative_error(np.asarray(ours, np.float32)[mask], reference) <= 0.05


def test_padding_never_reaches_valid_tokens():
    llama, (ids, mask) = our_llama(torch_llama()), _batch()
    other = np.where(mask, ids, (ids + 7) % LLAMA.vocab_size)
    a, b = (_run(llama, i, mask) for i in (ids, other))
    np.testing.assert_array_equal(np.asarray(a)[mask], np.asarray(b)[mask])


def test_rows_without_any_valid_token_stay_finite():
    ids, _ = _batch()
    states = _run(our_llama(torch_llama()), ids, np.zeros(ids.shape, bool))
    assert bool(jnp.isfinite(states).all())


@pytest.mark.parametrize(("head_dim", "theta"), [(128, 500000.0), (8, 500000.0), (32, 10000.0)])
def test_rotary_tables_are_those_of_pytorch(head_dim, theta):
    frequency = 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim))
    angle = torch.arange(351).float()[:, None] * frequency[None]
    angle = torch.cat([angle, angle], dim=1)
    cos, sin = rotary_tables(351, head_dim, theta=theta)
    np.testing.assert_allclose(cos, angle.cos().numpy(), rtol=0, atol=1e-7)
    np.testing.assert_allclose(sin, angle.sin().numpy(), rtol=0, atol=1e-7)


def test_parameters_are_named_and_shaped_as_documented():
    module = nnx.eval_shape(lambda: Llama(LLAMA, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    found = parameters(module)
    n, width = LLAMA.num_hidden_layers - 2, LLAMA.hidden_size
    shapes = {
        "embed.embedding": (LLAMA.vocab_size, width),
        "layers.input_norm.scale": (n, width),
        "layers.post_attention_norm.scale": (n, width),
        "layers.q_proj.kernel": (n, width, 48),
        "layers.k_proj.kernel": (n, width, 16),
        "layers.v_proj.kernel": (n, width, 16),
        "layers.o_proj.kernel": (n, 48, width),
        "layers.gate_proj.kernel": (n, width, 56),
        "layers.up_proj.kernel": (n, width, 56),
        "layers.down_proj.kernel": (n, 56, width),
    }
    assert {name: leaf.shape for name, leaf in found.items()} == shapes
    assert {leaf.dtype for leaf in found.values()} == {jnp.dtype(jnp.bfloat16)}
