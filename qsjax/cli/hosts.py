"""Options of a run on several hosts, and how they meet."""

import argparse
import os
import sys
from pathlib import Path

from qsjax.cli.numbers import whole
from qsjax.cli.options import Options
from qsjax.errors import InputError, QsjaxError, on_command_line


def add_hosts(options: Options) -> None:
    """Add `--coordinator`, `--hosts` and `--host`."""
    options.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="to run on several hosts: address of the first host, or 'auto' on Cloud TPUs and under Slurm. Start the same command"
        " on each host; --devices counts the devices of all hosts, and the first host writes the file",
    )
    options.add_argument(
        "--hosts", type=whole(1, 65_536), help="with --coordinator HOST:PORT: number of hosts"
    )
    options.add_argument(
        "--host",
        type=whole(0, 65_535),
        help="with --coordinator HOST:PORT: number of this host, from 0",
    )


def join_hosts(args: argparse.Namespace, target: Path) -> bool:
    """Join the other hosts, if there are any, and check that the first host can write its file.

    Args:
        args: the parsed arguments.
        target: the file.

    Returns:
        Whether this is the first host, which writes the file.
    """
    from qsjax.video import check_writable

    if args.coordinator is None:
        if args.hosts is not None or args.host is not None:
            raise InputError("--hosts and --host go with --coordinator HOST:PORT; give all three")
        check_writable(target, overwrite=args.overwrite)
        return True
    from qsjax.parallel import first_agrees, is_first, join

    join(args.coordinator, args.hosts, args.host, give_up=_end)
    problem = None
    if is_first():
        try:
            check_writable(target, overwrite=args.overwrite)
        except InputError as error:
            problem = error
    if not first_agrees(problem is None):
        raise problem or InputError("the first host cannot write its file; its message says why")
    return is_first()


def _end(error: QsjaxError) -> None:
    """Print an error and end the process at once: the main thread waits inside JAX, where no exception reaches it."""
    print(f"error: {on_command_line(error)}", file=sys.stderr, flush=True)
    os._exit(2)
