"""Named implementations of an operation, explicit choice, and the reasons why one cannot be used.

Nothing falls back silently: a caller who names an implementation gets it or an error; `auto` takes
the first that has no reason against it, and anybody can ask for all the reasons (`qsjax doctor`).

A name may carry a target, as in "tpu@v5e": compile for that chip, wherever the program is traced.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pallas_kernels import targets
from pallas_kernels.targets import TARGETS, Target

AUTO = "auto"


class UnsupportedError(NotImplementedError):
    """No implementation can serve a call; the message has the reason of each that was asked for."""


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation.

    Attributes:
        function: does it.
        objection: takes the facts of a call (backend, dtype, sizes) as keywords; returns why this
            implementation cannot serve them, in one clause, or None.
        tiled: the function takes the target, for its tile sizes.
    """

    function: Callable[..., Any]
    objection: Callable[..., str | None]
    tiled: bool = False


@dataclass(frozen=True)
class Operation:
    """An operation and its implementations, in the order in which `auto` prefers them."""

    name: str
    implementations: Mapping[str, Implementation] = field(default_factory=dict)

    def objections(self, **facts: Any) -> dict[str, str | None]:
        """Implementation name -> why it cannot serve a call with these facts, or None where it can."""
        return {name: one.objection(**facts) for name, one in self.implementations.items()}

    def choose(self, implementation: str = AUTO, **facts: Any) -> str:
        """The name of the implementation that serves a call.

        Raises:
            ValueError: no implementation of that name.
            UnsupportedError: none can serve it; the message has the reason of each.
        """
        if implementation != AUTO and implementation not in self.implementations:
            known = ", ".join([AUTO, *self.implementations])
            raise ValueError(
                f"{self.name} has no implementation {implementation!r}; known: {known}"
            )
        wanted = list(self.implementations) if implementation == AUTO else [implementation]
        objections = self.objections(**facts)
        for name in wanted:
            if objections[name] is None:
                return name
        reasons = "; ".join(f"{name} {objections[name]}" for name in wanted)
        able = [name for name, objection in self.objections(**facts).items() if objection is None]
        hint = f"; those that can: {AUTO}, {', '.join(able)}" if able else ""
        raise UnsupportedError(f"{self.name} cannot be computed as asked: {reasons}{hint}")

    def serve(self, implementation: str = AUTO, **facts: Any) -> Callable[..., Any]:
        """The function that serves a call, on the target that the name carries or on the default device.

        Args:
            implementation: "auto" or a name, with "@target" where it is not for the default device.
            facts: of the call; the backend is added here.

        Raises:
            ValueError: no implementation or no target of that name.
            UnsupportedError: none can serve it.
        """
        name, target = parse(implementation)
        chosen = self.implementations[self.choose(name, backend=target.backend, **facts)]
        return partial(chosen.function, target=target) if chosen.tiled else chosen.function


def parse(implementation: str) -> tuple[str, Target]:
    """ "tpu@v5e" -> ("tpu", the v5e's facts); without a target the default device's.

    Raises:
        ValueError: no target of that name.
    """
    name, at, target = implementation.partition("@")
    if not at:
        return name, targets.current()
    if target not in TARGETS:
        raise ValueError(f"{implementation!r}: no target {target!r}; known: {', '.join(TARGETS)}")
    return name, TARGETS[target]
