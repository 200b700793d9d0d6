"""Every kind of long work, killed at random changes of the file system one after the other: the last start finishes it whole.

Downloads are in tests/hub: what they change is one file that grows.
"""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from calibration.calibration_models import random_checkpoint

from convert.bundled import tiny_model_directory
from qsjax.checkpoint import Manifest

CUT = Path(__file__).with_name("cut.py")
CUTS = {"conversion": 10, "calibration": 3, "four blocks": 20, "sampling": 10, "prompts": 20}
SMALL = ("--frames", "9", "--height", "32", "--width", "32", "--steps", "2")


def start(at, folder, words):
    command = [sys.executable, str(CUT), str(at), str(folder), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def contents(checkpoint):
    """Checksums of everything in a checkpoint, and no more than that beside it."""
    manifest = Manifest.read(checkpoint)
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]
    leaves = {
        (component, item, leaf): spec["sha256"]
        for component in manifest.data["components"]
        for item, leaf, spec in manifest.leaves(component)
    }
    return leaves, manifest.data["files"]


def frames(video):
    assert [path.name for path in video.parent.iterdir()] == [video.name]
    with av.open(str(video)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def videos(folder):
    """The bytes of all videos, and nothing else in their folder or beside it."""
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    return {path.name: path.read_bytes() for path in folder.iterdir()}


WORK = {
    "conversion": ("out", contents, ("convert", "SOURCE", "OUT", "--quantize", "rtn-w4a8")),
    "calibration": ("out", contents, ("calibrate", "--model", "FLOAT", "--out", "OUT", "--samples", "2", "--epochs", "1", "--tune-steps", "4", *SMALL)),
    "four blocks": ("out", contents, ("four-blocks", "FOUR", "OUT")),
    "prompts": ("out", videos, ("sample", "--model", "FLOAT", "--out", "OUT", "--prompts", "PROMPTS", *SMALL)),
    "sampling": ("out.mp4", frames, ("sample", "--model", "FLOAT", "--out", "OUT", "--prompt", "a red circle", *SMALL)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", WORK)
def test_power_cuts(kind, tiny_checkpoint, tmp_path):
    name, look, words = WORK[kind]
    (tmp_path / "floats").mkdir()
    four = random_checkpoint(tmp_path / "floats") if "FOUR" in words else None

    (tmp_path / "prompts.txt").write_text("a red circle\na blue square moves up\na green square\n")

    def run(folder, at):
        (tmp_path / folder).mkdir(exist_ok=True)
        places = {
            "SOURCE": tiny_model_directory(),
            "FLOAT": tiny_checkpoint,
            "FOUR": four,
            "PROMPTS": tmp_path / "prompts.txt",
            "OUT": tmp_path / folder / name,
        }
        return start(at, tmp_path / folder, [places.get(word, word) for word in words])

    whole = run("whole", 0)
    assert whole.returncode == 0, whole.stderr[-2000:]
    events = int(whole.stdout.splitlines()[-1])
    assert events >= 2
    noise, done = random.Random(kind), []
    # Where less is left to do than the number drawn, the work ends; then it is begun anew.
    for _ in range(CUTS[kind]):
        at = noise.randint(1, events)
        cut = run("cut", at)
        assert cut.returncode in (0, -signal.SIGKILL), cut.stderr[-2000:]
        done.append((at, cut.returncode))
        if cut.returncode == 0:
            compare(look, tmp_path, name)
            clear(tmp_path / "cut")
    last = run("cut", 0)
    assert last.returncode == 0, last.stderr[-2000:]
    compare(look, tmp_path, name)
    print(json.dumps({"kind": kind, "events": events, "cuts": done}))
    assert sum(code != 0 for _, code in done) >= CUTS[kind] / 2


def compare(look, folder, name):
    one, other = (look(folder / place / name) for place in ("whole", "cut"))
    if isinstance(one, np.ndarray):
        np.testing.assert_array_equal(other, one)
    else:
        assert other == one


def clear(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
