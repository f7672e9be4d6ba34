"""The HTTP service in a thread, with nothing that judges, and a client that can misbehave."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from pipeline.delivery.http.access import Access
from pipeline.delivery.http.app import Service, create_app
from pipeline.delivery.http.receiving import Limits
from pipeline.delivery.http.server import bound, configured
from pipeline.delivery.lights import StandingLights
from pipeline.delivery.queue import Queue
from pipeline.inference import batch

TOKEN = "a-token-of-forty-characters-for-tests-only"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
MODEL = {
    "sha256": "0123456789abcdef" * 4,
    "title": "Shadows & <lights>",
    "scope": ["At least 80 % are referred."],
    "rule": {"usable": True, "not_usable_because": []},
}
see = batch._see


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def why(self) -> str:
        return self.json["detail"]

    @property
    def text(self) -> str:
        return self.body.decode("utf-8")


@dataclass(frozen=True)
class Client:
    """Asks the service on a port; `headers` go with each request."""

    port: int
    headers: Mapping[str, str]

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, {**self.headers, **(headers or {})})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers=headers)

    def raw(self, content: bytes, timeout_s: float = 10.0) -> bytes:
        """Return all that comes back for these bytes until the connection ends; empty when it just ends."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s) as stream:
            stream.sendall(content)
            parts = []
            try:
                while part := stream.recv(65536):
                    parts.append(part)
            except (TimeoutError, ConnectionResetError):
                pass
            return b"".join(parts)

    def with_headers(self, **headers: str) -> Client:
        return Client(self.port, headers)


@dataclass(frozen=True)
class Running:
    """A service that runs: its queue, a client that has the token, and the errors that nobody expected."""

    queue: Queue
    client: Client
    errors: list[Exception]
    judging: list[str]

    @property
    def files(self) -> list[str]:
        """Every file and folder under the queue, relative to it."""
        return sorted(str(path.relative_to(self.queue.root)) for path in self.queue.root.rglob("*"))


@contextmanager
def running(
    folder: Path, model: Mapping[str, Any] = MODEL, lights: StandingLights | None = None, **limits: Any
) -> Iterator[Running]:
    errors: list[Exception] = []
    judging = ["ready"]
    queue = Queue(folder)
    service = Service(
        queue=queue,
        model=model,
        access=Access(TOKEN),
        limits=Limits(**{"free_mb": 1, **limits}),
        judging=lambda: judging[0],
        watch=lambda: None,
        lights=lights or StandingLights(queue.root, None, "Nothing is watched here."),
        report=errors.append,
    )
    listener = bound("127.0.0.1", 0)
    server = uvicorn.Server(configured(create_app(service)))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    try:
        yield Running(queue, Client(listener.getsockname()[1], BEARER), errors, judging)
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


def see_or_die(task: batch.Task, group: batch.Group) -> batch.Seen:
    """Read a study as a worker does, or end the worker as a decoder does that crashes."""
    if b"crash the decoder" in Path(group.sources[0].file).read_bytes():
        os.kill(os.getpid(), signal.SIGSEGV)
    return see(task, group)
