"""The judging of a queue as a process of its own: who receives stays up when a network or a library dies."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from joblib.externals.loky import get_reusable_executor

from pipeline.delivery.queue import Queue

if TYPE_CHECKING:
    from pipeline.delivery.worker import Writer

POLL_S, PARENT_CHECK_S = 0.1, 1.0
PAUSES_S = (1.0, 5.0, 20.0, 60.0)
SECONDS_TO_END = 60.0
State = Literal["loading", "ready", "stalled", "ended"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the process is started with: the model's folder, and the fields of `worker.Judging` and `Model.load`.

    `dicom` names the kinds of DICOM objects to write beside each result.
    """

    model: Path
    device: str = "auto"
    threads: int | None = None
    recall_target: float | None = None
    prevalence: float | None = None
    workers: int = 2
    studies_per_pass: int = 64
    most_files: int = 5000
    most_mb: int = 4096
    keep_files: bool = False
    dicom: tuple[str, ...] = ()


@dataclass(frozen=True)
class Status:
    """What the process does: `ready` judges; `stalled` waits for this machine, as for room on the disk; why."""

    state: State
    why: str = ""


class WorkerProcess:
    """The process that judges the queue in `root`; `look` starts it anew when it has ended by itself.

    `say` is told what it says, and that it has ended, in lines that do not name the command.
    """

    def __init__(self, root: Path, options: Options, say: Callable[[str], None]) -> None:
        self.root, self.options, self.say = root, options, say
        self._context = multiprocessing.get_context("spawn")
        self._status = Status("loading")
        self._process: multiprocessing.process.BaseProcess | None = None
        self._receiver: Connection | None = None
        self._ended, self._not_before = 0, 0.0

    def start(self) -> None:
        """Start the process."""
        self._receiver, sender = self._context.Pipe(duplex=False)
        self._status = Status("loading")
        self._process = self._context.Process(target=_work, args=(self.root, self.options, sender), name="judging")
        self._process.start()
        sender.close()

    @property
    def status(self) -> Status:
        """What the process did when it was last looked at."""
        return self._status

    def look(self) -> Status:
        """Return what the process does now; one that has ended is started again, after a pause that grows."""
        self._hear()
        if self._process is not None and not self._process.is_alive():
            self._hear()
            why = self._status.why or f"exit code {self._process.exitcode}"
            pause = PAUSES_S[min(self._ended, len(PAUSES_S) - 1)]
            self._process, self._status = None, Status("ended", why)
            self._ended, self._not_before = self._ended + 1, time.monotonic() + pause
            self.say(f"the process that judges has ended ({why}); it starts again in {pause:g} s")
        elif self._process is None and time.monotonic() >= self._not_before:
            self.start()
        return self._status

    def wait_until_ready(self) -> Status:
        """Return `ready`, or `ended` with the reason when the process could not load the model."""
        while True:
            self._hear()
            if self._status.state == "ready":
                return self._status
            if self._process is None or not self._process.is_alive():
                self._hear()
                code = None if self._process is None else self._process.exitcode
                return Status("ended", self._status.why or f"exit code {code}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Let the process finish the study that it is at, and end; what it has left waits for the next start."""
        if self._process is None:
            return
        if self._process.pid is not None and self._process.is_alive():
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)
        self._process.join(SECONDS_TO_END)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process = None

    def _hear(self) -> None:
        with suppress(EOFError, OSError):
            while self._receiver is not None and self._receiver.poll():
                state, text = self._receiver.recv()
                if state == "say":
                    self.say(text)
                    continue
                self._status = Status(state, text)
                if state == "ready":
                    self._ended = 0


# ---------------------------------------------------------------- inside the process


def _work(root: Path, options: Options, sender: Connection) -> None:
    """Judge whatever waits until SIGTERM, or until the parent is gone."""
    try:
        _judge_on(root, options, sender)
    finally:
        sender.close()
        # Idle readers are kept for later studies: multiprocessing would wait for them to end, and they for work.
        get_reusable_executor(reuse=True).shutdown(kill_workers=True)


def _judge_on(root: Path, options: Options, sender: Connection) -> None:
    warnings.simplefilter("ignore")  # they quote header values
    logging.disable(logging.CRITICAL)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at a terminal reaches the parent, too, which then says so
    threading.Thread(target=_end_with_parent, args=(os.getppid(), stop), daemon=True).start()

    from pipeline.delivery.worker import Judging, judge
    from pipeline.inference.model import Model
    from pipeline.inference.model_folder import ModelError
    from pipeline.inference.rule import RuleError

    def tell(state: str, text: str = "") -> None:
        with suppress(OSError):  # the parent is gone; this process ends soon
            sender.send((state, text))

    try:
        model = Model.load(
            options.model, device=options.device, threads=options.threads, say=lambda text: tell("say", text)
        )
        if options.recall_target is not None:
            model.rule.at(options.recall_target)
    except (ModelError, RuleError) as error:
        tell("ended", str(error))
        return
    how = Judging(
        recall_target=options.recall_target,
        prevalence=options.prevalence,
        workers=options.workers,
        studies_per_pass=options.studies_per_pass,
        most_files=options.most_files,
        most_mb=options.most_mb,
        keep_files=options.keep_files,
        writers=_writers(options.dicom),
    )
    queue = Queue(root)
    queue.requeue_interrupted()
    tell("ready")
    failed = 0
    while not stop.is_set():
        try:
            judged = judge(queue, model, how, stop.is_set)
            if failed:
                failed = 0
                tell("ready")
            if not judged:
                stop.wait(POLL_S)
        except Exception as error:  # of this machine: no room, no memory for workers; the studies wait
            # The text of an error can name a file; its number and kind cannot.
            what = f"{type(error).__name__}{f' {error.errno}' if isinstance(error, OSError) else ''}"
            tell("stalled", what)
            stop.wait(PAUSES_S[min(failed, len(PAUSES_S) - 1)])
            failed += 1


def _writers(dicom: Sequence[str]) -> dict[str, Writer]:
    from pipeline.delivery.masks import queued_masks
    from pipeline.delivery.worker import page_files

    writers = {"page": page_files, "masks": queued_masks(segmentations=bool(dicom))}
    if not dicom:
        return writers
    from pipeline.delivery.dicom.queued import dicom_files

    return {**writers, "dicom": dicom_files(dicom)}


def _end_with_parent(parent: int, stop: threading.Event) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    stop.set()
