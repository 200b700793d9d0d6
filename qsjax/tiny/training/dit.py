"""Training the tiny DiT on the latents of fresh captioned clips: the step, whatever the objective is.

The objectives are in `qsjax.tiny.training.objectives`. A step splits its batch over all devices there are (GPUs, or the
devices that `jax_num_cpu_devices` makes of a CPU's cores), averages gradients, and updates a replicated state.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from qsjax.dit import DiT
from qsjax.errors import InputError
from qsjax.text import EncodedPrompt
from qsjax.tiny import data, words
from qsjax.tiny.training import latents, matmul
from qsjax.tiny.training.latents import Basis
from qsjax.tiny.training.loop import Figures
from qsjax.tiny.training.objectives import Objective, Velocity
from qsjax.tiny.training.phases import Curriculum
from qsjax.tiny.words import TEXT_LENGTH

TWO_OBJECTS = 0.7
"""Fraction of training clips with two objects: they take longest to learn, and are rarer in evaluations."""


@dataclass(frozen=True, kw_only=True)
class DiTTraining:
    """How the DiT is trained.

    Attributes:
        curriculum: sizes of the clips and the course of the learning rate.
        learning_rate: peak, of AdamW; Muon's is twice that.
        ema: decay of the averaged weights, which are the ones that ship.
        matmul_dtype: of operands; parameters, sums and gradients are float32.
    """

    curriculum: Curriculum
    learning_rate: float = 1.5e-3
    ema: float = 0.998
    matmul_dtype: str = "float32"


class TrainState(NamedTuple):
    """Everything a run needs to continue: parameters, their average, the optimizer's state, the step."""

    parameters: nnx.State
    average: nnx.State
    optimizer: optax.OptState
    step: Array


class Batch(NamedTuple):
    """Latents, token ids of their captions, learning rate / peak."""

    latents: Float[np.ndarray, "B C T H W"]
    tokens: words.Tokens
    rate: np.float32


def optimizer(training: DiTTraining) -> optax.GradientTransformation:
    """Muon (arXiv:2502.16982) for the matrices of the blocks, AdamW for all else; clipped at norm 1.

    At the peak rate: the step multiplies the update, so that one compiled step serves every schedule.
    """
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            2 * training.learning_rate,
            weight_decay=0.01,
            consistent_rms=0.2,
            adam_learning_rate=training.learning_rate,
            adam_b2=0.99,
            muon_weight_dimension_numbers=_matrices,
        ),
    )


def _matrices(parameters: Any) -> Any:
    """Which axes of a parameter are a matrix for Muon: the block linears, stacked over layers, but no modulation."""
    axes = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)

    def choose(path: tuple[object, ...], _: object) -> optax.contrib.MuonDimensionNumbers | None:
        names = jax.tree_util.keystr(path)
        return (
            axes if "blocks" in names and "kernel" in names and "modulation" not in names else None
        )

    return jax.tree_util.tree_map_with_path(choose, parameters)


def initial_state(dit: DiT, training: DiTTraining) -> TrainState:
    """A fresh state around the parameters of `dit`."""
    parameters = nnx.split(dit)[1]
    copy = jax.tree.map(jnp.copy, parameters)
    return TrainState(
        parameters, copy, optimizer(training).init(parameters), jnp.zeros((), jnp.int32)
    )


def velocity(dit: DiT, matmul_dtype: str) -> Callable[[PyTree[Array]], Velocity]:
    """`parameters -> velocity function` of a DiT, in the form that trains fast."""
    dtype = jnp.dtype(matmul_dtype)
    module = nnx.merge(*nnx.split(dit))
    if dtype != jnp.float32:
        matmul.use_in_linears(module, dtype)
    graph, attention = nnx.split(module)[0], matmul.attention(dtype)

    def of(parameters: PyTree[Array]) -> Velocity:
        model = nnx.merge(graph, parameters)

        def call(x: Array, sigma: Array, prompt: EncodedPrompt, guidance: Array) -> Array:
            text, mask, pooled = prompt
            times, scales = 1000 * sigma, 1000 * guidance
            return model.forward(x, times, text, mask, pooled, scales, attention=attention)[0]

        return call

    return of


def make_step(
    dit: DiT, training: DiTTraining, objective: Objective
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Figures]]:
    """The jitted training step.

    Args:
        dit: gives the graph; its parameters are those of the state.
        training: settings.
        objective: the loss of a batch.
    """
    student, transform = velocity(dit, training.matmul_dtype), optimizer(training)
    mesh = Mesh(np.array(jax.devices()), ("clips",))
    whole, split = PartitionSpec(), PartitionSpec("clips")

    def slopes(
        parameters: PyTree[Array], x0: Array, tokens: words.Tokens, key: Array
    ) -> tuple[Array, PyTree[Array]]:
        key = jax.random.fold_in(key, jax.lax.axis_index("clips"))
        value, gradients = jax.value_and_grad(
            lambda parameters: objective(student(parameters), x0, tokens, key)
        )(parameters)
        return jax.lax.pmean((value, gradients), "clips")

    slopes = jax.shard_map(
        slopes,
        mesh=mesh,
        in_specs=(whole, split, split, whole),
        out_specs=whole,
        check_vma=False,
    )

    @jax.jit
    def update(
        state: TrainState, x0: Array, tokens: words.Tokens, rate: Array, key: Array
    ) -> tuple[TrainState, Figures]:
        value, gradients = slopes(state.parameters, x0, tokens, key)
        with jax.numpy_dtype_promotion("standard"):  # optax's Muon mixes dtypes
            updates, moments = transform.update(gradients, state.optimizer, state.parameters)
        updates = jax.tree.map(lambda update: rate * update, updates)
        parameters = cast(nnx.State, optax.apply_updates(state.parameters, updates))
        # Early on the average is short, so that it does not remember the initial weights.
        seen = state.step.astype(jnp.float32)
        keep = jnp.minimum(training.ema, (1 + seen) / (10 + seen))
        average = jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, state.average, parameters)
        figures = {"loss": value, "gradient": optax.tree.norm(gradients)}
        return TrainState(parameters, average, moments, state.step + 1), figures

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Figures]:
        clips, devices = len(batch.latents), len(mesh.devices)
        if clips % devices:
            raise InputError(
                f"a batch of {clips} clips cannot be split over {devices} devices; give a multiple"
            )
        x0, tokens = jax.device_put((batch.latents, batch.tokens), NamedSharding(mesh, split))
        state, rate, key = jax.device_put((state, batch.rate, key), NamedSharding(mesh, whole))
        return update(state, x0, tokens, rate, key)

    return step


def batches(basis: Basis, curriculum: Curriculum, seed: int) -> Callable[[int], Batch]:
    """`step -> Batch`: clips of the stream of `seed`, each drawn once, never repeated.

    Args:
        basis: of the latent space.
        curriculum: for sizes, numbers of clips and rates.
        seed: of the stream.
    """

    def batch(step: int) -> Batch:
        phase, first = curriculum.place(step)
        size = (phase.frames, phase.size, phase.size)
        clips = [
            data.clip(seed, first + i, *size, two_objects=TWO_OBJECTS) for i in range(phase.batch)
        ]
        x0 = np.stack([latents.encode(basis, video) for video, _ in clips])
        tokens = words.tokenize([caption for _, caption in clips], TEXT_LENGTH)
        return Batch(x0, tokens, np.float32(curriculum.rate(step)))

    return batch
