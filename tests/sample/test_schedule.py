"""The schedule is diffusers', to the last bit."""

import numpy as np
import pytest

from qsjax.errors import InputError
from qsjax.sample.schedule import sigmas, timesteps


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 7.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 30, 50])
def test_equals_diffusers_bitwise(steps, shift):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    # The call that HunyuanVideoPipeline makes.
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1])
    ours = sigmas(steps, shift)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours.view(np.int32), scheduler.sigmas.numpy().view(np.int32))
    np.testing.assert_array_equal(timesteps(ours), scheduler.timesteps.numpy())


def test_known_values_at_shift_seven():
    np.testing.assert_allclose(sigmas(4), [1, 0.954545, 0.875, 0.7, 0], atol=1e-6)


@pytest.mark.parametrize("arguments", [(0, 7.0), (-1, 7.0), (10, 0.0), (10, float("nan"))])
def test_impossible_schedules_are_refused(arguments):
    with pytest.raises(InputError):
        sigmas(*arguments)
