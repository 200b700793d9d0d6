"""A linear map from the channels of a latent to a colour: one pixel a latent cell, one frame a latent frame."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from qsjax.errors import InputError

_LARGEST = 1e4
"""Of a coefficient; latents and colours are about 1."""


@dataclass(frozen=True, eq=False)
class Colours:
    """The map.

    Attributes:
        matrix: colours in [-1, 1] per unit of each channel, and of 1.
    """

    matrix: Float[np.ndarray, "channels_and_one 3"]

    @classmethod
    def fitted(
        cls, latents: Float[np.ndarray, "B C T h w"], colours: Float[np.ndarray, "B 3 T h w"]
    ) -> "Colours":
        """The map with the least squared error.

        Args:
            latents: as the transformer sees them.
            colours: the mean colour of every cell, in [-1, 1].
        """
        cells = np.moveaxis(latents, 1, -1).reshape(-1, latents.shape[1]).astype(np.float64)
        wanted = np.moveaxis(colours, 1, -1).reshape(-1, 3).astype(np.float64)
        matrix, *_ = np.linalg.lstsq(np.c_[cells, np.ones(len(cells))], wanted, rcond=None)
        return cls(matrix.astype(np.float32))

    @classmethod
    def of_plain(cls, values: Mapping[str, Any], channels: int) -> "Colours":
        """The map from plain data that may have been damaged.

        Raises:
            InputError: it is no map of so many channels.
        """
        rows = values.get("matrix")
        right = isinstance(rows, list) and len(rows) == channels + 1
        if not right or not all(isinstance(row, list) and len(row) == 3 for row in rows):
            raise InputError(f"the map to colours is not of {channels} channels; delete its file")
        numbers = [number for row in rows for number in row]
        if not all(isinstance(x, float) and abs(x) <= _LARGEST for x in numbers):
            raise InputError("the map to colours has values that are no colours; delete its file")
        return cls(np.array(rows, np.float32))

    def plain(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"matrix": self.matrix.astype(float).tolist()}

    def __call__(self, latents: Float[np.ndarray, "B C T h w"]) -> UInt8[np.ndarray, "B T h w 3"]:
        """The frames of latents, as the transformer sees them."""
        values = np.moveaxis(latents, 1, -1) @ self.matrix[:-1] + self.matrix[-1]
        return np.round((np.clip(values, -1, 1) + 1) * 127.5).astype(np.uint8)
