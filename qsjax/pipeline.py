"""From a prompt to a video: what a notebook user touches."""

import logging
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import jax
import numpy as np
from jax.stages import Compiled
from jaxtyping import Array, Float, UInt8

from qsjax.budget.steps import describe
from qsjax.decoding import LatentDecoder
from qsjax.denoising import Denoiser
from qsjax.errors import Cancelled, InputError
from qsjax.generation import Result, same_arguments, statistics_of
from qsjax.opened import OpenCheckpoint
from qsjax.parallel import check_heads, gathered
from qsjax.preview import Colours, StepPreviews, check_preview, colours_of
from qsjax.prompting import (
    Prompt,
    abstract_of,
    require_fits,
    require_pair,
    require_unicode,
    require_use,
    texts_of,
)
from qsjax.sample import (
    Heads,
    Skip,
    SparsePlan,
    StepResult,
    initial_noise,
    within_budget,
)
from qsjax.settings import RecipeLike, Settings, choose_settings
from qsjax.settings.video import check_size
from qsjax.text import EncodedPrompt
from qsjax.video import to_uint8

logger = logging.getLogger(__name__)

Callback = Callable[..., bool | None]
"""Called after each step with its number, from 1, and its latents, and with `preview` also with frames or None; False cancels the run."""


class Pipeline(OpenCheckpoint):
    """A checkpoint, ready to sample. Each model is loaded when it is first needed.

    >>> pipeline = Pipeline.tiny()
    >>> video = pipeline("a red circle moves left", steps=20, seed=0)     # uint8 [T, H, W, 3]

    Attributes:
        heads: recall and density of every head in the last call with sparse attention; None after a dense one.
        kinds: kind of every step of the last call, as it was executed: adaptive steps are refreshes or sparse.
        skipped: number of steps that the last call left out for the prompt (see `qsjax.settings.Skip`).
    """

    heads: Heads | None = None
    kinds: tuple[str, ...] = ()
    skipped: int = 0

    @cached_property
    def _denoiser(self) -> Denoiser:
        return Denoiser(self._models, self.mesh, progress=self._progress, add=self._add)

    @cached_property
    def _encoders(self) -> dict[int, Compiled]:
        """The text encoders' programs by number of texts."""
        return {}

    @cached_property
    def _decoder(self) -> LatentDecoder:
        return LatentDecoder(
            self._models, self.vae_config, self.mesh, progress=self._progress, add=self._add
        )

    @cached_property
    def _colours(self) -> Colours:
        """The map of previews; the autoencoder is loaded for it where the cache does not have it."""
        digest = self._manifest.component_digest("vae")
        return colours_of(self.vae_config, digest, lambda: self.vae, progress=self._progress)

    def generate(
        self,
        prompt: Prompt,
        *,
        negative_prompt: str | EncodedPrompt | None = None,
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        steps: int | None = None,
        shift: float | None = None,
        guidance: float | None = None,
        true_cfg: float | None = None,
        seed: int = 0,
        latents: Float[Array, "B C T H W"] | np.ndarray | None = None,
        recipe: RecipeLike | None = None,
        sparse: SparsePlan | Literal[False] | None = None,
        skip: Skip | Literal[False] | None = None,
        callback: Callback | None = None,
        preview: int = 0,
    ) -> Result:
        """Sample a video and return it together with the latents, settings, timings and statistics of the run.

        >>> result = pipeline.generate("a red circle moves left", steps=20, recipe="svg-d25")
        >>> result.frames, result.latents, result.timings

        Arguments that are None take the recipe's value, else the checkpoint's.

        Args:
            prompt: a text; several texts or an encoded prompt give a batch.
            negative_prompt: what true guidance moves away from; only with true_cfg > 1.
            frames: number of video frames, 4k + 1.
            height, width: pixels, multiples of 16 for HunyuanVideo.
            steps: Euler steps.
            shift: shift of the noise schedule; larger values spend more steps at high noise.
            guidance: scale given to the guidance embedder of distilled models.
            true_cfg: scale of classifier-free guidance with the negative prompt; 1 is off. Above 1, each step costs twice as much.
            seed: 0 to 2^64 - 1; same seed, same bits on the same machine; sample b of a batch uses `seed + b`.
            latents: noise to start from instead of the seed's, float32 [B, C, T, H, W].
            recipe: sparse attention and step skipping: a preset ("quantsparse-w4a8-d15"), a TOML file, or its contents.
            sparse: sparse attention, in place of the recipe's; False is dense attention.
            skip: rule for skipping steps, in place of the recipe's; False computes all steps.
            callback: called after each step with its number (from 1) and its latents, which stay readable; False cancels.
            preview: every so many steps, and after the last, the callback gets a third argument: uint8 frames [B, T', H', W', 3] of what
                the video will be, as far as it is known, one pixel a latent cell; None after other steps. 0 is off.

        Returns:
            A `Result`, whose frames are uint8 [T, H, W, 3] for a single text, else [B, T, H, W, 3].

        Raises:
            InputError: an empty prompt, a size the model cannot make, latents of the wrong shape, a recipe for other weights, a
                negative prompt that the guidance does not use, previews without a callback, or sparse attention on a number of devices that does not divide the number of heads.
            Cancelled: the callback returned False; the exception carries the latents.
        """
        self.timings = {}
        chosen = self.resolve(
            frames=frames,
            height=height,
            width=width,
            steps=steps,
            shift=shift,
            guidance=guidance,
            true_cfg=true_cfg,
            recipe=recipe,
            sparse=sparse,
            skip=skip,
        )
        plan = chosen.plan()
        self.require_runnable(chosen, encodes=not isinstance(prompt, EncodedPrompt))
        if isinstance(prompt, EncodedPrompt):
            require_fits(prompt, self.dit_config)
        else:
            prompt = prompt if isinstance(prompt, str) else list(prompt)
            texts_of(prompt)
        if isinstance(negative_prompt, EncodedPrompt):
            require_fits(negative_prompt, self.dit_config)
        if negative_prompt:
            require_use(plan)
            if isinstance(negative_prompt, str):
                require_unicode(negative_prompt)
                chosen = replace(chosen, negative_prompt=negative_prompt)
        check_preview(preview, callback)
        if preview:
            self.prepare_preview()
        self.compile_ahead(chosen, prompt, negative_prompt)
        encoded = self.encode(prompt)
        negative = None
        if plan.uses_negative:
            negative_prompt = chosen.negative_prompt if negative_prompt is None else negative_prompt
            if isinstance(negative_prompt, str):  # an empty one, too
                negative_prompt = self._encode([negative_prompt] * encoded.pooled.shape[0])
            negative = negative_prompt
        sampled = self.sample(
            encoded,
            settings=chosen,
            negative=negative,
            seed=seed,
            latents=latents,
            callback=callback,
            preview=preview,
        )
        videos = to_uint8(self.decode(sampled))
        return Result(
            frames=videos[0] if isinstance(prompt, str) else videos,
            latents=sampled,
            seed=seed,
            settings=chosen,
            timings=dict(self.timings),
            heads=self.heads,
            kinds=self.kinds,
            skipped=self.skipped,
            peak_memory_bytes=(jax.local_devices()[0].memory_stats() or {}).get(
                "peak_bytes_in_use"
            ),
        )

    @same_arguments(generate)
    def __call__(self, prompt: Prompt, **arguments: Any) -> UInt8[np.ndarray, "... F Y X 3"]:
        """Sample a video and return only its frames: uint8 [T, H, W, 3] for a single text, else [B, T, H, W, 3].

        >>> video = pipeline("a red circle moves left", steps=20, recipe="svg-d25")
        """
        return self.generate(prompt, **arguments).frames

    def resolve(
        self,
        *,
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        fps: int | None = None,
        steps: int | None = None,
        shift: float | None = None,
        guidance: float | None = None,
        true_cfg: float | None = None,
        recipe: RecipeLike | None = None,
        sparse: SparsePlan | Literal[False] | None = None,
        skip: Skip | Literal[False] | None = None,
    ) -> Settings:
        """The settings that a call with these arguments would use, checked against the model.

        Raises:
            InputError: a size the model cannot make, a recipe for other weights.
        """
        chosen = choose_settings(
            self.settings,
            self.weights,
            frames=frames,
            height=height,
            width=width,
            fps=fps,
            steps=steps,
            shift=shift,
            guidance=guidance,
            true_cfg=true_cfg,
            recipe=recipe,
            sparse=sparse,
            skip=skip,
        )
        check_size(
            chosen.frames,
            chosen.height,
            chosen.width,
            temporal=self.vae_config.temporal_compression_ratio * self.dit_config.patch_size[0],
            spatial=self.vae_config.spatial_compression_ratio * self.dit_config.patch_size[1],
        )
        return chosen

    def require_runnable(self, settings: Settings, *, encodes: bool = True) -> None:
        """Refuse a run that these devices cannot do, before anything is loaded; say what in its settings is hardly meant.

        That is sparse attention that no step has, and a shift for larger videos.

        Args:
            settings: of the run.
            encodes: its prompt is a text.

        Raises:
            InputError: sparse attention on a number of devices that does not divide the number of heads, or too little memory.
        """
        if self.mesh is not None and settings.sparse is not None:
            check_heads(self.mesh, self.dit_config.num_heads)
        self._require_room(settings, encodes=encodes)
        if settings.never_sparse:
            logger.warning(
                "all %d steps have full attention: dense steps and refreshes leave none to be sparse; give more steps, or a recipe"
                " for few of them, as few-steps-6-d25",
                settings.steps,
            )
        if settings.shift_exceeds_size:
            logger.info(
                "hint: a shift of %g is for larger videos; at %dx%d diffusers advises 2 to 5",
                settings.shift,
                settings.height,
                settings.width,
            )

    def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Encode one or several texts; an encoded prompt passes through.

        Raises:
            InputError: a text is empty.
        """
        if isinstance(prompt, EncodedPrompt):
            return prompt
        return self._encode(texts_of(prompt))

    def sample(
        self,
        prompt: EncodedPrompt,
        *,
        settings: Settings | None = None,
        negative: EncodedPrompt | None = None,
        seed: int = 0,
        latents: Float[Array, "B C T H W"] | np.ndarray | None = None,
        callback: Callback | None = None,
        preview: int = 0,
    ) -> Float[Array, "B C T H W"]:
        """Denoise, one jitted step at a time; the arguments are those of `generate`.

        Returns:
            float32 latents as the DiT sees them (multiplied by the VAE's scaling factor).
        """
        settings = self.settings if settings is None else settings
        check_preview(preview, callback)
        previews = None
        if preview:
            before = latents
            if before is None:
                before = initial_noise(seed, self.latent_shape(settings, prompt.pooled.shape[0]))
            previews = StepPreviews(preview, settings.plan(), self._colours, before, self.mesh)
        steps = self.denoise(
            prompt, settings=settings, negative=negative, seed=seed, latents=latents
        )
        last = None
        with closing(steps):
            for last in steps:
                number = last.index + 1
                extra = () if previews is None else (previews(last),)
                if callback is not None and callback(number, last.latents, *extra) is False:
                    raise Cancelled(
                        f"sampling was cancelled after step {number} of {settings.steps}",
                        step=number,
                        latents=last.latents,
                    )
        assert last is not None  # a plan has at least one step
        self.skipped, self.kinds, self.heads = statistics_of(
            settings, self.dit_config, last, prompt.text.shape[1], self.mesh
        )
        return last.latents if self.mesh is None else gathered(self.mesh, last.latents)

    def prepare_preview(self) -> None:
        """Have the map of previews at hand before other models are loaded; it is fitted at first use."""
        _ = self._colours

    def denoise(
        self,
        prompt: EncodedPrompt,
        *,
        settings: Settings | None = None,
        negative: EncodedPrompt | None = None,
        seed: int = 0,
        latents: Float[Array, "B C T H W"] | np.ndarray | None = None,
    ) -> Generator[StepResult, None, None]:
        """Denoise step by step; leave the loop to stop early. The arguments are those of `sample`.

        >>> for result in pipeline.denoise(pipeline.encode("a red circle")):
        ...     if result.index == 3:
        ...         break
        """
        settings = self.settings if settings is None else settings
        require_pair(prompt, negative, settings, self.dit_config)
        self._require_room(settings, encodes=False)
        shape, text = self.latent_shape(settings, prompt.pooled.shape[0]), prompt.text.shape[1]
        if latents is None:
            latents = initial_noise(seed, shape)
        elif latents.shape != shape:
            raise InputError(
                f"latents have shape {list(latents.shape)}, this prompt and size need {list(shape)}"
            )
        plan = within_budget(self.dit_config, settings.plan(), shape, text)
        if self._progress and (summary := describe(self.dit_config, plan, shape, text)):
            logger.info("%s", summary)
        return self._denoiser(plan, prompt, negative, latents)

    def decode(
        self, latents: Float[Array | np.ndarray, "B C T H W"]
    ) -> Float[np.ndarray, "B F Y X 3"]:
        """Decode the latents of `sample` to float32 frames in [0, 1]."""
        return self._decoder(latents, self.tiling)

    def compile_ahead(
        self, settings: Settings, prompt: Prompt, negative: str | EncodedPrompt | None
    ) -> None:
        """Begin to compile the run's programs in threads, in the order in which they are needed, before a model is loaded.

        Not on a GPU: its compiler tries kernels on the device, whose memory the stages before need. Nor if the caller has
        chosen a device: shapes do not tell which one the models will lie on.
        """
        elsewhere = getattr(jax.config, "jax_default_device", None) is not None
        if elsewhere or jax.default_backend() == "gpu":
            return
        plan = settings.plan()
        encoded = abstract_of(prompt, 1, self._manifest, self.dit_config, self._dtype)
        batch, text = encoded.pooled.shape[0], encoded.text.shape[1]
        latents = self.latent_shape(settings, batch)
        plan = within_budget(self.dit_config, plan, latents, text)
        abstract = None
        if plan.uses_negative:
            abstract = abstract_of(
                "" if negative is None else negative,
                batch,
                self._manifest,
                self.dit_config,
                self._dtype,
            )
        self._denoiser.ahead(plan, encoded, abstract, latents)
        self._decoder.ahead(latents, self.tiling)

    def _encode(self, texts: list[str]) -> EncodedPrompt:
        encoder = self.text_encoder
        tokens = encoder.tokens(texts)
        if len(texts) not in self._encoders:
            start = time.perf_counter()
            self._encoders[len(texts)] = encoder.compiled(tokens)
            self._add("compile", start)
        start = time.perf_counter()
        run = self._encoders[len(texts)]
        encoded = jax.block_until_ready(run(encoder.llama, encoder.clip, *tokens))
        self._add("encode", start)
        return encoded
