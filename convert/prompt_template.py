"""The sentence that is put around every prompt before LLaMA reads it.

It is data of the pipeline, not of the weights, and no PyTorch checkpoint carries it. The installed
diffusers package does, in the source of its HunyuanVideo pipeline: it is read from there as text, because
importing diffusers takes seconds and needs torch.
"""

import ast
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.sources import read_json
from qsjax.config import from_mapping
from qsjax.errors import InputError
from qsjax.text import PromptTemplate

KEPT_TOKENS = 256
"""Text tokens that HunyuanVideo keeps after the template's instructions are cut off."""

_FILE = "pipelines/hunyuan_video/pipeline_hunyuan_video.py"
_NAME = "DEFAULT_PROMPT_TEMPLATE"


def find_prompt_template(file: Path | None) -> PromptTemplate:
    """The template for a checkpoint.

    Args:
        file: JSON file with `template`, `crop_start` and `max_length`; None takes diffusers' default for video.

    Raises:
        InputError: the file is not such a template, or there is no file and no diffusers.
    """
    if file is None:
        return from_mapping(PromptTemplate, _from_diffusers(), source="diffusers")
    values = read_json(file)
    try:
        return from_mapping(PromptTemplate, values, source="prompt template")
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _from_diffusers() -> Mapping[str, Any]:
    spec = importlib.util.find_spec("diffusers")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / _FILE
        constant = _constant(path) if path.is_file() else None
        if constant is not None:
            return {
                "template": constant["template"],
                "crop_start": constant["crop_start"],
                "max_length": KEPT_TOKENS,
            }
    raise InputError(
        "the text encoder needs HunyuanVideo's prompt template, which is read from the diffusers package, and that "
        "is not installed (or is another version); run `pip install diffusers` or pass a file as `prompt_template`"
    )


def _constant(path: Path) -> Mapping[str, Any] | None:
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and _NAME in [
            target.id for target in statement.targets if isinstance(target, ast.Name)
        ]:
            value = ast.literal_eval(statement.value)
            return value if {"template", "crop_start"} <= set(value) else None
    return None
