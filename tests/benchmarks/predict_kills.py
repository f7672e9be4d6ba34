"""predict killed at random moments inside its work, and gone on with: the same results.json? Prints JSON.

    python tests/benchmarks/predict_kills.py MODEL IMAGES                    600 studies, ten kills: about 30 minutes
    python tests/benchmarks/predict_kills.py MODEL IMAGES --studies 60 --kills 2 --no-pages        a look

MODEL is a packaged model, IMAGES a folder of images that it takes; each file is a study. An undisturbed run is timed
first: its start (the model is loaded, files are looked at), and the work from the first finished study on. Then, for
each kill, a new run gets SIGKILL, its whole process group, when a random share from 0.05 to 0.95 of the studies is
finished, less one pass of the network (64 studies), and a random part of the time that a pass takes has gone by: by the
clock alone, a run on a busy machine would be killed too late. The same command goes on. Compared are the bytes of
results.json, results.csv and quarantine.csv, and the names of the pages.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILES = ("results.json", "results.csv", "quarantine.csv")
JOURNAL = "journal.jsonl"
PASS = 64


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--studies", type=int, default=600)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-pages", action="store_true")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        take(options.images, folder / "studies", options.studies, draw)
        pages = ["--no-pages"] if options.no_pages else []
        words = [sys.executable, "-m", "pipeline.cli", "predict", str(options.model), str(folder / "studies")]
        words += ["--device", "cpu", "--threads", "1", "--workers", str(options.workers), *pages]
        begun, ended = undisturbed(words, folder / "whole")
        kills = []
        for at in range(options.kills):
            share, wait = draw.uniform(0.05, 0.95), draw.random() * (ended - begun) * PASS / options.studies
            kills.append(killed(words, folder / f"kill{at}", share, wait, options.studies))
            kills[-1]["same_bytes"] = digest(folder / f"kill{at}") == digest(folder / "whole")
            print(json.dumps(kills[-1]), file=sys.stderr, flush=True)
            shutil.rmtree(folder / f"kill{at}")
        found = {
            "studies": options.studies,
            "undisturbed_s": round(ended, 1),
            "until_first_study_s": round(begun, 1),
            "kills": kills,
            "inside_the_work": sum(0 < kill["studies_done"] < options.studies for kill in kills),
            "all_the_same": all(kill["same_bytes"] for kill in kills),
        }
    print(json.dumps(found, indent=1))


def take(images: Path, into: Path, studies: int, draw: random.Random) -> None:
    """Copy so many files, drawn at random, under names of their own."""
    files = sorted(path for path in images.rglob("*") if path.is_file() and not path.name.startswith("."))
    into.mkdir()
    for at, path in enumerate(sorted(draw.sample(files, studies))):
        shutil.copyfile(path, into / f"{at:05}{path.suffix}")


def undisturbed(words: Sequence[str], out: Path) -> tuple[float, float]:
    """Run to the end; return the seconds until the first study was in the journal, and in all."""
    start, begun = time.perf_counter(), 0.0
    process = started(words, out)
    while process.poll() is None:
        if not begun and lines(out):
            begun = time.perf_counter() - start
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"predict ended with {process.returncode}")
    return begun, time.perf_counter() - start


def killed(words: Sequence[str], out: Path, share: float, wait: float, studies: int) -> dict[str, Any]:
    """Kill `wait` seconds after such a share was finished, go on, and return what was there in between."""
    process = started(words, out)
    while process.poll() is None and lines(out) < max(1, share * studies - PASS):
        time.sleep(0.02)
    time.sleep(wait)
    ended_before = process.poll() is not None
    if not ended_before:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = lines(out)
    start = time.perf_counter()
    if code := started(words, out).wait():
        raise SystemExit(f"predict went on, and ended with {code}")
    again = round(time.perf_counter() - start, 1)
    return {
        "share_of_work": round(share, 3),
        "then_after_s": round(wait, 2),
        "studies_done": done,
        "of": studies,
        "ended_before_the_kill": ended_before,
        "went_on_s": again,
    }


def started(words: Sequence[str], out: Path) -> subprocess.Popen[bytes]:
    """Begin predict in a process group of its own."""
    quiet = subprocess.DEVNULL
    return subprocess.Popen([*words, "--out", str(out)], start_new_session=True, stdout=quiet, stderr=quiet)


def lines(out: Path) -> int:
    """Return how many studies the journal holds as whole lines."""
    journal = out / JOURNAL
    return journal.read_bytes().count(b"\n") if journal.is_file() else 0


def digest(out: Path) -> str:
    """Return a hash of the results' bytes and of the names of the pages."""
    pages = sorted(path.name for path in (out / "pages").glob("*.pdf"))
    return hashlib.sha256(
        b"".join((out / name).read_bytes() for name in FILES) + json.dumps(pages).encode()
    ).hexdigest()


if __name__ == "__main__":
    main()
