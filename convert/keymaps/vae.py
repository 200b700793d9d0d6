"""HunyuanVideo's VAE: Tencent and diffusers use the same names, with `.conv` inside every causal convolution."""

from collections.abc import Iterator

from convert.keymaps.table import Entry, linear, norm
from qsjax.vae.config import VAEConfig

PREFIXES = {"hunyuan": ("",)}


def ignored(config: VAEConfig, prefix: str) -> tuple[str, ...]:
    """Nothing in a VAE file may be left over."""
    return ()


def table(config: VAEConfig) -> tuple[Entry, ...]:
    """The key table of a VAE with these levels."""
    return tuple(_entries(config))


def _entries(config: VAEConfig) -> Iterator[Entry]:
    widths = config.block_out_channels
    resampled = [level.resamples for level in config.levels()]
    latent = config.latent_channels
    yield from _conv("encoder.conv_in", ".conv", config.in_channels, widths[0], 3)
    width = widths[0]
    for i, out in enumerate(widths):
        level = f"encoder.down_blocks.{i}"
        for j in range(config.layers_per_block):
            yield from _resnet(f"{level}.resnets.{j}", width, out)
            width = out
        if resampled[i]:
            yield from _resample(f"{level}.downsampler", f"{level}.downsamplers.0", width)
    yield from _middle(config, "encoder", width)
    yield from _norm("encoder.conv_norm_out", width)
    yield from _conv("encoder.conv_out", ".conv", width, 2 * latent, 3)
    yield from _conv("quant_conv", "", 2 * latent, 2 * latent, 1)
    yield from _conv("post_quant_conv", "", latent, latent, 1)
    yield from _conv("decoder.conv_in", ".conv", latent, widths[-1], 3)
    yield from _middle(config, "decoder", widths[-1])
    width = widths[-1]
    for i, out in enumerate(reversed(widths)):
        level = f"decoder.up_blocks.{i}"
        for j in range(config.layers_per_block + 1):
            yield from _resnet(f"{level}.resnets.{j}", width, out)
            width = out
        if resampled[i]:
            yield from _resample(f"{level}.upsampler", f"{level}.upsamplers.0", width)
    yield from _norm("decoder.conv_norm_out", width)
    yield from _conv("decoder.conv_out", ".conv", width, config.out_channels, 3)


def _middle(config: VAEConfig, half: str, width: int) -> Iterator[Entry]:
    block = f"{half}.mid_block"
    yield from _resnet(f"{block}.resnets.0", width, width)
    if config.mid_block_add_attention:
        ours, theirs = f"{block}.attention", f"{block}.attentions.0"
        yield from norm(f"{ours}.group_norm", width, half, hunyuan=f"{theirs}.group_norm")
        for name in ("to_q", "to_k", "to_v"):
            yield from linear(f"{ours}.{name}", width, width, half, hunyuan=f"{theirs}.{name}")
        yield from linear(f"{ours}.to_out", width, width, half, hunyuan=f"{theirs}.to_out.0")
    yield from _resnet(f"{block}.resnets.1", width, width)


def _resnet(module: str, width: int, out: int) -> Iterator[Entry]:
    yield from _norm(f"{module}.norm1", width)
    yield from _conv(f"{module}.conv1", ".conv", width, out, 3)
    yield from _norm(f"{module}.norm2", out)
    yield from _conv(f"{module}.conv2", ".conv", out, out, 3)
    if width != out:
        yield from _conv(f"{module}.conv_shortcut", ".conv", width, out, 1)


def _resample(ours: str, theirs: str, width: int) -> Iterator[Entry]:
    yield from _layer(ours, f"{theirs}.conv.conv", width, width, 3)


def _conv(module: str, inner: str, width: int, out: int, size: int) -> Iterator[Entry]:
    yield from _layer(module, module + inner, width, out, size)


def _layer(ours: str, theirs: str, width: int, out: int, size: int) -> Iterator[Entry]:
    columns = (width, size, size, size)
    yield from linear(ours, out, columns, _half(ours), transform="conv3d", hunyuan=theirs)


def _norm(module: str, width: int) -> Iterator[Entry]:
    yield from norm(module, width, _half(module), hunyuan=module)


def _half(module: str) -> str:
    """The quantization convolutions are small: they travel with the decoder."""
    return "encoder" if module.startswith("encoder.") else "decoder"
