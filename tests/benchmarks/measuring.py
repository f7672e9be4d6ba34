"""Time and memory, as every benchmark of models takes them."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Run = Callable[[], object]


def machine(device: str) -> dict[str, Any]:
    """Say what gave the numbers."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "spin_count": os.environ.get("GOMP_SPINCOUNT"),
    }


def seconds(run: Run, device: str) -> float:
    """Return the wall time of one run, the device's own work included."""
    return _elapsed(run, device, time.perf_counter)


def cpu_seconds(run: Run, device: str) -> float:
    """Return the processor time of one run, all threads of this process together: what others do hardly counts."""
    return _elapsed(run, device, time.process_time)


def processor_seconds_of_children() -> float:
    """Return the processor time of the processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _elapsed(run: Run, device: str, clock: Callable[[], float]) -> float:
    synchronise(device)
    start = clock()
    run()
    synchronise(device)
    return clock() - start


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def by_turns(runs: dict[str, Run], rounds: int, measure: Callable[[Run], float]) -> dict[str, list[float]]:
    """Measure every run once per round, in shuffled order, so that a busy moment hits all alike; warm before."""
    for run in runs.values():
        run()
    order, shuffle = list(runs), random.Random(0)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            taken[name].append(measure(runs[name]))
    return taken


def peak_mib(build: Callable[[], Run], device: str) -> tuple[Run, float]:
    """Build and run three times; return the run and its peak memory over what was held before, in this process."""
    if device == "cuda":
        torch.zeros(1, device="cuda")
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        # What the mathematics library sets up on first use belongs to no model.
        torch.rand(256, 256, requires_grad=True).mm(torch.rand(256, 256)).sum().backward()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = build()
    for _ in range(3):
        run()
    if device == "cuda":
        return run, (torch.cuda.max_memory_allocated() - before) / 2**20
    return run, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10


def elsewhere(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call in a forked process, while this one has computed nothing, so that it has no threads or device to share."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, arguments)


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """Keep so many cores busy with other programs meanwhile."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
    try:
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()
