"""Outlier channels for a model that has none, without changing what it computes.

Large diffusion transformers have a few activation channels far above the others, which is what smoothing and
rotation are for; the tiny model has none. Here the modulated norms before `qkv`, `fc1` and `linear1` are made
louder in a few channels by their modulation weights, and the rows of the layer that reads them quieter by the same
factor: (1 + scale) f and shift f, kernel / f. A power of two leaves the products exact but for one rounding.

    python -m qsjax.tiny.outliers outputs/tiny-outliers        # a PyTorch folder; then qsjax convert
    python -m qsjax.tiny.outliers outputs/tiny-spikes --spikes # those of qsjax.tiny.spikes, which scales do not undo
"""

import argparse
import logging
import math
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from qsjax.dit import DiT, load_dit
from qsjax.errors import InputError, QsjaxError, on_command_line

CHANNELS, FACTOR = 4, 16.0
"""4 of 128 channels, 16 times louder: the figures of docs/tiny_model.md."""


def inject(dit: DiT, *, channels: int = CHANNELS, factor: float = FACTOR, seed: int = 0) -> DiT:
    """A copy of `dit` with outlier channels and the same output.

    Args:
        dit: float32 weights.
        channels: loud channels of every norm, others in every layer.
        factor: how much louder; a power of two.
        seed: chooses the channels.

    Raises:
        InputError: more channels than there are, or a factor that is no power of two above 1.
    """
    width = dit.config.hidden_size
    if not 1 <= channels <= width:
        raise InputError(f"channels={channels}: must be between 1 and the width {width}")
    if not factor > 1 or not math.log2(factor).is_integer():
        raise InputError(f"factor={factor}: must be a power of two above 1, so that it is exact")
    random = np.random.default_rng(seed)
    copy = nnx.merge(*nnx.split(dit))

    def choose(layers: int) -> Int[np.ndarray, "layers channels"]:
        return np.stack([random.permutation(width)[:channels] for _ in range(layers)])

    doubles, singles = dit.config.num_double_blocks, dit.config.num_single_blocks
    for stream in (copy.double_blocks.img, copy.double_blocks.txt):
        # Of six modulation vectors: shift and scale of attention are 0 and 1, those of the MLP 3 and 4.
        for layer, first in ((stream.qkv, 0), (stream.fc1, 3)):
            _make_loud(stream.modulation, layer, first, width, choose(doubles), factor)
    block = copy.single_blocks
    _make_loud(block.modulation, block.linear1, 0, width, choose(singles), factor)
    return copy


def _make_loud(
    modulation: nnx.Linear,
    layer: nnx.Linear,
    first: int,
    width: int,
    chosen: Int[np.ndarray, "layers channels"],
    factor: float,
) -> None:
    """Scale the chosen channels of modulation vectors `first` (shift) and `first + 1` (scale) up, `layer` down."""
    gain = np.ones((len(chosen), width), np.float32)
    np.put_along_axis(gain, chosen, np.float32(factor), axis=1)
    shift = slice(first * width, (first + 1) * width)
    scale = slice((first + 1) * width, (first + 2) * width)
    kernel, bias = modulation.kernel.get_value(), _bias(modulation)
    for columns in (shift, scale):
        kernel = kernel.at[:, :, columns].multiply(gain[:, None])
        bias = bias.at[:, columns].multiply(gain)
    # The norm is multiplied by 1 + scale: f (1 + s) = 1 + (f s + f - 1).
    bias = bias.at[:, scale].add(gain - 1)
    modulation.kernel = nnx.Param(kernel)
    modulation.bias = nnx.Param(bias)
    layer.kernel = nnx.Param(layer.kernel.get_value() / jnp.asarray(gain)[:, :, None])


def _bias(linear: nnx.Linear) -> Array:
    if linear.bias is None:
        raise InputError("a modulation layer without bias cannot take outliers")
    return linear.bias.get_value()


def main(arguments: list[str] | None = None) -> int:
    """Write the bundled model with outliers as a PyTorch folder; 0, or 2 with one line on bad input."""
    from convert.bundled import converted_tiny_model
    from qsjax.checkpoint import Manifest
    from qsjax.settings import Settings
    from qsjax.tiny.bundle import write_bundle
    from qsjax.tiny.spikes import spiked
    from qsjax.vae import load_vae

    parser = argparse.ArgumentParser(prog="python -m qsjax.tiny.outliers", description=__doc__)
    parser.add_argument("folder", type=Path, help="PyTorch folder to write")
    parser.add_argument("--channels", type=int, default=CHANNELS, help=f"default: {CHANNELS}")
    parser.add_argument("--factor", type=float, default=FACTOR, help=f"default: {FACTOR:g}")
    parser.add_argument("--seed", type=int, default=0, help="chooses the channels (default: 0)")
    parser.add_argument(
        "--spikes", action="store_true", help="spikes of some tokens at some times instead"
    )
    options = parser.parse_args(arguments)
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        if options.folder.exists():
            raise InputError(f"{options.folder}: exists already; name a folder that does not")
        source = converted_tiny_model()
        dit = load_dit(source, dtype=jnp.float32)
        if options.spikes:
            dit = spiked(dit, seed=options.seed)
        else:
            dit = inject(dit, channels=options.channels, factor=options.factor, seed=options.seed)
        vae = load_vae(source)
        size = write_bundle(
            options.folder,
            dit,
            vae,
            scaling_factor=vae.config.scaling_factor,
            defaults=Settings.stored(Manifest.read(source).generation),
        )
    except QsjaxError as error:
        print(f"qsjax.tiny.outliers: {on_command_line(error)}", file=sys.stderr)
        return 2
    print(f"wrote {options.folder} ({size} bytes)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
