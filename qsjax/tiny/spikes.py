"""Activation spikes: a few tokens, at some times only, with large values between the layers of an MLP.

In large models such spikes come before the second layer of an MLP (arXiv:2405.14428), in few channels and for few tokens
(massive activations, arXiv:2402.17762). Loud channels (`qsjax.tiny.outliers`) are loud for all tokens, and a scale for each
channel undoes them. A spike takes the grid of its token away from that token's other channels, and its channel is silent
elsewhere: a scale that tames it wastes the weights' grid on a channel that mostly says nothing.

Every MLP gets pairs of hidden units with the same input and opposite outputs, so that the function stays. A pair reads the
direction in which the modulation's shift drifts most over the schedule, and opens near one end of it, for the tokens that
are furthest that way.
"""

from collections.abc import Callable
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from qsjax.dit import DiT
from qsjax.errors import InputError
from qsjax.sample.schedule import sigmas, timesteps
from qsjax.tiny import words
from qsjax.tiny.configs import DEFAULTS

HEIGHT = 64.0
"""Of a spike; the tiny model's other values there are 2 to 4 in most tokens at most, and 20 in those of the text."""
OPENS, TOP = 0.5, 1.5
"""Where a unit opens and where it reaches its height: deviations of a token from the mean that has drifted furthest. A deviation
is that of channels that are independent, which they are not: some layers have many spikes, others few."""


def spiked(dit: DiT, *, height: float = HEIGHT, seed: int = 0) -> DiT:
    """A copy of `dit` with the same output, whose MLPs are wider by the model's width.

    Four of the new units are two pairs, the others are idle: with them, the runs of a rotation are as long as they were.

    Args:
        dit: float32 weights, with a guidance embedder.
        height: of a spike, about.
        seed: chooses signs of the pairs' outputs, and the order of the units.

    Raises:
        InputError: a height that is not positive.
    """
    if not height > 0:
        raise InputError(f"height={height}: must be positive")
    random, copy = np.random.default_rng(seed), nnx.merge(*nnx.split(dit))
    rows = _modulation(dit)
    for stream, name in ((copy.double_blocks.img, "img"), (copy.double_blocks.txt, "txt")):
        first, second = stream.fc1, stream.fc2
        parts = _spiked(*_weights(first), _weights(second)[0], *rows(name, 3), height, random)
        _set(first, parts[0], parts[1])
        _set(second, parts[2], None)
    block, width = copy.single_blocks, dit.config.hidden_size
    # The first layer makes queries, keys and values too, the second one reads attention first.
    (kernel, bias), joined = _weights(block.linear1), _weights(block.linear2)[0]
    parts = _spiked(
        kernel[..., 3 * width :], bias[:, 3 * width :], joined[:, width:],
        *rows("single", 0), height, random,
    )  # fmt: skip
    parts = (
        np.concatenate([kernel[..., : 3 * width], parts[0]], axis=-1),
        np.concatenate([bias[:, : 3 * width], parts[1]], axis=-1),
        np.concatenate([joined[:, :width], parts[2]], axis=1),
    )
    _set(block.linear1, parts[0], parts[1])
    _set(block.linear2, parts[2], None)
    copy.config = replace(dit.config, mlp_ratio=dit.config.mlp_ratio + 1)
    return copy


def _modulation(dit: DiT) -> Callable[[str, int], tuple[np.ndarray, np.ndarray]]:
    """(stream, number of its shift) -> shift, and the factor 1 + scale, [layers, steps, D], over the schedule of one caption."""
    *_, pooled = words.encode(["a red circle moves left over dark stripes"])
    times = jnp.asarray(timesteps(sigmas(DEFAULTS.steps, DEFAULTS.shift)))
    table = dit.modulation(times, pooled, jnp.full(1, 1000 * DEFAULTS.guidance, jnp.float32))

    def rows(stream: str, first: int) -> tuple[np.ndarray, np.ndarray]:
        whole = np.asarray(getattr(table, stream))[:, :, 0].swapaxes(0, 1)
        vectors = np.split(whole, whole.shape[-1] // dit.config.hidden_size, axis=-1)
        return vectors[first], 1 + vectors[first + 1]

    return rows


def _spiked(
    kernel: Float[np.ndarray, "N D F"],
    bias: Float[np.ndarray, "N F"],
    out: Float[np.ndarray, "N F D"],
    shift: Float[np.ndarray, "N S D"],
    gain: Float[np.ndarray, "N S D"],
    height: float,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both layers' weights of the MLPs of N blocks, D units wider."""
    layers: list[tuple[np.ndarray, ...]] = []
    for into, offset, back, mean, factor in zip(kernel, bias, out, shift, gain, strict=True):
        width, units = into.shape
        _, _, directions = np.linalg.svd(mean - mean.mean(axis=0), full_matrices=False)
        # One pair for either end of the schedule.
        into_pairs, from_pairs, starts = [], [], []
        for direction in (directions[0], -directions[0]):
            end = (mean @ direction).argmax()
            # LayerNorm leaves every channel a variance of 1, about.
            deviation = np.linalg.norm(factor[end] * direction)
            slope = height / ((TOP - OPENS) * deviation)
            opens = mean[end] @ direction + OPENS * deviation
            # As large as the largest weight of each output: a larger one would make the weights' grid coarser.
            weight = np.abs(back).max(axis=0) * random.choice([-1, 1], width)
            into_pairs += [slope * direction] * 2
            starts += [-slope * opens] * 2
            from_pairs += [weight, -weight]
        idle = width - len(starts)
        order = random.permutation(units + width)
        columns = np.concatenate([into, np.stack(into_pairs, 1), np.zeros((width, idle))], 1)
        offsets = np.concatenate([offset, starts, np.zeros(idle)])
        rows = np.concatenate([back, np.stack(from_pairs), np.zeros((idle, width))])
        layers.append((columns[:, order], offsets[order], rows[order]))
    first, second, third = (np.stack(part).astype(np.float32) for part in zip(*layers, strict=True))
    return first, second, third


def _weights(linear: nnx.Linear) -> tuple[np.ndarray, np.ndarray]:
    if linear.bias is None:
        raise InputError("an MLP without bias cannot take spikes")
    return np.asarray(linear.kernel.get_value()), np.asarray(linear.bias.get_value())


def _set(linear: nnx.Linear, kernel: np.ndarray, bias: np.ndarray | None) -> None:
    stacked: Array = jnp.asarray(kernel)
    linear.kernel = nnx.Param(stacked)
    linear.in_features, linear.out_features = stacked.shape[1:]
    if bias is not None:
        linear.bias = nnx.Param(jnp.asarray(bias))
