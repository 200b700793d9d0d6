"""What decoding a tile of a video costs on a TPU, by its compiler: the decoder's levels one by one, each in a process of its own.

A whole tile is one program that takes minutes to compile; its levels take seconds to a minute each, and cost the same but for what is
fused across their borders. `python -m qsjax.bench.vae_tile` answers a `LevelRequest`.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pallas_kernels import targets
from pallas_kernels.deviceless import compile_for
from pallas_kernels.estimate import answer, in_own_process
from pallas_kernels.targets import TARGETS, Target
from qsjax.bench.cpu import cpu_seconds
from qsjax.bench.hlo_run import executed
from qsjax.budget.overheads import Decoding
from qsjax.budget.run_time import Latents
from qsjax.vae import VAE, VAEConfig, abstract_vae
from qsjax.versions import KERNELS, versions

Level = Callable[[VAE, Array], Array]
_TOGETHER = 2


@dataclass(frozen=True, kw_only=True)
class LevelRequest:
    """A level of the decoder to compile.

    Attributes:
        config: sizes of the autoencoder.
        target: name of a TPU.
        tile: frames, height and width of the latents.
        level: number of the level, as in `levels`.
    """

    config: VAEConfig
    target: str
    tile: Latents
    level: int


def levels(config: VAEConfig) -> list[Level]:
    """Functions that decode a tile [B, C, T, h, w], one after the other, as `VAE.decode_tile` does."""
    ups = [partial(_up, number=number) for number in range(len(config.block_out_channels))]
    return [_middle, *ups, _out]


def _middle(vae: VAE, latents: Float[Array, "B C T h w"]) -> Float[Array, "B T h w C2"]:
    x = jnp.moveaxis(latents, 1, -1).astype(vae.post_quant_conv.kernel.get_value().dtype)
    return vae.decoder.mid_block(vae.decoder.conv_in(vae.post_quant_conv(x)))


def _up(vae: VAE, x: Float[Array, "B T h w C"], *, number: int) -> Float[Array, "B F H W C2"]:
    return vae.decoder.up_blocks[number](x)


def _out(vae: VAE, x: Float[Array, "B F H W C"]) -> Float[Array, "B 3 F H W"]:
    y = vae.decoder.conv_out(nnx.silu(vae.decoder.conv_norm_out(x)))
    return jnp.moveaxis(y, -1, 1).astype(jnp.float32)


def respond(request: LevelRequest) -> dict[str, float]:
    """Compile a level in bfloat16.

    Returns:
        `cycles`: XLA's own estimate of all instructions, without the overlap of copies with computation; `cpu_seconds` to trace
        and compile.
    """
    before, target = cpu_seconds(), TARGETS[request.target]
    with targets.assumed(target):  # convolutions are written as a TPU wants them
        vae = abstract_vae(request.config, jnp.dtype(jnp.bfloat16))
        shape = (1, request.config.latent_channels, *request.tile)
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        *earlier, level = levels(request.config)[: request.level + 1]
        for function in earlier:
            x = jax.eval_shape(function, vae, x)
        text = compile_for(target, level, vae, x).as_text() or ""
    cycles = sum(step.times * step.instruction.cycles for step in executed(text))
    return {"cycles": float(cycles), "cpu_seconds": cpu_seconds() - before}


def estimated(config: VAEConfig, target: Target, tile: Latents, timeout: float) -> Decoding:
    """A tile by the installed compiler.

    Args:
        config: sizes of the autoencoder.
        target: a TPU.
        tile: frames, height and width of the latents.
        timeout: seconds for each level.

    Raises:
        NoEstimateError: the compiler failed, or took too long.
    """
    requests = [
        LevelRequest(config=config, target=target.name, tile=tile, level=level)
        for level in range(len(levels(config)))
    ]
    ask = partial(in_own_process, "qsjax.bench.vae_tile", timeout=timeout)
    with ThreadPoolExecutor(_TOGETHER) as pool:
        answers = list(pool.map(ask, requests))
    return Decoding(
        tile=tile,
        seconds=sum(one["cycles"] for one in answers) / target.clock,
        cpu_seconds=sum(one["cpu_seconds"] for one in answers),
        libtpu=versions(KERNELS)["libtpu"] or "unknown",
    )


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", None)
    answer(respond)
