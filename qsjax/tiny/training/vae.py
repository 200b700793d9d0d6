"""Training the tiny VAE towards the fixed latent space of `qsjax.tiny.training.latents`.

Encoder and decoder have targets of their own, so they train apart, on crops of clips, at half the cost of
training them through each other. The decoder sees slightly noisy latents, because what the DiT makes is noisy too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from flax import nnx
from jaxtyping import Array, Float, PyTree

from qsjax.params import map_parameters
from qsjax.tiny import data
from qsjax.tiny.configs import VAE_CONFIG
from qsjax.tiny.scenes import scene, uniforms
from qsjax.tiny.training import latents
from qsjax.tiny.training.latents import Basis
from qsjax.tiny.training.loop import Figures
from qsjax.tiny.training.phases import Curriculum, Phase
from qsjax.vae import VAE

Half = Literal["decoder", "encoder"]

# The posterior is nearly a point: the encoder's targets are exact.
_LOG_VARIANCE = -10.0
_LATENT_NOISE = 0.05


@dataclass(frozen=True, kw_only=True)
class VAETraining:
    """How one half of the VAE is trained.

    Attributes:
        curriculum: sizes of the crops and the course of the learning rate.
        learning_rate: peak, of the matrices (Muon); half of it for all else (Adam).
        ema: decay of the averaged weights, which are the ones that ship.
    """

    curriculum: Curriculum
    learning_rate: float = 4e-3
    ema: float = 0.995


# Large crops come last: they have the statistics that the norms will see in use.
TRAINING: dict[Half, VAETraining] = {
    "decoder": VAETraining(
        curriculum=Curriculum(phases=(Phase(9, 32, 1, 14500), Phase(17, 64, 1, 500)))
    ),
    "encoder": VAETraining(
        curriculum=Curriculum(phases=(Phase(9, 32, 1, 9600), Phase(17, 64, 1, 400)))
    ),
}


class VAEState(NamedTuple):
    """Parameters of one half, their average, the optimizer's state."""

    parameters: nnx.State
    average: nnx.State
    optimizer: optax.OptState


class Crop(NamedTuple):
    """Video in [-1, 1], its latents, learning rate / peak; float32."""

    video: Float[Array | np.ndarray, "B 3 F H W"]
    latents: Float[Array | np.ndarray, "B 16 T h w"]
    rate: Float[Array, ""] | np.float32


def new_vae(seed: int) -> VAE:
    """A VAE that starts almost linear and keeps the level of a plain clip.

    Every residual branch starts at zero. Channels that share a group of a GroupNorm get constant offsets of
    different signs: without them the norm would divide the brightness of a plain clip away.
    """
    # Drawn on the host: compiling a random generator for every shape takes longer than some trainings.
    random = np.random.default_rng(seed)

    def fill(name: str, abstract: jax.ShapeDtypeStruct) -> Array:
        shape = abstract.shape
        if name.endswith("kernel"):
            value = random.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))
            value = 0 * value if name.endswith(("conv2.kernel", "to_out.kernel")) else value
        else:
            value = np.ones(shape) if name.endswith("scale") else np.zeros(shape)
        strength = _offset_strength(name)
        if strength:
            value = value + strength * _offsets(shape[0])
        return jnp.asarray(value, jnp.float32)

    return map_parameters(fill, nnx.eval_shape(lambda: VAE(VAE_CONFIG, rngs=nnx.Rngs(0))))


def halves(vae: VAE, half: Half) -> tuple[nnx.Module, nnx.Module]:
    """The modules of one half: (coder, 1x1 convolution beside it)."""
    return (
        (vae.decoder, vae.post_quant_conv) if half == "decoder" else (vae.encoder, vae.quant_conv)
    )


def initial_state(vae: VAE, half: Half, training: VAETraining) -> VAEState:
    """A fresh state around one half of `vae`."""
    parameters = nnx.split(halves(vae, half))[1]
    copy = jax.tree.map(jnp.copy, parameters)
    return VAEState(parameters, copy, optimizer(training).init(parameters))


def optimizer(training: VAETraining) -> optax.GradientTransformation:
    """Muon (arXiv:2502.16982) for kernels, as matrices from all inputs to the outputs; Adam for norms and biases.

    At the peak rate: the step multiplies the update, so that one compiled step serves every schedule.
    """

    def matrices(parameters: Any) -> Any:
        return jax.tree.map(
            lambda value: (
                optax.contrib.MuonDimensionNumbers(tuple(range(value.ndim - 1)), value.ndim - 1)
                if value.ndim > 1
                else None
            ),
            parameters,
        )

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            training.learning_rate,
            consistent_rms=0.2,
            adam_learning_rate=training.learning_rate / 2,
            adam_b2=0.99,
            muon_weight_dimension_numbers=matrices,
        ),
    )


def make_step(
    vae: VAE, half: Half, training: VAETraining
) -> Callable[[VAEState, Crop, Array], tuple[VAEState, Figures]]:
    """The jitted training step of one half."""
    graph, transform = nnx.split(halves(vae, half))[0], optimizer(training)

    def decoder_loss(parameters: PyTree[Array], crop: Crop, key: Array) -> tuple[Array, Array]:
        decoder, narrow = nnx.merge(graph, parameters)
        noisy = crop.latents + _LATENT_NOISE * jax.random.normal(key, crop.latents.shape)
        video = jnp.moveaxis(decoder(narrow(jnp.moveaxis(noisy, 1, -1))), -1, 1)
        error = video - crop.video
        edges = sum(jnp.abs(jnp.diff(error, axis=axis)).mean() for axis in (3, 4))
        square = jnp.square(error).mean()
        return 10 * square + 0.1 * jnp.abs(error).mean() + 0.05 * edges, square / 4

    def encoder_loss(parameters: PyTree[Array], crop: Crop, key: Array) -> tuple[Array, Array]:
        encoder, wide = nnx.merge(graph, parameters)
        moments = jnp.moveaxis(wide(encoder(jnp.moveaxis(crop.video, 1, -1))), -1, 1)
        mean, log_variance = jnp.split(moments, 2, axis=1)
        error, square = mean - crop.latents, jnp.square(mean - crop.latents).mean()
        spread = 1e-3 * jnp.square(log_variance - _LOG_VARIANCE).mean()
        return jnp.abs(error).mean() + square + spread, square

    loss = decoder_loss if half == "decoder" else encoder_loss

    @jax.jit
    def step(state: VAEState, crop: Crop, key: Array) -> tuple[VAEState, Figures]:
        (value, square), gradients = jax.value_and_grad(loss, has_aux=True)(
            state.parameters, crop, key
        )
        with jax.numpy_dtype_promotion("standard"):  # optax's Muon mixes dtypes
            updates, moments = transform.update(gradients, state.optimizer, state.parameters)
        updates = jax.tree.map(lambda update: crop.rate * update, updates)
        parameters = cast(nnx.State, optax.apply_updates(state.parameters, updates))
        keep = training.ema
        average = jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, state.average, parameters)
        figures = {"loss": value, "decibel": -10 * jnp.log10(square)}
        return VAEState(parameters, average, moments), figures

    return step


def crops(basis: Basis, curriculum: Curriculum, seed: int) -> Callable[[int], Crop]:
    """`step -> Crop`: parts of clips drawn at several sizes, so that whole shapes and details both occur."""

    def crop(phase: Phase, index: int) -> tuple[np.ndarray, np.ndarray]:
        size = phase.size
        side = (size, max(size, 48), max(size, 64), max(size, 64))[index % 4]
        video = data.render(scene(seed, index), max(33, phase.frames), side, side)
        room = (video.shape[1] - phase.frames, side - size, side - size)
        t, y, x = (
            int(u * (r + 1)) for u, r in zip(uniforms(seed + 1, index, 3), room, strict=True)
        )
        part = video[:, t : t + phase.frames, y : y + size, x : x + size]
        return part, latents.encode(basis, part)

    def batch(step: int) -> Crop:
        phase, first = curriculum.place(step)
        videos, cells = zip(*(crop(phase, first + i) for i in range(phase.batch)), strict=True)
        return Crop(np.stack(videos), np.stack(cells), np.float32(curriculum.rate(step)))

    return batch


def _offset_strength(name: str) -> float:
    if name.endswith(("conv1.bias", "conv_in.bias")):
        return 1.5
    return 1.0 if name.endswith(("sampler.bias", "conv_shortcut.bias")) else 0.0


def _offsets(channels: int) -> np.ndarray:
    members = channels // VAE_CONFIG.norm_num_groups
    return np.tile(np.linspace(-1.2, 1.2, members, dtype=np.float32), channels // members)
