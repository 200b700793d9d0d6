"""HunyuanVideo's prompt template: instructions around the prompt, whose states are cropped away again.

Source: the text encoder of HunyuanVideo (`PROMPT_TEMPLATE_ENCODE_VIDEO`, crop_start 95). The wording is data and
comes with the checkpoint.
"""

from dataclasses import dataclass
from typing import Annotated

from qsjax.errors import InputError
from qsjax.text.tokenize import PromptTokenizer
from qsjax.untrusted import Between, check_bounds

PLACEHOLDER = "{}"
_LONGEST = 1 << 16
"""Characters of a template, and tokens that are cropped or kept."""


@dataclass(frozen=True)
class PromptTemplate:
    """What surrounds a prompt, and which part of the encoder's states is kept.

    Attributes:
        template: text with one "{}" where the prompt goes.
        crop_start: tokens dropped at the start, begin-of-text and instructions (95 for HunyuanVideo's videos).
        max_length: tokens kept after them (256 for HunyuanVideo).
    """

    template: str
    crop_start: Annotated[int, Between(0, _LONGEST)]
    max_length: Annotated[int, Between(1, _LONGEST)]

    def __post_init__(self) -> None:
        check_bounds(self, source="prompt template")
        if len(self.template) > _LONGEST:
            raise InputError(
                f"prompt template: has {len(self.template)} characters; give at most {_LONGEST}"
            )
        count = self.template.count(PLACEHOLDER)
        if count != 1:
            raise InputError(
                f"prompt template: expected exactly one {PLACEHOLDER} for the prompt, found {count}; correct the template"
            )

    @property
    def window(self) -> int:
        """Tokens that the encoder sees: those cropped and those kept."""
        return self.crop_start + self.max_length

    def fill(self, prompt: str) -> str:
        """The text to tokenize.

        The prompt is stripped: a leading newline could merge with the template's own into another token, which
        would shift the crop.
        """
        return self.template.replace(PLACEHOLDER, prompt.strip())


def measure_crop_start(template: str, tokenizer: PromptTokenizer) -> int:
    """Number of tokens before the prompt, begin-of-text included; 0 for a template that starts with the prompt.

    Raises:
        InputError: the template has not exactly one placeholder, or its last characters before the placeholder
            merge with those of a prompt, so that no crop separates them.
    """
    PromptTemplate(template, crop_start=0, max_length=1)
    before, _, after = template.partition(PLACEHOLDER)
    if not before:
        return 0
    prefix = tokenizer.ids(before)
    if tokenizer.ids(f"{before}a{after}")[: len(prefix)] != prefix:
        raise InputError(
            f"prompt template: its text before {PLACEHOLDER} merges with the prompt's first token; "
            f"end it with a newline or a special token"
        )
    return len(prefix)
