"""What a call of a pipeline returns, and how it shows its arguments."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Array, Float, UInt8

from qsjax.sample import Heads
from qsjax.settings import Settings

Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """What one call of a pipeline made.

    Attributes:
        frames: uint8 [T, H, W, 3] for a single text, else [B, T, H, W, 3].
        latents: float32 [B, C, T, H, W] after the last step.
        seed: of the noise.
        settings: as they were chosen, from arguments, recipe and checkpoint.
        timings: seconds by stage ("load", "encode", "compile", "denoise", "decode").
        heads: recall and density of every head; None with dense attention.
        skipped: steps of the prompt that were left out.
        peak_memory_bytes: of the first device since the process began; None where it does not say.
    """

    frames: UInt8[np.ndarray, "... F Y X 3"]
    latents: Float[Array, "B C T H W"]
    seed: int
    settings: Settings
    timings: Mapping[str, float]
    heads: Heads | None
    skipped: int
    peak_memory_bytes: int | None


def same_arguments(of: Callable[..., Any]) -> Callable[[Method], Method]:
    """A decorator for a method that hands all of its arguments on: it shows them, and what they mean, as the other does."""

    def decorate(method: Method) -> Method:
        own, others = inspect.signature(method), inspect.signature(of)
        shown: Any = method
        shown.__signature__ = others.replace(return_annotation=own.return_annotation)
        # Without its indentation, which Python 3.13 has taken away already.
        meaning = (inspect.getdoc(of) or "").partition("\nArgs:")[2].partition("\nReturns:")[0]
        shown.__doc__ = f"{inspect.getdoc(method)}\n\nArgs:{meaning.rstrip()}\n"
        return method

    return decorate
