"""listen: images come from modalities and archives, results go back, until somebody ends it."""

from __future__ import annotations

import ipaddress
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.delivery.dicom.source import quietly
from pipeline.delivery.node.outbox import Destination, Outbox
from pipeline.delivery.node.receiver import ListenError, Receiver, Receiving
from pipeline.delivery.node.sorting import Sorter
from pipeline.delivery.queue import Queue
from pipeline.delivery.worker_process import Options, WorkerProcess
from pipeline.inference.model_folder import verified

STEP_S, CLEAN_S, PAUSE_S = 0.2, 60.0, 10.0
TITLE_LENGTH = 16
TOKEN_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """When a study is whole, and how long its images are kept for late ones."""

    quiet_s: float
    keep_hours: float


def listen(
    folder: Path,
    options: Options,
    receiving: Receiving,
    waiting: Waiting,
    destination: Destination,
    say: Callable[[str], None],
    announce: Callable[[str], None],
) -> None:
    """Receive, judge and deliver until a signal asks to end; `announce` is told where it listens once it does.

    Raises QueueError, ModelError and ListenError when something cannot be used.
    """
    check(receiving)
    content, _ = verified(options.model)
    queue = Queue(folder)
    outbox = Outbox(queue, destination, say)
    worker = WorkerProcess(queue.root, options, lambda line: say(f"listen: {line}"))
    receiver = Receiver(queue.root, receiving, say)
    with _until_asked() as stop, quietly():
        delivering = threading.Thread(target=outbox.run, args=(stop,), name="delivering")
        try:
            worker.start()
            if (status := worker.wait_until_ready()).state != "ready":
                raise ListenError(f"the model cannot judge: {status.why}")
            if not content["rule"]["usable"]:
                say("listen: the model is not usable: no study is assessable by it; maescreen model info says why")
            receiver.start()
            # From now on senders can go on with what a crash interrupted; before, silence means nothing.
            sorter = Sorter(queue, waiting.quiet_s, waiting.keep_hours)
            delivering.start()
            announce(f"{receiving.title}@{receiving.host}:{receiver.port}")
            rounds = 0
            while not stop.wait(STEP_S):
                receiver.look()
                worker.look()
                try:
                    sorter.step()
                    rounds += 1
                    if rounds * STEP_S >= CLEAN_S:
                        rounds = 0
                        sorter.clean()
                except OSError as error:  # as without room on the disk: what has come stays in the spool
                    say(f"listen: images cannot be sorted into studies now: OSError {error.errno}")
                    stop.wait(PAUSE_S)
        finally:
            stop.set()
            receiver.stop()
            worker.stop()
            if delivering.ident is not None:
                delivering.join()


@contextmanager
def _until_asked() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and Ctrl-C set."""
    stop = threading.Event()
    before = {n: signal.signal(n, lambda _number, _frame: stop.set()) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check(receiving: Receiving) -> None:
    """Raise ListenError where titles or addresses are none, or everybody could send."""
    for title in (receiving.title, *receiving.calling):
        if not title or len(title) > TITLE_LENGTH or not title.isascii() or not title.isprintable() or "\\" in title:
            raise ListenError(f"an AE title has 1 to {TITLE_LENGTH} characters of ASCII, without a backslash")
    try:
        local = ipaddress.ip_address(receiving.host).is_loopback
        for address in receiving.addresses:
            ipaddress.ip_network(address, strict=False)
    except ValueError:
        raise ListenError("--host and --allow-address take IP addresses or networks, such as 10.1.2.0/24") from None
    if not local and not receiving.addresses:
        raise ListenError(
            "--host is not this machine alone: name with --allow-address who may send, such as 10.1.2.0/24; "
            "C-STORE itself asks nobody for a password"
        )


def read_token(file: Path | None) -> str:
    """Return the token for the archive from a file; nothing without one. Raises ListenError."""
    if file is None:
        return ""
    token = file.read_bytes()[:TOKEN_BYTES].decode("ascii", "replace").strip()
    if not token or not token.isascii() or any(c.isspace() for c in token):
        raise ListenError("the file of --stow-token-file holds no token: one line of ASCII without spaces")
    return token
