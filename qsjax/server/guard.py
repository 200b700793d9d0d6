"""Who may ask: the key, and without one only this machine's own programs."""

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from qsjax.server.told import refused

OPEN = ("/health", "/ready")
"""Answered to everybody."""
_HERE = ("127.0.0.1", "localhost", "[::1]")


class Guard:
    """Turns away who has no key.

    Without a key, a request whose Host is not this machine's, or that a page of another site sent, is turned away too: browsers on
    this machine would else do what strangers' pages tell them.

    Args:
        app: that is guarded.
        key: that clients send as `Authorization: Bearer KEY`; None is none.
    """

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self._app, self._key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or have the app answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, answer = Headers(scope=scope), None
        if self._key is None:
            host = headers.get("host", "")
            name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
            origin = headers.get("origin")
            if name not in _HERE:
                answer = refused("this server answers to 127.0.0.1 and localhost alone", 403)
            elif origin is not None and origin.partition("://")[2] != host:
                answer = refused("pages of other sites may not ask this server", 403)
        elif scope["path"] not in OPEN and not self._knows(headers.get("authorization", "")):
            answer = refused(
                "no key, or a wrong one; send it as Authorization: Bearer KEY",
                401,
                {"WWW-Authenticate": "Bearer"},
            )
        if answer is None:
            await self._app(scope, receive, send)
        else:
            await answer(scope, receive, send)

    def _knows(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        expected = (self._key or "").encode()
        return scheme.lower() == "bearer" and hmac.compare_digest(key.strip().encode("latin-1"), expected)  # fmt: skip
