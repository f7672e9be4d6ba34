"""The process that receives: it takes images by C-STORE, writes each into the spool, and knows nothing of models.

An image is acknowledged once it lies in the spool under a name of ours, flushed to disk. Nothing of it is parsed here
but the command by which it came.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import multiprocessing
import os
import resource
import secrets
import shutil
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pipeline.store.files import flush_directory

SPOOL, RECEIVING = "spool", ".receiving"
SUFFIX = ".dcm"
VERIFICATION = "1.2.840.10008.1.1"
MB = 1024**2
OUT_OF_RESOURCES = 0xA700
LEAST_FREE_MB = 512
OPEN_FILES = 1024
PARENT_CHECK_S = 0.2
# Addresses count as memory: what threads reserve of them and never use would leave none for the next one.
STACK_BYTES, M_ARENA_MAX, ARENAS = 1024**2, -8, 2
STUCK_S = 30.0
BIND_S, BIND_AGAIN_S = 10.0, 0.5
PAUSES_S = (1.0, 5.0, 20.0, 60.0)
# What images come in; of each storage class all of them are taken. Deflated ones (1.2.840.10008.1.2.1.99) are not: they
# inflate to any size when the header is read.
SYNTAXES = (
    *("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5"),
    *(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203)),
)


class ListenError(RuntimeError):
    """The node cannot listen; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Receiving:
    """How the process receives. `calling` and `addresses` are those allowed; empty allows every one."""

    host: str
    port: int
    title: str
    calling: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    most_file_mb: int = 512
    most_memory_mb: int = 1024
    connections: int = 20
    pdu_bytes: int = 128 * 1024
    idle_s: float = 30.0


def spool_of(root: Path) -> Path:
    """Return the folder of received images in a queue's folder, made when it is not there."""
    spool = root / SPOOL
    (spool / RECEIVING).mkdir(mode=0o700, parents=True, exist_ok=True)
    return spool


class Receiver:
    """The process that receives; `look` starts it again when it has ended by itself."""

    def __init__(self, root: Path, receiving: Receiving, say: Callable[[str], None]) -> None:
        self.root, self.receiving, self.say = root, receiving, say
        self._context = multiprocessing.get_context("spawn")
        self._process: multiprocessing.process.BaseProcess | None = None
        self._ended, self._not_before = 0, 0.0
        self.port = receiving.port

    def start(self) -> None:
        """Start the process and wait until it listens. Raises ListenError."""
        here, there = self._context.Pipe(duplex=False)
        arguments = (spool_of(self.root), self.receiving, self.port, there)
        self._process = self._context.Process(target=receive, args=arguments, name="receiving")
        self._process.start()
        there.close()
        try:
            answer = here.recv()
        except EOFError:
            answer = f"its process ended with exit code {self._exit_code()}"
        here.close()
        if not isinstance(answer, int):
            self._process.join()
            self._process = None
            raise ListenError(f"cannot listen on port {self.port} of {self.receiving.host}: {answer}")
        self.port = answer

    @property
    def pid(self) -> int | None:
        """The number of the process, when there is one."""
        return None if self._process is None else self._process.pid

    def look(self) -> None:
        """Start the process again when it has ended, after a pause that grows."""
        if self._process is not None and not self._process.is_alive():
            pause = PAUSES_S[min(self._ended, len(PAUSES_S) - 1)]
            self.say(f"listen: the process that receives has ended ({self._exit_code()}); again in {pause:g} s")
            self._process, self._ended = None, self._ended + 1
            self._not_before = time.monotonic() + pause
        elif self._process is None and time.monotonic() >= self._not_before:
            try:
                self.start()
            except ListenError as error:
                self._not_before = time.monotonic() + PAUSES_S[-1]
                self.say(f"listen: {error}")

    def stop(self) -> None:
        """End the process; what it has not acknowledged is sent again by its sender."""
        if self._process is None:
            return
        self._process.terminate()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process = None

    def _exit_code(self) -> str:
        if self._process is None:
            return "no process"
        self._process.join(5)
        return str(self._process.exitcode)


# ---------------------------------------------------------------- inside the process


def receive(spool: Path, receiving: Receiving, port: int, sender: Connection) -> None:
    """Receive until SIGTERM, or until the parent is gone; `sender` is told the port, or why there is none."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)  # pynetdicom logs what it receives
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    for rest in (spool / RECEIVING).iterdir():
        rest.unlink()
    tempfile.tempdir = str(spool / RECEIVING)
    until = time.monotonic() + BIND_S
    while True:
        try:
            server = _server(spool, receiving, port)
            break
        except OSError as error:
            # The process of a listener that was killed holds the port until it finds itself alone.
            if error.errno != errno.EADDRINUSE or time.monotonic() > until:
                sender.send(os.strerror(error.errno) if error.errno else "the address cannot be used")
                return
            time.sleep(BIND_AGAIN_S)
    _limit(receiving)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    server.at_work = time.monotonic()
    thread.start()
    sender.send(server.server_address[1])
    ended = 0
    while not (ended or stop.wait(PARENT_CHECK_S)) and os.getppid() == parent:
        # A thread that finds no memory to begin with is waited for for ever, by the one that takes connections.
        ended = int(not thread.is_alive() or time.monotonic() - server.at_work > STUCK_S)
    os._exit(ended)  # whatever peers are in the middle of was not acknowledged


def _limit(receiving: Receiving) -> None:
    """Bound memory beyond what the libraries took, the size of files, and how many are open."""
    threading.stack_size(STACK_BYTES)
    with suppress(OSError, AttributeError):  # glibc alone has it, and alone needs it
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").is_file() else 0
    memory = pages * os.sysconf("SC_PAGE_SIZE") + receiving.most_memory_mb * MB
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    for kind, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, receiving.most_file_mb * MB + MB),
        (resource.RLIMIT_NOFILE, OPEN_FILES if most_files == resource.RLIM_INFINITY else min(OPEN_FILES, most_files)),
        (resource.RLIMIT_CORE, 0),
    ):
        with suppress(OSError, ValueError):
            resource.setrlimit(kind, (value, value))


def _server(spool: Path, receiving: Receiving, port: int) -> Any:
    from pynetdicom import AE, AllStoragePresentationContexts, _config, evt

    from pipeline.delivery.node.guard import GuardedHandler, Limits, server_class

    _config.STORE_RECV_CHUNKED_DATASET = True
    _config.LOG_HANDLER_LEVEL = "none"
    node = AE(ae_title=receiving.title)
    node.maximum_pdu_size = receiving.pdu_bytes
    node.maximum_associations = receiving.connections
    node.network_timeout = node.acse_timeout = node.dimse_timeout = receiving.idle_s
    node.require_called_aet = True
    node.require_calling_aet = list(receiving.calling)
    for context in AllStoragePresentationContexts:
        node.add_supported_context(str(context.abstract_syntax), list(SYNTAXES))
    node.add_supported_context(VERIFICATION)
    limits = Limits(receiving.pdu_bytes, receiving.most_file_mb * MB, receiving.idle_s, receiving.connections)
    return node.make_server(
        (receiving.host, port),
        evt_handlers=[
            (evt.EVT_C_STORE, _store, [spool]),
            (evt.EVT_C_ECHO, lambda _event: 0),
            (evt.EVT_CONN_CLOSE, _closed),
            (evt.EVT_ABORTED, _closed),
        ],
        server_class=server_class(limits, receiving.addresses),
        request_handler=GuardedHandler,
    )


def _store(event: Any, spool: Path) -> int:
    """Keep an image; its status is success once no crash loses it."""
    file = event.request._dataset_file
    if shutil.disk_usage(spool).free < LEAST_FREE_MB * MB:
        return OUT_OF_RESOURCES
    try:
        file.flush()
        os.fsync(file.fileno())
        # Names rise with time, so that the spool is sorted in the order in which images came.
        os.link(file.name, spool / f"{time.time_ns():020d}-{secrets.token_hex(8)}{SUFFIX}")
        flush_directory(spool)
    except OSError:
        return OUT_OF_RESOURCES
    return 0


def _closed(event: Any) -> None:
    """Remove what an association leaves in the middle of an image, and images that nobody will acknowledge."""
    dimse = event.assoc.dimse
    files = [getattr(dimse.message, "_data_set_file", None)]
    with suppress(Exception):
        while True:
            _, message = dimse.msg_queue.get_nowait()
            files.append(getattr(message, "_dataset_file", None))
    for file in filter(None, files):
        with suppress(OSError):
            file.close()
            os.unlink(file.name)
