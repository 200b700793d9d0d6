"""Alpha, where a file says it elsewhere than in tensors: diffusers in the header, PEFT in adapter_config.json beside it.

Without any, alpha is the rank.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qsjax.errors import CheckpointError
from qsjax.untrusted import Between, parse_object, read_object, shown
from qsjax.untrusted.files import SMALL

ALPHAS = Between(1e-6, 1e6)
_HEADER = "lora_adapter_metadata"
_PREFIX = "transformer."
_ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_OTHER_BASES = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Beginnings of PEFT's `init_lora_weights` that change the transformer, too, which the adapter is added to; PEFT can save such an adapter
as a plain one, and says so then."""
_SPECIAL = frozenset("\\()[]{}|*+?$")


@dataclass(frozen=True)
class Scaling:
    """What a configuration says of alpha.

    Attributes:
        alpha: of all layers; None is each layer's rank.
        patterns: layer, or the end of its name -> its own alpha.
        stabilized: whether the root of the rank divides, as in rank-stabilized LoRA.
    """

    alpha: float | None = None
    patterns: Mapping[str, float] = field(default_factory=dict)
    stabilized: bool = False

    def factor(self, layer: str, rank: int, alpha: float | None) -> float:
        """What up @ down is multiplied by.

        Args:
            layer: its name in the file, without the prefix.
            rank: of the layer's LoRA.
            alpha: of the layer's own tensor, which comes before everything else.
        """
        if alpha is None:
            of_its_own = (
                value for pattern, value in self.patterns.items() if _names(pattern, layer)
            )
            alpha = next(of_its_own, self.alpha)
        alpha = float(rank) if alpha is None else alpha
        return alpha / (rank**0.5 if self.stabilized else rank)

    def unused(self, layers: Iterable[str]) -> list[str]:
        """The patterns that name none of these layers."""
        ends: set[str] = set()
        for layer in layers:
            parts = layer.split(".")
            ends |= {".".join(parts[begin:]) for begin in range(len(parts))}
            ends.add(f"^{layer}")
        return [pattern for pattern in self.patterns if pattern not in ends]

    @classmethod
    def find(cls, path: Path, metadata: Mapping[str, str]) -> "Scaling":
        """What a LoRA file's header says, or the adapter_config.json beside a PEFT adapter.

        Raises:
            InputError: adapter_config.json cannot be read.
            CheckpointError: it is no JSON object, a value cannot be, or it describes a DoRA or an adapter for changed weights.
        """
        if _HEADER in metadata:
            what = f"{path}: {_HEADER}"
            # Halves of a surrogate pair are no UTF-8, and no JSON then.
            values = parse_object(metadata[_HEADER].encode("utf-8", "surrogatepass"), what)
            return cls._of(
                {k.removeprefix(_PREFIX): v for k, v in values.items() if k.startswith(_PREFIX)}
                or values,
                what,
            )
        beside = path.with_name(CONFIG)
        if path.name == _ADAPTER and os.path.lexists(beside):
            return cls._of(read_object(beside, SMALL), str(beside))
        return cls()

    @classmethod
    def _of(cls, values: Mapping[str, Any], what: str) -> "Scaling":
        if values.get("use_dora"):
            raise CheckpointError(f"{what} describes a DoRA, which is not merged; use a plain LoRA")
        kind = values.get("peft_type", "LORA")
        if kind != "LORA":
            raise CheckpointError(
                f"{what} has peft_type {shown(kind)}, and only LORA is merged; use a plain LoRA"
            )
        start = values.get("init_lora_weights")
        if isinstance(start, str) and start.startswith(_OTHER_BASES):
            raise CheckpointError(
                f"{what} has init_lora_weights {shown(start)}, whose adapters are for weights that it has changed; save it as a plain LoRA with "
                f"PEFT's path_initial_model_for_weight_conversion"
            )
        stabilized = values.get("use_rslora") or False
        if not isinstance(stabilized, bool):
            raise CheckpointError(
                f"{what} has use_rslora {shown(stabilized)}, which is true or false; get the file again from its source"
            )
        patterns = values.get("alpha_pattern") or {}
        if not isinstance(patterns, Mapping) or any(_SPECIAL & set(key) for key in patterns):
            raise CheckpointError(
                f"{what} has alpha_pattern {shown(patterns)}, and only plain names of layers are read; save the LoRA with alpha tensors"
            )
        alpha = values.get("lora_alpha")
        return cls(
            None if alpha is None else require_alpha(alpha, f"{what}: lora_alpha"),
            {
                key: require_alpha(value, f"{what}: alpha_pattern")
                for key, value in patterns.items()
            },
            stabilized,
        )


def _names(pattern: str, layer: str) -> bool:
    """Whether a pattern is a layer's name or its end; one that begins with "^" is all of it."""
    return layer == pattern.removeprefix("^") or (
        not pattern.startswith("^") and layer.endswith(f".{pattern}")
    )


def require_alpha(value: object, what: str) -> float:
    """An alpha that is a number above 0.

    Raises:
        CheckpointError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value not in ALPHAS:
        raise CheckpointError(
            f"{what} is {shown(value)}; a LoRA has an alpha from {ALPHAS}, get the file again from its source"
        )
    return float(value)
