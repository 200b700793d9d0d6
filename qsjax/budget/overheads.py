"""What a compiler's estimate of a block adds to the floors: a stored table for each TPU, from reports of `qsjax bench step`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsjax.budget.parts import (
    ATTENTION,
    CACHE,
    ENDS,
    LOW_RANK,
    PACKING,
    PRODUCTS,
    ROPE,
    TOKENS,
    TRANSFERS,
)
from qsjax.config import from_mapping
from qsjax.dit import DiTConfig

FILE = Path(__file__).with_name("overheads.json")
"""Written by `python -m qsjax.bench.overheads`."""
BFLOAT16 = "bf16 dense"
"""The kind of step that a run is compared with: bfloat16 products, dense attention."""
FLOORED = (ATTENTION, PRODUCTS, TOKENS, ROPE, CACHE, TRANSFERS)
"""Parts with a floor of their own; the others count passes over queries, keys and values."""
_CACHED = (PACKING, LOW_RANK)
_PARTS = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """A tile of the autoencoder, as a compiler estimates it.

    Attributes:
        tile: frames, height and width of its latents.
        seconds: to decode it in bfloat16, without the overlap of copies with computation.
        cpu_seconds: to compile it.
        libtpu: version of the compiler.
    """

    tile: tuple[int, int, int]
    seconds: float
    cpu_seconds: float
    libtpu: str


@dataclass(frozen=True, kw_only=True)
class Overheads:
    """Of one TPU.

    Attributes:
        libtpu: version of the compiler.
        size: frames, height and width of the video that was estimated.
        weights: quantization recipe.
        mask: family of the lists.
        executed_density: of a sparse step at that size.
        cache_bytes: of the lists and the cache of all layers at that size.
        hidden_size, heads: of the blocks; overheads of others are not known.
        kinds: kind of step -> kind of block -> part -> how many times its floor it takes, or how many passes.
        seconds: kind of step -> seconds, as estimated at that size.
        decoding: of the autoencoder.
    """

    libtpu: str
    size: tuple[int, int, int]
    weights: str
    mask: str
    executed_density: float
    cache_bytes: int
    hidden_size: int
    heads: int
    kinds: Mapping[str, Any]
    seconds: Mapping[str, Any]
    decoding: Decoding

    @classmethod
    def known(cls) -> dict[str, "Overheads"]:
        """Name of a TPU -> its table."""
        found = {}
        for name, table in json.loads(FILE.read_text(encoding="utf-8")).items():
            fields: dict[str, Any] = {
                **table,
                "size": tuple(table["size"]),
                "decoding": from_mapping(Decoding, table["decoding"], source=FILE.name),
            }
            found[name] = cls(**fields)
        return found

    def fits(self, config: DiTConfig) -> bool:
        """Whether blocks are as wide as those that were estimated."""
        return (config.hidden_size, config.num_heads) == (self.hidden_size, self.heads)

    def block_seconds(
        self, kind: str, block: str, floors: Mapping[str, float], one_pass: float
    ) -> float:
        """Of one block; of the ends, of all of them.

        Args:
            kind: of the step.
            block: one of `qsjax.budget.parts.BLOCKS`.
            floors: seconds by part; a part that has one and is in no table takes just that.
            one_pass: seconds to read and write queries, keys and values.
        """
        known: _PARTS = dict(self.kinds[kind][block])
        if block != ENDS and TOKENS not in floors:  # products of bfloat16 have their own
            known[PRODUCTS] = self.kinds[BFLOAT16][block][PRODUCTS]
        seconds = sum(known.get(part, 1.0) * floor for part, floor in floors.items())
        passes = sum(
            count
            for part, count in known.items()
            if (block == ENDS or part not in FLOORED) and (part not in _CACHED or CACHE in floors)
        )
        return seconds + passes * one_pass


def overheads(
    parts: Mapping[str, float], floors: Mapping[str, float], one_pass: float
) -> dict[str, float]:
    """Part -> seconds over its floor, or over a pass where it has none: what `Overheads.block_seconds` multiplies.

    Args:
        parts: seconds by part.
        floors: seconds by part; none for the ends, all of whose parts are counted in passes.
        one_pass: seconds.
    """
    return {
        part: seconds / floors.get(part, one_pass)
        for part, seconds in parts.items()
        if seconds and (part in floors or part not in FLOORED or not floors)
    }
