"""The command line: `qsjax VERB`. One module per verb, imported when that verb is used.

Progress and messages go to stderr, results to stdout (`--json`: machine-readable). An error that the user
can fix is one line and exit status 2; Ctrl-C is exit status 130. One that nobody foresaw is one line too, exit status 1,
and a file with its traceback.
"""

import argparse
import importlib
import logging
import os
import sys

VERBS = {
    "demo": "convert the bundled tiny model, calibrate it to W4A8 and sample three videos with both, offline, on any CPU",
    "convert": "PyTorch weights of HunyuanVideo into a checkpoint, and back with --export",
    "calibrate": "a quantized checkpoint from a float one, block by block",
    "sample": "a video from a prompt",
    "ui": "a page in the browser: prompt, previews, videos beside full precision, history",
    "serve": "videos by HTTP: OpenAI's Videos API, a queue, one resident model",
    "plan": "what fits where, before anything is loaded: bytes, operations, hours of calibration",
    "evaluate": "compressed models against full precision: PSNR, SSIM and velocity errors, paired",
    "doctor": "what this machine has, and which implementations would run on it",
    "bench": "measure the transformer against PyTorch, and the kernels against what the hardware allows",
}


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows default values; for options without one, the help text itself says what happens."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def build_parser(verb: str | None = None) -> argparse.ArgumentParser:
    """The parser: all verbs are listed, but only `verb` gets its arguments."""
    from qsjax import __version__

    parser = argparse.ArgumentParser(prog="qsjax", description="HunyuanVideo in JAX.")
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

            options = Options(child)
            importlib.import_module(f"qsjax.cli.{name}").add_arguments(options)
            child.set_defaults(options=options)  # for `--config`
    return parser


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
    args = parser.parse_args(arguments)
    if verb is not None and getattr(args, "config", None) is not None:
        args.options.find_typed(arguments[arguments.index(verb) + 1 :])
    from qsjax.cache import keep_programs  # `--help` is printed by now
    from qsjax.crash import refusal, report_crash
    from qsjax.errors import QsjaxError, on_command_line

    keep_programs()
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
