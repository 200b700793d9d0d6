"""Model surgery: the linear layers of a DiT replaced by quantized ones, as a recipe says.

Nothing here computes with weights. The module it makes has the right leaves, empty, for a checkpoint to fill; seen through
`jax.eval_shape` it costs nothing, which is also how sizes are planned.
"""

from collections.abc import Iterator
from typing import Protocol, TypeVar, runtime_checkable

import jax.numpy as jnp
import numpy as np
from flax import nnx

from qsjax.errors import InputError
from qsjax.params import dotted
from qsjax.quant.branched import BranchedLinear
from qsjax.quant.linear import JoinedLinear, QuantizedLinear
from qsjax.quant.recipe import Precision, Recipe
from qsjax.quant.sites import SITES, Site, channels, has_bias, online, start_rotation
from qsjax.quant.sites import Transform as Transform

Module = TypeVar("Module", bound=nnx.Module)


@runtime_checkable
class Sizes(Protocol):
    """What is needed of a `qsjax.dit.DiTConfig`, which this room does not import."""

    @property
    def hidden_size(self) -> int:
        """D."""

    @property
    def mlp_size(self) -> int:
        """Hidden width of the MLPs."""

    @property
    def head_dim(self) -> int:
        """Channels of a head."""


@runtime_checkable
class Sized(Protocol):
    """A DiT, as far as its sizes go."""

    config: Sizes


def with_quantized_layers(dit: Module, recipe: Recipe, *, clipped: bool = True) -> Module:
    """Replace layers in place.

    Args:
        dit: a `qsjax.dit.DiT`; use it inside `nnx.eval_shape`, since all new leaves are zeros.
        recipe: the precision of each layer.
        clipped: whether activations have a learned clip.

    Returns:
        The same module.

    Raises:
        InputError: an override matches no layer, or groups do not divide a layer's input channels.
    """
    linears = dict(iterate_linears(dit))
    recipe.check(linears)
    assert isinstance(dit, Sized)
    for path, (parent, name, linear) in linears.items():
        precision = recipe.precision(path)
        if not precision.quantized:
            continue
        kind, _, layer = path.partition(".")
        sites = [site for site in SITES.get(kind, ()) if site.linear == layer]
        if not sites:
            setattr(parent, name, _empty(linear, precision, linear.kernel.shape[-2], {}))
            continue
        made = [_empty_site(site, linear, precision, recipe, dit.config, clipped) for site in sites]
        setattr(parent, name, made[0] if len(made) == 1 else JoinedLinear(*made))
    return dit


def iterate_linears(module: nnx.Module) -> Iterator[tuple[str, tuple[nnx.Module, str, nnx.Linear]]]:
    """Every `nnx.Linear`: its dotted path, and (parent, attribute, layer)."""
    for path, parent in list(nnx.iter_modules(module)):
        for name, child in list(vars(parent).items()):
            if isinstance(child, nnx.Linear):
                yield dotted(*path, name), (parent, name, child)


def _empty_site(
    site: Site,
    linear: nnx.Linear,
    precision: Precision,
    recipe: Recipe,
    config: Sizes,
    clipped: bool,
) -> QuantizedLinear:
    width, mlp = config.hidden_size, config.mlp_size
    rows = channels(site, width, mlp)
    rotation = start_rotation(site, recipe, width, mlp, config.head_dim)
    smoothing = np.zeros(rows) if recipe.smoothing else None
    smoothing, rotation = online(site, Transform(smoothing, rotation))
    extra: dict[str, tuple[int, ...]] = {}
    if smoothing is not None:
        extra["smoothing"] = smoothing.shape
    if rotation is not None:
        extra["rotation"] = rotation.runs.shape
        if rotation.mix is not None:
            extra["mix"] = rotation.mix.shape
    if clipped and precision.activations < 16:
        extra["clip"] = (1,)
    if recipe.branch:
        extra |= {"branch_in": (rows, 1), "branch_out": (1, linear.kernel.shape[-1])}
    return _empty(linear, precision, rows, extra, biased=has_bias(site))


def _empty(
    linear: nnx.Linear,
    precision: Precision,
    rows: int,
    extra: dict[str, tuple[int, ...]],
    *,
    biased: bool = True,
) -> QuantizedLinear:
    *stack, _, columns = linear.kernel.shape
    if rows % (precision.group or rows):
        raise InputError(
            f"groups of {precision.group} weights do not divide {rows} input channels; choose a divisor, or 0 for all"
        )
    bits, groups = precision.container, rows // (precision.group or rows)
    padded = rows + -rows % {4: 2, 6: 4, 8: 1}[bits]
    integers = {"packed": (padded // (1 if bits == 8 else 2), columns)}
    if bits == 6:
        integers["low_bits"] = (padded // 4, columns)
    floats = {"scale": (groups, columns), **extra}
    if biased and linear.bias is not None:
        floats["bias"] = (columns,)
    leaves = {name: jnp.zeros((*stack, *shape), jnp.int8) for name, shape in integers.items()}
    leaves |= {name: jnp.zeros((*stack, *shape), jnp.float32) for name, shape in floats.items()}
    build = BranchedLinear if "branch_in" in extra else QuantizedLinear
    return build(leaves, rows=rows, precision=precision, dtype=linear.kernel.dtype)
