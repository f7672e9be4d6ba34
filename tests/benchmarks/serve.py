"""`maescreen serve` under load: `python tests/benchmarks/serve.py MODEL STUDIES… --clients 50 --seconds 120`.

Prints how long POST took (p50, p99), how many studies were judged, the largest memory of the server and of the process
that judges with its workers, and the throughput of serve over that of predict on the same files.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from service import started  # noqa: E402

from pipeline.delivery.queue import Queue  # noqa: E402

MB = 1024**2


def rss_mb(process: psutil.Process) -> float:
    try:
        return process.memory_info().rss / MB
    except psutil.Error:
        return 0.0


class Memory(threading.Thread):
    """The largest memory of a process, and of all its children together, looked at ten times a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process, self.server, self.children = psutil.Process(pid), 0.0, 0.0

    def run(self) -> None:
        while self.process.is_running():
            self.server = max(self.server, rss_mb(self.process))
            below = sum(map(rss_mb, self.process.children(recursive=True)))
            self.children = max(self.children, below)
            time.sleep(0.1)


def load(client, contents: list[bytes], clients: int, seconds: float) -> tuple[list[float], Counter[int]]:
    """Send from so many clients for so long; return how long each 202 took, and the answers by status."""
    until, took, answers, lock = time.monotonic() + seconds, [], Counter(), threading.Lock()

    def send(number: int) -> None:
        chance = random.Random(number)
        while time.monotonic() < until:
            begun = time.perf_counter()
            try:
                answer = client.ask("POST", "/studies", chance.choice(contents))
                status = answer.status
            except OSError:
                status = 0
            with lock:
                answers[status] += 1
                if status == 202:
                    took.append(time.perf_counter() - begun)
            if status != 202:
                time.sleep(1)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return took, answers


def said(name: str, took: list[float]) -> None:
    cut = statistics.quantiles(took, n=100)
    print(f"{name}: {len(took)} times, p50 {1000 * cut[49]:.0f} ms, p99 {1000 * cut[98]:.0f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("studies", type=Path, nargs="+")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    contents = [path.read_bytes() for path in options.studies]
    with tempfile.TemporaryDirectory() as folder:
        process, client = started(Path(folder), options.model)
        queue = Queue(Path(folder) / "queue")
        memory = Memory(process.pid)
        memory.start()
        # Throughput: all files at once, until the last is finished; the workers are warm by the first.
        client.ask("POST", "/studies", contents[0])
        while not queue.ids("finished"):
            time.sleep(0.1)
        begun = time.perf_counter()
        with ThreadPoolExecutor(8) as senders:
            list(senders.map(lambda content: client.ask("POST", "/studies", content), contents))
        while len(queue.ids("finished")) < len(contents) + 1:
            time.sleep(0.05)
        serve = len(contents) / (time.perf_counter() - begun)
        print(f"serve: {serve:.2f} studies a second", flush=True)
        if options.seconds:
            before = len(queue.ids("finished"))
            took, answers = load(client, contents, options.clients, options.seconds)
            judged = len(queue.ids("finished")) - before
            said(f"POST /studies, {options.clients} clients", took)
            print(f"answers {dict(answers)}, judged meanwhile {judged}", flush=True)
        print(f"memory: server {memory.server:.0f} MB, judging {memory.children:.0f} MB", flush=True)
        process.terminate()
        process.wait()
        print((Path(folder) / "said.txt").read_text() or "nothing was said", flush=True)
    from pipeline import Model, write_results

    model = Model.load(options.model, device="cpu", threads=1, say=print)
    with tempfile.TemporaryDirectory() as folder:
        write_results(model.predict(options.studies[:1], workers=1, pictures=True), Path(folder) / "warm")
        begun = time.perf_counter()
        write_results(model.predict(options.studies, workers=1, pictures=True), Path(folder) / "out")
        predict = len(contents) / (time.perf_counter() - begun)
    print(f"predict: {predict:.2f} studies a second; serve reaches {serve / predict:.2f} of it")


if __name__ == "__main__":
    main()
