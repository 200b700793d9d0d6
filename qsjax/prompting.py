"""What a prompt may be, and what is looked at before it is encoded."""

from collections.abc import Sequence

import jax
from jax.typing import DTypeLike

from qsjax.checkpoint import Manifest
from qsjax.dit import DiTConfig
from qsjax.errors import InputError
from qsjax.settings import SamplingPlan
from qsjax.text import EncodedPrompt, abstract_prompt
from qsjax.untrusted import shown

Prompt = str | Sequence[str] | EncodedPrompt


def texts_of(prompt: str | Sequence[str]) -> list[str]:
    """The texts of a prompt.

    Raises:
        InputError: there is none, or one is empty or no Unicode.
    """
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not texts or not all(text.strip() for text in texts):
        raise InputError("the prompt is empty; describe the video in a few words")
    for text in texts:
        require_unicode(text)
    return texts


def require_unicode(text: str) -> None:
    """Refuse what a terminal with another encoding makes of some characters; tokenizers take none of it.

    Raises:
        InputError: it is not Unicode.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the prompt {shown(text)} is not Unicode at character {error.start}; type it in UTF-8"
        ) from error


def require_use(plan: SamplingPlan) -> None:
    """Refuse a negative prompt that would change nothing.

    Raises:
        InputError: the plan has no true guidance.
    """
    if not plan.uses_negative:
        raise InputError(
            f"a negative prompt was given, and `true_cfg={plan.true_cfg:g}` does not use it; pass `true_cfg` above 1, or leave"
            " `negative_prompt` out"
        )


def require_fits(prompt: EncodedPrompt, config: DiTConfig) -> None:
    """Refuse a prompt that was encoded for another model.

    Raises:
        InputError: its states or its pooled vector have another width.
    """
    found = prompt.text.shape[-1], prompt.pooled.shape[-1]
    needed = config.text_dim, config.pooled_dim
    if found != needed:
        raise InputError(
            f"the encoded prompt has states of {found[0]} and a pooled vector of {found[1]} numbers, the model reads"
            f" {needed[0]} and {needed[1]}; encode it with this checkpoint"
        )


def require_pair(
    prompt: EncodedPrompt, negative: EncodedPrompt | None, plan: SamplingPlan, config: DiTConfig
) -> None:
    """Refuse encoded prompts that do not go together, or not with the model.

    Raises:
        InputError: one is of another model; there are more or fewer negative prompts, or the plan does not use them.
    """
    require_fits(prompt, config)
    if negative is None:
        return
    require_fits(negative, config)
    if negative.pooled.shape[0] != prompt.pooled.shape[0]:
        raise InputError(
            f"{negative.pooled.shape[0]} negative prompts were given for {prompt.pooled.shape[0]} prompts; give one for each"
        )
    require_use(plan)


def abstract_of(
    prompt: Prompt, batch: int, manifest: Manifest, config: DiTConfig, dtype: DTypeLike
) -> EncodedPrompt:
    """Shapes and dtypes of a prompt when it is encoded.

    Args:
        prompt: to be encoded, or encoded.
        batch: how many times a single text is there.
        manifest: of the checkpoint.
        config: of its transformer.
        dtype: of the states.
    """
    if isinstance(prompt, EncodedPrompt):
        return jax.eval_shape(lambda: prompt)
    count = batch if isinstance(prompt, str) else len(prompt)
    return abstract_prompt(
        manifest, count, text_dim=config.text_dim, pooled_dim=config.pooled_dim, dtype=dtype
    )
