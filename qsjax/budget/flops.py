"""Operations of one denoising step, layer by layer; a multiplication with its addition counts as two.

Only matrix products are counted, not norms, softmax, activations, or the rotations before quantized layers (0.5 to 4 % of the
layer's product).
"""

from dataclasses import dataclass
from functools import lru_cache
from math import prod

from qsjax.budget.size import Size
from qsjax.budget.weights import part_of
from qsjax.dit import DiTConfig
from qsjax.dit.abstract import abstract_dit
from qsjax.errors import InputError
from qsjax.quant.surgery import iterate_linears


@dataclass(frozen=True, kw_only=True)
class StepFlops:
    """Operations of one evaluation of the model, batch 1.

    Attributes:
        linears: linear layers of the blocks, without their modulation layers.
        attention: attention of the blocks over all pairs of tokens.
        rest: modulation, text refiner, embedders, patches.
    """

    linears: int
    attention: int
    rest: int

    @classmethod
    def count(cls, config: DiTConfig, size: Size) -> "StepFlops":
        """Count each linear layer for all rows that it multiplies, and 4 D L^2 for each attention (scores and weighted values).

        With hidden size D, L tokens and an MLP size of 4 D, the linear layers of a block take 24 D^2 L operations, as many as its
        attention at L = 6 D.
        """
        linears = rest = 0
        for path, weights in _layers(config):
            operations = 2 * weights * _rows(path, size)
            if part_of(path) == "blocks":
                linears += operations
            else:
                rest += operations
        per_pair = 4 * config.hidden_size
        attention = per_pair * config.num_blocks * size.tokens**2
        rest += per_pair * config.num_refiner_blocks * size.text_tokens**2
        return cls(linears=linears, attention=attention, rest=rest)

    def attention_at(self, density: float) -> int:
        """Operations of the blocks' attention if only this share of the pairs is computed.

        Raises:
            InputError: density is not above 0 and at most 1.
        """
        if not 0 < density <= 1:
            raise InputError(f"density {density}: must be above 0 and at most 1, which is dense")
        return round(density * self.attention)

    def total(self, density: float = 1.0) -> int:
        """Operations of the whole step."""
        return self.linears + self.attention_at(density) + self.rest

    def linear_share(self, density: float = 1.0) -> float:
        """Share of the blocks' linear layers in the whole step."""
        return self.linears / self.total(density)


@lru_cache(maxsize=8)
def _layers(config: DiTConfig) -> tuple[tuple[tuple[str, ...], int], ...]:
    """Path and number of weights of every linear layer, blocks of a kind together."""
    model = abstract_dit(config)
    return tuple(
        (tuple(path.split(".")), prod(layer.kernel.shape))
        for path, (_, _, layer) in iterate_linears(model)
    )


def _rows(path: tuple[str, ...], size: Size) -> int:
    """Rows that a linear layer multiplies in a step; conditioning is one vector for all tokens."""
    if path[-1] == "modulation" or any(name.endswith("_embed") for name in path[:-1]):
        return 1
    if path[0] == "refiner" or path[:2] == ("double_blocks", "txt"):
        return size.text_tokens
    return size.tokens if path[0] == "single_blocks" else size.video_tokens
