"""Running a network tile by tile over a volume, and blending the tiles where they overlap.

The arithmetic is that of HunyuanVideo's PyTorch code, to the order of the blends: along time a tile has one
frame more than its size and, except at the start, its first output frame is dropped; along height and
width tiles are cut off at the border; a tile is blended with the one above, then with the one to its left,
each as blended before and not yet cropped. All volumes are [B, C, T, H, W], on the host.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jaxtyping import Array, Float

from qsjax.progress import Progress

Volume = Float[np.ndarray, "B C T H W"]
Output = Float[np.ndarray, "B C2 T2 H2 W2"]
Network = Callable[[Volume], Float[Array, "B C2 T2 H2 W2"]]


@dataclass(frozen=True)
class Cut:
    """How one axis is cut.

    Attributes:
        size: length of a tile at the network's input.
        stride: from one tile to the next at the input.
        out_stride: from one tile to the next at the output.
        extent: length of the overlap at the output.
    """

    size: int
    stride: int
    out_stride: int
    extent: int


@dataclass(frozen=True)
class TilePlan:
    """The tiles of one volume.

    Attributes:
        time: how time is cut, None where it is not.
        space: how height and width are cut, None where they are not.
    """

    time: Cut | None
    space: Cut | None

    def frames(self, length: int) -> list[slice]:
        """Input frames of each tile along time; tiles whose only output frame would be dropped are left out."""
        if self.time is None or length <= self.time.size:
            return [slice(0, length)]
        starts = range(0, length, self.time.stride)
        return [
            slice(start, min(start + self.time.size + 1, length))
            for start in starts
            if start == 0 or start + 1 < length
        ]

    def cells(self, height: int, width: int) -> list[list[tuple[slice, slice]]]:
        """Input (rows, columns) of each tile, as rows of tiles; both axes are cut if either is too long."""
        if self.space is None or max(height, width) <= self.space.size:
            return [[(slice(0, height), slice(0, width))]]
        size, stride = self.space.size, self.space.stride
        down, across = (
            [slice(start, min(start + size, length)) for start in range(0, length, stride)]
            for length in (height, width)
        )
        return [[(rows, columns) for columns in across] for rows in down]

    def shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The different shapes of a volume's tiles at the network's input, in the order in which they come."""
        tiles = [
            (
                *shape[:2],
                frames.stop - frames.start,
                rows.stop - rows.start,
                columns.stop - columns.start,
            )
            for frames in self.frames(shape[2])
            for row in self.cells(*shape[3:])
            for rows, columns in row
        ]
        return list(dict.fromkeys(tiles))

    def count(self, shape: tuple[int, ...]) -> int:
        """Number of tiles that a volume of this shape takes."""
        cells = self.cells(*shape[3:])
        return len(self.frames(shape[2])) * len(cells) * len(cells[0])


def run_in_tiles(
    network: Network, x: Volume, plan: TilePlan, bar: Progress, ahead: int = 0
) -> Iterator[Output]:
    """Yield the output in pieces along time, each as soon as it is final.

    Memory holds the output of one tile along time, and the frames of the previous one that it is blended with.

    Args:
        network: from a tile to its output, called once for every tile.
        x: the whole input.
        plan: the tiles.
        bar: advanced by one for every tile.
        ahead: tiles of a grid that are started before the result of the first one is awaited.
    """
    tail, tiles, cut = None, plan.frames(x.shape[2]), plan.time
    for frames in tiles:
        y = _run_frames(network, x[:, :, frames], plan, bar, ahead)
        if cut is None or len(tiles) == 1:
            yield y
            continue
        if tail is not None:
            y = y[:, :, 1:]
            _blend(tail, y, axis=2, extent=cut.extent)
        kept = cut.out_stride + (tail is None)
        tail = _end(y, axis=2, extent=cut.extent)
        yield y if y.shape[2] <= kept else y[:, :, :kept]


def _run_frames(network: Network, x: Volume, plan: TilePlan, bar: Progress, ahead: int) -> Output:
    """One tile along time: a grid of tiles, joined. Of finished tiles only the blended borders are kept."""
    cells, cut = plan.cells(*x.shape[3:]), plan.space
    if cut is None or len(cells) == len(cells[0]) == 1:
        y = np.array(network(x))
        bar.advance()
        return y
    height, width = (n * cut.out_stride // cut.stride for n in x.shape[3:])
    joined: np.ndarray = np.empty(0)
    above: list[np.ndarray] = []
    inputs = (x[:, :, :, rows, columns] for row in cells for rows, columns in row)
    outputs = _started_early(map(network, inputs), ahead)
    for i, row in enumerate(cells):
        below, left = [], None
        for j in range(len(row)):
            y = np.array(next(outputs))
            if i > 0:
                _blend(above[j], y, axis=3, extent=cut.extent)
            if left is not None:
                _blend(left, y, axis=4, extent=cut.extent)
            below.append(_end(y, axis=3, extent=cut.extent))
            left = _end(y, axis=4, extent=cut.extent)
            if i == j == 0:  # the first tile tells channels and frames
                joined = np.empty((*y.shape[:3], height, width), y.dtype)
            place = joined[:, :, :, i * cut.out_stride :, j * cut.out_stride :]
            kept = y[:, :, :, : cut.out_stride, : cut.out_stride]
            place[:, :, :, : kept.shape[3], : kept.shape[4]] = kept
            bar.advance()
        above = below
    return joined


def _started_early(outputs: Iterator[Array], ahead: int) -> Iterator[Array]:
    """The same outputs, each yielded after `ahead` further ones are started: JAX returns before it has computed."""
    waiting = deque(islice(outputs, ahead))
    for output in outputs:
        waiting.append(output)
        yield waiting.popleft()
    yield from waiting


def _blend(before: np.ndarray, y: np.ndarray, *, axis: int, extent: int) -> None:
    """Fade from the end of `before` to the beginning of `y`, in place."""
    extent = min(before.shape[axis], y.shape[axis], extent)
    shape = [1] * y.ndim
    shape[axis] = extent
    weight = (np.arange(extent) / max(extent, 1)).reshape(shape)
    start = (slice(None),) * axis + (slice(0, extent),)
    y[start] = _end(before, axis=axis, extent=extent) * (1 - weight).astype(y.dtype) + (
        y[start] * weight.astype(y.dtype)
    )


def _end(y: np.ndarray, *, axis: int, extent: int) -> np.ndarray:
    """A copy of the last `extent` entries, or of all where there are fewer."""
    return np.array(np.moveaxis(np.moveaxis(y, axis, 0)[max(0, y.shape[axis] - extent) :], 0, axis))
