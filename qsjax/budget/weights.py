"""Bytes of a transformer under a quantization recipe, tensor by tensor, from shapes alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import NamedTuple

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
        by_group: bytes by type of tensor: packed integers; their scales; biases of quantized layers; smoothing, rotations and
            clips; and the tensors that stay bfloat16.
        by_part: bytes by part of the model: blocks without their modulation layers; those layers; the text refiner; and the ends,
            which are patch and time embedders and the final layer. Both sum to `total`.
        matrices: bytes of blocks and modulation layers that can be sharded (`qsjax.parallel.weight_placement`).
    """

    by_group: Mapping[str, int]
    by_part: Mapping[str, int]
    matrices: Mapping[str, int]

    @classmethod
    def count(cls, config: DiTConfig, recipe: Recipe, *, clipped: bool = True) -> "Weights":
        """Build the model as shapes and add up its tensors.

        Args:
            config: sizes of the transformer.
            recipe: which layers are quantized; everything else is bfloat16, like the published weights.
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
        """Bytes of all weights."""
        return sum(self.by_part.values())

    @property
    def resident(self) -> int:
        """Bytes that stay on the device while sampling. The blocks' modulation weights are not needed after
        `qsjax.dit.DiT.modulation` has computed a prompt's vectors for all steps."""
        return self.total - self.by_part["modulation"]

    def share(self, part: str, devices: int) -> int:
        """Bytes of a part, "blocks" or "modulation", on each of the devices over which its matrices are sharded."""
        return self.by_part[part] - self.matrices[part] + -(-self.matrices[part] // devices)

    def resident_on(self, devices: int) -> int:
        """`resident` on each of the devices over which the blocks' matrices are sharded. A gathered layer counts as activations."""
        return self.resident - self.by_part["blocks"] + self.share("blocks", devices)


class Tensor(NamedTuple):
    """Shape and dtype of one tensor; blocks of a kind are stacked."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: jnp.dtype


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
    return tuple(Tensor(tuple(map(str, path)), leaf.shape, leaf.dtype) for path, leaf in abstract)


def part_of(path: tuple[str, ...]) -> str:
    """Which of `PARTS` a tensor or layer belongs to, by its path."""
    if path[0] in STACKS:
        return "modulation" if "modulation" in path else "blocks"
    return "refiner" if path[0] == "refiner" else "ends"


def modulation_table_bytes(config: DiTConfig, evaluations: int) -> int:
    """Bytes of the modulation vectors (`qsjax.dit.DiT.modulation`) of all evaluations of the model, bfloat16.

    An evaluation has shift, scale and gate, each of hidden size: two sets for each of the two streams of a double-stream block, one
    set for a single-stream block; and shift and scale of the final layer.
    """
    vectors = 12 * config.num_double_blocks + 3 * config.num_single_blocks + 2
    return evaluations * vectors * config.hidden_size * _STORED.itemsize
