"""Work on many files in disposable processes, so that a decoder that crashes or hangs costs one file.

Decoders are C and Rust code fed with damaged files: they abort, loop, and raise what `except Exception` misses.
A worker notes each file before it starts; when it dies, that file is tried once more alone, and only if this
process dies too is the file refused. All others of its batch are worked on again.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import re
import resource
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from joblib.externals.loky import get_reusable_executor

from pipeline.imaging.quarantine import Refusal, Refused

Task = Callable[[Any], Any]
QUEUED_PER_WORKER = 2
# Idle workers end after this time; longer than the slowest import in a worker that has just started.
IDLE_S = 60
PARENT_CHECK_S = 1.0
# One can be an accident; what happens twice in a row happens for ever.
ROUNDS_WITHOUT_PROGRESS = 2
EXIT_CODES = re.compile(r"\{(.+)\}")  # as in loky's message: {EXIT(1), SIGKILL(-9)}
BEGUN = "begun"


class WorkersError(RuntimeError):
    """Workers cannot be started, or die before they look at a file; the message says how they ended."""


@dataclass(frozen=True)
class Pool:
    """Where work is done: `workers` processes here, or on a Dask cluster that shares this machine's file system.

    One file may take `timeout_s` and, on top of what a worker has when it starts, `memory_bytes`.
    """

    workers: int
    timeout_s: float
    backend: str = "processes"
    scheduler: str | None = None
    memory_bytes: int | None = None


def each_batch(
    task: Task, batches: Mapping[int, Sequence[Any]], pool: Pool, scratch: Path
) -> Iterator[tuple[int, list[Any]]]:
    """Yield, as batches finish, their number and the result of `task` for each of their items, in order.

    `task` returns a picklable result or raises Refused; whatever else goes wrong becomes a Refusal as well. `scratch`
    is a folder that all workers can write to.

    Raises WorkersError when workers die again and again without having begun with any item.
    """
    waiting = dict(sorted(batches.items()))
    settled: dict[int, dict[int, Any]] = {}
    fruitless = 0
    while waiting:
        left = len(waiting)
        deaths: list[BaseException] = []
        with _executor(pool, _module(task)) as (executor, lost):
            for number, results in _until_broken(task, waiting, settled, executor, pool, scratch, lost, deaths):
                del waiting[number]
                yield number, results
        begun = _in_flight(scratch, waiting)
        for number, item in begun:
            settled.setdefault(number, {})[item] = alone(task, waiting[number][item], pool)
        fruitless = 0 if begun or len(waiting) < left else fruitless + 1
        if fruitless == ROUNDS_WITHOUT_PROGRESS:
            raise WorkersError(_no_progress(_exit_codes(deaths)))


def _exit_codes(deaths: Sequence[BaseException]) -> str:
    return next((found[1] for death in deaths if (found := EXIT_CODES.search(str(death)))), "exit codes unknown")


def _no_progress(codes: str) -> str:
    return (
        f"the worker processes end before they look at any file ({codes}): is there memory for machine.workers of "
        "them, and room in the temporary folder?"
    )


def _until_broken(
    task: Task,
    waiting: Mapping[int, Sequence[Any]],
    settled: Mapping[int, Mapping[int, Any]],
    executor: Executor,
    pool: Pool,
    scratch: Path,
    lost: tuple[type[BaseException], ...],
    deaths: list[BaseException],
) -> Iterator[tuple[int, list[Any]]]:
    """Yield finished batches until all are done or a worker has died, which is added to `deaths`."""
    todo = iter(list(waiting))
    running: dict[Future, int] = {}

    def submit() -> None:
        number = next(todo, None)
        if number is not None:
            items, known = waiting[number], settled.get(number, {})
            future = executor.submit(_work, task, items, known, pool, str(_marker(scratch, number)))
            running[future] = number

    try:
        for _ in range(pool.workers * QUEUED_PER_WORKER):
            submit()
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            broken = False
            for future in done:
                number = running.pop(future)
                try:
                    results = future.result()
                except lost as death:
                    deaths.append(death)
                    broken = True
                    continue
                _marker(scratch, number).unlink(missing_ok=True)
                yield number, results
                if not broken:
                    submit()
            if broken:
                return
    except lost as death:
        deaths.append(death)  # the pool broke while work was handed to it
    finally:
        for future in running:
            future.cancel()


@contextmanager
def _executor(pool: Pool, module: str) -> Iterator[tuple[Executor, tuple[type[BaseException], ...]]]:
    """Yield an executor and the exceptions by which it tells that a worker died."""
    if pool.backend == "processes":
        # Where work comes just as an idle worker ends, loky says so and starts another. Where warnings are errors, it
        # would end the thread that starts it, and the work be waited for for ever.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)
        # Workers are kept for later calls with the same module. With it imported before the first task, loky does
        # not take the import for a memory leak, for which it replaces workers.
        executor = get_reusable_executor(
            max_workers=pool.workers, timeout=IDLE_S, initializer=_prepare, initargs=(module,)
        )
        yield executor, (BrokenProcessPool,)
        return
    import dask
    import distributed

    with ExitStack() as stack:
        address: Any = pool.scheduler
        if address is None:
            # A task that killed a worker would otherwise kill three more before it is given up.
            stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": 0}))
            address = stack.enter_context(
                distributed.LocalCluster(
                    n_workers=pool.workers, threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL
                )
            )
        client = stack.enter_context(distributed.Client(address))
        yield client.get_executor(pure=False), (distributed.scheduler.KilledWorker,)


def _marker(scratch: Path, number: int) -> Path:
    # With the process id, so that a worker left over from a killed run cannot write into this one's.
    return scratch / f"running-{os.getpid()}-{number}"


def _in_flight(scratch: Path, waiting: Mapping[int, Sequence[Any]]) -> list[tuple[int, int]]:
    """Return (batch, item) of every item that was being worked on when a worker died."""
    found = []
    for number in waiting:
        marker = _marker(scratch, number)
        if marker.exists():
            lines = marker.read_text().split()
            found += [(number, int(lines[-1]))] if lines else []
            marker.unlink()
    return found


# ---------------------------------------------------------------- inside a worker


def _work(task: Task, items: Sequence[Any], known: Mapping[int, Any], pool: Pool, marker: str) -> list[Any]:
    _silence()
    results = []
    with open(marker, "w", buffering=1) as stream, _muted(), _ends_with_process(), _limited_memory(pool.memory_bytes):
        for index, item in enumerate(items):
            if index in known:
                results.append(known[index])
                continue
            stream.write(f"{index}\n")
            results.append(_guarded(task, item, pool.timeout_s))
    return results


def _guarded(task: Task, item: Any, timeout_s: float) -> Any:
    """Return the result of `task`, or a Refusal; when time is up the process is killed by SIGALRM.

    A signal handler of our own would wait for the C code that hangs; the kernel's does not.
    """
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        return task(item)
    except Refused as refused:
        return refused.refusal
    except MemoryError:
        return Refusal("too_large", "no memory")
    except BaseException as error:  # a Rust decoder's panic is no Exception
        return Refusal("damaged_pixels", type(error).__name__)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _module(task: Task) -> str:
    return task.func.__module__ if isinstance(task, partial) else task.__module__


def _prepare(module: str) -> None:
    _silence()
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    importlib.import_module(module)


def _end_with_parent(parent: int) -> None:
    """End this worker soon after its parent was killed: an idle one would wait for work for ever."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os._exit(1)


def _silence() -> None:
    """Keep warnings and logs of libraries, which quote header values, and core dumps, which hold them, from leaving."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextmanager
def _muted() -> Iterator[None]:
    """Keep what C libraries print, which can quote a file, from the terminal and the log."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    before = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    try:
        for descriptor in before:
            os.dup2(nowhere, descriptor)
        yield
    finally:
        for descriptor, saved in before.items():
            os.dup2(saved, descriptor)
            os.close(saved)
        os.close(nowhere)


@contextmanager
def _ends_with_process() -> Iterator[None]:
    """Let an interrupt at the keyboard end the parent only: here it would look like a verdict on a file."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not in the main thread: a Dask worker, which has no keyboard
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _limited_memory(more_bytes: int | None) -> Iterator[None]:
    """Let the kernel refuse this process more memory than it has now and `more_bytes`.

    Decoders believe sizes that damaged files state; a refused allocation is a MemoryError, or ends the process.
    """
    if more_bytes is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + more_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# ---------------------------------------------------------------- alone


def alone(task: Task, item: Any, pool: Pool) -> Any:
    """Return the result of `task` in a process of its own, or the Refusal that its death stands for."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sender, task, item, pool), daemon=True)
    process.start()
    sender.close()
    begun = False
    try:
        begun = receiver.recv() == BEGUN
        return receiver.recv()
    except EOFError:
        process.join()
        if not begun:
            raise WorkersError(_no_progress(f"EXIT({process.exitcode})")) from None
        if process.exitcode == -signal.SIGALRM:
            return Refusal("timeout", f"{pool.timeout_s:g} s")
        return Refusal("decoder_crash", f"exit code {process.exitcode}")
    finally:
        process.join()
        receiver.close()


def _send_result(sender: Any, task: Task, item: Any, pool: Pool) -> None:
    _silence()
    importlib.import_module(_module(task))
    with _muted(), _ends_with_process(), _limited_memory(pool.memory_bytes):
        sender.send(BEGUN)
        sender.send(_guarded(task, item, pool.timeout_s))
