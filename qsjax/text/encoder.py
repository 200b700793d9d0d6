"""Prompts to the text input of the DiT: text states of the LLaMA and the pooled vector of the CLIP."""

import operator
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.stages import Compiled
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from qsjax.checkpoint import Manifest, StoredRows, restore
from qsjax.config import from_mapping, nearest
from qsjax.errors import CheckpointError, InputError
from qsjax.text.clip import Clip
from qsjax.text.config import ClipConfig, LlamaConfig
from qsjax.text.int8 import restore_int8, store_int8
from qsjax.text.llama import Llama
from qsjax.text.template import PromptTemplate
from qsjax.text.tokenize import PromptTokenizer, require_tokens, warn_if_truncated

_TABLE = "embed.embedding"
Model = TypeVar("Model", Llama, Clip)
Config = TypeVar("Config", LlamaConfig, ClipConfig)


class EncodedPrompt(NamedTuple):
    """A batch of encoded prompts, the text input of the DiT.

    Attributes:
        text: LLaMA states.
        mask: True for tokens, False for padding, which follows them.
        pooled: CLIP vectors.
    """

    text: Float[Array, "B L D"]
    mask: Bool[Array, "B L"]
    pooled: Float[Array, "B P"]


class TextEncoder:
    """Both text encoders with their tokenizers.

    >>> encoder = TextEncoder.load("checkpoints/hunyuan", storage="int8")
    >>> encoder(["a red circle moves left"]).text.shape
    (1, 256, 4096)

    Args:
        llama: gives the text states.
        clip: gives the pooled vector.
        llama_tokenizer: of window `template.window`.
        clip_tokenizer: of window `clip.config.max_position_embeddings` or less.
        template: what surrounds a prompt for the LLaMA; the CLIP reads it bare.
        embed: rows of the LLaMA's embedding by token id, on the host; None takes them from `llama.embed`. The table is
            never on the device for them: a prompt needs a few hundred of its 128,320 rows.

    Raises:
        CheckpointError: tokenizers and models do not belong together.
        InputError: the LLaMA tokenizer's window is not the template's, or no embeddings are there.
    """

    def __init__(
        self,
        llama: Llama,
        clip: Clip,
        *,
        llama_tokenizer: PromptTokenizer,
        clip_tokenizer: PromptTokenizer,
        template: PromptTemplate,
        embed: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.llama, self.clip, self.template = llama, clip, template
        self._llama_tokenizer, self._clip_tokenizer = llama_tokenizer, clip_tokenizer
        _require_vocabulary(llama.config, llama_tokenizer, "LLaMA")
        _require_vocabulary(clip.config, clip_tokenizer, "CLIP")
        if llama_tokenizer.length != template.window:
            raise InputError(
                f"the LLaMA tokenizer has a window of {llama_tokenizer.length} tokens, its template one of "
                f"{template.window}; make it with length=template.window"
            )
        eos = clip.config.eos_token_id
        if eos != 2 and eos not in clip_tokenizer([""]).ids:
            raise CheckpointError(
                f"the CLIP tokenizer does not end a text with token {eos}, which the model pools; "
                f"convert again with the tokenizer of this CLIP"
            )
        self.embed = _table(llama) if embed is None else embed

    @classmethod
    def load(
        cls,
        directory: str | os.PathLike[str],
        *,
        dtype: DTypeLike | None = None,
        storage: str | None = None,
        progress: bool = False,
        verify: bool = True,
    ) -> "TextEncoder":
        """Read both encoders from a converted checkpoint.

        Args:
            directory: the checkpoint.
            dtype: of parameters and activations; None takes that of the stored embeddings.
            storage: "int8" holds linear weights as 8-bit integers (half the memory of bfloat16); None as they are stored, in
                8 bits or else in `dtype`.
            progress: show a bar while reading.
            verify: compare weights with their sha256 in the manifest, once a process. Tokenizers are always compared.

        Raises:
            CheckpointError: a part is missing, damaged, or does not fit the others.
            InputError: unknown storage.
        """
        if storage not in (None, "int8"):
            raise InputError(f"unknown storage {storage!r}; {nearest(storage, ['int8'])}")
        manifest = Manifest.read(directory)
        template = _read_template(manifest)
        llama_config = _read_config(manifest, "llama", LlamaConfig)
        clip_config = _read_config(manifest, "clip", ClipConfig)
        # Tokenizers first, so that a faulty one is reported before gigabytes are read.
        llama_tokenizer = _read_tokenizer(manifest, "llama", template.window)
        clip_tokenizer = _read_tokenizer(manifest, "clip", clip_config.max_position_embeddings)
        _require_vocabulary(llama_config, llama_tokenizer, "LLaMA")
        _require_vocabulary(clip_config, clip_tokenizer, "CLIP")
        read = partial(
            _read_model, manifest, dtype=dtype, storage=storage, progress=progress, verify=verify
        )
        shape = (llama_config.vocab_size, llama_config.hidden_size)
        return cls(
            read("llama", Llama, llama_config),
            read("clip", Clip, clip_config),
            llama_tokenizer=llama_tokenizer,
            clip_tokenizer=clip_tokenizer,
            template=template,
            embed=StoredRows(manifest, "llama", _TABLE, shape, verify=verify),
        )

    def __call__(self, prompts: Sequence[str]) -> EncodedPrompt:
        """Encode a batch of prompts; compiled once per batch size.

        Args:
            prompts: may be empty texts where the tokenizer adds begin-of-text.

        Returns:
            `text` [batch, template.max_length, llama width] and `pooled` [batch, clip width] in their models' dtypes.

        Raises:
            InputError: not a list of texts, or a prompt without any token.

        Warns:
            PromptTruncatedWarning: a prompt does not fit the window of one of the encoders.
        """
        return encode(
            self.llama, self.clip, *self.tokens(prompts), crop_start=self.template.crop_start
        )

    def tokens(self, prompts: Sequence[str]) -> tuple[Array, Array, Array]:
        """What both models are called with: embedded tokens and their mask for the LLaMA, and CLIP's tokens.

        Raises, Warns:
            As the call.
        """
        if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
            raise InputError(f"prompts should be a list of texts, found {prompts!r}; wrap it in []")
        if not prompts:
            raise InputError("no prompt was given; give a list of at least one text")
        crop = self.template.crop_start
        tokens = self._llama_tokenizer([self.template.fill(prompt) for prompt in prompts])
        words = self._clip_tokenizer([prompt.strip() for prompt in prompts])
        require_tokens(prompts, tokens, encoder="the LLaMA text encoder", crop_start=crop)
        require_tokens(prompts, words, encoder="the CLIP text encoder")
        warn_if_truncated(prompts, tokens, encoder="the LLaMA text encoder", crop_start=crop)
        warn_if_truncated(prompts, words, encoder="the CLIP text encoder")
        embedded = self.embed(tokens.ids).astype(self.llama.dtype)
        return jax.device_put((embedded, tokens.mask, words.ids))

    def compiled(self, tokens: tuple[Array, Array, Array]) -> Compiled:
        """The program of a call for tokens of these shapes: (llama, clip, *tokens) -> encoded prompts."""
        crop = self.template.crop_start
        return encode.lower(self.llama, self.clip, *tokens, crop_start=crop).compile()


@partial(jax.jit, static_argnames="crop_start")
def encode(
    llama: Llama,
    clip: Clip,
    embedded: Float[Array, "B S D"],
    mask: Bool[Array, "B S"],
    clip_ids: Int[Array, "B C"],
    *,
    crop_start: int,
) -> EncodedPrompt:
    """Run both encoders on embedded and on bare tokens, and drop the first `crop_start` positions of the LLaMA's states and mask."""
    return EncodedPrompt(
        llama.states(embedded, mask)[:, crop_start:], mask[:, crop_start:], clip(clip_ids)
    )


def abstract_prompt(
    manifest: Manifest, batch: int, *, text_dim: int, pooled_dim: int, dtype: DTypeLike
) -> EncodedPrompt:
    """What the encoders of a checkpoint return for a batch of prompts, as shapes and dtypes.

    Args:
        manifest: the checkpoint.
        batch: number of prompts.
        text_dim, pooled_dim: widths of the states and of the pooled vector.
        dtype: dtype of the encoders.

    Raises:
        CheckpointError: the checkpoint has no prompt template.
    """
    length = _read_template(manifest).max_length
    make: Any = EncodedPrompt  # shapes stand for arrays
    return make(
        text=jax.ShapeDtypeStruct((batch, length, text_dim), dtype),
        mask=jax.ShapeDtypeStruct((batch, length), jnp.bool_),
        pooled=jax.ShapeDtypeStruct((batch, pooled_dim), dtype),
    )


def _read_model(
    manifest: Manifest,
    component: str,
    make: Callable[..., Model],
    config: LlamaConfig | ClipConfig,
    *,
    dtype: DTypeLike | None,
    storage: str | None,
    progress: bool,
    verify: bool,
) -> Model:
    chosen = jnp.dtype(_stored_dtype(manifest, component) if dtype is None else dtype)
    module = nnx.eval_shape(lambda: make(config, dtype=chosen, rngs=nnx.Rngs(0)))
    if isinstance(module, Llama):
        del module.embed  # its rows are read when a prompt needs them
    wanted = partial(operator.ne, _TABLE)
    stored = manifest.component(component).storage
    if stored is None and storage is not None:
        return restore_int8(
            manifest,
            component,
            module,
            dtype=chosen,
            wanted=wanted,
            progress=progress,
            verify=verify,
        )
    if stored is not None:
        module = nnx.eval_shape(store_int8, module)
    # The module has the dtypes: scales are float32 whatever the activations are.
    return restore(manifest, component, module, wanted=wanted, progress=progress, verify=verify)


def _table(llama: Llama) -> Callable[[np.ndarray], np.ndarray]:
    """The rows of a LLaMA's own table."""
    if not hasattr(llama, "embed"):
        raise InputError(
            "this LLaMA has no table of embeddings; give a function that finds their rows"
        )
    table = np.asarray(llama.embed.embedding[...])
    return lambda ids: table[ids]


def _read_config(manifest: Manifest, component: str, kind: type[Config]) -> Config:
    source = f"{manifest.directory}: {component} config"
    return from_mapping(kind, manifest.config(component), source=source)


def _read_tokenizer(manifest: Manifest, component: str, length: int) -> PromptTokenizer:
    """The tokenizer of a text encoder, from files that are what was written."""
    folder = f"tokenizers/{component}"
    files = {
        path.removeprefix(f"{folder}/"): manifest.read_file(path)
        for path in manifest.files
        if path.startswith(f"{folder}/")
    }
    return PromptTokenizer(manifest.directory / folder, length=length, files=files)


def _read_template(manifest: Manifest) -> PromptTemplate:
    if manifest.prompt is None:
        raise CheckpointError(
            f"{manifest.directory}: has no prompt template; convert again with its text encoders"
        )
    source = f"{manifest.directory}: prompt"
    return from_mapping(PromptTemplate, manifest.prompt, source=source)


def _stored_dtype(manifest: Manifest, component: str) -> str:
    for _, leaf, specification in manifest.leaves(component):
        if leaf.endswith(".embedding"):
            return specification["dtype"]
    raise CheckpointError(
        f"{manifest.directory}: {component} has no embedding; convert the checkpoint again"
    )


def _require_vocabulary(
    config: LlamaConfig | ClipConfig, tokenizer: PromptTokenizer, name: str
) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"the {name} tokenizer has ids up to {tokenizer.vocab_size - 1}, the model only {config.vocab_size} "
            f"embeddings; convert again with the tokenizer of this model"
        )
