"""Messages of errors: arguments for a Python caller, options for the user of a command."""

import ast
import re
from pathlib import Path

import pytest
from command_lines import COMMANDS

import convert
import qsjax
from qsjax.cli import main
from qsjax.errors import InputError, on_command_line
from qsjax.tiny import evaluate, train
from qsjax.video import check_writable

LIBRARY = [
    path
    for package in (qsjax, convert)
    for path in Path(package.__file__).parent.rglob("*.py")
    if path.parent.name != "cli" and path.name != "__main__.py"
]


@pytest.mark.parametrize(
    ("message", "typed"),
    [
        ("pass `overwrite=True` to replace it", "pass --overwrite to replace it"),
        ("leave `weights` out", "leave --weights out"),
        ("`text_storage='int8'`", "--text-storage int8"),
        ("(`frames=61, height=720, width=1280`)", "(--frames 61 --height 720 --width 1280)"),
        ("`residual.store='int4'`; or", "--residual.store int4; or"),
        ("`sparsity.profiled_rows=64`", "--sparsity.profiled-rows 64"),
        ('`captions="it\'s/a file"`', """--captions 'it'"'"'s/a file'"""),
        (r"`captions='a\\b'`", r"--captions 'a\b'"),
        ("`save_prompts`, `load_prompts`", "--save-prompt, --encoded-prompt"),
        ("leave `plot_to` out", "leave --plot out"),
        ("`pip install diffusers` or `dtype`", "`pip install diffusers` or --dtype"),
        ("`qsjax convert SRC DST`, 'a' `B`", "`qsjax convert SRC DST`, 'a' `B`"),
    ],
)
def test_arguments_become_options(message, typed):
    assert on_command_line(InputError(message)) == typed


def test_one_error_for_both(tmp_path, capsys):
    out = tmp_path / "a.mp4"
    out.touch()
    with pytest.raises(InputError, match="exists already; pass `overwrite=True` to replace it"):
        check_writable(out, overwrite=False)
    assert main(["sample", "--prompt", "a", "--out", str(out)]) == 2
    assert "exists already; pass --overwrite to replace it" in capsys.readouterr().err


def errors_made():
    """Place and source of every call in the library that makes an error."""
    for path in LIBRARY:
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("InputError", "CheckpointError"):  # fmt: skip
                yield f"{path}:{node.lineno}", ast.get_source_segment(source, node)


def test_the_library_names_arguments_and_every_one_is_an_option(capsys):
    for command, *words in [
        *((main, *words) for words in COMMANDS),
        (train.main,),
        (evaluate.main,),
    ]:
        with pytest.raises(SystemExit):
            command([*words, "--help"])
    options = set(re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out))
    names = 0
    for place, source in errors_made():
        assert not re.search(r"[^\w]--[a-z]", re.sub("`[^`]+`", "", source)), place
        for name in re.findall(r"`([a-z][\w.]*)(?:=[^`]*)?`", source):
            names += 1
            assert on_command_line(f"`{name}`") in options, (place, name)
    assert names > 20
