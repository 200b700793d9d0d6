"""The layers of the VAE: causal convolution, GroupNorm, resnet and upsampling; tensors are channels-last."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from qsjax.vae.convolution import convolve

EPSILON = 1e-6
Volume = Float[Array, "B T H W C"]


class Conv(nnx.Module):
    """A 3-D convolution that is causal in time.

    Replicates the border pixels (k//2 on each side) and the first frame (k-1 copies before it, none after the last).

    Args:
        features_in: input channels.
        features_out: output channels.
        size: kernel size along all three axes.
        stride: steps along (time, height, width).
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        size: int = 3,
        *,
        stride: tuple[int, int, int] = (1, 1, 1),
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        shape = (size, size, size, features_in, features_out)
        initial = nnx.initializers.lecun_normal()(rngs.params(), shape, dtype)
        self.kernel = nnx.Param(initial)
        self.bias = nnx.Param(jnp.zeros(features_out, dtype))
        self.stride = stride

    def __call__(self, x: Volume) -> Float[Array, "B T2 H2 W2 C2"]:
        """Convolve; n frames become (n - 1) // stride + 1."""
        kernel, bias = self.kernel.get_value(), self.bias.get_value()
        if kernel.shape[:3] == (1, 1, 1):
            return x @ kernel[0, 0, 0] + bias[None, None, None, None]
        return convolve(x, kernel, self.stride) + bias[None, None, None, None]


class GroupNorm(nnx.Module):
    """GroupNorm over all frames and pixels of the call, with float32 statistics of centred values."""

    def __init__(self, features: int, groups: int, *, dtype: jnp.dtype) -> None:
        self.scale = nnx.Param(jnp.ones(features, dtype))
        self.bias = nnx.Param(jnp.zeros(features, dtype))
        self.groups = groups

    def __call__(self, x: Volume) -> Volume:
        """Normalize every group of channels of a sample to mean 0 and variance 1, then scale and shift."""
        wide = x.astype(jnp.float32)
        centred = wide - self._group_mean(wide)
        inverse = jax.lax.rsqrt(self._group_mean(jnp.square(centred)) + EPSILON)
        scale, bias = (p.get_value().astype(jnp.float32) for p in (self.scale, self.bias))
        y = centred * (inverse * scale[None, None, None, None]) + bias[None, None, None, None]
        return y.astype(x.dtype)

    def _group_mean(self, x: Array) -> Array:
        # Channel means first: the large tensor is never split along its short last axis, and the axes
        # one after the other keep the partial sums short.
        channels = x.mean(axis=3).mean(axis=2).mean(axis=1)
        groups = channels.reshape(x.shape[0], self.groups, -1).mean(axis=-1)
        return jnp.repeat(groups, x.shape[-1] // self.groups, axis=-1)[:, None, None, None]


class Resnet(nnx.Module):
    """x + conv2(silu(norm2(conv1(silu(norm1(x)))))), with a 1x1x1 convolution on x where the width changes."""

    def __init__(
        self, features_in: int, features_out: int, groups: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        self.norm1 = GroupNorm(features_in, groups, dtype=dtype)
        self.conv1 = Conv(features_in, features_out, dtype=dtype, rngs=rngs)
        self.norm2 = GroupNorm(features_out, groups, dtype=dtype)
        self.conv2 = Conv(features_out, features_out, dtype=dtype, rngs=rngs)
        if features_in != features_out:
            self.conv_shortcut = Conv(features_in, features_out, 1, dtype=dtype, rngs=rngs)

    def __call__(self, x: Volume) -> Float[Array, "B T H W C2"]:
        """Same frames and pixels, `features_out` channels."""
        y = self.conv1(nnx.silu(self.norm1(x)))
        y = self.conv2(nnx.silu(self.norm2(y)))
        return y + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


def upsample(x: Volume, factor: tuple[int, int, int]) -> Float[Array, "B T2 H2 W2 C"]:
    """Nearest-neighbour upsampling that leaves frame 0 single: n frames become 1 + factor[0] (n - 1)."""
    first, rest = _repeat(x[:, :1], (1, *factor[1:])), _repeat(x[:, 1:], factor)
    return jnp.concatenate([first, rest], axis=1)


def _repeat(x: Array, factor: tuple[int, int, int]) -> Array:
    b, t, h, w, c = x.shape
    ft, fh, fw = factor
    spread = jnp.broadcast_to(x[:, :, None, :, None, :, None], (b, t, ft, h, fh, w, fw, c))
    return spread.reshape(b, t * ft, h * fh, w * fw, c)
