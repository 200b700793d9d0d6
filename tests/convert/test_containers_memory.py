"""Memory: reading a source of hundreds of megabytes costs about one tensor."""

import json
import os
import subprocess
import sys

import pytest
import torch
from gguf_files import gguf

ROWS, COLUMNS, COUNT = 4096, 6144, 8  # 48 MiB each in bfloat16, 384 MiB together

# Peak resident memory (VmHWM) over that of the opened source, in MiB, while every tensor is read once.
READ_ALL = """
import sys
from convert.containers import open_source

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

with open_source(sys.argv[1], "dit") as source:
    before = peak()
    total = 0
    for name in source.tensors:
        array = source.read(name)
        total += int(array.view("uint8")[::512].sum()) + array.nbytes
        del array
print(total >> 20, peak() - before)
"""


def fake_state_dict():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return {f"w{i}": torch.empty(ROWS, COLUMNS, dtype=torch.bfloat16) for i in range(COUNT)}


def write_sparse_gguf(path):
    """Q8_0, which reads as float32: half the rows make as many bytes."""
    tensors = {f"w{i}": (8, (ROWS // 2, COLUMNS), b"") for i in range(COUNT)}
    sizes = dict.fromkeys(tensors, ROWS // 2 * COLUMNS // 32 * 34)
    header = gguf(tensors, sizes=sizes)
    path.write_bytes(header)
    os.truncate(path, len(header) + sum(sizes.values()))


def write_sparse(path):
    size = 2 * ROWS * COLUMNS
    header = json.dumps(
        {
            f"w{i}": {
                "dtype": "BF16",
                "shape": [ROWS, COLUMNS],
                "data_offsets": [i * size, (i + 1) * size],
            }
            for i in range(COUNT)
        }
    ).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + COUNT * size)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize("kind", ["safetensors", "pt", "gguf"])
def test_peak_stays_near_one_tensor(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "pt":  # torch reserves the room without writing it: a sparse file
        with torch.serialization.skip_data(materialize_fake_tensors=True):
            torch.save({"module": fake_state_dict()}, path)
    elif kind == "gguf":
        write_sparse_gguf(path)
    else:
        write_sparse(path)
    run = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(path)], capture_output=True, text=True, check=True
    )
    total, growth = run.stdout.split()
    assert int(total) == 384
    assert float(growth) < 48 * 1.5
