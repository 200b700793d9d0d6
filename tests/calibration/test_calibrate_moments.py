"""Which moments a calibration sees: the first steps more often than their share, all others evenly."""

from dataclasses import replace

import numpy as np
import pytest

from qsjax.calibration import METHODS
from qsjax.calibration.moments import moment_order, sampled_steps
from qsjax.errors import InputError
from qsjax.settings.calibration import early_samples, first_steps


def test_the_first_steps_are_a_tenth_and_one_at_least():
    assert [first_steps(steps) for steps in (1, 4, 10, 11, 30, 50)] == [1, 1, 1, 2, 3, 5]


@pytest.mark.parametrize(("samples", "steps"), [(20, 30), (20, 50), (7, 30), (4, 4)])
def test_samples_are_spread_over_the_first_steps_and_the_others(samples, steps):
    chosen, first = sampled_steps(samples, steps, seed=3), first_steps(steps)
    early, late = np.sort(chosen[chosen < first]), np.sort(chosen[chosen >= first])
    assert len(early) == early_samples(samples, steps) == round(samples / 3)
    for part, start, stop in ((early, 0, first), (late, first, steps)):
        # One from each of as many stretches.
        edges = start + np.arange(len(part) + 1) / len(part) * (stop - start)
        assert (np.floor(edges[:-1]) <= part).all()
        assert (part < np.ceil(edges[1:])).all()


def test_samples_come_in_an_order_and_at_places_of_their_seed():
    chosen = sampled_steps(20, 30, seed=3)
    np.testing.assert_array_equal(chosen, sampled_steps(20, 30, seed=3))
    assert not np.array_equal(chosen, sampled_steps(20, 30, seed=4))
    assert not np.array_equal(chosen, np.sort(chosen))


def test_few_samples_and_few_steps():
    assert sampled_steps(1, 30, seed=0)[0] >= 3
    assert sorted(sampled_steps(2, 2, seed=0)) == [0, 1]
    assert sampled_steps(3, 1, seed=0).tolist() == [0, 0, 0]


def test_every_moment_comes_once_before_any_comes_twice():
    order = moment_order(2, 3, 15, early=0.0, seed=3)
    assert sorted(order[:6]) == sorted(order[6:12]) == list(range(6))
    assert len(order) == 15
    np.testing.assert_array_equal(order, moment_order(2, 3, 15, early=0.0, seed=3))
    assert not np.array_equal(order, moment_order(2, 3, 15, early=0.0, seed=4))


def test_half_of_the_moments_are_of_the_first_tenth_of_the_steps():
    order = moment_order(4, 30, 80, early=0.5, seed=3)
    first = order % 30 < 3
    # In turns, so that every step of two moments has one of each; twelve of the first, all before any twice.
    assert first.reshape(-1, 2).sum(axis=1).tolist() == [1] * 40
    assert len(set(order[first][:12].tolist())) == 12
    assert len(set(order[~first].tolist())) == 40
    few = moment_order(2, 3, 6, early=0.5, seed=0)
    assert (few % 3 == 0).sum() == 3
    assert sorted(moment_order(3, 1, 3, early=0.5, seed=0)) == [0, 1, 2]
    with pytest.raises(InputError, match="tune_early"):
        replace(METHODS["tuned"], tune_early=1.0)
