"""PyTorch weights of HunyuanVideo into an Orbax checkpoint, and back.

>>> from convert import Sources, convert
>>> convert(Sources.find(Path("HunyuanVideo")), Path("checkpoints/hunyuan"))
"""

import importlib
from typing import Any

_EXPORTS = {
    "convert": "convert.stream",
    "Sources": "convert.sources",
    "verify": "convert.verification",
    "export": "convert.exporting",
}
__all__ = ["Sources", "convert", "export", "verify"]


def __getattr__(name: str) -> Any:
    """Import on first use: `--help` should not wait for JAX."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'convert' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
