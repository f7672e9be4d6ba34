"""What commands share: options, the config and its key, and how errors become one message and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from pipeline.commands.failures import Nameable
    from pipeline.settings.card import Card
    from pipeline.settings.config import Config


ERROR, USAGE, GATE_FAILED = 1, 2, 3
EXPECTED = (ValueError, RuntimeError, OSError, MemoryError)
LAST = "report"
NO_KEY = "-" * 16  # as long as a key
STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again
ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of the run", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[section.key=value]…", help="settings that replace those of the file", show_default=False),
]
StoreOption = Annotated[
    Path | None, typer.Option("--store", help="folder of artifacts; default: the config's, or ./store")
]
Workers = Annotated[int, typer.Option(min=1, help="processes that read studies")]
Keep = Annotated[
    list[str] | None, typer.Option("--keep", metavar="STEP", help="use the artifact that earlier code made")
]
Rebuild = Annotated[list[str] | None, typer.Option("--rebuild", metavar="STEP", help="make it anew, and what follows")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object for a program to read")]


def settings_of(
    config: Path, overrides: list[str] | None, store: Path | None, nameable: Nameable
) -> tuple[Config, Card]:
    """Return the config and its card; from now on, errors may name the files that the config names."""
    from pipeline.settings.load import load

    nameable.add(config, store)
    settings, card = load(config, overrides)
    settings = in_store(settings, store)
    if (shown := ascii(str(settings.store))).count("\\udc"):
        fail(f"the path of the store, {shown}, is not UTF-8, which MLflow needs; choose another with --store", USAGE)
    for data in (settings.data, *settings.data.external):
        nameable.add(data.labels, data.card, *data.studies)
    nameable.add(*settings.data.unlabelled, settings.data.unlabelled_patients)
    nameable.add(settings.data.key_file, settings.data.imported_weights, settings.report.fonts)
    nameable.folders |= {settings.store, settings.reports}
    return settings, card


def store_of(config: Path | None, store: Path | None, nameable: Nameable) -> tuple[Path, Config | None]:
    """Return the folder of artifacts that a config or an option names, else ./store; and the config, if any."""
    settings = settings_of(config, None, store, nameable)[0] if config else None
    folder = settings.store if settings else (store or Path("store")).resolve()
    nameable.folders.add(folder)
    return folder, settings


def known_key(settings: Config, card: Card) -> bytes:
    """Return the key if there is one, else nothing; only `run` and the stages make one."""
    from pipeline.imaging.pseudonyms import load_key

    file = settings.data.key_file
    return load_key(file, identifiers=card.identifiers) if file.exists() else b""


def in_store(settings: Config, store: Path | None) -> Config:
    return settings if store is None else settings.model_copy(update={"store": store.resolve()})


def stages(names: list[str] | None) -> list[str]:
    import difflib

    from pipeline.orchestration.graph import NAMES

    for name in names or []:
        if name.partition("@")[0] not in NAMES:  # whether there is such an external test set, the config says
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"stages: {', '.join(NAMES)}"
            fail(f"{name} is not a stage; {hint}", USAGE)
    return list(names or [])


@contextmanager
def errors(
    config: Path | None = None, overrides: list[str] | None = None, store: Path | None = None, again: str = ""
) -> Iterator[Nameable]:
    """Turn what users can cause into one message and an exit code; anything else keeps its traceback.

    Neither quotes a patient's data: files are named only when they are among what is yielded. `again` is the command
    that goes on after an interruption.
    """
    from pipeline.commands import failures, typed
    from pipeline.settings.common import UsageError

    def end(message: str, code: int) -> NoReturn:
        fail(typed.filled(message, config, overrides, store) if config else message, code)

    nameable = failures.Nameable()
    try:
        yield nameable
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except UsageError as error:
        end(str(error), USAGE)
    except KeyboardInterrupt as error:
        how = f"; what was finished is kept; go on with: {again}" if again else ""
        end((str(error) or "interrupted") + how, STOPPED)
    except Exception as error:
        message = failures.described(error, nameable) if isinstance(error, EXPECTED) else ""
        end(message or failures.frames(error).rstrip(), ERROR)


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM end a run as Ctrl-C does. Training catches either by itself, to save first."""
    import signal
    import threading

    def interrupt(_number: int, _frame: Any) -> NoReturn:
        raise KeyboardInterrupt("stopped: SIGTERM")

    if threading.current_thread() is not threading.main_thread():  # the only one that may handle signals
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def fail(message: str, code: int) -> NoReturn:
    say(message)
    raise typer.Exit(code)


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def print_json(content: Any) -> None:
    from pipeline.store.files import json_text

    print(json_text(content), end="")
