"""Rows of a tensor, read without the rest, from every container."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from convert.containers import open_source
from convert.containers.byte_ranges import ByteRanges

TABLE = torch.arange(60, dtype=torch.float32).reshape(12, 5).to(torch.bfloat16)
FLOAT8 = TABLE.to(torch.float8_e4m3fn)


def save_single(folder):
    safetensors.torch.save_file({"a": torch.ones(3), "table": TABLE}, folder / "model.safetensors")


def save_shards(folder):
    names = [f"model-{k:05d}-of-00002.safetensors" for k in (1, 2)]
    safetensors.torch.save_file({"a": torch.ones(3)}, folder / names[0])
    safetensors.torch.save_file({"table": TABLE}, folder / names[1])
    index = {"weight_map": dict(zip(("a", "table"), names, strict=True))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def save_pt(folder):
    torch.save({"a": torch.ones(3), "table": TABLE}, folder / "model.pt")


def save_strided(folder):
    torch.save({"table": TABLE.T.contiguous().T}, folder / "model.pt")


def save_vae(folder):
    safetensors.torch.save_file({"vae.table": TABLE}, folder / "model.safetensors")


@pytest.mark.parametrize("save", [save_single, save_shards, save_pt, save_strided, save_vae])
@pytest.mark.parametrize("rows", [(0, 12), (3, 7), (11, 12), (4, 4)])
def test_rows(save, rows, tmp_path):
    save(tmp_path)
    with open_source(tmp_path, "vae") as source:
        part = source.read("table", rows=rows)
    assert part.flags.c_contiguous
    np.testing.assert_array_equal(
        part.view(np.uint16), TABLE[slice(*rows)].view(torch.uint16).numpy()
    )


def test_rows_of_scaled_float8(tmp_path):
    torch.save({"table.weight": FLOAT8}, tmp_path / "w.pt")
    torch.save({"table": torch.tensor(0.5)}, tmp_path / "w_map.pt")
    with open_source(tmp_path / "w.pt", "dit") as source:
        whole, part = source.read("table.weight"), source.read("table.weight", rows=(2, 5))
    np.testing.assert_array_equal(part.view(np.uint16), whole[2:5].view(np.uint16))


def test_nothing_else_is_read(tmp_path, monkeypatch):
    save_single(tmp_path)
    sizes, array = [], ByteRanges.array
    with open_source(tmp_path, "llama") as source:
        monkeypatch.setattr(
            ByteRanges, "array", lambda *args: sizes.append(args[2]) or array(*args)
        )
        source.read("table", rows=(3, 7))
    assert sizes == [(4, 5)]
