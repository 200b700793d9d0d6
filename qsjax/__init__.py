"""HunyuanVideo-13B in JAX: converted, quantized, and sampled with sparse attention on TPU, GPU and CPU.

>>> import qsjax
>>> pipeline = qsjax.Pipeline.tiny()
>>> video = pipeline("a red circle moves left", seed=0)
>>> qsjax.write_video(video, "out.mp4", fps=8)

* Videos: `Pipeline`, its `Result`, `write_video`, `write_contact_sheet`; `read_provenance` tells how a file was made, as a `Provenance`.
* Checkpoints: `convert`, `calibrate`; `plan_memory` says what fits before anything is loaded.
* Parts, for a loop of your own: `load_dit`, `load_vae`, `TextEncoder`, `make_sampler` and its `SamplingPlan`; `save_prompts` and
  `load_prompts`; `Tiling` of the autoencoder; `DiT`, `DiTConfig` and `VAE`, the modules themselves.
* `QsjaxError` is the base of every error that a caller can mend.

Names are imported when they are first used, so that `import qsjax` is immediate. On the command line: `qsjax --help`.
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
