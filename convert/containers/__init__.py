"""Checkpoint containers: lazy, bounded-memory readers of PyTorch weights, and a streaming writer.

    open_source(path, component)    any container below, as a Source: names, shapes, dtypes, one tensor at a time
    write_safetensors(...)          one file, tensor by tensor, whole or not at all
    write_sharded(...)              the hub's numbered shards with their index

Read are: a safetensors file, sharded safetensors with an index, also of float8 with or without scales, a PyTorch
`.pt` (bare, or under `model`, `module`, `state_dict` or `ema`), HunyuanVideo's float8 `.pt` with its map of scales,
a GGUF file with the types that the package `gguf` knows, and a folder that holds one of these. Sources are untrusted: everything a file says is checked against the file before memory is
allocated for it, and no pickle is ever executed.
"""

from convert.containers.gguf_file import GgufFile as GgufFile
from convert.containers.opening import open_source as open_source
from convert.containers.safetensors_file import SafetensorsFile as SafetensorsFile
from convert.containers.safetensors_writer import write_safetensors as write_safetensors
from convert.containers.safetensors_writer import write_sharded as write_sharded
from convert.containers.source import Source as Source
from convert.containers.source import TensorInfo as TensorInfo
