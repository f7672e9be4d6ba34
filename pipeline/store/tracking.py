"""MLflow, the index over the store and the window for people. The only module that imports it.

One experiment per project holds three kinds of run, told apart by the tag `maescreen.kind`: a *stage* run per built
artifact, a *training* run below it per model that was trained, and a *pipeline* run per `maescreen run`, the one that
people compare.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlparse
from urllib.request import url2pathname, urlopen

import psutil
from filelock import FileLock

# Hospital networks must not see traffic that nobody asked for; set before mlflow is imported.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "true"
os.environ["MLFLOW_TRUNCATE_LONG_VALUES"] = "false"
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # what commands print there is for programs
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"

import mlflow
from mlflow.entities import Dataset, DatasetInput, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from sqlalchemy.exc import SQLAlchemyError

from pipeline.store import server
from pipeline.store.files import sha256_json
from pipeline.store.server import KIND

UNUSABLE = (MlflowException, SQLAlchemyError, OSError)  # what a server or database that cannot be used raises
ANSWER_S = 20.0
BATCH = 1000  # metrics per request, the limit of MLflow's API
PARAM_BATCH = 100
LARGEST_ARTIFACT_BYTES = 8_000_000
UNTRACKED_SUFFIXES = {".npy", ".safetensors"}  # arrays and weights stay in the store
KEY, INDEXED = "maescreen.key", "maescreen.indexed"
WHOLE = f"tags.`{INDEXED}` = 'yes' and attributes.status = 'FINISHED'"  # with everything that belongs to it
# A run of another machine, or of before a restart, that has not ended is taken for dead after so long.
FORGOTTEN_DAYS = 7
PROCESS, BOOT = "maescreen.process", "maescreen.boot"


class TrackingError(RuntimeError):
    """The tracking server cannot be used."""


def default_uri(store: Path) -> str:
    """Return the URI of the SQLite database inside the store, absolute so that no working directory gets its own."""
    return _sqlite_uri(store.resolve() / "mlflow.db")


def _sqlite_uri(file: Path) -> str:
    # SQLAlchemy takes what follows a question mark for options, and undoes percent signs once. MLflow does not, and
    # makes the folder of a quoted path, a wrong one, unless the driver is named.
    return f"sqlite+pysqlite:///{quote(str(file))}"


def _create_database(store: Path) -> None:
    """Make the database beside its place and rename it: one whose first migration was killed stays broken for good."""
    final, new = store / "mlflow.db", store / "mlflow.db.new"
    if final.exists():
        return
    for torn in store.glob(f"{new.name}*"):
        torn.unlink()
    client = mlflow.MlflowClient(tracking_uri=_sqlite_uri(new))
    client.search_experiments(max_results=1)
    client._tracking_client.store.engine.dispose()
    new.replace(final)


def look_for_server(uri: str) -> None:
    """Raise OSError when nothing answers at the address of a server: MLflow itself tries for four minutes, silently."""
    if not uri.startswith(("http://", "https://")):
        return
    try:
        urlopen(uri, timeout=ANSWER_S).close()  # noqa: S310 -- one of the two schemes
    except HTTPError:
        pass  # it answers; what it wants, MLflow is told
    except URLError as error:
        if not isinstance(error.reason, ssl.SSLError):  # certificates are MLflow's to judge, by its own settings
            raise


def connected(uri: str) -> mlflow.MlflowClient:
    """Return a client of a database or a server. Raises OSError when nothing answers there."""
    look_for_server(uri)
    return mlflow.MlflowClient(tracking_uri=uri)


@contextlib.contextmanager
def plainly(uri: str | None) -> Iterator[None]:
    """Raise what a server or database raises as TrackingError, which says so without the text of a library."""
    try:
        yield
    except UNUSABLE as error:
        what = "the MLflow server cannot be used" if uri else "mlflow.db in the store cannot be used"
        todo = "check tracking.uri" if uri else "if it is damaged, remove it and run: maescreen reindex CONFIG"
        raise TrackingError(f"{what} ({type(error).__name__}); {todo}") from error


def _existing(store: Path, uri: str | None) -> mlflow.MlflowClient | None:
    """Return a client of the server, or of the database inside the store; None where there is none yet."""
    if uri is None and not (store / "mlflow.db").exists():
        return None
    return connected(uri or default_uri(store))


class Tracker:
    """Writes the runs of one project."""

    def __init__(self, project: str, store: Path, uri: str | None = None, pictures: bool = False) -> None:
        """Open (or create, once, under a lock) the database and the experiment.

        `pictures` of patients go to the database inside the store anyway: they do not leave it.

        Raises TrackingError when the server cannot be reached.
        """
        store.mkdir(parents=True, exist_ok=True)
        self.uri, self.pictures = uri or default_uri(store), pictures or uri is None
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        artifacts = None if uri else (store.resolve() / "mlflow-artifacts" / project).as_uri()
        # Several processes that open a fresh SQLite database at once destroy it for good.
        with plainly(uri), FileLock(store / "mlflow.init.lock"):
            if uri is None:
                _create_database(store.resolve())
            self.client = connected(self.uri)
            experiment = self.client.get_experiment_by_name(project)
            self.experiment_id = (
                experiment.experiment_id if experiment else self.client.create_experiment(project, artifacts)
            )
        self._close_runs_of_dead_processes()

    def open(self, kind: str, key: str, name: str, parent: str | None = None) -> str:
        """Return the id of the run for `key`, re-opened when an earlier process began or finished it.

        `parent` is the id of the run that it is shown below.
        """
        now = {PROCESS: str(os.getpid()), BOOT: _boot(), INDEXED: "no"}
        found = self._search(f"tags.`{KIND}` = '{kind}' and tags.`{KEY}` = '{key}'")
        if found:
            run_id = found[0].info.run_id
            self.client.update_run(run_id, status="RUNNING")
            self.client.log_batch(run_id, tags=[RunTag(k, v) for k, v in now.items()])
            return run_id
        below = {MLFLOW_PARENT_RUN_ID: parent} if parent else {}
        run = self.client.create_run(self.experiment_id, run_name=name, tags={KIND: kind, KEY: key, **now, **below})
        return run.info.run_id

    def find(self, kind: str, key: str) -> str | None:
        """Return the id of the run for `key`, or None."""
        found = self._search(f"tags.`{KIND}` = '{kind}' and tags.`{KEY}` = '{key}'")
        return found[0].info.run_id if found else None

    def close(self, run_id: str, status: str = "FINISHED") -> None:
        """Mark a run as FINISHED, FAILED or KILLED."""
        self.client.set_terminated(run_id, status=status)

    def finish(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Tag a run as completely indexed and close it."""
        self.tags(run_id, {**tags, INDEXED: "yes"})
        self.close(run_id)

    def indexed(self, kind: str) -> set[str]:
        """Return the keys whose runs were closed with everything that belongs to them."""
        return {run.data.tags[KEY] for run in self._search(f"tags.`{KIND}` = '{kind}' and {WHOLE}")}

    def has(self, kind: str, key: str) -> bool:
        """Return whether the run for `key` was closed with everything that belongs to it."""
        return bool(self._search(f"tags.`{KIND}` = '{kind}' and tags.`{KEY}` = '{key}' and {WHOLE}"))

    def parameters(self, run_id: str, values: Mapping[str, Any]) -> None:
        """Log settings; a value that was logged before stays."""
        known = self.client.get_run(run_id).data.params
        fresh = [Param(key, str(value)) for key, value in values.items() if key not in known]
        for start in range(0, len(fresh), PARAM_BATCH):
            self.client.log_batch(run_id, params=fresh[start : start + PARAM_BATCH])

    def metrics(self, run_id: str, values: Mapping[str, float], step: int = 0) -> None:
        """Log several metrics of one step in one request."""
        now = int(time.time() * 1000)
        self._log(run_id, [Metric(name, float(value), now, step) for name, value in values.items()])

    def series(self, run_id: str, rows: Sequence[Mapping[str, float]]) -> None:
        """Log the metrics of several steps, counted from 1, in one request."""
        now = int(time.time() * 1000)
        steps = enumerate(rows, start=1)
        self._log(run_id, [Metric(name, float(v), now, step) for step, row in steps for name, v in row.items()])

    def _log(self, run_id: str, metrics: Sequence[Metric]) -> None:
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + BATCH])

    def tags(self, run_id: str, values: Mapping[str, str]) -> None:
        """Set tags."""
        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in values.items()])

    def datasets(self, run_id: str, digests: Mapping[str, str]) -> None:
        """Log input datasets by name with our own digest; MLflow's own hashes only the first 10,000 rows."""
        inputs = [
            DatasetInput(Dataset(name=name, digest=digest[:32], source_type="maescreen", source="{}"), tags=[])
            for name, digest in digests.items()
        ]
        self.client.log_inputs(run_id, datasets=inputs)

    def files(self, run_id: str, folder: Path, names: Sequence[str]) -> None:
        """Copy the small files of an artifact to the run: JSON, tables, pictures, reports."""
        for name in names:
            path = folder / name
            if path.suffix not in UNTRACKED_SUFFIXES and path.stat().st_size <= LARGEST_ARTIFACT_BYTES:
                parent = str(Path(name).parent)
                self.client.log_artifact(run_id, str(path), None if parent == "." else parent)

    def table(self, run_id: str, columns: Mapping[str, list], name: str) -> None:
        """Log a table that the UI shows sortable."""
        self.client.log_table(run_id, dict(columns), name)

    def _search(self, query: str) -> list[Run]:
        return [*_pages(lambda token: self.client.search_runs([self.experiment_id], query, page_token=token))]

    def _close_runs_of_dead_processes(self) -> None:
        for run in self._search("attributes.status = 'RUNNING'"):
            boot, process = run.data.tags.get(BOOT), run.data.tags.get(PROCESS, "0")
            # Another machine or container may share the server: only processes of this one can be known to be dead.
            if boot == _boot() and not psutil.pid_exists(int(process)):
                self.client.set_terminated(run.info.run_id, status="KILLED")


@contextlib.contextmanager
def closing(tracker: Tracker, run_id: str) -> Iterator[None]:
    """Close the run as FINISHED, KILLED on Ctrl-C, or FAILED on any other exception."""
    try:
        yield
    except KeyboardInterrupt:
        tracker.close(run_id, "KILLED")
        raise
    except BaseException:
        tracker.close(run_id, "FAILED")
        raise
    tracker.close(run_id)


@dataclass(frozen=True)
class KnownRun:
    """A run that maescreen began: what it is of, whether its process may be alive, and its files inside the store."""

    run_id: str
    project: str
    kind: str
    key: str
    name: str
    at_work: bool
    changed: datetime
    folder: Path | None


@dataclass(frozen=True)
class RegisteredModel:
    """A version of a registered model: the run that made it, where its files are, and the artifacts it names."""

    name: str
    run_id: str
    source: str
    keys: tuple[str, ...]


def known_runs(store: Path, uri: str | None) -> list[KnownRun]:
    """Return the runs of every project that maescreen began; none where there is no database yet.

    Raises TrackingError when the server cannot be reached.
    """
    found: list[KnownRun] = []
    with plainly(uri):
        if (client := _existing(store, uri)) is None:
            return []
        for experiment in _pages(lambda token: client.search_experiments(page_token=token)):
            ids = [experiment.experiment_id]
            runs = _pages(lambda token, ids=ids: client.search_runs(ids, page_token=token))
            found += [_known(run, experiment.name, store) for run in runs if KIND in run.data.tags]
    return found


def registered_models(store: Path, uri: str | None) -> list[RegisteredModel]:
    """Return every version of every registered model. Raises TrackingError when the server cannot be reached."""
    with plainly(uri):
        if (client := _existing(store, uri)) is None:
            return []
        versions = _pages(lambda token: client.search_model_versions(page_token=token))
        return [_registered(client, version) for version in versions]


def remove_run(store: Path, uri: str | None, run: KnownRun) -> None:
    """Remove a run and its files for good; on a server, mark it as deleted, which its `mlflow gc` makes final.

    Raises TrackingError when the server refuses.
    """
    client = mlflow.MlflowClient(tracking_uri=uri or default_uri(store))
    with plainly(uri):
        client.delete_run(run.run_id)
        if uri is None:
            client._tracking_client.store._hard_delete_run(run.run_id)
            if run.folder is not None and run.folder.exists():
                shutil.rmtree(run.folder)


def _pages(search: Callable[[str | None], Any]) -> Iterator[Any]:
    token = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return


def _known(run: Run, project: str, store: Path) -> KnownRun:
    tags, changed = run.data.tags, run.info.end_time or run.info.start_time
    moment = datetime.fromtimestamp(changed / 1000, UTC)
    boot, process = tags.get(BOOT), int(tags.get(PROCESS, "0"))
    recent = datetime.now(UTC) - moment < timedelta(days=FORGOTTEN_DAYS)
    alive = psutil.pid_exists(process) if boot == _boot() else recent
    files = url2pathname(urlparse(run.info.artifact_uri).path) if run.info.artifact_uri else ""
    folder = Path(files).parent if Path(files).name == "artifacts" else Path(files)
    inside = bool(files) and store.resolve() / "mlflow-artifacts" in folder.parents and folder.name == run.info.run_id
    return KnownRun(
        run.info.run_id, project, tags[KIND], tags.get(KEY, ""), run.info.run_name or run.info.run_id,
        run.info.status == "RUNNING" and alive, moment, folder if inside else None,
    )  # fmt: skip


def _registered(client: mlflow.MlflowClient, version: Any) -> RegisteredModel:
    """Return a version with the artifacts that it or its run names, in tags like `key.report` or as the run's own."""
    tags, run_id = dict(version.tags or {}), version.run_id or ""
    if run_id:
        with contextlib.suppress(MlflowException):  # the run was removed by hand: the version's own tags are all
            tags |= client.get_run(run_id).data.tags
    keys = [f"{name.removeprefix('key.').partition('.')[0]}/{value}" for name, value in tags.items()
            if name.startswith("key.")]  # fmt: skip
    own = [tags[KEY]] if KEY in tags else []
    return RegisteredModel(f"{version.name} version {version.version}", run_id, version.source or "", (*keys, *own))


def serve(store: Path, uri: str | None, port: int, ready: Callable[[], None]) -> None:
    """Serve the UI on loopback until a signal asks to end; call `ready` once it answers.

    Raises ServerError when the server cannot start, or ends by itself.
    """
    server.serve(uri or default_uri(store), (store.resolve() / "mlflow-artifacts").as_uri(), port, ready)


def _boot() -> str:
    """Return an identifier of where process ids mean the same as here, without a host name.

    Containers of one machine share its boot and count their processes by themselves, so that each has its own.
    """
    parts = [socket.gethostname()]
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text(), lambda: os.readlink("/proc/self/ns/pid")):
        try:
            parts.append(read())
        except OSError:  # not Linux: no containers of this kind
            parts.append(str(int(psutil.boot_time())))
    return sha256_json(parts)[:16]


def reachable(uri: str) -> str:
    """Return why a tracking server cannot be used, or an empty text."""
    try:
        connected(uri).search_experiments(max_results=1)
    except UNUSABLE as error:
        return f"does not answer ({type(error).__name__})"
    return ""


def experiment_id(project: str, store: Path, uri: str | None) -> str | None:
    """Return the id of a project's experiment, or None when nothing was run yet; make no database.

    Raises TrackingError when the server cannot be reached.
    """
    with plainly(uri):
        client = _existing(store, uri)
        experiment = client.get_experiment_by_name(project) if client else None
    return experiment.experiment_id if experiment else None
