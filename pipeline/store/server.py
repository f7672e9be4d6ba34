"""The MLflow UI as a process of ours: on this machine alone, and gone when we are."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from urllib.parse import quote

HOST = "127.0.0.1"
PATIENCE_S, POLL_S = 120.0, 0.1
SECONDS_TO_END = 10.0
STANDARD_ERROR = 2
KIND = "maescreen.kind"  # the tag that says what a run is of
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class ServerError(RuntimeError):
    """The UI cannot be served; the message says why and what to do."""


class _Asked(BaseException):
    """A signal asked to end."""


def serve(uri: str, artifacts: str, port: int, ready: Callable[[], None]) -> None:
    """Serve the UI until a signal asks to end; call `ready` once it answers.

    Raises ServerError when the server cannot start, or ends by itself.
    """
    with suppress(_Asked), _signals(), _started(uri, artifacts, port) as server:
        _wait_until_it_answers(server, port)
        ready()
        code = server.wait()
        raise ServerError(f"the MLflow server ended by itself, with exit code {code}")


def check_free(port: int) -> None:
    """Raise ServerError when the port cannot be had."""
    with socket.socket() as trial:
        # A port on which a connection was closed a moment ago is free, too.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((HOST, port))
        except OSError as error:
            why = "may not be used by this user" if isinstance(error, PermissionError) else "is in use"
            raise ServerError(f"port {port} {why}; choose another with --port") from None


@contextmanager
def _signals() -> Iterator[None]:
    """Raise _Asked once on the first signal; ignore further ones, so that the server is ended in peace."""

    def ask(_number: int, _frame: FrameType | None) -> None:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
        raise _Asked

    before = {number: signal.signal(number, ask) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _started(uri: str, artifacts: str, port: int) -> Iterator[subprocess.Popen]:
    """Start the server in a process group of its own, since it starts others; end all of them."""
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", uri, "--default-artifact-root", artifacts]
    server = subprocess.Popen(command, env=environment, start_new_session=True, stdout=STANDARD_ERROR)
    try:
        yield server
    finally:
        _end(server)


def _end(server: subprocess.Popen) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(SECONDS_TO_END)


def _wait_until_it_answers(server: subprocess.Popen, port: int) -> None:
    until = time.monotonic() + PATIENCE_S
    while not _answers(port):
        if server.poll() is not None:
            raise ServerError(f"the MLflow server could not start, exit code {server.returncode}; see its lines above")
        if time.monotonic() > until:
            raise ServerError(f"the MLflow server has not answered on port {port} for {PATIENCE_S:.0f} s")
        time.sleep(POLL_S)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def comparison_fragment(experiment_id: str) -> str:
    """Return the part of the UI's address that opens the pipeline runs of an experiment side by side."""
    pipeline_runs = quote(f"tags.`{KIND}` = 'pipeline'")
    return (
        f"#/experiments/{experiment_id}/runs?searchFilter={pipeline_runs}"
        "&workflowType=machine_learning&compareRunsMode=CHART"
    )
