"""Fetching what a file lacks: several connections, each of which asks for a piece."""

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from qsjax.errors import InputError
from qsjax.hub.asking import LEAST, NoRanges, Unavailable, answer, hang_up, patiently
from qsjax.hub.pieces import Pieces
from qsjax.progress import Progress

CONNECTIONS = 8
_SHOWN = 64 << 20
"""Bytes of a file that is worth a bar."""
_MORE = "the hub sends more than the {} bytes that it lists; try again later"


def fill(pieces: Pieces, url: str, title: str) -> None:
    """Fetch all that is missing.

    Args:
        pieces: of the file.
        url: of it.
        title: of its progress bar.

    Raises:
        Unavailable: the connection breaks again and again.
        InputError, HfHubHTTPError: as `asking.answer`, or more comes than is listed.
        OSError: the disk refuses.
    """
    counting = threading.Lock()
    shown = pieces.size >= _SHOWN
    with Progress(pieces.size, title, unit="B", initial=pieces.done, enabled=shown) as bar:

        def count(nbytes: int) -> None:
            with counting:
                bar.advance(nbytes)

        try:
            _fill_pieces(pieces, url, count)
        except NoRanges:
            _fill_from_zero(pieces, url, pieces.size, count)


def fill_beginning(pieces: Pieces, url: str, nbytes: int) -> None:
    """Fetch what is missing of the first bytes.

    Raises:
        Unavailable, InputError, HfHubHTTPError, OSError: as `fill`.
    """
    try:
        for number in pieces.unfinished():
            begin, end = pieces.span(number)
            if begin < nbytes:
                end = min(end, nbytes)
                _fill_piece(pieces, number, url, end, lambda _: None, threading.Event())
    except NoRanges:
        _fill_from_zero(pieces, url, nbytes, lambda _: None)


def _fill_pieces(pieces: Pieces, url: str, count: Callable[[int], None]) -> None:
    numbers, stop = pieces.unfinished(), threading.Event()
    if len(numbers) == 1:
        _fill_piece(pieces, numbers[0], url, pieces.span(numbers[0])[1], count, stop)
        return
    with ThreadPoolExecutor(CONNECTIONS, "qsjax-hub") as threads:
        works = [
            threads.submit(_fill_piece, pieces, number, url, pieces.span(number)[1], count, stop)
            for number in numbers
        ]
        try:
            done, _ = wait(works, return_when=FIRST_EXCEPTION)
            for work in done:
                work.result()
        except BaseException as error:
            # Nobody writes any more when this returns: the next one to hold the file is not disturbed.
            stop.set()
            threads.shutdown(wait=False, cancel_futures=True)
            if not isinstance(error, Exception):
                hang_up()
            raise


def _fill_piece(
    pieces: Pieces,
    number: int,
    url: str,
    end: int,
    count: Callable[[int], None],
    stop: threading.Event,
) -> None:
    """Fetch a piece as far as byte `end` of the file, unless `stop` is set."""

    def ask() -> bool:
        first, _ = pieces.span(number)
        if first >= end or stop.is_set():
            return True
        at = first
        try:
            with answer(url, first=first, last=None if end == pieces.size else end - 1) as blocks:
                for block in blocks:
                    if stop.is_set():
                        return True
                    if at + len(block) > end:
                        raise InputError(_MORE.format(pieces.size))
                    pieces.write(number, block)
                    at += len(block)
                    count(len(block))
            if at < end:
                raise Unavailable("the hub ends the file early")
        except Unavailable:
            if at - first < LEAST:
                raise
        return at == end

    patiently(ask)


def _fill_from_zero(pieces: Pieces, url: str, end: int, count: Callable[[int], None]) -> None:
    """Fetch all as far as byte `end` from a server that knows no ranges."""

    def ask() -> bool:
        count(-pieces.done)
        pieces.restart()
        with answer(url) as blocks:
            for block in blocks:
                left = memoryview(block)
                if pieces.done + len(left) > end:
                    if end == pieces.size:
                        raise InputError(_MORE.format(pieces.size))
                    left = left[: end - pieces.done]
                while left:
                    number, within = divmod(pieces.done, pieces.length)
                    part = bytes(left[: pieces.length - within])
                    pieces.write(number, part)
                    count(len(part))
                    left = left[len(part) :]
                if pieces.done == end < pieces.size:
                    return True
        if pieces.done < end:
            raise Unavailable("the hub ends the file early")
        return True

    patiently(ask)
