"""Commands as they can be typed: nothing left out, every word quoted for a shell."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

MAESCREEN = ("maescreen",)
# Messages from below the command line say CONFIG; only the command line knows the words to put there.
PLACEHOLDER = re.compile(r"\bmaescreen (\w+) CONFIG\b")

Option = str | Path | bool | Sequence[str] | None


def command(
    name: str,
    config: Path | None = None,
    overrides: Sequence[str] | None = None,
    program: Sequence[str] = MAESCREEN,
    **options: Option,
) -> str:
    """Return a command in one line.

    An option that is None, False or empty is left out; one with several values is repeated.
    """
    words = [*program, name]
    if config is not None:
        words.append(f"./{config}" if str(config).startswith("-") else str(config))
    words += overrides or ()
    for option, value in options.items():
        words += _option(f"--{option.replace('_', '-')}", value)
    return shlex.join(words)


def _option(flag: str, value: Option) -> list[str]:
    if value is None or value is False:
        return []
    if value is True:
        return [flag]
    values = [value] if isinstance(value, str | Path) else value
    return [word for one in values for word in (flag, str(one))]


def filled(message: str, config: Path, overrides: Sequence[str] | None, store: Path | None) -> str:
    """Return a message with the config, settings and store of this command in the commands that it proposes."""
    return PLACEHOLDER.sub(lambda found: command(found[1], config, overrides, store=store), message)


def program() -> list[str]:
    """Return the words that started this program: torchrun's with its options, where that is what started it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return [*MAESCREEN]
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return _torchrun() or ["torchrun", "--nproc-per-node", processes, "-m", "pipeline.cli"]


def _torchrun() -> list[str]:
    """Return torchrun's command line without what it handed on to this process; nothing when it cannot be seen."""
    import psutil

    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return []
    handed_on = sys.argv[1:]
    if words[-len(handed_on) :] != handed_on:
        return []
    words = words[: -len(handed_on)]
    begin = next((at for at, word in enumerate(words) if Path(word).name == "torchrun"), None)
    return words if begin is None else ["torchrun", *words[begin + 1 :]]
