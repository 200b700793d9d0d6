"""Recipes: how many bits each layer gets, and which transforms its input goes through."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from qsjax.config import from_mapping, load_toml, nearest, preset
from qsjax.errors import InputError
from qsjax.quant.quantizer import UNQUANTIZED
from qsjax.quant.rotation import KINDS

_WEIGHT_BITS = (2, 3, 4, 5, 6, 8, UNQUANTIZED)
_ACTIVATION_BITS = (4, 6, 8, UNQUANTIZED)
FLOAT = "bf16"
"""Name of the recipe that quantizes nothing."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How a layer is stored and multiplied.

    Attributes:
        weights: bits of a weight, one scale per output channel; 16 leaves the layer as it is.
        activations: bits of its input, one scale per token; 16 keeps the input floating (weight-only).
        group: input channels that share a scale instead of all of them (weight-only layers).
    """

    weights: int
    activations: int = UNQUANTIZED
    group: int = 0

    def __post_init__(self) -> None:
        if self.weights not in _WEIGHT_BITS or self.activations not in _ACTIVATION_BITS:
            raise InputError(
                f"W{self.weights}A{self.activations}: weights have {', '.join(map(str, _WEIGHT_BITS))} bits,"
                f" activations {', '.join(map(str, _ACTIVATION_BITS))}"
            )
        if self.group < 0 or (self.group and self.activations != UNQUANTIZED):
            raise InputError(
                f"group={self.group}: groups of weights are for weight-only layers (activations = 16)"
            )

    @property
    def container(self) -> int:
        """Bits that a packed weight takes: 4, 6 or 8."""
        return next(bits for bits in (4, 6, 8) if bits >= self.weights)

    @property
    def quantized(self) -> bool:
        """Whether the weights are integers."""
        return self.weights != UNQUANTIZED


@dataclass(frozen=True, kw_only=True)
class Override:
    """Another precision for some layers.

    Attributes:
        pattern: regular expression that the whole path of a layer matches, as in "double_blocks.txt.*". Paths
            carry no block numbers: the blocks of a kind are one module.
        precision: theirs.
    """

    pattern: str
    precision: Precision


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that says what a quantized checkpoint holds.

    Attributes:
        name: for messages and reports.
        blocks: linear layers of the double and single blocks.
        modulation: the blocks' modulation layers (a quarter of HunyuanVideo's weights, read once per prompt).
        refiner: the text refiner's layers.
        rotation: "none", "block", "kronecker" or "hadamard", of the block layers' inputs.
        rotation_size: channels that a block rotation turns together.
        rotation_signs: whether Hadamard matrices get random signs; checkpoints that do not say have none.
        smoothing: whether inputs are divided by a vector of channel scales.
        branch: a rank-1 correction in floating point beside every block layer (Q-VDiT's, a baseline).
        overrides: exceptions; the last one that matches decides.
    """

    name: str
    blocks: Precision
    modulation: Precision
    refiner: Precision
    rotation: str = "block"
    rotation_size: int = 128
    rotation_signs: bool = True
    smoothing: bool = True
    branch: bool = False
    overrides: tuple[Override, ...] = ()

    def __post_init__(self) -> None:
        if self.rotation not in KINDS:
            raise InputError(f"no rotation {self.rotation!r}; {nearest(self.rotation, KINDS)}")
        if self.rotation_size < 2:
            raise InputError(f"rotation_size={self.rotation_size}: must be 2 or more")
        for override in self.overrides:
            try:
                re.compile(override.pattern)
            except re.error as error:
                raise InputError(
                    f"{override.pattern!r} is no regular expression ({error})"
                ) from error

    @classmethod
    def load(cls, name: str) -> "Recipe":
        """A recipe by the name of a preset in configs/recipes, or by the path of a TOML file.

        Raises:
            InputError: there is neither, or it has unknown or unfitting values.
        """
        path = Path(name)
        values = load_toml(path) if path.suffix == ".toml" else preset("recipes", name)
        return from_mapping(cls, {"name": path.stem, **values}, source=f"recipe {name}")

    def precision(self, path: str) -> Precision:
        """The precision of the layer with this path, as in "double_blocks.img.qkv"."""
        for override in reversed(self.overrides):
            if re.fullmatch(override.pattern, path):
                return override.precision
        if path.startswith("refiner."):
            return self.refiner
        if not path.startswith(("double_blocks.", "single_blocks.")):
            return Precision(weights=UNQUANTIZED)
        return self.modulation if path.endswith(".modulation") else self.blocks

    def check(self, paths: Collection[str]) -> None:
        """Every override must say something about a model with these layers.

        Raises:
            InputError: a pattern matches none of them.
        """
        for override in self.overrides:
            if not any(re.fullmatch(override.pattern, path) for path in paths):
                raise InputError(
                    f"recipe {self.name}: {override.pattern!r} matches no layer; {nearest(override.pattern, paths)}"
                )
