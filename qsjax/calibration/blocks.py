"""One transformer block: in floats, with the inputs of its layers recorded, and with fake-quantized layers."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from qsjax.calibration.attention import QueriesAndKeys, no_attention
from qsjax.calibration.variables import Learned, Starts, current_transforms
from qsjax.dit import DiTConfig
from qsjax.dit.blocks import Context, DoubleBlock, SingleBlock
from qsjax.params import map_parameters
from qsjax.quant import SITES, Recipe, Site, Transform
from qsjax.quant.fake import FakeJoinedLinear, FakeLinear, Watch, clip_of
from qsjax.quant.quantizer import UNQUANTIZED
from qsjax.quant.sites import has_bias, merged_bias, merged_kernel

KINDS = {"double_blocks": DoubleBlock, "single_blocks": SingleBlock}
Block = DoubleBlock | SingleBlock
Leaves = Mapping[str, Array]
Rows = tuple[Float[Array, "B M"], ...]
"""A block's modulation vectors: those of video and of text; a single block has one for both."""


class Tokens(NamedTuple):
    """What passes from block to block: video tokens and text tokens."""

    img: Float[Array, "B N D"]
    txt: Float[Array, "B L D"]


def float_block(kind: str, leaves: Leaves, config: DiTConfig) -> Block:
    """The block of `qsjax.dit.blocks` around leaves that are named as in it ("img.qkv.kernel")."""
    build = KINDS[kind]
    block = nnx.eval_shape(lambda: build(config, dtype=jnp.dtype(jnp.float32), rngs=nnx.Rngs(0)))
    return map_parameters(lambda name, _: leaves[name], block)


def modulation_rows(block: Block, active: Float[Array, "B D"]) -> Rows:
    """The block's modulation vectors for conditioning `active`."""
    if isinstance(block, DoubleBlock):
        return block.img.modulation(active), block.txt.modulation(active)
    return (block.modulation(active),)


def run_block(
    block: Block, tokens: Tokens, rows: Rows, context: Context
) -> tuple[Tokens, QueriesAndKeys]:
    """The block's output, and what the attention slot of `context` returned as its state."""
    nothing: Any = ()  # the slots of calibration take no state
    if isinstance(block, DoubleBlock):
        of_img, of_txt = rows
        (img, txt), state = block((tokens.img, tokens.txt), (of_img, of_txt), context, nothing)
        return Tokens(img, txt), state
    (of_both,) = rows
    x, state = block(jnp.concatenate(tokens, axis=1), of_both, context, nothing)
    video = tokens.img.shape[1]
    return Tokens(x[:, :video], x[:, video:]), state


def float_queries_and_keys(
    kind: str, leaves: Leaves, config: DiTConfig, tokens: Tokens, rows: Rows, context: Context
) -> QueriesAndKeys:
    """The float block's queries and keys, without the rest of it: what needs their attention is no part of the program."""
    narrow, projected = dict(leaves), 3 * config.hidden_size
    if kind == "single_blocks":
        for name in ("linear1.kernel", "linear1.bias"):
            narrow[name] = leaves[name][..., :projected]
    block = float_block(kind, narrow, config)
    if isinstance(block, SingleBlock):
        parent, attribute = _parent(block, "linear2")
        setattr(parent, attribute, nnx.static(lambda attended: attended))
    return run_block(block, tokens, rows, replace(context, attention=no_attention))[1]


def watched_inputs(
    kind: str, leaves: Leaves, config: DiTConfig, tokens: Tokens, rows: Rows, context: Context
) -> tuple[Tokens, QueriesAndKeys, dict[str, Array]]:
    """Run the float block, and record the input of every site by its layer's name."""
    block, seen = float_block(kind, leaves, config), {}

    def watch(name: str, linear: nnx.Linear) -> Callable[[Array], Array]:
        def call(x: Array) -> Array:
            seen[name] = x
            return linear(x)

        return call

    for name in dict.fromkeys(site.linear for site in SITES[kind]):
        parent, attribute = _parent(block, name)
        setattr(parent, attribute, nnx.static(watch(name, getattr(parent, attribute))))
    out, state = run_block(block, tokens, rows, context)
    width = config.hidden_size
    inputs = {}
    for site in SITES[kind]:
        x = seen[site.linear]
        if site.linear == "linear2":
            x = x[..., :width] if site.source == "attention" else x[..., width:]
        inputs[site.layer] = x
    return out, state, inputs


def fake_layer(
    kind: str,
    site: Site,
    leaves: Leaves,
    learned: Learned,
    transforms: Mapping[str, Transform],
    recipe: Recipe,
    config: DiTConfig,
    *,
    kernel: Array | None = None,
    quantized: bool = True,
    alone: bool = False,
) -> FakeLinear:
    """The fake-quantized layer of a site.

    Args:
        kind, site: where.
        leaves: of the float block.
        learned: for the clips.
        transforms: by name.
        recipe: bits.
        config: sizes.
        kernel: the transformed weights as they were rounded; None rounds them to nearest.
        quantized: False keeps the transforms, with all 16 bits.
        alone: the input is the float block's; inside a fake-quantized block the attention's output is transformed already,
            by V's columns.
    """
    precision = recipe.precision(f"{kind}.{site.linear}" if quantized else "")
    bias = leaves[f"{site.linear}.bias"] if has_bias(site) else None
    clips, branch = learned.clips[site.layer], learned.branches[site.layer]
    if kernel is None:
        kernel = corrected_kernel(site, leaves, learned, transforms, config)
    else:
        precision = replace(precision, weights=UNQUANTIZED, group=0)
    return FakeLinear(
        kernel,
        None if bias is None else merged_bias(site, bias, transforms, config.hidden_size),
        transform=Transform()
        if site.source == "attention" and not alone
        else transforms[site.transform],
        precision=precision,
        weight_clip=1.0 if clips is None else clip_of(clips.weight),
        activation_clip=1.0 if clips is None else clip_of(clips.activation),
        branch=None if branch is None or not quantized else (branch.into, branch.out),
    )


def corrected_kernel(
    site: Site,
    leaves: Leaves,
    learned: Learned,
    transforms: Mapping[str, Transform],
    config: DiTConfig,
) -> Array:
    """The float32 weights that a site rounds: transformed, with their learned correction."""
    kernel = merged_kernel(site, leaves[f"{site.linear}.kernel"], transforms, config.hidden_size)
    branch = learned.branches[site.layer]
    return kernel if branch is None else kernel + jnp.matmul(branch.left, branch.right)


def fake_block(
    kind: str,
    leaves: Leaves,
    learned: Learned,
    starts: Starts,
    recipe: Recipe,
    config: DiTConfig,
    *,
    kernels: Mapping[str, Array] = MappingProxyType({}),
    watch: Mapping[str, Watch] = MappingProxyType({}),
) -> Block:
    """The block with every site's layer fake-quantized, differentiable in `learned`.

    Args:
        kind, leaves: the float block.
        learned, starts: the transforms.
        recipe: bits.
        config: sizes.
        kernels: layer -> its weights, where they were rounded already.
        watch: layer -> what is called with it and its input when the block runs.
    """
    block, current = float_block(kind, leaves, config), current_transforms(learned, starts)
    layers = {
        site.layer: fake_layer(
            kind, site, leaves, learned, current, recipe, config, kernel=kernels.get(site.layer)
        )
        for site in SITES[kind]
    }
    for name, call in watch.items():
        layers[name].watch = nnx.static(call)
    for name in dict.fromkeys(site.linear for site in SITES[kind]):
        parent, attribute = _parent(block, name)
        if name == "linear2":
            layer = FakeJoinedLinear(layers["linear2.attention"], layers["linear2.mlp"])
        else:
            layer = layers[name]
        setattr(parent, attribute, layer)
    return block


def squared_error(tokens: Tokens, target: Tokens, txt_valid: Array) -> Array:
    """Mean squared difference over the values of all tokens that are there, float32."""
    keep = txt_valid[:, :, None].astype(jnp.float32)
    img = jnp.square(tokens.img.astype(jnp.float32) - target.img.astype(jnp.float32)).sum()
    txt = (jnp.square(tokens.txt.astype(jnp.float32) - target.txt.astype(jnp.float32)) * keep).sum()
    count = tokens.img.size + keep.sum() * tokens.txt.shape[-1]
    return (img + txt) / count


def frame_divergence(video: Array, target: Array, frames: int) -> Array:
    """Kullback-Leibler divergence between the softmaxed cosine similarities of frames, of `target` from `video`.

    Args:
        video, target: video tokens [1, N, D], frame after frame.
        frames: number of them; divides N.
    """

    def similarities(tokens: Array) -> Array:
        flat = tokens.astype(jnp.float32).reshape(frames, -1)
        flat = flat / jnp.sqrt(jnp.square(flat).sum(axis=1, keepdims=True) + 1e-12)
        return jax.nn.log_softmax(jnp.matmul(flat, flat.T), axis=-1)

    log_video, log_target = similarities(video), similarities(target)
    return (jnp.exp(log_target) * (log_target - log_video)).sum(axis=-1).mean()


def _parent(block: nnx.Module, name: str) -> tuple[nnx.Module, str]:
    *path, last = name.split(".")
    for step in path:
        block = getattr(block, step)
    return block, last
