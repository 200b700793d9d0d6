"""Tokens in the order of the lists: what each head asked for, whole blocks, text where the lists expect it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qsjax.sparse.layout import Layout
from qsjax.sparse.orders import Orders, followed

GRID, VIDEO, TEXT = (3, 4, 5), 60, 7
SIZES = {"equal": (8, 8), "no padding of keys": (8, 4), "no padding of queries": (4, 8)}


def tokens(dtype=jnp.float32):
    random = np.random.default_rng(0)
    return jnp.asarray(random.standard_normal((2, 3, VIDEO + TEXT, 4)), dtype)


def expected(x, order):
    """One head by its order: rows of the model's order, zeros where the order has none."""
    return np.where(order[:, None] >= 0, np.asarray(x)[order], 0)


def orders_for(kind, sizes):
    if kind == "two":
        return Orders((Layout.frame_major(GRID, *sizes), Layout.token_major(GRID, *sizes)))
    return Orders((Layout(GRID, (2, 2, 4), *sizes, (2, 2, 2)),))


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("kind", ["two", "nested"])
@pytest.mark.parametrize("chosen", [[0, 0, 0], [1, 0, 1], [1, 1, 1]], ids=str)
def test_every_head_has_the_order_that_it_chose(kind, sizes, chosen):
    orders, x = orders_for(kind, sizes), tokens()
    second = jnp.asarray([chosen, [0, 1, 0]], jnp.bool_)

    @jax.jit
    def run(x, second):
        q, k = orders.queries(x, second), orders.keys(x, second)
        return q, k, orders.restore(q, x[:, :, VIDEO:], second)

    q, k, back = run(x, second)
    np.testing.assert_array_equal(back, x)
    for sample, head in np.ndindex(2, 3):
        layout = orders.layouts[int(second[sample, head]) if kind == "two" else 0]
        one = x[sample, head]
        np.testing.assert_array_equal(q[sample, head], expected(one, layout.order))
        np.testing.assert_array_equal(
            k[sample, head, : layout.kv_slots], expected(one, layout.kv_order)
        )
        np.testing.assert_array_equal(k[sample, head, layout.kv_slots :], one[VIDEO:])


@pytest.mark.parametrize(("rows", "start"), [(6, 4), (4, 4), (9, 4), (6, 8)])
def test_what_follows_stands_where_it_should(rows, start):
    x, rest = jnp.arange(1, rows + 1)[None], -jnp.arange(1, 3)[None]
    found = followed(x, 4, rest, start)
    assert found[0].tolist() == [1, 2, 3, 4, *[0] * (start - 4), -1, -2]


def test_gradients_go_back_the_way_that_tokens_came():
    orders, x = orders_for("two", SIZES["equal"]), tokens()
    second = jnp.asarray([[1, 0, 1], [0, 1, 0]], jnp.bool_)
    random = np.random.default_rng(1)

    def weighted(x, weights, choice):
        back = orders.restore(jnp.tanh(orders.queries(x, choice)), x[:, :, VIDEO:], choice)
        return (back * weights).sum()

    weights = jnp.asarray(random.standard_normal(x.shape), jnp.float32)
    found = jax.jit(jax.grad(weighted))(x, weights, second)
    # There and back again, whatever the order: each token's gradient is its own.
    exact = weights * jnp.where(
        np.arange(VIDEO + TEXT)[None, None, :, None] < VIDEO, 1 - jnp.tanh(x) ** 2, 1.0
    )
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6)

    def asymmetric(x):
        rows = jnp.arange(orders.layouts[0].slots, dtype=jnp.float32)[None, None, :, None]
        return (orders.queries(x, second) * rows).sum()

    # The weight of a token is the place that its head's order has it at.
    found = jax.grad(asymmetric)(x)
    for sample, head in np.ndindex(2, 3):
        layout = orders.layouts[int(second[sample, head])]
        places = np.zeros(VIDEO)
        places[layout.order[layout.order >= 0]] = np.flatnonzero(layout.order >= 0)
        np.testing.assert_array_equal(found[sample, head, :VIDEO, 0], places)
