"""A converted checkpoint of small text encoders, with the weights of `text_oracles`."""

import dataclasses
import hashlib

import jax.numpy as jnp
import numpy as np
from flax import nnx
from text_oracles import CLIP, LLAMA, our_clip, our_llama, torch_clip, torch_llama
from text_tokenizers import clip_end, write_clip_tokenizer, write_llama_tokenizer

from qsjax.checkpoint import CheckpointWriter
from qsjax.config import to_mapping
from qsjax.text import PromptTemplate

TEMPLATE = PromptTemplate("describe a\n{}<|eot|>", crop_start=4, max_length=8)
LLAMA_SMALL = dataclasses.replace(LLAMA, num_hidden_layers=4)
CLIP_SMALL = dataclasses.replace(
    CLIP,
    num_hidden_layers=2,
    max_position_embeddings=8,
    vocab_size=clip_end() + 1,
    eos_token_id=clip_end(),
)


def write_checkpoint(directory, *, dtype=jnp.float32, prompt=True, change=lambda leaves: leaves):
    """Leaf by leaf as the converter stores them, the LLaMA's embedding in two row ranges.

    `change` maps the leaves of the LLaMA to those that are written.
    """
    llama = _leaves(our_llama(torch_llama(LLAMA_SMALL), LLAMA_SMALL, dtype=dtype))
    clip = _leaves(our_clip(torch_clip(CLIP_SMALL), CLIP_SMALL, dtype=dtype))
    writer = CheckpointWriter(directory, identity="test")
    embedding = llama.pop("embed.embedding")
    half = len(embedding) // 2
    for item, rows in (("embed0", (0, half)), ("embed1", (half, len(embedding)))):
        part = {"embed.embedding": embedding[slice(*rows)]}
        writer.write_item("llama", item, part, rows={"embed.embedding": rows})
    writer.write_item("llama", "layers", change(llama))
    writer.write_item("clip", "all", clip)
    order = {"llama": ["embed0", "embed1", "layers"], "clip": ["all"]}
    files = {}
    for name, write in (("llama", write_llama_tokenizer), ("clip", write_clip_tokenizer)):
        source = write(directory.with_name(f"{directory.name}-{name}"))
        for file in source.iterdir():
            content = file.read_bytes()
            writer.write_file(f"tokenizers/{name}/{file.name}", content)
            digest = hashlib.sha256(content).hexdigest()
            files[f"tokenizers/{name}/{file.name}"] = {"bytes": len(content), "sha256": digest}
    configs = {"llama": LLAMA_SMALL, "clip": CLIP_SMALL}
    data = {"components": {name: {"config": to_mapping(c)} for name, c in configs.items()}}
    data["files"] = files
    if prompt:
        data["prompt"] = to_mapping(TEMPLATE)
    writer.finish(data, order)
    return directory


def _leaves(module):
    leaves = {}
    for path, variable in nnx.to_flat_state(nnx.state(module)):
        group, *rest = map(str, path)
        array = np.asarray(variable.get_value())
        if group == "layers":
            leaves |= {".".join([group, str(i), *rest]): part for i, part in enumerate(array)}
        else:
            leaves[".".join([group, *rest])] = array
    return leaves
