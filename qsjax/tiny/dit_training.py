"""Training the tiny DiT: rectified flow on the latents of fresh captioned clips.

`v = noise - x0`, `x_t = (1 - sigma) x0 + sigma noise`, timestep 1000 sigma, with noise levels shifted
upwards by 3, since the layout of a clip is decided at high noise (SD3, arXiv 2403.03206, section 3.1).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from flax import nnx
from jaxtyping import Array, Float

from qsjax.dit import DiT, DiTConfig
from qsjax.errors import InputError
from qsjax.text import EncodedPrompt
from qsjax.tiny import data, latents, words
from qsjax.tiny.latents import Basis
from qsjax.tiny.loop import Figures

SHIFT = 3.0
GUIDANCE_SCALES = (1.0, 8.0)

DIT_CONFIG = DiTConfig(
    in_channels=16,
    out_channels=16,
    hidden_size=128,
    num_heads=2,
    num_double_blocks=2,
    num_single_blocks=4,
    num_refiner_blocks=2,
    mlp_ratio=4.0,
    patch_size=(1, 2, 2),
    rope_axes_dim=(16, 24, 24),
    rope_theta=256.0,
    text_dim=64,
    pooled_dim=64,
    guidance_embeds=True,
)


@dataclass(frozen=True)
class Phase:
    """A stretch of training on clips of one size.

    Attributes:
        frames: 4k + 1.
        size: pixels on a side, a multiple of 8.
        batch: clips a step.
        steps: optimizer steps.
    """

    frames: int
    size: int
    batch: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class DiTTraining:
    """How the DiT is trained.

    Attributes:
        phases: small clips first: most of what there is to learn does not need many tokens.
        learning_rate: peak, of AdamW; Muon's is twice that. Warm-up, constant, then linear decay to a twentieth.
        warm_up: steps.
        decay: the last fraction of all steps, over which the rate falls.
        caption_dropout: fraction of samples that see the empty caption, for guidance.
        ema: decay of the averaged weights, which are the ones that ship.
    """

    phases: tuple[Phase, ...] = (Phase(17, 32, 16, 700), Phase(17, 48, 8, 900))
    learning_rate: float = 1.5e-3
    warm_up: int = 100
    decay: float = 0.4
    caption_dropout: float = 0.1
    ema: float = 0.998

    @property
    def steps(self) -> int:
        """Optimizer steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def rate(self, step: int) -> float:
        """The learning rate of a step as a fraction of the peak."""
        rising = min(1.0, (step + 1) / self.warm_up)
        falling = (self.steps - step) / max(1.0, self.decay * self.steps)
        return rising * min(1.0, 0.05 + 0.95 * falling)

    def place(self, step: int) -> tuple[Phase, int]:
        """The phase of a step, and the number of clips seen before it."""
        clips = 0
        for phase in self.phases:
            if step < phase.steps:
                return phase, clips + step * phase.batch
            step, clips = step - phase.steps, clips + phase.steps * phase.batch
        raise InputError(f"step {step} lies beyond the last phase; there are {self.steps} steps")


class TrainState(NamedTuple):
    """Everything a run needs to continue: parameters, their average, the optimizer's state, the step."""

    parameters: Any
    average: Any
    optimizer: Any
    step: Array


class Batch(NamedTuple):
    """Latents float32 [B, C, T, H, W], caption rows int32 [B] into the prompt table, learning rate / peak."""

    latents: Any
    captions: Any
    rate: Any


class PromptTable(NamedTuple):
    """Every caption of the data, encoded once; the empty caption is the last row."""

    encoded: EncodedPrompt
    row: dict[str, int]


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

    def choose(path: Any, _: Any) -> Any:
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


def make_step(
    dit: DiT, training: DiTTraining, prompts: EncodedPrompt
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Figures]]:
    """The jitted training step.

    Args:
        dit: gives the graph; its parameters are those of the state.
        training: settings.
        prompts: every caption of the data set; the last row is the empty caption.
    """
    graph, transform = nnx.split(dit)[0], optimizer(training)

    def loss(parameters: Any, x0: Array, rows: Array, key: Array) -> tuple[Array, Array]:
        drop_key, sigma_key, noise_key, guidance_key = jax.random.split(key, 4)
        count = x0.shape[0]
        dropped = jax.random.uniform(drop_key, (count,)) < training.caption_dropout
        rows = jnp.where(dropped, prompts.text.shape[0] - 1, rows)
        text, mask, pooled = (table[rows] for table in prompts)
        sigma = shifted(stratified(sigma_key, count))
        noise = jax.random.normal(noise_key, x0.shape)
        level = sigma[:, None, None, None, None]
        # The embedder of the scale sees every scale from the start and learns to ignore it;
        # distillation gives it a meaning later.
        low, high = GUIDANCE_SCALES
        guidance = 1000 * jax.random.uniform(guidance_key, (count,), minval=low, maxval=high)
        velocity = nnx.merge(graph, parameters)(
            (1 - level) * x0 + level * noise, 1000 * sigma, text, mask, pooled, guidance
        )
        error = jnp.square(velocity - (noise - x0)).mean(axis=(1, 2, 3, 4))
        return error.mean(), error

    @jax.jit
    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Figures]:
        x0 = jnp.asarray(batch.latents, jnp.float32)
        (value, _), gradients = jax.value_and_grad(loss, has_aux=True)(
            state.parameters, x0, batch.captions, key
        )
        with jax.numpy_dtype_promotion("standard"):  # optax's Muon mixes dtypes
            updates, moments = transform.update(gradients, state.optimizer, state.parameters)
        updates = jax.tree.map(lambda update: batch.rate * update, updates)
        parameters = optax.apply_updates(state.parameters, updates)
        # Early on the average is short, so that it does not remember the initial weights.
        seen = state.step.astype(jnp.float32)
        keep = jnp.minimum(training.ema, (1 + seen) / (10 + seen))
        average = jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, state.average, parameters)
        figures = {"loss": value, "gradient": optax.tree.norm(gradients)}
        return TrainState(parameters, average, moments, state.step + 1), figures

    return step


def stratified(key: Array, count: int) -> Float[Array, " B"]:
    """Logit-normal noise levels, one from each of `count` equal slices of probability."""
    offset = jax.random.uniform(key, ())
    quantile = (jnp.arange(count, dtype=jnp.float32) + offset) / count
    quantile = jnp.clip(quantile, 1e-4, 1 - 1e-4)
    return jax.nn.sigmoid(jax.scipy.special.ndtri(quantile))


def shifted(sigma: Float[Array, " B"]) -> Float[Array, " B"]:
    """Move noise levels towards 1 by the factor `SHIFT`, as the sampling schedule does."""
    return SHIFT * sigma / (1 + (SHIFT - 1) * sigma)


def batches(
    basis: Basis, prompts: PromptTable, training: DiTTraining, seed: int
) -> Callable[[int], Batch]:
    """`step -> Batch`: clips of the stream of `seed`, each drawn once, never repeated.

    Args:
        basis: of the latent space.
        prompts: gives the row of every caption.
        training: for sizes, numbers of clips and rates.
        seed: of the stream.
    """

    def batch(step: int) -> Batch:
        phase, first = training.place(step)
        size = (phase.frames, phase.size, phase.size)
        clips = [data.clip(seed, first + i, *size) for i in range(phase.batch)]
        x0 = np.stack([latents.encode(basis, video) for video, _ in clips])
        rows = np.array([prompts.row[caption] for _, caption in clips], np.int32)
        return Batch(x0, rows, np.float32(training.rate(step)))

    return batch


def prompt_table() -> PromptTable:
    """Encode every caption there is, and the empty one."""
    captions = [*data.all_captions(), ""]
    return PromptTable(words.encode(captions), {text: i for i, text in enumerate(captions)})
