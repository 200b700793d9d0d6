"""`qsjax serve`: videos by HTTP."""

import argparse
import json
import logging
import os
from pathlib import Path

from qsjax.address import install
from qsjax.cli.numbers import whole
from qsjax.cli.options import Options, with_config
from qsjax.cli.resident import GOODBYE, add_resident, make_maker
from qsjax.errors import InputError
from qsjax.untrusted import read_text
from qsjax.untrusted.files import shown_path

_KEY = "QSJAX_API_KEY"
_SHORTEST = 16
"""Characters of a key."""
_HERE = ("127.0.0.1", "localhost", "::1")


def add_arguments(options: Options) -> None:
    """The options of `qsjax serve`."""
    add_resident(options, port=8000)
    options.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; another than this machine's needs a key"
    )  # fmt: skip
    options.add_argument(
        "--api-key-file",
        metavar="FILE",
        type=Path,
        help=f"file that holds the key which clients send (default: the variable {_KEY}, else no key)",
    )
    options.add_argument(
        "--max-queue",
        type=whole(1, 10_000),
        default=64,
        help="videos that wait or are made, at most; more are refused with status 429",
    )
    options.add_argument("--name", help="name of the model for clients (default: its folder's)")


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C.

    Raises:
        QsjaxError: an error that the user can fix.
    """
    args = with_config(args.options, args)
    key = _key(args)
    if key is None and args.host not in _HERE:
        raise InputError(
            f"--host {args.host[:80]}: others could use this server; set {_KEY} or give --api-key-file, or leave --host out"
        )
    try:
        from qsjax.server.app import make_app
        from qsjax.server.launch import listen
    except ImportError as error:
        raise InputError(f"the server needs {install('serve')}") from error
    from qsjax.serving import TaskQueue

    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # clients' mistakes are theirs
    maker = make_maker(args, reference=None, preview=0)
    name = args.name or (
        "tiny" if args.model == "tiny" else maker.pipeline.directory.resolve().name
    )
    with maker.folder.held("serve"):
        queue = TaskQueue(maker, limit=args.max_queue, warm=maker.warm)
        try:
            app = make_app(maker, queue, model=name, key=key)
            listen(
                app, host=args.host, port=args.port, said=lambda address: _say(args, address, key)
            )
        finally:
            queue.close(GOODBYE)
    return 0


def _say(args: argparse.Namespace, address: str, key: str | None) -> None:
    if args.json:
        print(json.dumps({"address": address, "out": str(args.out)}), flush=True)
        return
    who = "clients need the key" if key else "this machine alone, without a key"
    print(f"{address}/v1/videos ({who}; videos go into {args.out}; Ctrl-C ends it)", flush=True)


def _key(args: argparse.Namespace) -> str | None:
    """The key; never an option itself, which every user of the machine could read."""
    if args.api_key_file is not None:
        key, source = read_text(args.api_key_file).strip(), shown_path(args.api_key_file)
    else:
        key, source = os.environ.get(_KEY), _KEY
    if key is None:
        return None
    if len(key) < _SHORTEST or not (key.isascii() and key.isprintable()) or " " in key:
        raise InputError(f"{source}: a key is one word of {_SHORTEST} characters or more, letters and digits; make a longer one")  # fmt: skip
    return key
