"""The result of a pipeline call and its statistics, and a decorator that copies a method's signature."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from qsjax.dit import DiTConfig
from qsjax.parallel import gathered
from qsjax.sample import Heads, StepResult, executed_kinds, heads_of
from qsjax.settings import Settings

Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """The result of one pipeline call.

    Attributes:
        frames: uint8 [T, H, W, 3] for a single text, else [B, T, H, W, 3].
        latents: float32 [B, C, T, H, W] after the last step.
        seed: seed of the noise.
        settings: the settings that were used, chosen from arguments, recipe and checkpoint.
        timings: seconds by stage ("load", "encode", "compile", "denoise", "decode"). "compile" is what the run waited for;
            the compiler also works while other stages run.
        heads: recall and density of every head; None with dense attention.
        kinds: kind of every step: dense, refresh or sparse, as it was executed.
        skipped: number of steps that were left out for the prompt.
        peak_memory_bytes: peak memory of the first device since the process began; None if the backend does not report it.
    """

    frames: UInt8[np.ndarray, "... F Y X 3"]
    latents: Float[Array, "B C T H W"]
    seed: int
    settings: Settings
    timings: Mapping[str, float]
    heads: Heads | None
    kinds: tuple[str, ...]
    skipped: int
    peak_memory_bytes: int | None


class Statistics(NamedTuple):
    """Of a run; see `Result`."""

    skipped: int
    kinds: tuple[str, ...]
    heads: Heads | None


def statistics_of(
    settings: Settings, config: DiTConfig, last: StepResult, text: int, mesh: Mesh | None
) -> Statistics:
    """What the cache of the last step says of the whole run.

    Args:
        settings: of the run.
        config: of the transformer.
        last: the result of the last step.
        text: tokens of the prompt, padding included.
        mesh: of the devices that share the cache; None is one device.
    """
    skipped = 0 if settings.skip is None else int(last.cache[0].skipped.count)
    kinds = executed_kinds(settings, last.cache)[: last.index + 1]
    if settings.sparse is None:
        return Statistics(skipped, kinds, None)
    slot = last.cache[0].slot
    if mesh is not None:
        # Only the lists and the recall are needed; the cached tensors are large.
        lists = slot.layer._replace(cached=None, change=None, bend=None, lse=None, lse_change=None)
        slot = slot._replace(layer=gathered(mesh, lists))
    return Statistics(
        skipped, kinds, heads_of(settings.sparse, config, last.latents.shape, text, slot)
    )


def same_arguments(of: Callable[..., object]) -> Callable[[Method], Method]:
    """Decorate a method that passes all of its arguments to `of`: it gets the signature and the "Args:" section of `of`."""

    def decorate(method: Method) -> Method:
        returned = inspect.signature(method).return_annotation
        signature = inspect.signature(of).replace(return_annotation=returned)
        setattr(method, "__signature__", signature)  # noqa: B010 (no attribute of a Callable)
        # getdoc removes the indentation, as Python 3.13 does on its own.
        arguments = (inspect.getdoc(of) or "").partition("\nArgs:")[2].partition("\nReturns:")[0]
        method.__doc__ = f"{inspect.getdoc(method)}\n\nArgs:{arguments.rstrip()}\n"
        return method

    return decorate
