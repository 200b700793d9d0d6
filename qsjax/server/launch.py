"""Listens: uvicorn around the application, patient with models and not with clients."""

import asyncio
import logging
import socket
from collections.abc import Callable

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from qsjax.errors import InputError
from qsjax.untrusted import shown

HOST, PORT = "127.0.0.1", 8000
SLOWEST = 10.0
"""Seconds from the first byte of a request, or from the connection, to the end of its head."""
_CONNECTIONS = 256
_HEAD = 32 << 10
"""Bytes of a request's head."""
_GOODBYE = 5
"""Seconds that open connections get at the end."""


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that leaves a client whose request's head does not come in time."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._expect()

    def handle_events(self) -> None:
        """A head that is complete is waited for no longer."""
        super().handle_events()
        if self.conn.their_state is not h11.IDLE:
            self._forget()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        super().on_response_complete()
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._forget()
        super().connection_lost(exc)

    def _expect(self) -> None:
        self._forget()
        self._late = self.loop.call_later(SLOWEST, self.transport.close)

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def listen(
    app: Starlette,
    *,
    host: str = HOST,
    port: int = PORT,
    said: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        app: the application.
        host: address of this machine to listen at.
        port: of it; 0 takes a free one.
        said: called with the address, when clients can connect.

    Raises:
        InputError: the address cannot be listened at.
    """
    with bound(host, port) as listening:
        name = f"[{host}]" if listening.family == socket.AF_INET6 else host
        said(f"http://{name}:{listening.getsockname()[1]}")
        make_server(app).run(sockets=[listening])


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InputError: the address cannot be listened at.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, UnicodeError, ValueError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or "no such name"
        raise InputError(
            f"{shown(host)} port {port}: cannot be listened at ({reason}); name another `host` or `port`"
        ) from error
    listening.listen(_CONNECTIONS)
    return listening


def make_server(app: Starlette) -> uvicorn.Server:
    """Uvicorn with our limits: of connections, and of the size and the time of a request's head."""
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        h11_max_incomplete_event_size=_HEAD,
        timeout_graceful_shutdown=_GOODBYE,
    )
    return uvicorn.Server(config)
