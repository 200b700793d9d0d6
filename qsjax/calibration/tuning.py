"""Tuning end to end: the scales, biases and activation clips of a rounded model, towards the float model's velocities.

Blocks were calibrated one by one, each towards its own float output; what their errors add up to, only the whole model
shows. Here the integers stay, and what multiplies them moves, by gradients through all blocks. (EfficientQAT,
arXiv:2407.11062, ends with the same for language models.)
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PyTree

from qsjax.calibration.attention import attention
from qsjax.calibration.methods import Method
from qsjax.calibration.moments import moment_order
from qsjax.calibration.trajectories import Moments, Trajectories
from qsjax.calibration.tuning_store import TuningState, TuningStore
from qsjax.dit import DiT
from qsjax.dit.stack import Kept
from qsjax.errors import InputError
from qsjax.parallel import AXIS, make_mesh, replicated
from qsjax.params import dotted, map_parameters, parameters
from qsjax.progress import Progress
from qsjax.quant.tuned import TunedLinear, iterate_quantized, with_tuned_layers

BATCH = 2
"""Moments a step."""
_LEAST = 1e-12
"""Squared relative error below which there is nothing to gain."""


class Tuned(NamedTuple):
    """What is trained, by the names of the quantized model's parameters; a pytree.

    Attributes:
        gain: log of what multiplies each scale; zeros at the start.
        bias: the biases themselves.
        clip: log of each activation clip.
    """

    gain: dict[str, Array]
    bias: dict[str, Array]
    clip: dict[str, Array]

    @classmethod
    def start(cls, dit: DiT) -> "Tuned":
        """The values of a quantized model."""
        layers = tuple(f"{path}." for path, *_ in iterate_quantized(dit))

        def found(part: str) -> dict[str, Array]:
            return {
                name: value
                for name, value in parameters(dit).items()
                if name.startswith(layers) and name.endswith(f".{part}")
            }

        # NumPy makes them: eager jax.numpy would compile a program for every shape.
        tuned = (
            {name: np.zeros(value.shape, np.float32) for name, value in found("scale").items()},
            {name: np.array(value, np.float32) for name, value in found("bias").items()},
            {name: np.log(np.asarray(value)) for name, value in found("clip").items()},
        )
        return cls(*jax.tree.map(jnp.array, tuned))

    def leaves(
        self, before: Mapping[str, Any], exp: Callable[[Any], Any] = jnp.exp
    ) -> dict[str, Any]:
        """The parameters that they stand for, given the untuned ones."""
        scales = {name: before[name] * exp(gain) for name, gain in self.gain.items()}
        return {**scales, **self.bias, **{name: exp(clip) for name, clip in self.clip.items()}}


@dataclass(frozen=True)
class Tuner:
    """Jitted functions of tuning; equal settings share what they compiled.

    Attributes:
        steps: of training, for the learning rate.
        learning_rate: Adam's, at the start of a cosine, for layers of 4 bits; with each bit more it is a quarter (`paces`).
        kept: what the backward pass finds of each block.
    """

    steps: int
    learning_rate: float = 1e-3
    kept: Kept = "inputs"

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam with cosine decay to zero."""
        return optax.adam(optax.cosine_decay_schedule(self.learning_rate, max(self.steps, 1)))

    @partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
    def step(
        self, tuned: Tuned, state: PyTree[Array], dit: DiT, moments: Moments
    ) -> tuple[Tuned, PyTree[Array], Float[Array, ""]]:
        """One update, and before it the mean of ||v_q - v||^2 / ||v||^2 over the moments."""

        def objective(tuned: Tuned) -> tuple[Array, Array]:
            errors = self._errors(tuned, dit, moments)
            # Of the logarithms: late steps, whose errors are five times the first ones', would decide alone.
            return jnp.log(errors + _LEAST).mean(), errors.mean()

        gradients, loss = jax.grad(objective, has_aux=True)(tuned)
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes dtypes
            updates, state = self.optimizer.update(gradients, state, tuned)
        pace = paces(dit)
        updates = jax.tree.map_with_path(
            lambda path, update: update * pace[path[-1].key.rpartition(".")[0]], updates
        )
        return cast(Tuned, optax.apply_updates(tuned, updates)), state, loss

    def _errors(self, tuned: Tuned, dit: DiT, moments: Moments) -> Float[Array, " B"]:
        """||v_q - v||^2 / ||v||^2 of every moment."""
        before = parameters(dit)
        now = tuned.leaves(before)
        student = map_parameters(lambda name, value: now.get(name, value), dit)
        out, _ = student.forward(
            moments.latents,
            moments.timestep,
            moments.text,
            moments.mask,
            moments.pooled,
            moments.guidance,
            attention=_attention,
            kept=self.kept,
        )
        axes = tuple(range(1, out.ndim))
        error = jnp.square(out - moments.velocity).sum(axis=axes)
        return error / jnp.square(moments.velocity).sum(axis=axes)


def paces(dit: DiT) -> dict[str, float]:
    """How far the layers of a model may move, by their paths: a quarter as far with each bit more than 4.

    Adam's steps are as long whatever the gradients are. What is right for the errors of 4 bits is itself an error at 6, where the
    squares of rounding's errors are a sixteenth.
    """
    return {
        dotted(*path): 4.0 ** min(4 - layer.precision.weights, 0)
        for path, layer in nnx.iter_modules(dit)
        if isinstance(layer, TunedLinear)
    }


def tune(
    dit: DiT,
    trajectories: Trajectories,
    method: Method,
    *,
    seed: int = 0,
    kept: Kept = "inputs",
    mesh: Mesh | None = None,
    store: TuningStore | None = None,
    progress: bool = False,
) -> tuple[dict[str, np.ndarray], list[float]]:
    """Tune a quantized model.

    Args:
        dit: the model, all layers rounded; not changed.
        trajectories: of the float model.
        method: `tune_steps` and `tune_learning_rate`.
        seed: of the order of moments.
        kept: what the backward pass finds of each block.
        mesh: of devices among which the moments of a step are shared out, at least one for each; None is the default device.
        store: keeps the state of an interrupted run; None starts anew each time.
        progress: show a bar with loss, rate and time left.

    Returns:
        The parameters that changed, by name, and the loss of every step.

    Raises:
        InputError: a loss is not finite.
        CheckpointError: the stored state is damaged, or of another model.
    """
    tuner = Tuner(method.tune_steps, method.tune_learning_rate, kept)
    start = Tuned.start(dit)
    now = TuningState(start, tuner.optimizer.init(start), [])
    if store is not None:
        now = store.read(now)
    # All committed to their devices, what a step returns too: else its second call would compile it again.
    mesh = make_mesh(1) if mesh is None else mesh
    student, tuned, state = replicated(mesh, (with_tuned_layers(dit), now.tuned, now.optimizer))
    now, shares = TuningState(tuned, state, now.curve), NamedSharding(mesh, P(AXIS))
    batch = -(-BATCH // mesh.size) * mesh.size
    order = moment_order(
        len(trajectories.latents),
        len(trajectories.timestep),
        method.tune_steps * batch,
        early=method.tune_early,
        seed=seed,
    ).reshape(-1, batch)
    with Progress(
        method.tune_steps, "tune", unit="step", initial=len(now.curve), enabled=progress
    ) as bar:
        for numbers in order[len(now.curve) :]:
            moments = trajectories.moments(numbers, shares)
            tuned, state, loss = tuner.step(now.tuned, now.optimizer, student, moments)
            now = TuningState(tuned, state, [*now.curve, float(loss)])
            if not math.isfinite(now.curve[-1]):
                raise InputError(
                    f"tuning has no finite loss at step {len(now.curve)}; pass `tune_steps=0`, or a method with a smaller"
                    " learning rate"
                )
            bar.advance(loss=f"{now.curve[-1]:.5f}")
            if store is not None:
                store.offer(now, last=len(now.curve) == method.tune_steps)
    before = {name: np.asarray(value) for name, value in parameters(dit).items()}
    return jax.device_get(now.tuned).leaves(before, np.exp), now.curve


def _attention(q: Array, k: Array, v: Array, kv_valid: Array, state: tuple[()]) -> Any:
    return attention(q, k, v, kv_valid, state)[0], state
