"""Conversion in bounded memory: the peak of a process does not grow with the number of blocks, plain, quantized or of float8."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Two models in turn, plain and then quantized: a peak never falls, so that growth from the few blocks to the many is theirs.
MEASURE = """
import dataclasses, json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import convert_models as models
import numpy as np
from convert import Sources, convert
from convert.containers import TensorInfo, write_safetensors
from convert.keymaps import expand
from convert.memory import peak_memory
for blocks in (2, 8):
    config = dataclasses.replace(models.DIT, hidden_size=384, num_heads=3, rope_axes_dim=(32, 48, 48),
                                 num_single_blocks=blocks, num_double_blocks=1)
    folder = Path(sys.argv[2]) / str(blocks)
    infos = {n: TensorInfo(s, np.dtype("float32"))
             for row in expand("dit", config, "diffusers") for n, s in row.sources.items()}
    folder.mkdir()
    write_safetensors(folder / "diffusion_pytorch_model.safetensors", infos,
                      lambda name: np.ones(infos[name].shape, np.float32))
    (folder / "config.json").write_text(json.dumps(config.to_diffusers()))
for quantize in (None, "quarot-w4a8"):
    for blocks in (2, 8):
        folder = Path(sys.argv[2]) / str(blocks)
        manifest = convert(Sources(transformer=folder), folder / str(quantize), quantize=quantize,
                           progress=False, item_bytes=4 << 20)
        print(peak_memory(), manifest.data["components"]["dit"]["bytes"])
"""


@pytest.mark.whole
def test_peak_memory_does_not_grow_with_the_number_of_blocks(tmp_path):
    command = [sys.executable, "-c", MEASURE, str(Path(__file__).parent), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    peaks, stored = zip(
        *(map(int, line.split()) for line in result.stdout.splitlines()), strict=True
    )
    few, many, few_quantized, many_quantized = peaks
    assert stored[1] - stored[0] > 50e6
    assert many - few < 20e6
    # What quantizes costs more than all of a plain conversion, or nothing would be seen of its growth.
    assert few_quantized > many + 50e6
    assert many_quantized - few_quantized < 30e6


# HunyuanVideo's width, sparse files: the peak of one conversion, in a process of its own.
PEAK = """
import dataclasses, json, os, sys
from math import prod
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import convert_models as models
from convert import Sources, convert
from convert.keymaps import expand
from convert.memory import peak_memory
from qsjax.dit.config import DiTConfig
folder, kind, double = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
config = dataclasses.replace(DiTConfig.preset("hunyuan-video-13b"), num_double_blocks=double, num_single_blocks=2 * double)
shapes = {n: s for row in expand("dit", config, "tencent") for n, s in row.sources.items()}
path = folder / ("a.gguf" if kind == "gguf" else "a.safetensors")
folder.mkdir()
if kind == "gguf":
    # Q8_0 and F32 of zeros: the header alone is written, the data are a hole.
    from gguf_files import gguf
    empty = {n: (8 if len(s) == 2 else 0, s, b"") for n, s in shapes.items()}
    edge, begin = 0, len(gguf(empty))
    sizes = {n: prod(s) // 32 * 34 if len(s) == 2 else 4 * prod(s) for n, s in shapes.items()}
    with path.open("wb") as file:
        file.write(gguf(empty, sizes=sizes))
        edge = sum(-(-size // 32) * 32 for size in sizes.values())
        file.truncate(begin + edge)
    convert(Sources(transformer=path, config=models.config_file(folder, config)), folder / "out", progress=False)
    print(edge, peak_memory())
    sys.exit()
scaled = [n for n, s in shapes.items() if kind == "fp8" and len(s) == 2]
header, edge = {}, 0
for name in [n.removesuffix("weight") + "scale_weight" for n in scaled] + list(shapes):
    shape = shapes.get(name, ())
    dtype, size = ("F32", 4) if name not in shapes else ("F8_E4M3", 1) if name in scaled else ("BF16", 2)
    for length in shape:
        size *= length
    header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [edge, edge + size]}
    edge += size
content = json.dumps(header).encode()
with path.open("wb") as file:
    file.write(len(content).to_bytes(8, "little") + content + len(scaled) * b"\\x00\\x00\\x80\\x3f")
    file.truncate(8 + len(content) + edge)
sources = Sources(transformer=path, config=models.config_file(folder, config))
convert(sources, folder / "out", progress=False)
print(edge, peak_memory())
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fp8", "gguf"])
def test_five_gigabytes_of_fewer_bits_take_the_memory_of_bfloat16_and_two_tensors(kind, tmp_path):
    """More blocks take no more, and the largest tensor (linear1 of a single block) has 132 MB in bfloat16."""
    found = {}
    for each, blocks in (("bf16", 1), (kind, 8)):
        folder = tmp_path / each
        command = [sys.executable, "-c", PEAK, str(Path(__file__).parent), str(folder), each, str(blocks)]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        found[each] = tuple(map(int, result.stdout.split()))
        shutil.rmtree(folder)
    assert found[kind][0] > 5e9
    assert found[kind][1] < found["bf16"][1] + 2 * 21_504 * 3072 * 2
