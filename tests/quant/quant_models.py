"""The same computation twice: quantized layers, and plain floats that were quantized on paper."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pallas_kernels import pack
from qsjax.dit import DiT, DiTConfig
from qsjax.quant import SITES, JoinedLinear, QuantizedLinear, Recipe, Transform
from qsjax.quant.quantizer import fake_tokens, fake_weight, quantize_weight
from qsjax.quant.rotation import rotate
from qsjax.quant.sites import merged_bias, merged_kernel, online, start_rotation
from qsjax.quant.storage import input_leaves
from qsjax.quant.surgery import iterate_linears

CONFIG = DiTConfig(
    in_channels=4,
    out_channels=4,
    hidden_size=48,
    num_heads=3,
    num_double_blocks=2,
    num_single_blocks=2,
    num_refiner_blocks=1,
    mlp_ratio=4.0,
    patch_size=(1, 2, 2),
    rope_axes_dim=(4, 6, 6),
    rope_theta=256.0,
    text_dim=20,
    pooled_dim=12,
    guidance_embeds=True,
)
WIDTH = CONFIG.hidden_size


class OnPaper(nnx.Module):
    """fake_tokens(rotate(x / c)) fake_weight + b, as a plain layer whose input is an array."""

    def __init__(self, kernel, bias, precision, transform=None):
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.data(None if bias is None else nnx.Param(bias))
        self.transform, self.precision = nnx.data(transform or Transform()), precision

    def __call__(self, x):
        smoothing, rotation = self.transform
        if smoothing is not None:
            x = (x / smoothing.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)
        x = fake_tokens(rotate(x, rotation), self.precision.activations)
        y = jnp.matmul(x, self.kernel[...].astype(x.dtype), preferred_element_type=jnp.float32)
        if self.bias is not None:
            y = y + self.bias[...].reshape((1,) * (y.ndim - 1) + (-1,))
        return y.astype(x.dtype)


class JoinedOnPaper(nnx.Module):
    """The two halves of a single block's second layer."""

    def __init__(self, attention, mlp):
        self.attention, self.mlp = attention, mlp

    def __call__(self, joined):
        return self.attention(joined[..., :WIDTH]) + self.mlp(joined[..., WIDTH:])


def random_dit(config=CONFIG, *, dtype=jnp.float32, seed=0):
    """A DiT whose every parameter is random, so that nothing is the identity; inputs of layers have outliers."""
    graph, abstract = nnx.split(nnx.eval_shape(lambda: DiT(config, dtype=dtype, rngs=nnx.Rngs(0))))
    random = np.random.default_rng(seed)
    state = jax.tree.map(
        lambda x: jnp.asarray(0.2 * random.standard_normal(x.shape), x.dtype), abstract
    )
    return nnx.merge(graph, state)


def dit_inputs(config=CONFIG, *, batch=2, length=7, seed=0):
    random = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(random.standard_normal(shape), jnp.float32)

    return {
        "latents": normal(batch, config.in_channels, 2, 6, 8),
        "timestep": jnp.full(batch, 640.0, jnp.float32),
        "text": normal(batch, length, config.text_dim),
        "text_mask": jnp.arange(length)[None] < jnp.array([[length], [3]])[:batch],
        "pooled": normal(batch, config.pooled_dim),
        "guidance": jnp.full(batch, 6000.0, jnp.float32),
    }


def transforms_of(recipe, config=CONFIG):
    """Kind of block -> transform -> the Hadamard rotation that a recipe begins with."""
    sizes = (config.hidden_size, config.mlp_size, config.head_dim)
    return {
        kind: {s.transform: Transform(None, start_rotation(s, recipe, *sizes)) for s in sites}
        for kind, sites in SITES.items()
    }


def both(dit, recipe: Recipe):
    """A DiT with packed layers, and the same on paper; transforms are those of `transforms_of`."""
    given = transforms_of(recipe)
    numbers = _numbers(dit, recipe, given)
    packed, paper = nnx.clone(dit), nnx.clone(dit)
    for path, (_, _, linear) in list(iterate_linears(dit)):
        precision = recipe.precision(path)
        if not precision.quantized:
            continue
        kind = path.partition(".")[0]
        for copy, make, join in (
            (packed, _packed, JoinedLinear),
            (paper, _on_paper, JoinedOnPaper),
        ):
            made = [
                make(site, each, given.get(kind, {}), precision, linear)
                for site, each in zip(sites_of(path), numbers[path], strict=True)
            ]
            *parents, name = path.split(".")
            parent = copy
            for one in parents:
                parent = getattr(parent, one)
            setattr(parent, name, made[0] if len(made) == 1 else join(*made))
    return packed, paper


def sites_of(path):
    """The sites of a layer; [None] outside the blocks and for their modulation."""
    kind, _, layer = path.partition(".")
    return [site for site in SITES.get(kind, ()) if site.linear == layer] or [None]


@partial(jax.jit, static_argnames="recipe")
def _numbers(dit, recipe, given):
    """Path -> for each site the integers, scales, floats and bias of its weights, stacked like the layer."""

    def one(kernel, bias, site, transforms, precision):
        merged, bias = kernel.astype(jnp.float32), bias.astype(jnp.float32)
        if site is not None:
            merged = merged_kernel(site, kernel, transforms, WIDTH)
            bias = merged_bias(site, bias, transforms, WIDTH)
        integers, scale = quantize_weight(merged, precision.weights, group=precision.group)
        weight = fake_weight(merged, precision.weights, group=precision.group)
        found = {"integers": integers, "scale": scale, "weight": weight, "bias": bias}
        if site is not None and site.layer == "linear2.mlp":
            del found["bias"]
        return found

    made = {}
    for path, (_, _, linear) in iterate_linears(dit):
        precision, kernel = recipe.precision(path), linear.kernel.get_value()
        if precision.quantized:
            transforms = given.get(path.partition(".")[0], {})
            run = [
                partial(one, site=site, transforms=transforms, precision=precision)
                for site in sites_of(path)
            ]
            run = run if kernel.ndim == 2 else [jax.vmap(each) for each in run]
            made[path] = [each(kernel, linear.bias.get_value()) for each in run]
    return made


def _packed(site, numbers, given, precision, linear):
    integers = np.asarray(numbers["integers"])
    stack, rows = integers.shape[:-2], integers.shape[-2]
    each = [pack(one, bits=precision.container) for one in integers.reshape(-1, *integers.shape[-2:])]  # fmt: skip
    leaves = {name: numbers[name] for name in ("scale", "bias") if name in numbers}
    for place, name in enumerate(("packed", "low_bits")[: len(each[0].planes)]):
        planes = jnp.stack([one.planes[place] for one in each])
        leaves[name] = planes.reshape(*stack, *planes.shape[1:])
    if site is not None:
        for name, leaf in input_leaves(site, given[site.transform]).items():
            leaves[name] = jnp.broadcast_to(leaf, (*stack, *leaf.shape))
    return QuantizedLinear(leaves, rows=rows, precision=precision, dtype=linear.kernel.dtype)


def _on_paper(site, numbers, given, precision, linear):
    transform = Transform() if site is None else online(site, given[site.transform])
    stack = numbers["weight"].shape[:-2]
    transform = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*stack, *leaf.shape)), transform)
    return OnPaper(numbers["weight"], numbers.get("bias"), precision, transform)


def distance(found, expected):
    """Relative to the size of what is expected, in the Euclidean norm."""
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)
