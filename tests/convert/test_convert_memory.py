"""Conversion in bounded memory: the peak of a process does not grow with the number of blocks, plain or quantized."""

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
