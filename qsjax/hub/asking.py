"""One request to the hub: bounded in bytes, in time and in patience.

The hub's own client has headers, tokens and proxies; a body of any length or slowness is its caller's affair, and so is a
server that asks for an hour of waiting.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import close_session, get_session
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from qsjax.errors import InputError

logger = logging.getLogger(__name__)

TIMEOUT = 30.0
"""Seconds for a connection, and from one arrival of bytes to the next."""
PERIOD = 60.0
"""Seconds in which at least `LEAST` bytes arrive."""
LEAST = 60 << 10
LONGEST_WAIT = 60.0
"""Seconds that a server may ask to wait."""
TRIES = 5
_BUSY = (429, 500, 502, 503, 504)


class Unavailable(Exception):
    """The connection broke, or nothing came: to be tried again."""


class NoRanges(Exception):
    """The server sends all of a file where a part of it was asked for."""


class Busy(Unavailable):
    """The server is busy.

    Attributes:
        wait: seconds that it asks for, or None.
    """

    def __init__(self, reason: str, wait: float | None) -> None:
        super().__init__(reason)
        self.wait = wait


@contextmanager
def answer(
    url: str, *, first: int = 0, last: int | None = None
) -> Generator[Iterator[bytes], None, None]:
    """Ask for a file from byte `first` on, to its end or byte `last`.

    Yields:
        Its blocks as they arrive, uncompressed.

    Raises:
        Unavailable, NoRanges: see there.
        InputError: the token can be none, or the answer is compressed, slower than `LEAST` bytes in `PERIOD` seconds, or asks for a long wait.
        HfHubHTTPError: any other answer that is none.
    """
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    token = headers.get("authorization", "")
    if not (token.isascii() and token.isprintable()):
        raise InputError(
            "the token for the hub has characters that no token has; look at HF_TOKEN, or do `hf auth login` once more"
        )
    if first or last is not None:
        headers["Range"] = f"bytes={first}-{'' if last is None else last}"
    with _watched() as count, _broken():
        asked = get_session().stream(
            "GET", url, headers=headers, timeout=TIMEOUT, follow_redirects=True
        )
        with asked as response:
            _check(response)
            if "Range" in headers and response.status_code != 206:
                raise NoRanges
            place = response.headers.get("Content-Range", "")
            if response.status_code == 206 and not place.startswith(f"bytes {first}-"):
                raise InputError("the hub sends another part of the file than was asked for")

            def blocks() -> Iterator[bytes]:
                for block in response.iter_raw():
                    count(len(block))
                    yield block

            yield blocks()


def patiently(ask: Callable[[], bool]) -> None:
    """Call `ask` until it raises `Unavailable` no more: at most `TRIES` times in a row that bring nothing.

    Args:
        ask: what to do; returns whether it is done, and False if it got a part only.

    Raises:
        Unavailable: the last one.
        InputError: the server asks for a long wait.
    """
    failed = 0
    while True:
        try:
            if ask():
                return
            failed = 0
        except Unavailable as error:
            failed += 1
            asked = error.wait if isinstance(error, Busy) else None
            wait = min(2.0**failed, 8.0) if asked is None else asked
            if wait > LONGEST_WAIT:
                raise InputError(
                    f"the hub is busy and asks to wait {wait:.0f} s; do the same again then, it goes on where it stopped"
                ) from error
            if failed >= TRIES:
                raise
            logger.info("the hub: %s; tried again in %.0f s", error, wait)
            pause(wait)


def pause(seconds: float) -> None:
    """Wait."""
    time.sleep(seconds)


def hang_up() -> None:
    """Close the connections of all threads; what they wait for ends with `Unavailable`."""
    close_session()


def _check(response: Any) -> None:
    if response.status_code in _BUSY:
        asked = response.headers.get("Retry-After", "")
        wait = float(asked[:12]) if asked.isdecimal() else None
        raise Busy(f"the hub answers {response.status_code}", wait)
    if response.status_code >= 400:
        # What is in the body of a refusal is not read; the headers say what it is about.
        kept = {name: value for name, value in response.headers.items() if name == "x-error-code"}
        hf_raise_for_status(
            type(response)(
                response.status_code, headers=kept, content=b"{}", request=response.request
            )
        )
    if response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise InputError("the hub sends it compressed, which was not asked for; try again later")


@contextmanager
def _watched() -> Generator[Callable[[int], None], None, None]:
    """Count what arrives; a connection that brings less than `LEAST` bytes in `PERIOD` seconds is closed.

    A server that sends a byte now and then, of the headers too, never runs into a timeout between two of them.
    """
    arrived, done, slow = [0], threading.Event(), threading.Event()

    def count(size: int) -> None:
        arrived[0] += size

    def watch() -> None:
        before = 0
        while not done.wait(PERIOD):
            if arrived[0] - before < LEAST:
                slow.set()
                close_session()
                return
            before = arrived[0]

    watcher = threading.Thread(target=watch, name="qsjax-hub-watch", daemon=True)
    watcher.start()
    try:
        yield count
    except Exception as error:
        if slow.is_set():
            raise InputError(
                f"the hub sends less than {LEAST} bytes in {PERIOD:.0f} s; do the same again later, it goes on where it stopped"
            ) from error
        raise
    finally:
        done.set()
        watcher.join()


@contextmanager
def _broken() -> Generator[None, None, None]:
    """Errors of the client's connection as `Unavailable`.

    Its HTTP library differs between releases: what they have in common is the names.
    """
    try:
        yield
    except Exception as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        hung_up = isinstance(error, RuntimeError) and "closed" in str(error)  # by another thread
        if (
            kinds & {"TransportError", "StreamError"}
            or isinstance(error, ConnectionError | TimeoutError)
            or hung_up
        ):
            raise Unavailable(
                (str(error).strip().splitlines() or [type(error).__name__])[0]
            ) from error
        raise
