"""A pipeline of three toy stages that goes through the real plan, run and store, in milliseconds.

Their names are those of real stages, since settings and command line know no others; what they do is arithmetic on
text. `prepare` is played by ingest (costly), `fit` by pretrain (costly), `judge` by score (cheap).
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

from pipeline.orchestration import graph
from pipeline.settings.card import Card
from pipeline.settings.config import Config
from pipeline.settings.load import load
from pipeline.store import lineage, tracking
from pipeline.store.artifacts import Inputs, Store

STAGES = (
    graph.Stage("ingest", sources=("studies", "labels"), costly=True, incremental=("studies",)),
    graph.Stage("pretrain", {"ingest": ("*",)}, costly=True),
    graph.Stage("score", {"ingest": ("*",), "pretrain": ("*",)}),
)
NAMES = tuple(stage.name for stage in STAGES)
SECRET = bytes(32)
CARD = """\
{name: toy, title: Toy, source: none, licence: none, attribution: none, identifiers: synthetic,
label: {name: x, definition: x, reference_standard: x, positive: ['1'], negative: ['0']}, columns: {path: path},
intended_use: {condition: x, population: x, user: x, place: x}}
"""
CONFIG = """\
{project: toy, store: store, reports: reports, report: {title: Toy}, machine: {workers: 1, device: cpu},
data: {studies: [studies], labels: labels.csv, card: card.yaml, key_file: key}}
"""
PARTS = ("first", "second")
Watch = Callable[[str, Path], None]


class NoTracker:
    """Stands in for MLflow, which has tests of its own and takes a hundred times as long as all else here."""

    experiment_id = "0"

    def __init__(self, *_: object) -> None: ...

    def open(self, *_: object, **__: object) -> str:
        return "run"

    def indexed(self, kind: str) -> set[str]:
        return set()

    def find(self, *_: object) -> None:
        return None

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


@contextmanager
def in_place_of(name: str, module: types.SimpleNamespace) -> Iterator[None]:
    """Let a module be imported by this name; the real one, which may need torch, stays away."""
    real = sys.modules.get(name)
    sys.modules[name] = module  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        if real is not None:
            sys.modules[name] = real


class Toy:
    """A project of the toy pipeline in `folder`, and the code of its stages, which tests may change."""

    def __init__(self, folder: Path, watch: Watch = lambda stage, work: None) -> None:
        self.folder = folder
        self.watch = watch  # called by each stage, with its work folder, after each of its two files
        self.code = folder / "code" / "pipeline"
        self.previous: list[bool] = []
        self._loaded: tuple[Config, Card] | None = None
        (folder / "studies").mkdir(parents=True, exist_ok=True)
        for name, text in {"card.yaml": CARD, "run.yaml": CONFIG, "key": SECRET.hex(), "labels.csv": "path\n"}.items():
            (folder / name).write_text(text)
        self.write_study("1")
        for stage in NAMES:
            self.write_code(stage, "1")
        (self.code / "labels").mkdir(exist_ok=True)
        (self.code / "labels" / "identity.py").write_text("")  # whose a file is, which the plan looks at

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    def load(self, **settings: dict[str, int]) -> tuple[Config, Card, bytes]:
        """Return config, card and key; `settings` replace some of a section each."""
        if self._loaded is None:
            self._loaded = load(self.folder / "run.yaml")
        config, card = self._loaded
        changed = {name: getattr(config, name).model_copy(update=values) for name, values in settings.items()}
        return config.model_copy(update=changed), card, SECRET

    def write_study(self, content: str, name: str = "one") -> None:
        (self.folder / "studies" / name).write_text(content)

    def write_code(self, stage: str, version: str) -> None:
        path = self.code / "stages" / f"{stage}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"VERSION = {version!r}\n")

    def stage(self, name: str) -> Callable[..., None]:
        """Return the stage: its files hold settings, code, and all that the stage read, and are kept by a resume."""

        def work_on(settings, inputs: Inputs, work: Path, log) -> None:
            code = (self.code / "stages" / f"{name}.py").read_text()
            read = [path.read_text() for stage in inputs.readable for path in inputs.files(stage, "*")]
            if name == "ingest":
                read = [path.read_text() for path in sorted(inputs.studies[0].iterdir())]
                self.previous.append(inputs.previous is not None)
            for part in PARTS:
                if not (work / part).exists():
                    (work / part).write_text(f"{part} {settings.model_dump()} {code} {read}")
                self.watch(name, work)

        return work_on

    @contextmanager
    def installed(self, tracker: type = NoTracker) -> Iterator[Toy]:
        """Let the toy stages take the places of the real ones."""
        with ExitStack() as stack:
            for owner, name, new in (
                (graph, "STAGES", STAGES),
                (lineage, "PACKAGE_FOLDER", self.code),
                (tracking, "Tracker", tracker),
            ):
                stack.enter_context(mock.patch.object(owner, name, new))
            for name in NAMES:
                module = types.SimpleNamespace(**{name: self.stage(name)})
                stack.enter_context(in_place_of(f"pipeline.stages.{name}", module))
            yield self

    def contents(self) -> dict[tuple[str, str], dict[str, str]]:
        """Return the text of every file of every artifact, each compared with its recorded hash."""
        return {
            (one.stage, one.key): {name: one.file(name).read_text() for name in one.record["files"]}
            for stage in NAMES
            for one in self.store.all(stage)
        }
