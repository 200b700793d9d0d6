"""Encoder and decoder: a stack of levels around a mid block."""

from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from qsjax.vae.attention import Attention
from qsjax.vae.config import Level, VAEConfig
from qsjax.vae.layers import Conv, GroupNorm, Resnet, upsample


class MidBlock(nnx.Module):
    """Resnet, attention (if the config has it), resnet, at the coarsest resolution."""

    def __init__(self, config: VAEConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        width, groups = config.block_out_channels[-1], config.norm_num_groups
        self.resnets = nnx.List(
            [Resnet(width, width, groups, dtype=dtype, rngs=rngs) for _ in range(2)]
        )
        if config.mid_block_add_attention:
            self.attention = Attention(width, groups, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        """Same shape."""
        x = self.resnets[0](x)
        if hasattr(self, "attention"):
            x = self.attention(x)
        return self.resnets[1](x)


class DownBlock(nnx.Module):
    """An encoder level: resnets, then a strided convolution where the level resamples."""

    def __init__(
        self, features_in: int, features_out: int, level: Level, config: VAEConfig,
        *, dtype: jnp.dtype, rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        self.resnets = nnx.List(
            _resnets(features_in, features_out, config.layers_per_block, config, dtype, rngs)
        )
        if level.resamples:
            self.downsampler = Conv(
                features_out, features_out, stride=level.factor, dtype=dtype, rngs=rngs
            )

    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 C2"]:
        """Halve the axes that the level resamples; n frames become (n - 1) // 2 + 1."""
        for resnet in self.resnets:
            x = resnet(x)
        return self.downsampler(x) if hasattr(self, "downsampler") else x


class UpBlock(nnx.Module):
    """A decoder level: one resnet more than the encoder's, then nearest upsampling and a convolution."""

    def __init__(
        self, features_in: int, features_out: int, level: Level, config: VAEConfig,
        *, dtype: jnp.dtype, rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        self.resnets = nnx.List(
            _resnets(features_in, features_out, config.layers_per_block + 1, config, dtype, rngs)
        )
        self.factor = level.factor
        if level.resamples:
            self.upsampler = Conv(features_out, features_out, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 C2"]:
        """Double the axes that the level resamples; n frames become 2 n - 1."""
        for resnet in self.resnets:
            x = resnet(x)
        return self.upsampler(upsample(x, self.factor)) if hasattr(self, "upsampler") else x


class Encoder(nnx.Module):
    """Video to moments, before `quant_conv`."""

    def __init__(self, config: VAEConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        widths = config.block_out_channels
        self.conv_in = Conv(config.in_channels, widths[0], dtype=dtype, rngs=rngs)
        self.down_blocks = nnx.List(
            [
                DownBlock(before, width, level, config, dtype=dtype, rngs=rngs)
                for before, width, level in zip(
                    (widths[0], *widths[:-1]), widths, config.levels(), strict=True
                )
            ]
        )
        self.mid_block = MidBlock(config, dtype=dtype, rngs=rngs)
        self.conv_norm_out = GroupNorm(widths[-1], config.norm_num_groups, dtype=dtype)
        self.conv_out = Conv(widths[-1], 2 * config.latent_channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B F H W 3"]) -> Float[Array, "B T h w moments"]:
        """Mean and log-variance side by side in the channels."""
        x = self.conv_in(x)
        for number, block in enumerate(self.down_blocks):
            with jax.named_scope(f"down_block_{number}"):
                x = block(x)
        with jax.named_scope("mid_block"):
            x = self.mid_block(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(x)))


class Decoder(nnx.Module):
    """Latent to video, after `post_quant_conv`."""

    def __init__(self, config: VAEConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        widths = config.block_out_channels[::-1]
        self.conv_in = Conv(config.latent_channels, widths[0], dtype=dtype, rngs=rngs)
        self.mid_block = MidBlock(config, dtype=dtype, rngs=rngs)
        self.up_blocks = nnx.List(
            [
                UpBlock(before, width, level, config, dtype=dtype, rngs=rngs)
                for before, width, level in zip(
                    (widths[0], *widths[:-1]), widths, config.levels(), strict=True
                )
            ]
        )
        self.conv_norm_out = GroupNorm(widths[-1], config.norm_num_groups, dtype=dtype)
        self.conv_out = Conv(widths[-1], config.out_channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T h w C"]) -> Float[Array, "B F H W 3"]:
        """The video, unclipped."""
        with jax.named_scope("mid_block"):
            x = self.mid_block(self.conv_in(x))
        for number, block in enumerate(self.up_blocks):
            with jax.named_scope(f"up_block_{number}"):
                x = block(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(x)))


def _resnets(
    features_in: int, features_out: int, count: int, config: VAEConfig,
    dtype: jnp.dtype, rngs: nnx.Rngs,
) -> list[Resnet]:  # fmt: skip
    widths = (features_in, *[features_out] * count)
    return [
        Resnet(before, after, config.norm_num_groups, dtype=dtype, rngs=rngs)
        for before, after in pairwise(widths)
    ]
