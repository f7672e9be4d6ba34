"""serve: the model as a service on this machine, its queue on disk, and the process that judges."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.commands import failures, models
from pipeline.delivery.http.access import Access, read_token
from pipeline.delivery.http.app import Service, create_app
from pipeline.delivery.http.receiving import Limits
from pipeline.delivery.http.server import ServeError, bound, configured
from pipeline.delivery.http.server import serve as run
from pipeline.delivery.lights import StandingLights
from pipeline.delivery.queue import Queue
from pipeline.delivery.worker_process import Options, WorkerProcess
from pipeline.inference.model_folder import verified


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the service is found, and by which token; `certificate` and `key` are PEM files for https."""

    host: str
    port: int
    token_file: Path
    certificate: Path | None = None
    key: Path | None = None

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def serve(
    place: Place,
    queue_folder: Path,
    options: Options,
    limits: Limits,
    say: Callable[[str], None],
    announce: Callable[[str], None],
) -> None:
    """Serve until a signal asks to end; `announce` is told the address once it answers.

    Raises TokenError, QueueError, ModelError and ServeError when something cannot be used.
    """
    token = read_token(place.token_file)
    if (place.certificate is None) != (place.key is None):
        raise ServeError("https needs both --ssl-certfile and --ssl-keyfile")
    content, sha256 = verified(options.model)
    told = models.info(content, sha256)
    queue = Queue(queue_folder)
    listener = bound(place.host, place.port)
    worker = WorkerProcess(queue.root, options, lambda line: say(f"serve: {line}"))
    if not place.is_local and place.certificate is None:
        say("serve: others reach this address without https: token and studies cross the network in clear text")
    try:
        worker.start()
        if (status := worker.wait_until_ready()).state != "ready":
            raise ServeError(f"the model cannot judge: {status.why}")
        if not told["rule"]["usable"]:
            say("serve: the model is not usable: it gives scores, never decisions; maescreen model info says why")
        service = Service(
            queue=queue,
            model=told,
            access=Access(token),
            limits=limits,
            judging=lambda: worker.status.state,
            watch=worker.look,
            lights=StandingLights.of(queue.root, options.model, content, sha256, options.prevalence),
            report=lambda unexpected: say(f"serve: {failures.frames(unexpected).rstrip()}"),
        )
        host, port = listener.getsockname()[:2]
        scheme = "http" if place.certificate is None else "https"
        address = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/"
        run(configured(create_app(service), place.certificate, place.key), listener, lambda: announce(address))
    finally:
        listener.close()
        worker.stop()
