"""Running a network tile by tile over a volume, and blending the tiles where they overlap.

The arithmetic is that of HunyuanVideo's PyTorch code, to the order of the blends: along time a tile has one
frame more than its size and, except at the start, its first output frame is dropped; along height and
width tiles are cut off at the border; a tile is blended with the one above, then with the one to its left,
each as blended before and not yet cropped. Even tiles instead all have one shape, so that one program serves them. All
volumes are [B, C, T, H, W], on the host.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest

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
        out_stride: the same at the output.
        even: tiles of one length, no longer than `size`, that overlap by `size - stride` or a little more; otherwise the
            last one is what the stride leaves.
    """

    size: int
    stride: int
    out_stride: int
    even: bool = False

    def spans(self, length: int) -> list[slice]:
        """The tiles of an axis that is longer than `size`."""
        if not self.even:
            starts = range(0, length, self.stride)
            return [slice(start, min(start + self.size, length)) for start in starts]
        overlap = self.size - self.stride
        count = max(1, -(-(length - overlap) // self.stride))
        longest = min(length, -(-(length + (count - 1) * overlap) // count))
        starts = [i * (length - longest) // max(1, count - 1) for i in range(count)]
        return [slice(start, start + longest) for start in starts]

    def to_output(self, length: int) -> int:
        """Length at the output of a length at the input."""
        return length * self.out_stride // self.stride


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
        # The first frame is no part of the rhythm: tiles cut what follows it, and each begins with one frame more.
        spans = self.time.spans(length - 1)
        return [slice(span.start, span.stop + 1) for span in spans]

    def cells(self, height: int, width: int) -> list[list[tuple[slice, slice]]]:
        """Input (rows, columns) of each tile, as rows of tiles; both axes are cut if either is too long."""
        if self.space is None or max(height, width) <= self.space.size:
            return [[(slice(0, height), slice(0, width))]]
        down, across = self.space.spans(height), self.space.spans(width)
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
    for frames, after in zip_longest(tiles, tiles[1:]):
        y = _run_frames(network, x[:, :, frames], plan, bar, ahead)
        if cut is None or len(tiles) == 1:
            yield y
            continue
        if tail is not None:
            y = y[:, :, 1:]
            _blend(tail, y, axis=2)
        if after is None:
            yield y
            continue
        # Both tiles have one frame more; the second one's is dropped.
        kept = cut.to_output(after.start - frames.start) + (tail is None)
        tail = _end(y, axis=2, extent=cut.to_output(frames.stop - 1 - after.start))
        yield y[:, :, :kept]


def _run_frames(network: Network, x: Volume, plan: TilePlan, bar: Progress, ahead: int) -> Output:
    """One tile along time: a grid of tiles, joined. Of finished tiles only the blended borders are kept."""
    cells, cut = plan.cells(*x.shape[3:]), plan.space
    if cut is None or len(cells) == len(cells[0]) == 1:
        y = np.array(network(x))
        bar.advance()
        return y
    height, width = (cut.to_output(n) for n in x.shape[3:])
    joined: np.ndarray = np.empty(0)
    above: list[np.ndarray] = []
    inputs = (x[:, :, :, rows, columns] for row in cells for rows, columns in row)
    outputs = _started_early(map(network, inputs), ahead)
    for row, next_row in zip_longest(cells, cells[1:]):
        below, left = [], None
        for j, ((rows, columns), right) in enumerate(zip_longest(row, row[1:])):
            y = np.array(next(outputs))
            if above:
                _blend(above[j], y, axis=3)
            if left is not None:
                _blend(left, y, axis=4)
            if next_row is not None:
                below.append(
                    _end(y, axis=3, extent=cut.to_output(rows.stop - next_row[j][0].start))
                )
            if right is not None:
                left = _end(y, axis=4, extent=cut.to_output(columns.stop - right[1].start))
            if not joined.size:  # the first tile tells channels and frames
                joined = np.empty((*y.shape[:3], height, width), y.dtype)
            # What the next tiles will cover too is written again by them.
            place = joined[:, :, :, cut.to_output(rows.start) :, cut.to_output(columns.start) :]
            place[:, :, :, : y.shape[3], : y.shape[4]] = y
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


def _blend(before: np.ndarray, y: np.ndarray, *, axis: int) -> None:
    """Fade from `before`, the end of another tile, to the beginning of `y`, in place."""
    extent = min(before.shape[axis], y.shape[axis])
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
