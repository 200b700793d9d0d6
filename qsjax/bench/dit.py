"""The transformer's forward pass, side by side with diffusers on the same weights and threads."""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convert.keymaps import load_module
from qsjax.address import install
from qsjax.dit import DiTConfig
from qsjax.dit.abstract import abstract_dit
from qsjax.errors import InputError

MIDDLE = DiTConfig(
    in_channels=16,
    out_channels=16,
    hidden_size=768,
    num_heads=12,
    num_double_blocks=4,
    num_single_blocks=8,
    num_refiner_blocks=2,
    mlp_ratio=4.0,
    patch_size=(1, 2, 2),
    rope_axes_dim=(16, 24, 24),
    rope_theta=256.0,
    text_dim=256,
    pooled_dim=128,
    guidance_embeds=True,
)
"""12 heads of 64, 4 double and 8 single blocks: large enough that matmuls and attention decide."""
LATENTS = (1, 16, 8, 32, 32)  # 2,048 tokens
_TEXT = 64


def flops(config: DiTConfig, tokens: int) -> float:
    """Floating-point operations of the blocks in one forward, multiply-add counted as two.

    A block of either kind spends `(8 + 4 r) D^2` on the linear layers of a token, with r the MLP ratio,
    and `4 L D` on its attention.
    """
    width, blocks = config.hidden_size, config.num_blocks
    linear = (8 + 4 * config.mlp_ratio) * width**2 * tokens
    return blocks * (linear + 4 * tokens**2 * width)


def against_torch(pairs: int) -> dict[str, Any]:
    """Median time of our jitted forward and of diffusers', in alternating order, float32.

    Args:
        pairs: how many times each runs, after one warm-up.

    Returns:
        Times in seconds, their ratio pair by pair, and the rate in GFLOP/s.

    Raises:
        InputError: torch or diffusers is not installed.
    """
    try:
        import torch
        from diffusers import HunyuanVideoTransformer3DModel
    except ImportError as error:
        raise InputError(
            f"the comparison needs {error.name}; install it with {install('convert')}"
        ) from error
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    settings = {k: v for k, v in MIDDLE.to_diffusers().items() if not k.startswith("_")}
    theirs = HunyuanVideoTransformer3DModel(**settings)
    theirs.eval()
    weights = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    ours = load_module(abstract_dit(MIDDLE, dtype=jnp.float32), "dit", "diffusers", weights, MIDDLE)
    inputs = _inputs()
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    arrays = {name: jnp.asarray(array) for name, array in inputs.items()}
    forward = jax.jit(lambda dit, inputs: dit(**inputs))

    def run_ours() -> np.ndarray:
        return np.asarray(forward(ours, arrays))

    def run_theirs() -> np.ndarray:
        with torch.inference_mode():
            return theirs(
                hidden_states=tensors["latents"],
                timestep=tensors["timestep"],
                encoder_hidden_states=tensors["text"],
                encoder_attention_mask=tensors["text_mask"].long(),
                pooled_projections=tensors["pooled"],
                guidance=tensors["guidance"],
                return_dict=False,
            )[0].numpy()

    difference = float(np.abs(run_ours() - run_theirs()).max())
    times = [(_seconds(run_ours), _seconds(run_theirs)) for _ in range(pairs)]
    tokens = LATENTS[2] * LATENTS[3] * LATENTS[4] // 4 + _TEXT
    our_seconds = statistics.median(our_time for our_time, _ in times)
    their_seconds = statistics.median(their_time for _, their_time in times)
    work = flops(MIDDLE, tokens)
    return {
        "tokens": tokens,
        "threads": threads,
        "pairs": pairs,
        "gflop": work / 1e9,
        "qsjax_seconds": our_seconds,
        "torch_seconds": their_seconds,
        "median_ratio": statistics.median(our_time / their_time for our_time, their_time in times),
        "qsjax_gflops": work / our_seconds / 1e9,
        "torch_gflops": work / their_seconds / 1e9,
        "max_difference": difference,
        "versions": {"jax": jax.__version__, "torch": torch.__version__},
    }


def _inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "latents": normal(*LATENTS),
        "timestep": np.array([700.0], np.float32),
        "text": normal(1, _TEXT, MIDDLE.text_dim),
        "text_mask": np.arange(_TEXT)[None] < _TEXT - 20,
        "pooled": normal(1, MIDDLE.pooled_dim),
        "guidance": np.array([6000.0], np.float32),
    }


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
