"""Commands in processes of their own, to be killed: forked from one that has imported what commands need.

A process that is started afresh would spend seconds on the same imports.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

HEAVY = ["pipeline.cli", "pipeline.inference.model", "pipeline.store.tracking", "pipeline.stages.report"]


def start(*words: object, said: Path) -> BaseProcess:
    """Start `maescreen` with these words; `said` gets all that it says."""
    if sys.platform == "linux":
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(HEAVY)
    else:  # what macOS's own libraries have started may not be forked
        context = multiprocessing.get_context("spawn")
    process = context.Process(target=_command, args=([str(word) for word in words], str(said)))
    process.start()
    return process


def kill(process: BaseProcess) -> None:
    process.kill()
    process.join()


def _command(words: list[str], said: str) -> None:
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for number in (1, 2):
        os.dup2(file, number)
    sys.argv = ["maescreen", *words]
    from pipeline.cli import main

    main()
