"""What lists lose in one step, measured on a dense run."""

import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import FLOAT32_NETWORK

from qsjax.experiments.lists import Measured, all_lists, by_family, measured
from qsjax.experiments.lists.__main__ import main
from qsjax.experiments.lists.measure import SHAPES
from qsjax.experiments.lists.table import FAMILIES

GRID, TEXT = (4, 8, 8), 5


@pytest.fixture(scope="module")
def tokens():
    random = np.random.default_rng(0)
    q, k, v = (
        random.standard_normal((2, 4 * 8 * 8 + TEXT, 2, 8)).astype(np.float32) for _ in range(3)
    )
    valid = np.ones((2, q.shape[1]), bool)
    valid[1, -2:] = False
    return tuple(map(jnp.asarray, (2 * q, k, v, valid)))


@pytest.mark.whole
def test_all_keys_lose_nothing(tokens):
    rows = np.arange(0, 256, 17)
    found = measured(list(all_lists(GRID, TEXT, 1.0).values()), rows, *tokens)
    np.testing.assert_allclose(found.error, 0, atol=FLOAT32_NETWORK)
    np.testing.assert_allclose(found.recall, 1, rtol=FLOAT32_NETWORK)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["frame", "token", "box", "topk"])
def test_error_and_recall_of_the_rows(tokens, shape, name):
    """Of one head of one sample, with attention written out."""
    q, k, v, valid = map(np.asarray, tokens)
    one, rows = all_lists(GRID, TEXT, 0.3)[shape, name], np.array([3, 100, 60, 255])
    found = measured([one], rows, *tokens)
    seen = np.broadcast_to(one.keys(*tokens, rows), (2, 2, 4, 256))[1, 1]
    assert 0.1 < seen.mean() < 0.5
    assert seen[np.arange(4), rows].all()
    errors, sizes, masses = [], [], []
    for row, own in zip(rows, seen, strict=True):
        weights = valid[1] * np.exp(k[1, :, 1] @ q[1, row, 1] / np.sqrt(8))
        listed = weights * np.append(own, np.ones(TEXT, bool))
        full = weights @ v[1, :, 1] / weights.sum()
        errors.append(np.square(listed @ v[1, :, 1] / listed.sum() - full).sum())
        sizes.append(np.square(full).sum())
        masses.append(listed.sum() / weights.sum())
    for half in (0, 1):
        expected = sum(errors[half::2]) / sum(sizes[half::2])
        np.testing.assert_allclose(found.error[0, half, 1, 1], expected, rtol=1e-4)
        np.testing.assert_allclose(
            found.recall[0, half, 1, 1], np.mean(masses[half::2]), rtol=FLOAT32_NETWORK
        )
        np.testing.assert_allclose(found.density[0, half, 1, 1], seen[half::2].mean(), rtol=1e-6)


def test_heads_choose_on_one_half_and_are_reported_on_the_other():
    kinds = all_lists(GRID, TEXT, 0.3)
    names = list(kinds)
    error = np.ones((3, 2, len(kinds), 2, 2, 2))  # steps, layers, kinds, halves, clips, heads
    frame, token = names.index(("16 x 16", "frame")), names.index(("16 x 16", "token"))
    error[:, :, token, 0, :, 1] = 0.5  # the second head takes the order of tokens
    error[:, :, frame, 1], error[:, :, token, 1] = 0.2, 0.4
    found = jnp.asarray(error)
    rows = by_family(kinds, Measured(found, found, found))
    np.testing.assert_allclose(rows["16 x 16", "svg"]["error"], 0.3)
    np.testing.assert_allclose(rows["16 x 16", "svg"]["last"], 0.5)
    np.testing.assert_allclose(rows["16 x 16", "frame order"]["error"], 0.2)


@pytest.mark.whole
def test_a_run_of_the_bundled_model(monkeypatch, capsys):
    size = ("--frames", "5", "--height", "32", "--width", "32", "--steps", "1", "--captions", "2")
    monkeypatch.setattr(sys, "argv", ["lists", *size, "--density", "0.5", "--json"])
    main()
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {f"{shape}, {family}" for shape in SHAPES for family in FAMILIES}
    for figures in report.values():
        assert len(figures["error"]) == 2
        assert all(0.3 < recall <= 1 for recall in figures["recall"])
