"""The command line: `qsjax VERB`. One module per verb, imported when that verb is used.

Progress and messages go to stderr, results to stdout (`--json`: machine-readable). An error that the user
can fix is one line and exit status 2; Ctrl-C is exit status 130. One that nobody foresaw is one line too, exit status 1,
and a file with its traceback.
"""

import argparse
import gc
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

VERBS = {
    "demo": "the whole way on the bundled tiny model, offline, on any CPU: convert, calibrate to W4A8, sample in four ways",
    "convert": "PyTorch weights of HunyuanVideo into a checkpoint, and back with --export",
    "calibrate": "a quantized checkpoint from a float one, block by block",
    "sample": "a video from a prompt",
    "ui": "a page in the browser: prompt, previews, videos beside full precision, history",
    "serve": "videos by HTTP: OpenAI's Videos API, a queue, one resident model",
    "plan": "what fits where, before anything is loaded: bytes, operations, estimated seconds, hours of calibration",
    "evaluate": "compressed models against full precision: PSNR, SSIM and velocity errors, paired",
    "doctor": "what this machine has, and which implementations would run on it",
    "bench": "how fast: kernels, the transformer, a whole run, a conversion, measured here or estimated for a TPU",
}


_MOST_IN_USAGE = 6
"""Options that the first line of a help names one by one."""


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows default values; for options without one, the help text itself says what happens."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False or action.default in ("", [])
        return action.help if silent else super()._get_help_string(action)

    def _format_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any) -> str:
        """Forty options are no line to read: they stand below, each with its meaning."""
        listed = [action for action in actions if action.option_strings and not action.required]
        if len(listed) > _MOST_IN_USAGE:
            others = [action for action in actions if action not in listed]
            full = super()._format_usage(usage, others, groups, prefix)
            head = f"usage: {self._prog}"
            return full.replace(head, f"{head} [options]", 1)
        return super()._format_usage(usage, actions, groups, prefix)


def build_parser(verb: str | None = None) -> argparse.ArgumentParser:
    """The parser: all verbs are listed, but only `verb` gets its arguments."""
    from qsjax import __version__

    parser = argparse.ArgumentParser(
        prog="qsjax",
        description="HunyuanVideo-13B in JAX: converted, quantized, and sampled with sparse attention.",
        epilog="Begin with `qsjax demo`. `qsjax VERB --help` shows what a verb takes.",
    )
    parser.add_argument("--version", action="version", version=f"qsjax {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, summary in VERBS.items():
        child = verbs.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=_Help,
        )
        if name == verb:
            from qsjax.cli.options import Options

            importlib.import_module(f"qsjax.cli.{name}").add_arguments(Options(child))
    return parser


def _no_such_option(args: argparse.Namespace, unknown: Sequence[str]) -> str:
    """The sentence for words that a command does not take."""
    from qsjax.config import close_to
    from qsjax.untrusted import shown

    command, word = args.options.parser.prog, unknown[0].partition("=")[0]
    if word.removeprefix("--") in args.options.actions:
        return f"{shown(word, 40)}: options stand after the command, as in `{command} {word}`"
    near = close_to(word, [f"--{name}" for name in args.options.actions])
    hint = f"did you mean {near}? " if near else ""
    return f"{shown(word, 40)}: `{command}` takes no such argument; {hint}`{command} --help` lists what it takes"


def _collect_seldom() -> None:
    """Let Python look for garbage seldom: imports and tracing make a million objects that live, and to walk through all of them
    again and again takes a fifth of a start's processor time. Models are collected where they are dropped."""
    gc.set_threshold(50_000, 20, 100)


def _end_while_compiling(status: int) -> None:
    """End the process if a program is being compiled in a thread: Python would wait for it, perhaps for minutes."""
    compiling = sys.modules.get("qsjax.compiling")
    if compiling is not None and compiling.busy():
        sys.stdout.flush()
        os._exit(status)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    verb = next((word for word in arguments if word in VERBS), None)
    parser = build_parser(verb)
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        print(f"error: {_no_such_option(args, unknown)}", file=sys.stderr)
        return 2
    if verb is not None and getattr(args, "config", None) is not None:
        args.options.find_typed(arguments[arguments.index(verb) + 1 :])
    from qsjax.cache import keep_programs  # `--help` is printed by now
    from qsjax.crash import refusal, report_crash
    from qsjax.errors import QsjaxError, on_command_line

    keep_programs()
    if argv is None:
        _collect_seldom()
    logger = logging.getLogger("qsjax")
    handler = logging.StreamHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a library may have given the root logger a handler of its own
    try:
        return importlib.import_module(f"qsjax.cli.{args.verb}").run(args)
    except QsjaxError as error:
        print(f"error: {on_command_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        if argv is None:
            _end_while_compiling(130)
        return 130
    except Exception as error:
        if isinstance(error, NotImplementedError):
            from pallas_kernels import UnsupportedError  # imports JAX, which is loaded by now

            if isinstance(error, UnsupportedError):
                print(f"error: {error}", file=sys.stderr)
                return 2
        if isinstance(error, BrokenPipeError):
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (else Python writes to the pipe once more when it ends)
            return 1
        if (reason := refusal(error)) is not None:
            print(f"error: {reason}", file=sys.stderr)
            return 2
        print(f"error: {report_crash(error)}", file=sys.stderr, flush=True)
        if argv is None:
            _end_while_compiling(1)
        return 1
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
