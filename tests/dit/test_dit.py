"""What the DiT promises beside parity: slots, attention forms, one compilation, clear refusals."""

from dataclasses import replace
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dit_pairs import SMALL, inputs, run_ours
from flax import nnx
from tolerances import FLOAT32_NETWORK

from pallas_kernels import UnsupportedError
from qsjax.dit import DiT, DiTConfig, attention
from qsjax.dit.attention import DENSE_ATTENTION, dense_attention
from qsjax.errors import InputError


@pytest.fixture(scope="module")
def dit():
    """A DiT whose zero-initialized layers are filled, so that nothing is the identity."""
    graph, abstract = nnx.split(nnx.eval_shape(lambda: DiT(SMALL, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(1)
    state = jax.tree.map(
        lambda x: jnp.asarray(0.2 * rng.standard_normal(x.shape), x.dtype), abstract
    )
    return nnx.merge(graph, state)


def test_attention_state_reaches_each_block_in_order_and_comes_back(dit):
    def counting(q, k, v, kv_valid, state):
        out, _ = dense_attention(q, k, v, kv_valid)
        return out, {"calls": state["calls"] + 1, "norm": jnp.linalg.norm(out.astype(jnp.float32))}

    given = {k: None if v is None else jnp.asarray(v) for k, v in inputs(SMALL).items()}
    blocks = SMALL.num_blocks
    state = {"calls": jnp.arange(blocks), "norm": jnp.zeros(blocks)}
    run = jax.jit(lambda dit, state: dit.forward(**given, attention=counting, state=state))
    velocity, after = run(dit, state)
    np.testing.assert_array_equal(after["calls"], np.arange(blocks) + 1)
    assert len(np.unique(after["norm"])) == blocks
    np.testing.assert_allclose(velocity, run_ours(dit, given), atol=FLOAT32_NETWORK, rtol=0)


def test_a_donated_attention_state_is_updated_in_place(dit):
    def keep(q, k, v, kv_valid, state):
        out, _ = dense_attention(q, k, v, kv_valid)
        return out, out

    given = {k: None if v is None else jnp.asarray(v) for k, v in inputs(SMALL).items()}
    tokens = 4 * 3 * 4 + given["text"].shape[1]
    cache = jax.ShapeDtypeStruct(
        (SMALL.num_blocks, 2, tokens, SMALL.num_heads, SMALL.head_dim), jnp.float32
    )

    def step(dit, cache):
        return dit.forward(**given, attention=keep, state=cache)

    memory = jax.jit(step, donate_argnums=1).lower(dit, cache).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= np.prod(cache.shape) * 4


def test_a_profile_names_blocks_and_their_parts(dit):
    given = {k: None if v is None else jnp.asarray(v) for k, v in inputs(SMALL).items()}
    text = jax.jit(lambda dit: dit(**given)).lower(dit).as_text(debug_info=True)
    names = ("embed", "double_block/qkv", "double_block/attention", "double_block/mlp")
    for name in (*names, "single_block/linear1", "single_block/attention", "final"):
        assert f"{name}/" in text, name


def test_linear_slot_asks_the_layer_for_its_input(dit):
    class Recording(nnx.Module):
        def __init__(self, inner):
            self.inner = inner

        def modulated_input(self, x, shift, scale):
            return {"x": x, "shift": shift, "scale": scale}

        def __call__(self, given):
            from qsjax.dit.norms import modulate

            return self.inner(modulate(given["x"], given["shift"], given["scale"]))

    given = inputs(SMALL)
    expected = run_ours(dit, given)
    graph, state = nnx.split(dit)
    changed = nnx.merge(graph, state)
    changed.single_blocks.linear1 = Recording(changed.single_blocks.linear1)
    changed.double_blocks.img.qkv = Recording(changed.double_blocks.img.qkv)
    np.testing.assert_array_equal(run_ours(changed, given), expected)


@pytest.mark.parametrize(
    ("name", "length"),
    [*product(["xla_per_head", "xla_chunked"], [1, 77, 300, 512]), ("tpu@interpret", 300)],
)
def test_attention_forms_agree_with_the_textbook(name, length, monkeypatch):
    if "tpu" in name:  # blocks of which there are several
        monkeypatch.setattr(attention, "DENSE_BLOCKS", (128, 256))
    size = 128 if "tpu" in name else 8
    keys = jax.random.split(jax.random.key(length), 3)
    q, k, v = (jax.random.normal(key, (2, length, 3, size)) for key in keys)
    valid = jnp.arange(length)[None] < jnp.array([[length], [max(1, length - 5)]])
    scores = np.einsum("bqhd,bkhd->bhqk", q, k).astype(np.float64) / np.sqrt(size)
    scores = np.where(np.asarray(valid)[:, None, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("bhqk,bkhd->bqhd", weights, np.asarray(v))
    found = jax.jit(lambda *args: dense_attention(*args, implementation=name)[0])(q, k, v, valid)
    np.testing.assert_allclose(found, expected, atol=FLOAT32_NETWORK, rtol=0)


def test_chunked_attention_with_a_small_budget(monkeypatch):
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (1, 50, 2, 8)) for key in keys)
    valid = jnp.ones((1, 50), bool)
    whole, _ = dense_attention(q, k, v, valid, implementation="xla_chunked")
    monkeypatch.setattr(attention, "_SCORE_BYTES", 4 * 2 * 50 * 7)
    parts, _ = dense_attention(q, k, v, valid, implementation="xla_chunked")
    np.testing.assert_allclose(parts, whole, atol=FLOAT32_NETWORK, rtol=0)


def test_unavailable_attention_is_refused_with_every_reason():
    q = jnp.zeros((1, 4, 2, 8))
    valid = jnp.ones((1, 4), bool)
    with pytest.raises(
        UnsupportedError, match="cudnn needs an NVIDIA GPU, not cpu; those that can"
    ):
        dense_attention(q, q, q, valid, implementation="cudnn")
    with pytest.raises(ValueError, match="known: auto, cudnn"):
        dense_attention(q, q, q, valid, implementation="flash")
    facts = {"backend": "gpu", "dtype": jnp.dtype("bfloat16"), "head_dim": 128}
    assert DENSE_ATTENTION.choose(**facts) == "cudnn"
    assert DENSE_ATTENTION.choose(**facts | {"head_dim": 130}) == "xla_chunked"


def test_attention_has_gradients():
    keys = jax.random.split(jax.random.key(0), 3)
    valid = jnp.arange(20)[None] < 17
    q, k, v = (jax.random.normal(key, (1, 20, 1, 128)) for key in keys)
    grads = []
    for name in ("xla_per_head", "xla_chunked", "tpu@interpret"):
        out = jax.jit(lambda q, name=name: dense_attention(q, k, v, valid, implementation=name)[0])
        grads.append(jax.grad(lambda q, out=out: out(q).sum())(q))
    for grad in grads:
        np.testing.assert_allclose(grad, grads[0], atol=FLOAT32_NETWORK, rtol=0)
        assert np.abs(grad).max() > 0.01


def test_one_compilation_serves_every_step_and_prompt(dit):
    traces = 0

    @jax.jit
    def step(dit, given):
        nonlocal traces
        traces += 1
        return dit(**given)

    for seed in range(3):
        given = inputs(SMALL, seed=seed)
        step(dit, {k: jnp.asarray(v) for k, v in given.items()})
    assert traces == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance": None}, "needs guidance"),
        ({"latents": np.zeros((2, 4, 4, 5, 8), np.float32)}, "not divisible by the patch"),
        ({"latents": np.zeros((2, 3, 4, 6, 8), np.float32)}, "model takes 4"),
    ],
)
def test_unfitting_inputs_are_refused(dit, change, message):
    with pytest.raises(InputError, match=message):
        run_ours(dit, inputs(SMALL) | change)


def test_guidance_is_refused_by_a_model_without_it():
    model = nnx.eval_shape(lambda: DiT(replace(SMALL, guidance_embeds=False), rngs=nnx.Rngs(0)))
    with pytest.raises(InputError, match="true CFG"):
        run_ours(model, inputs(SMALL))


def test_13b_preset_has_the_published_parameter_count():
    config = DiTConfig.preset("hunyuan-video-13b")
    abstract = nnx.eval_shape(lambda: DiT(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    sizes = [leaf.size for leaf in jax.tree.leaves(nnx.state(abstract))]
    assert sum(sizes) == 12_821_012_544


def test_config_survives_diffusers_and_refuses_what_it_cannot_compute():
    config = DiTConfig.preset("hunyuan-video-13b")
    assert DiTConfig.from_diffusers(config.to_diffusers()) == config
    with pytest.raises(InputError, match="text to video"):
        DiTConfig.from_diffusers(config.to_diffusers() | {"image_condition_type": "latent_concat"})
    with pytest.raises(InputError, match="lacks 'num_layers'"):
        DiTConfig.from_diffusers(
            {k: v for k, v in config.to_diffusers().items() if k != "num_layers"}
        )
    with pytest.raises(InputError, match="sum to the head size"):
        replace(config, rope_axes_dim=(16, 56, 54))
