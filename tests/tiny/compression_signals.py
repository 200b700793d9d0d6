"""Simple references of what compression does to the tiny model: is it a test bed that tells methods apart?

Round-to-nearest quantization and block-sparse attention in a few lines each, by the two slots of the DiT, slow and
readable; the real ones come with their own rooms. As a script it prints the table of docs/tiny_model.md:

    python tests/tiny/compression_signals.py --clips 16
"""

import argparse
import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import qsjax
from qsjax.dit.attention import dense_attention
from qsjax.sample import initial_noise, prepare, schedule
from qsjax.tiny.streams import HELD_OUT, held_out

BLOCK_LINEARS = ("qkv", "proj", "fc1", "fc2", "linear1", "linear2")
TILE = (1, 4, 4)


def fake_quantize(x: jax.Array, bits: int, axis: int) -> jax.Array:
    """Symmetric round-to-nearest with one scale for each slice along `axis` (QuantSparse, section 2)."""
    top = 2 ** (bits - 1) - 1
    scale = jnp.maximum(jnp.abs(x).max(axis=axis, keepdims=True) / top, 1e-12)
    return jnp.clip(jnp.round(x / scale), -top - 1, top) * scale


def quantized(dit: Any, weight_bits: int, activation_bits: int) -> Any:
    """The model with its block linears quantized: weights per output channel, activations per token."""

    def dot_general(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
        return fake_quantize(x, activation_bits, -1) @ fake_quantize(kernel, weight_bits, 0)

    copy = nnx.merge(*nnx.split(dit))
    for block in (copy.double_blocks.img, copy.double_blocks.txt, copy.single_blocks):
        for name in BLOCK_LINEARS:
            if hasattr(block, name):
                getattr(block, name).dot_general = dot_general
    return copy


def block_sparse(grid: tuple[int, int, int], density: float) -> Callable[..., Any]:
    """Attention over the best tiles of keys for each tile of queries and head, by their mean; text sees and is seen."""
    count = [-(-size // tile) for size, tile in zip(grid, TILE, strict=True)]
    t, h, w = (at // tile for at, tile in zip(np.indices(grid).reshape(3, -1), TILE, strict=True))
    tile_of = (t * count[1] + h) * count[2] + w
    member = np.equal.outer(np.arange(np.prod(count)), tile_of).astype(np.float32)
    video, kept = len(tile_of), max(1, round(density * len(member)))

    def attention(q: Any, k: Any, v: Any, kv_valid: Any, state: Any) -> tuple[Any, Any]:
        pooled_q, pooled_k = (
            jnp.einsum("nl,blhd->bhnd", member / member.sum(1, keepdims=True), x[:, :video])
            for x in (q, k)
        )
        scores = jnp.einsum("bhnd,bhmd->bhnm", pooled_q, pooled_k)
        chosen = scores >= jax.lax.top_k(scores, kept)[0][..., -1:]
        mask = jnp.ones((*scores.shape[:2], q.shape[1], k.shape[1]), bool)
        mask = mask.at[:, :, :video, :video].set(chosen[:, :, tile_of][:, :, :, tile_of])
        mask = mask & kv_valid[:, None, None]
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) * jnp.float32(q.shape[-1] ** -0.5)
        weights = jax.nn.softmax(jnp.where(mask, logits, -1e30), axis=-1)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v), state

    return attention


def videos(
    pipeline: qsjax.Pipeline,
    captions: list[str],
    *,
    seed: int = 0,
    steps: int = 30,
    frames: int = 33,
    dit: Any = None,
    attention: Any = dense_attention,
) -> np.ndarray:
    """Sample with another DiT or attention; frames in [0, 1], [B, F, H, W, 3]."""
    settings = pipeline.resolve(steps=steps, frames=frames)
    plan, text = settings.plan(), pipeline.encode(captions)
    dit = pipeline.dit if dit is None else dit
    # On the host, where taking a step's numbers from those of all steps costs nothing.
    numbers, rows = jax.device_get((schedule(plan), _prepare(plan, dit, text).modulation))
    step = _step(attention)
    # Bound to its device like the model's weights, and so like what a step returns: there is one program for all steps.
    noise = initial_noise(seed, pipeline.latent_shape(settings, len(captions)))
    x = jax.device_put(noise, jax.devices()[0])
    for index in range(steps):
        now, row = jax.tree.map(lambda leaf, index=index: leaf[index], (numbers, rows))
        x = step(dit, x, now, text, row)
    return pipeline.decode(x)


def psnr(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of each pair of videos in [0, 1], decibels; at most 100."""
    error = np.square(one.astype(np.float64) - other).mean(axis=(1, 2, 3, 4))
    return -10 * np.log10(np.maximum(error, 1e-10))


def signals(
    pipeline: qsjax.Pipeline, clips: int, *, steps: int = 30, frames: int = 33, more: bool = False
) -> dict[str, np.ndarray]:
    """PSNR of every clip against full precision, under each change.

    Args:
        pipeline: the tiny model.
        clips: held-out captions; batched.
        steps, frames: of each video; the defaults are the bundle's own.
        more: besides what the tests look at, other bit widths and densities.
    """
    captions = [scene.caption for scene in held_out(HELD_OUT, clips)]
    make = partial(videos, pipeline, captions, frames=frames)
    shape = pipeline.latent_shape(pipeline.resolve(frames=frames))
    sparse = partial(
        block_sparse,
        tuple(n // p for n, p in zip(shape[2:], pipeline.dit_config.patch_size, strict=True)),
    )
    changes: dict[str, dict[str, Any]] = {
        "W4A8": {"dit": quantized(pipeline.dit, 4, 8)},
        "sparse 15 %": {"attention": sparse(0.15)},
        "twice the steps": {"steps": 2 * steps},
        "another seed": {"seed": 1000},
    }
    if more:
        changes |= {
            "W8A8": {"dit": quantized(pipeline.dit, 8, 8)},
            "W6A6": {"dit": quantized(pipeline.dit, 6, 6)},
            "sparse 25 %": {"attention": sparse(0.25)},
            "sparse 40 %": {"attention": sparse(0.40)},
        }
    full = make(steps=steps)
    return {name: psnr(full, make(**{"steps": steps} | change)) for name, change in changes.items()}


_prepare = jax.jit(prepare, static_argnums=0)


@cache
def _step(attention: Any) -> Callable[..., jax.Array]:
    @jax.jit
    def step(dit: Any, x: jax.Array, numbers: Any, text: Any, row: Any) -> jax.Array:
        times = jnp.full(x.shape[0], numbers.timestep)
        velocity, _ = dit.forward(x, times, *text, modulation=row, attention=attention)
        return x + numbers.delta * velocity

    return step


def main() -> int:
    """Print mean, standard error and lowest PSNR of each change."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--model", help="checkpoint folder (default: the bundle)")
    options = parser.parse_args()
    pipeline = (
        qsjax.Pipeline.from_checkpoint(options.model, progress=False)
        if options.model
        else qsjax.Pipeline.tiny(progress=False)
    )
    for name, values in signals(pipeline, options.clips, more=True).items():
        error = values.std() / np.sqrt(len(values))
        print(f"{name:14} {values.mean():5.1f} +- {error:.1f} dB, lowest {values.min():.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
