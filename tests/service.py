"""The HTTP service in a thread, with nothing that judges, and a client that can misbehave."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
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
ROW = {
    "study": "",
    "images": 1,
    "decision": "refer",
    "reasons": [],
    "score": 1.25,
    "probability": 0.8,
    "probability_low": 0.7,
    "probability_high": 0.9,
    "threshold": 0.5,
    "typical": False,
    "most_unusual": "size",
    "remarks": [],
    "header_unlike_training": [],
    "model_sha256": MODEL["sha256"],
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
        # A folder may be gone between its being listed and its being looked into.
        found = [Path(folder, name) for folder, folders, files in os.walk(self.queue.root) for name in folders + files]
        return sorted(str(path.relative_to(self.queue.root)) for path in found)


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


def judged(up: Running, name: str = "", **row) -> str:
    """Put a finished study into the queue, as the process that judges does."""
    entry = up.queue.receive("http", name)
    up.queue.submit(entry)
    for taken in up.queue.take(99):
        model = {"title": MODEL["title"], "sha256": MODEL["sha256"], "usable": True}
        content = {"id": taken.id, "name": taken.name, "received": taken.received, "judged": taken.received}
        content |= {"model": model, "why": [], "quarantine": [], "result": {**ROW, "study": taken.id, **row}}
        picture = b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8" viewBox="0 0 8 8"></svg>'
        results = {"result.json": json.dumps(content).encode(), "page.pdf": b"%PDF-1.7", "image.svg": picture}
        up.queue.finish(taken, results)
    return entry.id


def browser(up: Running):
    """Return a client that has logged in as a browser does, and what its forms hold."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = up.client.with_headers().ask("POST", "/login", f"token={TOKEN}", form)
    assert (answer.status, answer.headers["location"]) == (303, "/")
    client = up.client.with_headers(Cookie=answer.headers["set-cookie"].partition(";")[0])
    return client, re.search(r'name="form" value="([^"]+)"', client.get("/").text)[1]


def started(folder: Path, model: Path, *more: str) -> tuple[subprocess.Popen, Client]:
    """Start `maescreen serve` as a process, and wait until it answers."""
    token = folder / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    options = ["--queue", str(folder / "queue"), "--token-file", str(token), "--port", "0"]
    options += ["--workers", "1", "--threads", "1", "--device", "cpu", *more]
    command = [sys.executable, "-m", "pipeline.cli", "serve", str(model), *options]
    with (folder / "said.txt").open("a") as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)
    address = process.stdout.readline().strip()
    assert address.startswith("http://127.0.0.1:"), (folder / "said.txt").read_text()
    return process, Client(int(address.rstrip("/").rpartition(":")[2]), BEARER)


def see_or_die(task: batch.Task, group: batch.Group) -> batch.Seen:
    """Read a study as a worker does, or end the worker as a decoder does that crashes."""
    if b"crash the decoder" in Path(group.sources[0].file).read_bytes():
        os.kill(os.getpid(), signal.SIGSEGV)
    return see(task, group)
