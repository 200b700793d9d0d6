"""Refreshes and sparse steps: exact where they must be, whatever the policy, store, order or padding."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import compilations
from tolerances import FLOAT32_NETWORK

from qsjax.config import from_mapping
from qsjax.dit.attention import dense_attention
from qsjax.errors import InputError
from qsjax.residual import (
    POLICIES,
    Gains,
    Residual,
    bytes_of,
    empty_state,
    refresh_attention,
    sparse_attention,
)
from qsjax.sparse import Pattern, Sparsity

GRID, VIDEO, TEXT, HEADS, SIZE = (4, 3, 4), 48, 5, 2, 12
EXACT = Residual(store="float32", rank=0)
SVG = Sparsity(mask="svg", density=0.4, block=4, profiled_rows=12)
BAND = Sparsity(mask="band", density=0.4, block=4)
TOPK = Sparsity(mask="topk", density=0.4, block=4, tile=(1, 1, 4))
KEPT = [name for name in POLICIES if name != "none"]


def gains(reach=0.0, later=0.0):
    return Gains(jnp.float32(reach), jnp.float32(later))


def tensors(seed=0, text=TEXT):
    random = np.random.default_rng(seed)
    video, prompt = (
        random.standard_normal((3, 1, length, HEADS, SIZE)).astype(np.float32)
        for length in (VIDEO, TEXT)
    )
    padding = np.full((3, 1, text - TEXT, HEADS, SIZE), 7, np.float32)
    return list(map(jnp.asarray, np.concatenate([video, prompt, padding], axis=2)))


def validity(text=TEXT):
    return jnp.arange(VIDEO + text)[None] < VIDEO + 4


class Layer:
    """One layer's attention over several steps, as a sampler runs it."""

    def __init__(self, sparsity, residual, text=TEXT):
        self.pattern, self.residual = Pattern(sparsity, GRID, text), residual
        self.state = empty_state(residual, self.pattern, 1, HEADS, SIZE, jnp.float32)
        self.valid = validity(text)

    def refresh(self, qkv, later=0.0):
        attend = partial(refresh_attention, implementation="reference")
        out, self.state = attend(
            self.pattern, self.residual, gains(0.0, later), *qkv, self.valid, self.state
        )
        return out

    def sparse(self, qkv, reach=0.0):
        attend = partial(sparse_attention, implementation="reference")
        out, self.state = attend(
            self.pattern, self.residual, gains(reach, 1.0), *qkv, self.valid, self.state
        )
        return out


def near(found, expected, atol=FLOAT32_NETWORK):
    np.testing.assert_allclose(found, expected, atol=atol)


@jax.jit
def dense(qkv):
    return dense_attention(*qkv, validity())[0]


@pytest.mark.parametrize("policy", KEPT)
@pytest.mark.parametrize("sparsity", [SVG, TOPK], ids=lambda s: s.mask)
def test_the_tokens_of_the_refresh_give_dense_attention(policy, sparsity):
    layer, qkv = Layer(sparsity, replace(EXACT, policy=policy)), tensors()
    near(layer.refresh(qkv), dense(qkv))
    near(layer.sparse(qkv), dense(qkv))
    assert 0 < float(layer.state.recall.mean()) < 1


def test_without_a_cache_sparse_attention_is_far_from_dense():
    layer, qkv = Layer(SVG, replace(EXACT, policy="none")), tensors()
    near(layer.refresh(qkv), dense(qkv))
    assert float(jnp.abs(layer.sparse(qkv) - dense(qkv)).max()) > 0.1


def test_lists_may_be_chosen_in_every_step():
    kept, fresh = (Layer(replace(TOPK, every_step=fresh), replace(EXACT, policy="none")) for fresh in (False, True))  # fmt: skip
    for layer in (kept, fresh):
        layer.refresh(tensors(0))
    later = Layer(TOPK, replace(EXACT, policy="none"))
    later.refresh(tensors(1))
    near(fresh.sparse(tensors(1)), later.sparse(tensors(1)))
    assert float(jnp.abs(kept.sparse(tensors(1)) - later.sparse(tensors(1))).max()) > 0.01


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("sparsity", [SVG, TOPK], ids=lambda s: s.mask)
def test_density_one_is_dense_at_every_step(policy, sparsity):
    layer = Layer(replace(sparsity, density=1.0), Residual(policy=policy, store="int8", rank=3))
    near(layer.refresh(tensors(0)), dense(tensors(0)))
    near(layer.sparse(tensors(1), reach=0.5), dense(tensors(1)))
    near(layer.refresh(tensors(2), later=1.0), dense(tensors(2)))
    near(layer.sparse(tensors(3), reach=0.5), dense(tensors(3)))
    near(layer.state.recall, 1.0)


def steady(time):
    """Queries and keys that stay and values that move on a line: so does whatever is left out."""
    (q, k, v), (_, _, way) = tensors(0), tensors(1)
    return q, k, v + time * way


@pytest.mark.parametrize("policy", KEPT)
@pytest.mark.parametrize("rank", [0, 2 * SIZE])
def test_scaled_changes_follow_a_line(policy, rank):
    layer = Layer(BAND, replace(EXACT, policy=policy, rank=rank))
    layer.refresh(steady(0.0))
    layer.refresh(steady(5.0), later=1.0)
    error = float(jnp.abs(layer.sparse(steady(7.0), reach=0.4) - dense(steady(7.0))).max())
    if POLICIES[policy].scaled:
        assert error < 10 * FLOAT32_NETWORK  # values of the order of 10
    else:
        assert error > 0.01


def test_what_all_values_gain_is_known_to_first_order_and_half_known_to_what_follows():
    (q, k, v), gain = tensors(), 3.0
    error = {}
    for policy in ("first", "recall", "recall-following"):
        layer = Layer(SVG, replace(EXACT, policy=policy))
        layer.refresh((q, k, v))
        error[policy] = np.asarray(layer.sparse((q, k, v + gain)) - dense((q, k, v + gain)))
    near(error["first"], 0.0)
    assert np.abs(error["recall"]).max() > 0.5
    near(error["recall-following"], error["recall"] / 2)


def test_second_order_adds_the_whole_change():
    first, second = (Layer(BAND, replace(EXACT, policy=name)) for name in ("first", "second"))
    for layer in (first, second):
        layer.refresh(steady(0.0))
        layer.refresh(steady(5.0), later=1.0)
    # D at 5 plus D at 5 less D at 0 is D at 10.
    near(second.sparse(steady(10.0)), dense(steady(10.0)), atol=10 * FLOAT32_NETWORK)
    assert float(jnp.abs(first.sparse(steady(10.0)) - dense(steady(10.0))).max()) > 0.1


def test_third_order_follows_a_parabola():
    def bent(time):
        (q, k, v), (_, _, way) = tensors(0), tensors(1)
        return q, k, v + time * time * way

    layer = Layer(BAND, replace(EXACT, policy="third"))
    for number, time in enumerate((0.0, 1.0, 2.0)):
        layer.refresh(bent(time), later=float(number > 0))
    # In units of the way D is 0, 1, 4: 4 + 3 + 2 is what it is at 3.
    near(layer.sparse(bent(3.0)), dense(bent(3.0)), atol=20 * FLOAT32_NETWORK)


@pytest.mark.parametrize("policy", KEPT)
def test_eight_bits_are_off_by_half_a_step(policy):
    exact = Layer(SVG, replace(EXACT, policy=policy))
    rounded = Layer(SVG, replace(EXACT, policy=policy, store="int8"))
    for layer in (exact, rounded):
        layer.refresh(tensors())
    peak = float(jnp.abs(exact.state.cached.values).max())
    error = jnp.abs(rounded.sparse(tensors()) - exact.sparse(tensors()))
    assert 0 < float(error.max()) <= peak * 0.5 / 127 + FLOAT32_NETWORK


def heads_of(kinds):
    """Heads that look along their own frame (spatial) or through all frames (temporal)."""
    t, place = np.divmod(np.arange(VIDEO), 12)
    codes = {"spatial": np.eye(4)[t], "temporal": np.eye(12)[place]}
    q = np.zeros((1, VIDEO + TEXT, HEADS, SIZE), np.float32)
    for head, kind in enumerate(kinds):
        q[0, :VIDEO, head, : codes[kind].shape[1]] = 6 * codes[kind]
    v = np.random.default_rng(3).standard_normal(q.shape).astype(np.float32)
    return tuple(map(jnp.asarray, (q, q, v)))


def test_a_head_that_changes_its_order_keeps_a_correct_cache():
    residual = replace(EXACT, policy="second-scaled")
    layer = Layer(replace(SVG, density=0.25), residual)
    before = heads_of(["spatial", "spatial"])
    after = heads_of(["spatial", "temporal"])
    layer.refresh(before)
    assert layer.state.choice.second.tolist() == [[False, False]]
    layer.refresh((*after[:2], 2 * after[2]), later=1.0)
    assert layer.state.choice.second.tolist() == [[False, True]]
    change = np.abs(np.asarray(layer.state.change.values)).max(axis=(0, 2, 3))
    assert change[0] > 0  # the values have doubled
    assert change[1] == 0  # other keys are left out now: there is no difference to speak of
    near(layer.sparse((*after[:2], 2 * after[2])), dense((*after[:2], 2 * after[2])))


@pytest.mark.parametrize("policy", ["second-scaled", "recall-following"])
def test_rows_whose_lists_stay_keep_their_changes(policy):
    layer = Layer(TOPK, replace(EXACT, policy=policy))

    def turned(time):
        q, k, v = steady(time)
        return q.at[:, :4].multiply(-1), k, v

    layer.refresh(steady(0.0))
    before = layer.state.choice.indices
    layer.refresh(turned(5.0), later=1.0)
    stay = (layer.state.choice.indices == before).all(axis=-1)
    assert not stay[:, :, 0].any()  # the first block of queries looks elsewhere
    assert stay[:, :, 1:].all()
    change = np.abs(np.asarray(layer.state.change.values)).reshape(HEADS, VIDEO // 4, -1).max(-1)
    assert (change[:, 0] == 0).all()
    assert (change[:, 1:] > 0).all()
    found, expected = (out[:, 4:] for out in (layer.sparse(turned(7.0), 0.4), dense(turned(7.0))))
    near(found, expected, atol=10 * FLOAT32_NETWORK)


def test_results_do_not_depend_on_how_far_text_is_padded():
    layer = Layer(TOPK, EXACT)
    layer.refresh(tensors(0))
    expected = layer.sparse(tensors(1), reach=0.5)

    @jax.jit
    def padded(before, now):
        """Compiled at once: all its shapes are other than those of all tests."""
        layer = Layer(TOPK, EXACT, TEXT + 6)
        layer.refresh(before)
        return layer.sparse(now, reach=0.5)

    found = padded(tensors(0, TEXT + 6), tensors(1, TEXT + 6))
    near(found[:, : VIDEO + 4], expected[:, : VIDEO + 4])


def test_steps_are_compiled_once():
    layer = Layer(SVG, Residual(store="int8", rank=2))
    programs = {
        name: jax.jit(partial(attend, layer.pattern, layer.residual))
        for name, attend in (("refresh", refresh_attention), ("sparse", sparse_attention))
    }
    with compilations() as compiled:
        for number, name in enumerate(("refresh", "sparse", "sparse", "refresh", "sparse")):
            numbers = gains(0.2 * number, float(number > 0))
            _, layer.state = programs[name](numbers, *tensors(number), layer.valid, layer.state)
    assert [compiled[name] for name in ("refresh_attention", "sparse_attention")] == [1, 1]


def test_bytes_are_counted():
    layer = Layer(SVG, Residual(store="int8", rank=2))
    values = VIDEO * HEADS * SIZE
    rows = 4 * VIDEO * HEADS
    factors = 2 * 4 * (VIDEO + HEADS * SIZE)
    # int8 values and their scales, two factors, two log-sum-exps, the heads' orders and recalls.
    assert bytes_of(layer.state) == values + rows + factors + 2 * rows + HEADS + 4 * HEADS


def test_what_is_refused():
    with pytest.raises(InputError, match="policy: no 'secnd'; did you mean 'second'"):
        from_mapping(Residual, {"policy": "secnd"}, source="here")
    with pytest.raises(InputError, match="rank=-1"):
        Residual(rank=-1)
    with pytest.raises(InputError, match="clock: no 'sun'; known: sigma, steps"):
        from_mapping(Residual, {"clock": "sun"}, source="here")
