"""The calls of Pallas kernels in a traced program, and what each writes: it need not be all of the result, which a second call may complete."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import jax.numpy as jnp

from qsjax.bench.step_parts import block_of, path_of
from qsjax.budget.parts import ENDS


@dataclass(frozen=True)
class Call:
    """A call of a kernel.

    Attributes:
        op_name: path of `jax.named_scope`s, and the kernel's name.
        equation: of the jaxpr.
    """

    op_name: str
    equation: Any

    @property
    def block(self) -> str:
        """Kind of block."""
        return block_of(self.op_name) or ENDS

    @property
    def path(self) -> str:
        """As `qsjax.bench.step_parts.Kernel.path`."""
        return path_of(self.op_name)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of its operands."""
        return tuple(tuple(variable.aval.shape) for variable in self.equation.invars)

    @property
    def elements(self) -> int:
        """Values that it writes to the result of which it writes most."""
        return max(elements for elements, _ in self._written())

    @property
    def bytes(self) -> float:
        """Bytes of the operands, each once, and of what is written; an operand that is overwritten is not counted as read."""
        overwritten = {into for into, _ in self.equation.params["input_output_aliases"]}
        read = {v for n, v in enumerate(self.equation.invars) if n not in overwritten}
        operands = sum(v.aval.size * _itemsize(v.aval.dtype) for v in read)
        return operands + sum(elements * size for elements, size in self._written())

    def _written(self) -> list[tuple[int, float]]:
        """Of each result, values written and bytes of one: at most a block in each step of the grid."""
        grid = self.equation.params["grid_mapping"]
        found = []
        for result, mapping in zip(self.equation.outvars, grid.block_mappings_output, strict=True):
            elements = result.aval.size
            if all(isinstance(size, int) for size in grid.grid):  # else known only on the device
                elements = min(elements, prod(grid.grid) * prod(mapping.block_aval.shape))
            found.append((elements, _itemsize(result.aval.dtype)))
        return found


def _itemsize(dtype: Any) -> float:
    return (
        jnp.iinfo(dtype).bits / 8 if jnp.issubdtype(dtype, jnp.integer) else float(dtype.itemsize)
    )


def calls(jaxpr: Any, scopes: str = "") -> Iterator[Call]:
    """Every call of a Pallas kernel in a jaxpr.

    Args:
        jaxpr: `jax.extend.core.Jaxpr`.
        scopes: those around it.
    """
    for equation in jaxpr.eqns:
        path = "/".join(filter(None, (scopes, str(equation.source_info.name_stack))))
        if equation.primitive.name == "pallas_call":
            name = equation.params.get("name") or "kernel"
            yield Call(path if path.split("/")[-1] == name else f"{path}/{name}", equation)
            continue
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)  # a closed one has it inside
                if hasattr(inner, "eqns"):
                    yield from calls(inner, path)
