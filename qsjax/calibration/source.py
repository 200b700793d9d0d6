"""The float model of a calibration: blocks that are read when they are asked for."""

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from qsjax.calibration.blocks import KINDS
from qsjax.checkpoint import Manifest, load_item, restore
from qsjax.config import from_mapping
from qsjax.dit import DiTConfig
from qsjax.dit.abstract import abstract_dit


class CheckpointSource:
    """Blocks of a checkpoint, read when they are asked for; the DiT's ends are in memory.

    Args:
        manifest: of a float checkpoint.
        dtype: of the ends and of the activations.
        verify: compare weights with their sha256 in the manifest.
    """

    def __init__(self, manifest: Manifest, dtype: DTypeLike, *, verify: bool = True) -> None:
        self.manifest, self._verify = manifest, verify
        self._dtype = jnp.dtype(dtype)
        source = f"{manifest.directory}: dit config"
        self.config = from_mapping(DiTConfig, manifest.config("dit"), source=source)

        abstract = abstract_dit(self.config, dtype=dtype)
        del abstract.double_blocks, abstract.single_blocks
        self.ends = restore(
            manifest,
            "dit",
            abstract,
            dtype=self._dtype,
            wanted=lambda leaf: not in_block(leaf),
            verify=verify,
        )
        self._items: dict[str, list[str]] = {}
        for item, leaf, _ in manifest.leaves("dit"):
            if in_block(leaf):
                block = ".".join(leaf.split(".")[:2])
                self._items.setdefault(block, [])
                if item not in self._items[block]:
                    self._items[block].append(item)

    def leaves(self, kind: str, index: int) -> dict[str, np.ndarray]:
        """One block's weights, in the dtype of the activations."""
        block = f"{kind}.{index}"
        leaves: dict[str, np.ndarray] = {}
        for item in self._items[block]:
            read = load_item(self.manifest, "dit", item, verify=self._verify)
            for leaf, value in read.items():
                leaves[leaf.removeprefix(f"{block}.")] = np.asarray(value).astype(self._dtype)
        return leaves


def in_block(leaf: str) -> bool:
    """Whether a leaf of the DiT belongs to one of its blocks."""
    return leaf.split(".")[0] in KINDS
