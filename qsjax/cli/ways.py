"""One row of the demo's table: a model with dense or sparse attention, its videos, their quality and cost."""

from dataclasses import replace
from typing import Any

import numpy as np

from qsjax.budget.steps import executed_density
from qsjax.evaluate.metrics import psnr, ssim
from qsjax.pipeline import Pipeline
from qsjax.sample import Settings, SparsePlan
from qsjax.sample.cache_size import cache_bytes
from qsjax.sample.patterns import pattern_for
from qsjax.settings import SPARSE


class Way:
    """A way to sample: a pipeline with dense or sparse attention.

    Args:
        name: name for tables.
        pipeline: the pipeline.
        sparse: sparse attention; None is dense.

    Attributes:
        seconds: seconds of all videos, by stage.
        last: seconds of the last video, by stage.
    """

    def __init__(self, name: str, pipeline: Pipeline, sparse: SparsePlan | None) -> None:
        self.name, self._pipeline, self._sparse = name, pipeline, sparse
        self._videos: list[np.ndarray] = []
        self.seconds: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self._denoising: list[float] = []
        self._text = 0

    def sample(self, caption: str, *, seed: int, steps: int | None) -> np.ndarray:
        """Sample a video, uint8 [T, H, W, 3], and keep it for the comparison."""
        prompt = self._pipeline.encode(caption)
        self._text = prompt.text.shape[1]
        video = self._pipeline(prompt, seed=seed, steps=steps, sparse=self._sparse)[0]
        self.last = dict(self._pipeline.timings)
        for stage, spent in self.last.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
        self._denoising.append(self.last["denoise"])
        self._videos.append(video)
        return video

    def report(self, reference: "Way", settings: Settings, dit_bytes: int) -> dict[str, Any]:
        """Means over the videos; PSNR and SSIM of the frames against the reference's, None for the reference itself.

        Args:
            reference: the way that the others are compared with.
            settings: the settings of size and steps.
            dit_bytes: bytes of the stored transformer.
        """
        density, cached, sparse = 1.0, 0, self._sparse
        share = 0.0
        if sparse is not None:
            shape = self._pipeline.latent_shape(settings)
            pattern = pattern_for(sparse, self._pipeline.dit_config, shape, self._text)
            density = executed_density(pattern)
            plan = replace(settings.plan(), sparse=sparse)
            cached = cache_bytes(self._pipeline.dit_config, plan, shape, self._text)
            kinds = sparse.kinds(settings.steps)
            share = kinds.count(SPARSE) / len(kinds)
        own, expected = (np.stack(way._videos) / np.float32(255) for way in (self, reference))
        same = self is reference
        return {
            "name": self.name,
            "psnr": None if same else round(float(psnr(own, expected).mean()), 2),
            "ssim": None if same else round(float(ssim(own, expected).mean()), 4),
            "density": round(density, 4),
            "mean_density": round(share * density + 1 - share, 4),
            "dit_bytes": dit_bytes,
            "cache_bytes": cached,
            # The first video's time has that of compiling and loading in it.
            "seconds_a_video": round(float(np.median(self._denoising[1:] or self._denoising)), 2),
        }
