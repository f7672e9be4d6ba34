"""The service on a port: uvicorn without its logs, and connections that end when nothing comes."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.delivery.http.answers import Guard

HEAD_S = 10.0
MOST_HEAD_BYTES = 16 * 1024
MOST_CONNECTIONS = 512
GRACE_S = 30
PORTS_OF_ROOT = 1024


class ServeError(RuntimeError):
    """The service cannot be served; the message says why and what to do."""


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that waits for the head of a request for so long and no longer, however slowly it comes."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Go on waiting unless the head is complete, and the answer to it under way."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        else:
            self._wait()

    def on_response_complete(self) -> None:
        """Wait for the next request; between two of them, uvicorn's own time for idle connections holds."""
        super().on_response_complete()
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(HEAD_S, self.transport.close)

    def _stop(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that listens there; port 0 takes a free one. Raises ServeError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        raise ServeError(f"{host} is no address of this machine; choose another with --host") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        if isinstance(error, PermissionError):
            raise ServeError(f"port {port} may not be used by this user; choose one from {PORTS_OF_ROOT} on") from None
        raise ServeError(f"port {port} of {host} is in use, or {host} is not this machine's; choose another") from None
    return listener


def configured(app: Guard, certificate: Path | None = None, key: Path | None = None) -> uvicorn.Config:
    """Return how uvicorn serves the app: no log of requests, which name studies, and bounds on what is no body."""
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    return uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        lifespan="on",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        h11_max_incomplete_event_size=MOST_HEAD_BYTES,
        timeout_graceful_shutdown=GRACE_S,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )


def serve(config: uvicorn.Config, listener: socket.socket, started: Callable[[], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; call `started` once the port answers. Raises ServeError for a bad certificate."""
    try:
        config.load()
    except (OSError, ValueError):  # ssl.SSLError is an OSError; its text can name the file
        raise ServeError(
            "certificate and key cannot be used; --ssl-certfile and --ssl-keyfile take PEM files"
        ) from None

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                started()

    # uvicorn raises the signal again once it has stopped, which then has done its work.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with suppress(KeyboardInterrupt):
            Server(config).run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
