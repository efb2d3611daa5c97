"""Stands before the app: key, size of the body, and counting. Plain ASGI, so that nothing is read too early."""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException

from nlrl.backbones.engine.server.errors import ApiError
from nlrl.backbones.engine.server.metrics import HUNG_UP, ServerMetrics

OPEN_PATHS = frozenset({"/health"})
"""Answered without a key."""
_PATIENCE = 64 << 20
"""Bytes of a body that is too large that are still read, for its client to see the refusal: most clients read no answer
before they have sent everything."""


class Guard:
    """ASGI middleware.

    Args:
        api_key: what `Authorization: Bearer ...` must hold; empty: no key is asked for.
        max_bytes: of a request's body.
        routes: paths that are counted under their own name.
        local: answer programs of this machine only, and none that a web page of another place speaks through: a
            browser sends what any page asks it to, to loopback addresses, too, and a page may give its own name to one.
    """

    def __init__(
        self,
        app: Any,
        *,
        api_key: str,
        max_bytes: int,
        metrics: ServerMetrics,
        routes: frozenset[str],
        local: bool = False,
    ) -> None:
        self._app, self._metrics, self._routes = app, metrics, routes
        self._key, self._max_bytes, self._local = api_key.encode(), max_bytes, local

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = scope["path"] if scope["path"] in self._routes else "other"
        watched = _Watched(receive, send, self._max_bytes)
        with self._metrics.open.track_inprogress():
            try:
                await self._answer(scope, watched)
            finally:
                self._count(route, watched)

    async def _answer(self, scope: Any, watched: _Watched) -> None:
        try:
            if self._local:
                _check_local(dict(scope["headers"]))
            self._check_key(scope["path"], dict(scope["headers"]))
        except ApiError as error:
            await error.response()(scope, watched.receive, watched.send)
            return
        await self._app(scope, watched.receive, watched.send)

    def _check_key(self, path: str, headers: Mapping[bytes, bytes]) -> None:
        if not self._key or path in OPEN_PATHS:
            return
        kind, _, key = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._key):
            message = "this server wants its API key in the header `Authorization: Bearer KEY`"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _count(self, route: str, watched: _Watched) -> None:
        status = HUNG_UP if watched.hung_up else str(watched.status)
        self._metrics.requests.labels(route, status).inc()
        self._metrics.seconds.labels(route).observe(time.perf_counter() - watched.started)
        if watched.first is not None:
            self._metrics.first.labels(route).observe(watched.first - watched.started)


def _check_local(headers: Mapping[bytes, bytes]) -> None:
    origin = headers.get(b"origin", b"").decode("latin-1")
    host = f"//{headers.get(b'host', b'').decode('latin-1')}"
    for address in (host, origin) if origin else (host,):
        try:
            name = urlsplit(address).hostname or ""
            own = name == "localhost" or ip_address(name).is_loopback
        except ValueError:
            own = False
        if not own:
            raise ApiError(403, "without a key this server answers this machine alone, by its loopback address")


class _Watched:
    """One request's `receive` and `send`, and what went through them."""

    def __init__(self, receive: Any, send: Any, max_bytes: int) -> None:
        self._receive, self._send, self._max_bytes = receive, send, max_bytes
        self.started = time.perf_counter()
        self.first: float | None = None
        self.status = 500
        self.hung_up = False
        self._ended = False
        self._read = 0

    async def receive(self) -> Any:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.hung_up = self.hung_up or not self._ended
        self._read += len(message.get("body", b""))
        if self._read > self._max_bytes:
            await self._drain(message)
            raise HTTPException(413, f"the body of a request may have {self._max_bytes} bytes at most")
        return message

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            self.first = self.first or time.perf_counter()
            self._ended = not message.get("more_body", False)
        await self._send(message)

    async def _drain(self, message: Any) -> None:
        """Reads the rest of a body and forgets it."""
        left = _PATIENCE
        while message.get("more_body", False) and left > 0:
            message = await self._receive()
            left -= len(message.get("body", b""))
