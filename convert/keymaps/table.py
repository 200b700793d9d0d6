"""Key tables: which PyTorch tensors make which leaf, in every layout, both ways."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from convert.keymaps.transforms import TRANSFORMS, Shape
from qsjax.errors import CheckpointError

Names = str | tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """One line of a key table; `{i}` stands for the block index.

    Attributes:
        leaf: our name.
        names: layout -> PyTorch names. Several names are concatenated along their first axis, in this order.
        rows: first-axis sizes of the separate tensors; a layout with one name has them fused.
        columns: the remaining PyTorch dimensions.
        transforms: layout -> name of the transform (see `transforms.TRANSFORMS`).
        group: the block this leaf belongs to; items on disk never mix groups.
        count: number of blocks, None without `{i}`.
    """

    leaf: str
    names: Mapping[str, tuple[str, ...]]
    rows: Shape
    columns: Shape
    transforms: Mapping[str, str]
    group: str
    count: int | None = None


@dataclass(frozen=True)
class Row:
    """An entry for one block and one layout: concrete names and shapes.

    Attributes:
        leaf: our name.
        shape: our shape.
        sources: PyTorch name -> PyTorch shape, in the order of concatenation.
        transform: name of the transform.
        group: the block the leaf belongs to.
    """

    leaf: str
    shape: Shape
    sources: Mapping[str, Shape]
    transform: str
    group: str

    def to_leaf(
        self, read: Callable[[str], np.ndarray], dtype: np.dtype | None = None
    ) -> np.ndarray:
        """Build the leaf from its tensors.

        Args:
            read: gives a PyTorch tensor by name.
            dtype: dtype of the leaf; None keeps that of the tensors.

        Raises:
            CheckpointError: tensors that are to be joined have different dtypes.
        """
        if len(self.sources) == 1:
            joined = read(next(iter(self.sources)))
            joined = joined if dtype is None else joined.astype(dtype, copy=False)
        else:
            joined = self._join(read, dtype)
        return np.ascontiguousarray(TRANSFORMS[self.transform].forward(joined))

    def _join(self, read: Callable[[str], np.ndarray], dtype: np.dtype | None) -> np.ndarray:
        """The tensors one below the other; only one of them is held beside the result."""
        names = list(self.sources)
        part = read(names[0])
        rows = sum(shape[0] for shape in self.sources.values())
        joined = np.empty((rows, *part.shape[1:]), part.dtype if dtype is None else dtype)
        joined[: len(part)] = part
        edge = len(part)
        for name in names[1:]:
            part = read(name)
            if dtype is None and part.dtype != joined.dtype:
                raise CheckpointError(
                    f"the tensors of {self.leaf} have different dtypes ({names[0]} {joined.dtype}, {name} {part.dtype}); "
                    f"name one with `dtype`"
                )
            joined[edge : edge + len(part)] = part
            edge += len(part)
        return joined

    def to_torch(self, leaf: np.ndarray) -> dict[str, np.ndarray]:
        """Take the leaf apart into its PyTorch tensors; inverse of `to_leaf`."""
        shapes = list(self.sources.values())
        joined_shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        joined = TRANSFORMS[self.transform].backward(leaf, joined_shape)
        edges = np.cumsum([shape[0] for shape in shapes])[:-1]
        return {
            name: np.ascontiguousarray(part)
            for name, part in zip(self.sources, np.split(joined, edges), strict=True)
        }


def expand(entries: Sequence[Entry], layout: str, prefix: str = "") -> Iterator[Row]:
    """The concrete rows of a table in one layout, every PyTorch name prefixed with `prefix`."""
    for entry in entries:
        names = entry.names[layout]
        rows = entry.rows if len(names) == len(entry.rows) else (sum(entry.rows),)
        joined = (sum(entry.rows), *entry.columns)
        for i in range(1 if entry.count is None else entry.count):
            at = str(i)
            yield Row(
                leaf=entry.leaf.replace("{i}", at),
                shape=TRANSFORMS[entry.transforms[layout]].shape(joined),
                sources={
                    prefix + name.replace("{i}", at): (size, *entry.columns)
                    for name, size in zip(names, rows, strict=True)
                },
                transform=entry.transforms[layout],
                group=entry.group.replace("{i}", at),
            )


def linear(
    leaf: str,
    rows: int | Shape,
    columns: int | Shape,
    group: str,
    *,
    count: int | None = None,
    transform: str = "linear",
    bias_transform: str = "copy",
    swapped: str | None = None,
    bias: bool = True,
    **modules: Names,
) -> tuple[Entry, ...]:
    """The entries of a layer with `weight` and `bias`: a Linear, or a convolution by its `transform`.

    `modules` maps a layout to the layer's module name, or names if the layout has it in parts.
    In the layout `swapped` the two halves of the output are exchanged.
    """
    rows = (rows,) if isinstance(rows, int) else rows
    columns = (columns,) if isinstance(columns, int) else columns

    parts = [("kernel", "weight", columns, transform, "swap_linear")]
    if bias:
        parts.append(("bias", "bias", (), bias_transform, "swap"))
    entries = []
    for ours, theirs, trailing, plain, swap in parts:
        names = {layout: _each(module, f".{theirs}") for layout, module in modules.items()}
        transforms = {layout: swap if layout == swapped else plain for layout in names}
        entries.append(Entry(f"{leaf}.{ours}", names, rows, trailing, transforms, group, count))
    return tuple(entries)


def norm(
    leaf: str, size: int, group: str, *, count: int | None = None, **modules: str
) -> tuple[Entry, Entry]:
    """The entries of an affine norm: `weight` is our `scale`."""
    return (
        copied(f"{leaf}.scale", (size,), group, count=count, **_each_of(modules, ".weight")),
        copied(f"{leaf}.bias", (size,), group, count=count, **_each_of(modules, ".bias")),
    )


def copied(
    leaf: str, shape: Shape, group: str, *, count: int | None = None, **tensors: str
) -> Entry:
    """The entry of a tensor that is stored as it is; `tensors` maps a layout to its full name."""
    names = {layout: (name,) for layout, name in tensors.items()}
    return Entry(leaf, names, shape[:1], shape[1:], dict.fromkeys(names, "copy"), group, count)


def _each(names: Names, suffix: str) -> tuple[str, ...]:
    return tuple(name + suffix for name in ((names,) if isinstance(names, str) else names))


def _each_of(modules: Mapping[str, str], suffix: str) -> dict[str, str]:
    return {layout: module + suffix for layout, module in modules.items()}
