"""Stand-ins for quantized models: the same structure, coarser weights."""

import jax.numpy as jnp
from flax import nnx

LINEARS = ("qkv", "proj", "fc1", "fc2", "linear1", "linear2")
SMALL = {"frames": 5, "height": 16, "width": 16, "steps": 2}


def rounded(dit, bits):
    """A copy whose block weights are rounded to `bits`, scales per output channel."""
    copy, top = nnx.merge(*nnx.split(dit)), 2 ** (bits - 1) - 1
    for block in (copy.double_blocks.img, copy.double_blocks.txt, copy.single_blocks):
        for name in LINEARS:
            if hasattr(block, name):
                kernel = getattr(block, name).kernel.get_value()
                scale = jnp.abs(kernel).max(axis=1, keepdims=True) / top
                getattr(block, name).kernel = nnx.Param(jnp.round(kernel / scale) * scale)
    return copy
