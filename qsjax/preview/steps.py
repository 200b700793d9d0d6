"""Previews of the steps of a run."""

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from qsjax.errors import InputError
from qsjax.parallel import gathered
from qsjax.preview.colours import Colours
from qsjax.sample import StepResult, sigmas
from qsjax.settings import SamplingPlan


class StepPreviews:
    """Frames of the clean latents that a step's velocity leads to: x' - sigma' v, v = (x' - x) / (sigma' - sigma).

    Args:
        every: of how many steps, and after the last.
        plan: of sampling.
        colours: the map from latents.
        latents: before the first step.
        mesh: of the devices that share them; None is one device.
    """

    def __init__(
        self,
        every: int,
        plan: SamplingPlan,
        colours: Colours,
        latents: Float[Array | np.ndarray, "B C T H W"],
        mesh: Mesh | None,
    ) -> None:
        self._every, self._steps, self._colours = every, plan.steps, colours
        self._sigmas, self._mesh = sigmas(plan.steps, plan.shift), mesh
        self._before = latents

    def __call__(self, step: StepResult) -> UInt8[np.ndarray, "B T h w 3"] | None:
        """The frames after a step; None where none are due. Every step is to be given."""
        before, self._before, number = self._before, step.latents, step.index + 1
        if number % self._every and number != self._steps:
            return None
        pair = before, step.latents
        x, after = map(np.asarray, pair if self._mesh is None else gathered(self._mesh, pair))
        now, then = self._sigmas[step.index : step.index + 2]
        return self._colours(after - then / (then - now) * (after - x))


def check_preview(every: int, callback: object) -> None:
    """Refuse previews that nobody would get.

    Raises:
        InputError: a negative number of steps, or no callback.
    """
    if every < 0:
        raise InputError(f"`preview={every}`: give a number of steps, or 0 for none")
    if every and callback is None:
        raise InputError("`preview` gives frames to a callback, and there is none; pass one")
