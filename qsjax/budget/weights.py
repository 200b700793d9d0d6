"""Bytes of a transformer in a recipe, tensor by tensor, from arrays without values."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from qsjax.dit import DiTConfig
from qsjax.dit.abstract import abstract_dit
from qsjax.parallel.weights import MATRICES, STACKS
from qsjax.quant import Recipe

GROUPS = ("integers", "scales", "biases", "transforms", "bf16")
PARTS = ("blocks", "modulation", "refiner", "ends")
# Leaves of `qsjax.quant.QuantizedLinear`. What is not one of its float32 or int8 leaves is bfloat16.
_GROUP_OF_LEAF = {
    "packed": "integers", "low_bits": "integers", "scale": "scales", "bias": "biases",
    "smoothing": "transforms", "rotation": "transforms", "mix": "transforms", "clip": "transforms",
}  # fmt: skip
_STORED = jnp.dtype(jnp.bfloat16)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Storage of a transformer, in bytes.

    Attributes:
        by_group: what is stored: packed integers; their scales; biases of layers with integers; smoothing, rotations
            and clips; and the tensors that stay bfloat16.
        by_part: where it belongs: blocks without their modulation layers, those layers, the text refiner, and the
            ends, which are patch and time embedders and the final layer. Both sum to `total`.
        matrices: of blocks and modulation layers, what devices may share (`qsjax.parallel.weight_placement`).
    """

    by_group: Mapping[str, int]
    by_part: Mapping[str, int]
    matrices: Mapping[str, int]

    @classmethod
    def count(cls, config: DiTConfig, recipe: Recipe, *, clipped: bool = True) -> "Weights":
        """Build the model without values and add up its tensors.

        Args:
            config: all sizes.
            recipe: which layers become integers; everything else is bfloat16, as the weights are released.
            clipped: whether activations have a learned clip.

        Raises:
            InputError: an override of the recipe matches no layer.
        """
        by_group, by_part = dict.fromkeys(GROUPS, 0), dict.fromkeys(PARTS, 0)
        matrices = {"blocks": 0, "modulation": 0}
        for path, shape, dtype in tensors(config, recipe, clipped):
            size = prod(shape) * dtype.itemsize
            by_group["bf16" if dtype == _STORED else _GROUP_OF_LEAF[path[-1]]] += size
            by_part[part_of(path)] += size
            if path[0] in STACKS and path[-1] in MATRICES:
                matrices[part_of(path)] += size
        return cls(by_group=by_group, by_part=by_part, matrices=matrices)

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.by_part.values())

    @property
    def resident(self) -> int:
        """What stays on the device while sampling: `qsjax.dit.DiT.modulation` makes a prompt's vectors for all steps,
        and the blocks' modulation weights are not read again."""
        return self.total - self.by_part["modulation"]

    def share(self, part: str, devices: int) -> int:
        """Of a part, "blocks" or "modulation", on one of the devices that share its matrices."""
        return self.by_part[part] - self.matrices[part] + -(-self.matrices[part] // devices)

    def resident_on(self, devices: int) -> int:
        """The same on one of the devices that share the blocks' matrices. A gathered layer is among what a step holds."""
        return self.resident - self.by_part["blocks"] + self.share("blocks", devices)


class Tensor(NamedTuple):
    """One tensor without its values; blocks of a kind are stacked."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: Any


@lru_cache(maxsize=8)  # a report asks several times
def tensors(config: DiTConfig, recipe: Recipe, clipped: bool = True) -> tuple[Tensor, ...]:
    """Every tensor of the model.

    Raises:
        InputError: an override of the recipe matches no layer.
    """
    model = abstract_dit(config, recipe=recipe, clipped=clipped)
    abstract = [
        (path, variable.get_value())
        for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))
    ]
    return tuple(Tensor(tuple(map(str, path)), one.shape, one.dtype) for path, one in abstract)


def part_of(path: tuple[str, ...]) -> str:
    """Which of `PARTS` a tensor or layer belongs to, by its path."""
    if path[0] in STACKS:
        return "modulation" if "modulation" in path else "blocks"
    return "refiner" if path[0] == "refiner" else "ends"


def modulation_table_bytes(config: DiTConfig, evaluations: int) -> int:
    """Bytes of `qsjax.dit.DiT.modulation(...)` of all evaluations of the model, bfloat16.

    One evaluation has shift, scale and gate, each of D channels, twice for both streams of a double block, once for a single
    block, and shift and scale of the final layer.
    """
    vectors = 12 * config.num_double_blocks + 3 * config.num_single_blocks + 2
    return evaluations * vectors * config.hidden_size * _STORED.itemsize
