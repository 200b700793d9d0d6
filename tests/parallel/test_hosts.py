"""Two hosts, which are two processes of this machine with a device each: the video of one, written once.

That video is a whole run; sparse steps and weights on several devices of one process: test_sharded.py.
"""

import json
import os
import socket
import subprocess
import sys

import av
import numpy as np
import pytest

from qsjax.cli import main
from qsjax.errors import InputError
from qsjax.parallel import first_agrees, hosts, is_first, join

SIZE = ("--frames", "5", "--height", "32", "--width", "32", "--steps", "3")
SPARSE = (
    *("--sparsity.mask", "svg", "--sparsity.density", "0.4", "--sparsity.block", "8"),
    *("--sparsity.profiled-rows", "24", "--sparse.interval", "2", "--sparse.dense-steps", "1", "--residual.store", "int8"),
)  # fmt: skip


def address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def start(words):
    """A qsjax command on each of two hosts."""
    # Garbage as in conftest.py.
    code = "import gc, sys; gc.set_threshold(50_000, 20, 50); from qsjax.cli import main; sys.exit(main(sys.argv[1:]))"
    meeting = ("--coordinator", address(), "--hosts", "2")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, words), *meeting, "--host", str(host)],
            env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for host in range(2)
    ]
    outs = [process.communicate() for process in processes]
    return [(process.returncode, *out) for process, out in zip(processes, outs, strict=True)]


def frames(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.whole
def test_two_hosts_make_the_video_of_one(tiny_checkpoint, tmp_path, capsys):
    words = ("sample", "--model", str(tiny_checkpoint), "--prompt", "a red circle", *SIZE, *SPARSE, "--json", "--out")  # fmt: skip
    (code, said, error), (other_code, other_said, other_error) = start(
        (*words, tmp_path / "two.mp4", "--devices", 2, "--shard-weights")
    )
    assert code == 0, error[-3000:]
    assert other_code == 0, other_error[-3000:]
    assert "{" not in other_said  # Gloo, between CPUs, says that it is connected
    assert [path.name for path in tmp_path.iterdir()] == ["two.mp4"]
    assert main([*words, str(tmp_path / "one.mp4")]) == 0
    two, one = json.loads(said[said.index("{") :]), json.loads(capsys.readouterr().out)
    assert two["attention"]["density"] == one["attention"]["density"]
    assert two["attention"]["recall"] == pytest.approx(one["attention"]["recall"], abs=1e-4)
    made, expected = (frames(tmp_path / name).astype(int) for name in ("two.mp4", "one.mp4"))
    assert np.ptp(expected) > 50
    # The coder makes of a level's difference some.
    assert np.abs(made - expected).mean() < 0.5


def test_what_the_first_host_cannot_write_ends_both(tiny_checkpoint, tmp_path):
    out = tmp_path / "there.mp4"
    out.write_bytes(b"kept")
    words = ("sample", "--model", tiny_checkpoint, "--prompt", "a", *SIZE, "--out", out, "--devices", 2)  # fmt: skip
    first, second = start(words)
    assert (first[0], second[0]) == (2, 2)
    assert "pass --overwrite" in first[2]
    assert "the first host cannot write its file" in second[2]
    assert out.read_bytes() == b"kept"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("somewhere", 2, 0), "is no address; give HOST:PORT"),
        (("a:b", 2, 0), "is no address"),
        (("a:1", None, None), "give both"),
        (("a:1", 2, 2), "has a number of its own, from 0"),
        (("a:1", 1, 0), "of two or more hosts"),
        (("auto", 2, 0), "`coordinator='auto'` finds out `hosts` and `host`; leave them out"),
    ],
)
def test_what_is_refused(given, sentence):
    with pytest.raises(InputError, match=sentence):
        join(*given)


def test_a_first_host_that_is_not_there(monkeypatch):
    monkeypatch.setattr(hosts, "PATIENCE", -1)
    with pytest.raises(InputError, match="the first host cannot be reached"):
        join(address(), 2, 1)
    with pytest.raises(InputError, match="the first host cannot be reached"):
        join("nowhere.invalid:1", 2, 1)


def alone(code, *words):
    """A program on the first of two hosts, the other of which does not come."""
    code = f"import sys; from qsjax.parallel import hosts; hosts.PATIENCE = 1; {code}"
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_hosts_that_do_not_come(tmp_path):
    words = ("sample", "--prompt", "a", "--out", tmp_path / "a.mp4")
    meeting = ("--coordinator", there := address(), "--hosts", 2, "--host", 0)
    done = alone("from qsjax.cli import main; main(sys.argv[1:])", *words, *meeting)
    assert done.returncode == 2
    assert f"error: --coordinator {there}: not all of 2 hosts came in 1 s" in done.stderr
    assert done.stderr.endswith("each with its own --host\n")


def test_a_caller_decides_what_happens_if_hosts_do_not_come():
    end = "give_up=lambda error: (print(error, flush=True), os._exit(7))"
    done = alone(f"import os; hosts.join(there := {address()!r}, 2, 0, {end})")
    assert done.returncode == 7
    assert "not all of 2 hosts came in 1 s" in done.stdout
    assert done.stdout.endswith("each with its own `host`\n")


def test_hosts_without_an_address(capsys, tmp_path):
    words = ["sample", "--prompt", "a", "--hosts", "2", "--out", str(tmp_path / "a.mp4")]
    assert main(words) == 2
    assert "give all three" in capsys.readouterr().err


def test_one_process_is_the_first_and_agrees_with_itself():
    assert is_first()
    assert first_agrees(True)
    assert not first_agrees(False)
