"""qsjax: HunyuanVideo-13B in JAX, converted, quantized and sampled on TPU, GPU and CPU.

>>> import qsjax
>>> pipeline = qsjax.Pipeline.tiny()
>>> video = pipeline("a red circle moves left", seed=0)
>>> qsjax.write_video(video, "out.mp4", fps=8)

Names are imported when they are first used, so that `import qsjax` is immediate.
"""

import importlib
import warnings
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "DiT": "qsjax.dit",
    "DiTConfig": "qsjax.dit",
    "load_dit": "qsjax.dit",
    "VAE": "qsjax.vae",
    "Tiling": "qsjax.vae",
    "load_vae": "qsjax.vae",
    "TextEncoder": "qsjax.text",
    "load_prompts": "qsjax.text",
    "save_prompts": "qsjax.text",
    "Pipeline": "qsjax.pipeline",
    "calibrate": "qsjax.calibrating",
    "convert": "convert.conversion",
    "plan_memory": "qsjax.budget",
    "Provenance": "qsjax.provenance",
    "Result": "qsjax.generation",
    "SamplingPlan": "qsjax.settings",
    "make_sampler": "qsjax.sample",
    "read_provenance": "qsjax.provenance",
    "write_contact_sheet": "qsjax.video",
    "write_video": "qsjax.video",
    "QsjaxError": "qsjax.errors",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name == "Plan":  # for one version
        warnings.warn("qsjax.Plan is qsjax.SamplingPlan now", DeprecationWarning, stacklevel=2)
        name = "SamplingPlan"
    if name not in _HOMES:
        raise AttributeError(f"module 'qsjax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
