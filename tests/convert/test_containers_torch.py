"""Torch files: every form torch.save writes reads back equal, and nothing in a pickle is ever executed."""

import collections
import os
import pickle
import random
import sys
import zipfile

import numpy as np
import pytest
import torch

from convert.containers import open_source
from qsjax.errors import CheckpointError, InputError

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


def state_dict():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 8, generator=generator)
    tensors = {
        str(dtype): (20 * torch.randn(2, 3, generator=generator)).to(dtype) for dtype in DTYPES
    }
    return {
        **tensors,
        "parameter": torch.nn.Parameter(base.clone()),
        "base": base,
        "same storage": base,
        "rows": base[2:5],
        "transposed": base.T,
        "strided": base[1::2, ::3],
        "permuted": torch.randn(2, 3, 4, generator=generator).permute(2, 0, 1),
        "one row": base[3:4].T,
        "scalar": torch.tensor(2.5),
        "scalar in a storage": base[2, 3],
        "empty": torch.zeros(0, 4),
    }


def assert_holds(source, tensors):
    assert set(source.tensors) == set(tensors)
    for name, tensor in tensors.items():
        array = source.read(name)
        assert array.shape == source.tensors[name].shape == tuple(tensor.shape)
        assert array.dtype == source.tensors[name].dtype
        assert array.dtype.name == str(tensor.dtype).removeprefix("torch.")
        assert array.flags.c_contiguous
        expected = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        np.testing.assert_array_equal(array.reshape(-1).view(np.uint8), expected)


@pytest.mark.parametrize(
    ("wrap", "container", "ignored"),
    [
        (lambda s: s, "torch .pt (bare)", ()),
        (lambda s: collections.OrderedDict(s), "torch .pt (bare)", ()),
        (lambda s: {**s, "epoch": 3, "note": "x", "done": None}, "torch .pt (bare)", ("epoch", "note", "done")),
        (lambda s: {"module": s, "ema": {"other": torch.ones(1)}}, "torch .pt (module)", ()),
        (lambda s: {"model": s, "optimizer": [1, 2]}, "torch .pt (model)", ()),
        (lambda s: {"state_dict": s, "step": 3}, "torch .pt (state_dict)", ()),
        (lambda s: {"ema": s}, "torch .pt (ema)", ()),
        (lambda s: {"model": {"module": s}}, "torch .pt (model.module)", ()),
    ],
)  # fmt: skip
def test_every_wrapping_reads_back_equal(tmp_path, wrap, container, ignored):
    tensors = state_dict()
    torch.save(wrap(tensors), tmp_path / "a.pt")
    with open_source(tmp_path / "a.pt", "dit") as source:
        assert source.container == container
        assert source.ignored == ignored
        assert source.files == (tmp_path / "a.pt",)
        assert_holds(source, tensors)


def test_a_module_and_its_buffers(tmp_path):
    norm = torch.nn.BatchNorm1d(3)
    torch.save(norm.state_dict(), tmp_path / "a.pt")
    with open_source(tmp_path / "a.pt", "vae") as source:
        assert_holds(source, norm.state_dict())


def test_vae_prefix_keeps_only_its_part(tmp_path):
    tensors = {"encoder.w": torch.ones(2), "decoder.w": torch.zeros(3)}
    prefixed = {f"vae.{name}": tensor for name, tensor in tensors.items()}
    torch.save({"state_dict": {**prefixed, "loss.w": torch.ones(1)}}, tmp_path / "pytorch_model.pt")
    (tmp_path / "config.json").write_text("{}")
    with open_source(tmp_path, "vae") as source:
        assert source.container == "torch .pt (state_dict)"
        assert source.ignored == ("loss.w",)
        assert source.config == {}
        assert_holds(source, tensors)
    with open_source(tmp_path, "dit") as source:
        assert "vae.encoder.w" in source.tensors


class Command:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("function", [os.system, open, exec, eval, os.open])
def test_a_forbidden_class_is_named_and_not_executed(tmp_path, function):
    trap = tmp_path / "trap"
    arguments = {
        os.system: (f"touch {trap}",),
        open: (str(trap), "w"),
        exec: (f"open({str(trap)!r}, 'w').close()",),
        eval: (f"open({str(trap)!r}, 'w').close()",),
        os.open: (str(trap), os.O_CREAT),
    }[function]
    torch.save(
        {"module": {"w": torch.ones(2), "x": Command(function, *arguments)}}, tmp_path / "a.pt"
    )
    with pytest.raises(CheckpointError, match=rf"asks for \S*{function.__name__}, which") as caught:
        open_source(tmp_path / "a.pt", "dit")
    assert not trap.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "holds a list"),
        (torch.ones(2), "instead of a state dict"),
        ({}, "no tensor at all"),
        ({"epoch": 3}, "no tensor at all"),
        ({"w": torch.ones(2), "optimizer": {"a": 1}}, "'optimizer' of type dict"),
        ({"w": torch.ones(2), 3: torch.ones(2)}, "the name 3"),
        ({"w": torch.ones(2), "\x1b[2J": torch.ones(2)}, "the name"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "'w' is a complex64 tensor"),
        ({"w": torch.ones(1).expand(1000)}, "does not lie in the data"),
        (
            {"w": torch.eye(2).to_sparse()},
            "asks for torch._utils._rebuild_sparse_tensor, which is no part",
        ),
    ],
)
def test_what_is_no_state_dict(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message) as caught:
        open_source(tmp_path / "a.pt", "dit")
    assert "\n" not in str(caught.value)


def test_other_kinds_of_file(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"old format.*re-save it"):
        open_source(path, "dit")
    path.write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(CheckpointError, match=r"old format.*re-save it"):
        open_source(path, "dit")
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint of torch.save"):
        open_source(path, "dit")
    torch.save({"w": torch.ones(2)}, path, pickle_protocol=4)
    with pytest.raises(CheckpointError, match="has the step FRAME, which weights never need"):
        open_source(path, "dit")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/hello.txt", "hello")
    with pytest.raises(CheckpointError, match=r"no data.pkl"):
        open_source(path, "dit")


def rewrite(path, change):
    """Write the archive again with its records passed through `change(name, data) -> [(name, data)]`."""
    with zipfile.ZipFile(path) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", change.get("compression", zipfile.ZIP_STORED)) as archive:
        for name, data in records:
            for suffix, edit in change.items():
                if name.endswith(suffix):
                    data = edit(data)
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compression": zipfile.ZIP_DEFLATED}, "is compressed"),
        ({"data/0": lambda data: data[:-1]}, "does not lie in the data"),
        ({"byteorder": lambda data: b"big"}, "endian"),
        ({"data.pkl": lambda data: data[:-3]}, "torch cannot read it|asks for"),
        ({"data.pkl": lambda data: b""}, "torch cannot read it"),
    ],
)
def test_archives_that_contradict_themselves(tmp_path, change, message):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.arange(64.0)}, path)
    rewrite(path, change)
    with pytest.raises(CheckpointError, match=message):
        open_source(path, "dit")


def test_a_directory_that_points_before_the_file(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(2)}, path)
    content = bytearray(path.read_bytes())
    content[-50:-42] = (1 << 20).to_bytes(8, "little")  # where the directory of records begins
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="does not fit into the file"):
        open_source(path, "dit")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_program_is_not_weights(tmp_path):
    path = tmp_path / "a.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(CheckpointError, match="TorchScript"):
        open_source(path, "dit")


def test_truncated(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(500)}, path)
    whole = path.read_bytes()
    for cut in (len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=rf"truncated.* {cut} bytes"):
            open_source(path, "dit")


def test_torch_missing_or_too_old(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(2)}, path)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", type(torch.__version__)("2.9.1+cpu"))
        with pytest.raises(InputError, match=r"torch 2.9.1.*install torch 2.10"):
            open_source(path, "dit")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        InputError, match=r"needs PyTorch; install it with `pip install '\.\[convert\]'` in a"
    ):
        open_source(path, "dit")


def test_mutated_files_are_read_or_refused(tmp_path):
    path, rng = tmp_path / "a.pt", random.Random(0)
    torch.save({"module": {"w": torch.arange(6.0), "v": torch.ones(2, 3).T}}, path)
    whole = path.read_bytes()
    messages = []
    for _ in range(200):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            # half of the mutations where structure is dense: the pickle at the front
            content[rng.randrange(300 if rng.random() < 0.5 else len(content))] = rng.randrange(256)
        path.write_bytes(content)
        try:
            with open_source(path, "dit") as source:
                assert sum(source.read(name).nbytes for name in source.tensors) <= 1000
        except (CheckpointError, InputError) as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert not any("\n" in message for message in messages)
