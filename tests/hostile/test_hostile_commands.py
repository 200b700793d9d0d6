"""Command lines that ask for nonsense: one sentence, exit status 2, and nothing is begun."""

import os
from pathlib import Path

import pytest

from qsjax.cli import main

HUGE, LONG = "9" * 400, "x" * 5000
NUMBERS = ("nan", "inf", "-inf", "1e400", HUGE, "-1", "", "0x10", "\x1b[31m", "12e", LONG)
INTEGERS = (*NUMBERS, "1.5", str(2**64), "1_0_")


def _sample(*words: str) -> list[str]:
    return ["sample", "--prompt", "a red circle", "--out", "{new}/out.mp4", *words]


OPTIONS = {
    **{f"--{name}": (*INTEGERS, "0") for name in ("frames", "height", "width", "steps", "fps")},
    "--seed": (*INTEGERS, str(2**64)),
    **{f"--{name}": NUMBERS for name in ("shift", "guidance", "true-cfg")},
    "--devices": (*INTEGERS, "0", "1000000"),
    "--sparsity.density": (*NUMBERS, "0", "1.5"),
    "--sparsity.mass": (*NUMBERS, "0"),
    "--sparsity.block-q": (*INTEGERS, "1000000"),
    "--sparsity.profiled-rows": (*INTEGERS, "0", "1000000"),
    "--sparsity.tile": ("1x1", "0x1x1", "1x1xnan", f"1x1x{HUGE}", LONG),
    "--sparse.interval": (*INTEGERS, "1000000"),
    "--sparse.refresh-at": ("nan", "inf", "2", LONG, ",".join(["0.1"] * 5000)),
    "--sparse.dense-layers": ("-1", HUGE, "x"),
    "--sparse.drift": (*NUMBERS,),
    "--residual.rank": (*INTEGERS, "100000"),
    "--residual.budget": INTEGERS,
    "--skip.threshold": NUMBERS,
    "--skip.coefficients": ("nan", "inf,1", "1e300", LONG),
}
SAMPLES = [_sample(f"{option}={value}") for option, values in OPTIONS.items() for value in values]
OTHERS = [
    *(["calibrate", "--out", "{new}/c", f"--{name}={value}"]
      for name in ("samples", "epochs", "tune-steps", "devices", "frames", "steps")
      for value in (*INTEGERS, str(10**9))),
    *(["plan", f"--{name}={value}"]
      for name in ("text-tokens", "samples", "epochs", "captions", "tune-steps", "frames")
      for value in (*INTEGERS, str(10**12))),
    *(["plan", f"--density={value}"] for value in (*NUMBERS, "0")),
    *(["plan", f"--calibration-size={value}"] for value in ("", "1x1", "0x0x0", f"1x1x{HUGE}", LONG)),
    *(["evaluate", "sparse", "--out", "{new}/e", f"--{name}={value}"]
      for name in ("captions", "samples", "first-caption", "seed") for value in INTEGERS),
    *(["evaluate", "quantization", "--out", "{new}/e", f"--rows={value}"] for value in ("(", "*", "[", LONG, "\x1b[31m")),
    *(["demo", "--out", "{new}/d", f"--steps={value}"] for value in INTEGERS),
    *(["bench", "dit", f"--pairs={value}"] for value in INTEGERS),
    *([verb, "--out", "{new}/v", f"--{name}={value}"]
      for verb in ("ui", "serve") for name in ("port", "max-steps", "max-pixels") for value in INTEGERS),
    *(["serve", "--out", "{new}/v", f"--max-queue={value}"] for value in (*INTEGERS, "0")),
]  # fmt: skip
NAMES = ("", "..", "a\0b", LONG, "nowhere", "\x1b[31mred", "{fifo}", "/dev/zero", "{new}", "\udcff")
FILES = [
    *(_sample("--model", name) for name in NAMES),
    *(_sample("--recipe", name) for name in (*NAMES, "{fifo}.toml", "nowhere.toml", LONG + ".toml")),
    *(_sample("--config", name) for name in NAMES),
    *(["sample", "--out", "{new}/out.mp4", "--encoded-prompt", name] for name in NAMES),
    *(["sample", "--out", "{new}/d", "--prompts", name] for name in NAMES),
    *(["calibrate", "--out", "{new}/c", "--model", name] for name in NAMES),
    *(["calibrate", "--out", "{new}/c", "--captions", name] for name in NAMES),
    *(["convert", name, "{new}/c"] for name in NAMES),
    *(["evaluate", "compare", "--model", name] for name in NAMES),
    *(["plan", "--model", name] for name in NAMES),
    *(["serve", "--port", "0", "--out", "{new}/v", f"--{option}", name]
      for option in ("model", "host", "api-key-file") for name in NAMES),
    *(["serve", "--port", "0", "--out", name] for name in ("a\0b", LONG, "/dev/zero", "/proc/x", "{fifo}")),
    *(["plan", "--device", name] for name in NAMES if name),
    *(["sample", "--prompt", "a", "--out", name] for name in ("a\0b", LONG, "{new}", "/dev/zero", "/proc/x/y.mp4")),
]  # fmt: skip
CONFIGS = {
    "nan": "shift = nan", "infinity": "guidance = inf", "deep": "a = " + "[" * 3000 + "]" * 3000,
    "integer": f"seed = {HUGE}", "no TOML": "= = =", "bytes": b"\xff\xfe", "unknown": 'colour = "red"',
    "type": 'dtype = "int8"', "list": "negative-prompt = [1, 2]", "table": "[negative-prompt]\na = 1", "date": "steps = 1979-05-27",
    "dtype": "dtype = 3", "steps": 'steps = "many"', "large": "a = '" + "x" * (1 << 21) + "'", "model": 'model = "\\u001b[31m"',
    "frames": "frames = 1e9",
}  # fmt: skip


def _refused(words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must be refused; what it wrote to standard error."""
    fifo = folder / "pipe"
    if not fifo.exists():
        os.mkfifo(fifo)
        os.mkfifo(folder / "pipe.toml")
    before = sorted(folder.rglob("*"))
    words = [word.replace("{new}", str(folder)).replace("{fifo}", str(fifo)) for word in words]
    try:
        status = main(words)
    except SystemExit as end:  # argparse
        status = end.code
    message = capsys.readouterr().err
    assert status == 2, message
    assert "Traceback" not in message
    lines = [line for line in message.splitlines() if "error: " in line]
    assert len(lines) == 1, message
    assert len(lines[0]) < 1500
    assert lines[0].isprintable()
    assert sorted(folder.rglob("*")) == before
    return lines[0]


def _name(words: list[str]) -> str:
    return ascii(" ".join([words[0], *words[-2:]]))[:60]


@pytest.mark.parametrize("words", [*SAMPLES, *OTHERS], ids=_name)
def test_numbers(words, tmp_path, capsys):
    _refused(words, tmp_path, capsys)


@pytest.mark.parametrize("words", FILES, ids=_name)
def test_files_and_folders(words, tmp_path, capsys):
    _refused(words, tmp_path, capsys)


@pytest.mark.parametrize("content", CONFIGS.values(), ids=CONFIGS)
def test_option_files(content, tmp_path, capsys):
    file = tmp_path / "options.toml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    _refused(_sample("--config", str(file)), tmp_path, capsys)
