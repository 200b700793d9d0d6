"""Tuning a rounded model through what sampling does with it: a refresh, and the sparse steps that live on its cache.

Step by step, each moment of a float run is one forward pass with dense attention (`qsjax.calibration.tuning`). A rollout begins at the
latents that a float run has before a refresh, and goes on with its own: gradients run through the latents, the lists' attention and the
cache. What is trained is the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from qsjax.calibration import Trajectories
from qsjax.calibration.tuning import Tuned
from qsjax.dit import DiT
from qsjax.params import map_parameters, parameters
from qsjax.progress import Progress
from qsjax.quant.tuned import with_tuned_layers
from qsjax.sample import SamplingPlan, denoise_step, empty_cache, prepare, schedule
from qsjax.sample.loop import step_at
from qsjax.settings import REFRESH, SPARSE
from qsjax.text import EncodedPrompt


class Rollout(NamedTuple):
    """Float runs from a refresh to the last sparse step that lives on its cache.

    Attributes:
        prompt: encoded captions.
        earlier: latents before the refresh before, whose cache the extrapolation wants; of the first refresh its own.
        latents: before the refresh, and after each step from it on.
        at: index of the earlier refresh, and of this one.
    """

    prompt: EncodedPrompt
    earlier: Float[Array, "B C T H W"]
    latents: Float[Array, "S1 B C T H W"]
    at: Int[Array, "2"]


@dataclass(frozen=True)
class RolloutTuner:
    """Jitted update of the tuned values; equal settings share what they compiled.

    Attributes:
        plan: of sampling, with a refresh every `interval` steps from the first on.
        updates: of training, for the learning rate.
        learning_rate: Adam's, at the start of a cosine.
    """

    plan: SamplingPlan
    updates: int
    learning_rate: float = 2e-3

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam with cosine decay to zero."""
        return optax.adam(optax.cosine_decay_schedule(self.learning_rate, max(self.updates, 1)))

    @partial(jax.jit, static_argnums=0)
    def update(
        self, tuned: Tuned, state: PyTree[Array], dit: DiT, rollout: Rollout
    ) -> tuple[Tuned, PyTree[Array], Float[Array, ""]]:
        """One update, and the loss before it."""
        loss, gradients = jax.value_and_grad(self.loss)(tuned, dit, rollout)
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes dtypes
            updates, state = self.optimizer.update(gradients, state, tuned)
        return cast(Tuned, optax.apply_updates(tuned, updates)), state, loss

    def loss(self, tuned: Tuned, dit: DiT, rollout: Rollout) -> Float[Array, ""]:
        """||x - x'||^2 / ||x' - x'_0||^2 after every step, x' the float run and x'_0 its latents before the refresh; the mean."""
        now = tuned.leaves(parameters(dit))
        student = map_parameters(lambda name, value: now.get(name, value), dit)
        numbers, conditions = schedule(self.plan), prepare(self.plan, student, rollout.prompt)
        cache = empty_cache(self.plan, student, rollout.earlier.shape, conditions)
        step = step_at(numbers, rollout.at[0])
        _, cache = denoise_step(
            self.plan, REFRESH, student, rollout.earlier, cache, step, conditions
        )
        start, targets = rollout.latents[0], rollout.latents[1:]
        cache = jax.lax.stop_gradient(cache)
        # One step's activations at a time: the backward pass makes them again.
        again = jax.checkpoint(partial(denoise_step, self.plan, REFRESH))
        step = step_at(numbers, rollout.at[1])
        x, cache = again(student, start, cache, step, conditions)

        @jax.checkpoint
        def sparse_step(x: Array, number: Array) -> tuple[Array, Array]:
            step = step_at(numbers, rollout.at[1] + number)
            # A sparse step leaves the cache as it is.
            x, _ = denoise_step(self.plan, SPARSE, student, x, cache, step, conditions)
            return x, x

        _, later = jax.lax.scan(sparse_step, x, jnp.arange(1, len(targets), dtype=jnp.int32))
        walked, axes = jnp.concatenate([x[None], later]), tuple(range(2, x.ndim + 1))
        moved = jnp.square(targets - start[None]).sum(axis=axes)
        return (jnp.square(walked - targets).sum(axis=axes) / moved).mean()


def tune_through_rollouts(
    dit: DiT, runs: Trajectories, tuner: RolloutTuner, *, batch: int = 2, seed: int = 0
) -> tuple[DiT, list[float]]:
    """A copy of a rounded model with tuned scales, biases and clips, and the loss of every update."""
    student, tuned = with_tuned_layers(dit), Tuned.start(dit)
    state, curve = tuner.optimizer.init(tuned), []
    with Progress(tuner.updates, "tune through rollouts", unit="update") as bar:
        for rollout in rollouts(runs, tuner.plan, tuner.updates, batch, seed):
            tuned, state, loss = tuner.update(tuned, state, student, rollout)
            curve.append(float(loss))
            bar.advance(loss=f"{curve[-1]:.5f}")
    return with_leaves(dit, tuned), curve


def with_leaves(dit: DiT, tuned: Tuned) -> DiT:
    """A copy of a rounded model with what was tuned."""
    leaves = tuned.leaves(parameters(dit))
    return map_parameters(lambda name, value: leaves.get(name, value), dit)


def rollouts(
    runs: Trajectories, plan: SamplingPlan, count: int, batch: int, seed: int
) -> Iterator[Rollout]:
    """Random ones: of one refresh each, and of `batch` different captions."""
    assert plan.sparse is not None  # else there is no refresh
    random, interval = np.random.default_rng(seed), plan.sparse.interval
    refreshes = [index for index, kind in enumerate(plan.kinds) if kind == REFRESH]
    for _ in range(count):
        at = int(random.choice(refreshes))
        chosen = random.permutation(len(runs.latents))[:batch]
        end = min(at + interval, plan.steps)
        before = max(at - interval, 0)
        latents = np.stack([runs.latents[run][at : end + 1] for run in chosen], axis=1)
        yield Rollout(
            EncodedPrompt(
                jnp.asarray(runs.text[chosen]),
                jnp.asarray(runs.mask[chosen]),
                jnp.asarray(runs.pooled[chosen]),
            ),
            jnp.asarray(np.stack([runs.latents[run][before] for run in chosen])),
            jnp.asarray(latents),
            jnp.asarray([before, at], jnp.int32),
        )
