"""MLflow's model registry: finished models by name and version, and aliases that lead to one of them.

A version holds the model's folder as it was packaged, beside code that MLflow serves it with. Nothing in it is
pickled. What MLflow does not keep, when an alias led where, is in `<store>/models/history.jsonl`.
"""

from __future__ import annotations

import getpass
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote, urlparse

from filelock import FileLock

from pipeline.store import tracking  # before mlflow, which reads its environment when it is imported

# isort: split
import mlflow
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from pipeline.store import alias_history, registrations
from pipeline.store.alias_history import History, Move
from pipeline.store.files import sha256_json
from pipeline.store.served_model import ARTIFACT, MODEL, Serving, write_pyfunc

EXPERIMENT, KIND = "registered_models", "registration"
SHA256, USABLE, FORCED, HEAD = "maescreen.sha256", "maescreen.usable", "maescreen.forced", "maescreen.history"
PYFUNC = "pyfunc"
REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
VERSION_LIKE = re.compile(r"(v?[0-9]+|latest)", re.IGNORECASE)  # MLflow's own, and bare numbers
LONGEST_REASON = 500
GONE = "gone"  # where the files of a version are that was restored without them: nowhere


class RegistryError(ValueError):
    """A registered model cannot be found, made or promoted; the message says why and what to do."""


@dataclass(frozen=True)
class Packaged:
    """A verified model folder, and what the registry shows of it: no path, no row of a patient."""

    folder: Path
    sha256: str
    title: str
    usable: bool
    not_usable_because: tuple[str, ...]
    requirements: tuple[str, ...]


@dataclass(frozen=True)
class Version:
    """A version of a registered model, the aliases that lead to it, and where MLflow keeps its files."""

    name: str
    version: str
    sha256: str
    usable: bool
    aliases: tuple[str, ...]
    forced: str
    source: str

    @property
    def reference(self) -> str:
        """What commands take for it."""
        return f"models:/{self.name}/{self.version}"

    @property
    def is_gone(self) -> bool:
        """Whether it was restored without its files, which are in the store no more."""
        return self.source.endswith(f"/{alias_history.FOLDER}/{GONE}")


class Registry:
    """The registered models of a store's own MLflow, or of the server at `uri`."""

    def __init__(self, store: Path, uri: str | None = None) -> None:
        self.store, self.uri = store.resolve(), uri

    # ---------------------------------------------------------------- reading

    def find(self, reference: str) -> Version:
        """Return what `models:/NAME@ALIAS` or `models:/NAME/VERSION` means. Raises RegistryError."""
        found = REFERENCE.fullmatch(reference)
        if found is None:
            raise RegistryError(f"{reference} names no registered model; expected models:/NAME@ALIAS or /NAME/VERSION")
        with tracking.plainly(self.uri):
            client, name = self._client(), found["name"]
            try:
                if found["alias"]:
                    return _version(client, client.get_model_version_by_alias(name, found["alias"]))
                return _version(client, client.get_model_version(name, found["version"]))
            except MlflowException as error:
                self._explain(client, reference, name, error)

    def _explain(self, client: mlflow.MlflowClient, reference: str, name: str, error: MlflowException) -> NoReturn:
        """Say what there is instead of what was asked for, or raise the error again."""
        known = {one.name: one for one in client.search_registered_models()}
        if name not in known:
            there = ", ".join(sorted(known)) or "none; register one with: maescreen model register"
            raise RegistryError(f"there is no registered model {name}; registered: {there}") from None
        if _code(error) not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise error
        aliases = ", ".join(f"@{alias} (version {version})" for alias, version in sorted(known[name].aliases.items()))
        versions = ", ".join(str(n) for n in sorted(int(v.version) for v in _versions(client, name)))
        raise RegistryError(f"{reference} is not there; versions: {versions}; aliases: {aliases or 'none'}") from None

    @contextmanager
    def folder(self, version: Version) -> Iterator[Path]:
        """Yield the model's folder: where MLflow keeps it on this machine, else a copy that is gone afterwards.

        Raises RegistryError when its files are not there. Whoever opens it compares every hash.
        """
        folder = _folder(version.source)
        if folder is not None:
            if not folder.is_dir():
                raise RegistryError(
                    f"the files of {version.reference} are not where MLflow kept them: after the store was moved, "
                    "register the model again"
                )
            yield folder
            return
        with tempfile.TemporaryDirectory(prefix="maescreen-") as scratch:
            with tracking.plainly(self.uri):
                uri = f"{version.source}/{ARTIFACT}"
                fetched = mlflow.artifacts.download_artifacts(
                    artifact_uri=uri, dst_path=scratch, tracking_uri=self.uri or tracking.default_uri(self.store)
                )
            yield Path(fetched)

    def history(self, name: str | None = None) -> History:
        """Return the moves of all aliases, with what is wrong: of the chain, and between it and the aliases of `name`.

        Raises RegistryError when there is no registered model of that name.
        """
        history = alias_history.read(self.store)
        if name is None:
            return history
        with tracking.plainly(self.uri):
            client = self._client()
            try:
                registered = client.get_registered_model(name)
            except MlflowException as error:
                self._explain(client, name, name, error)
        problems = list(history.problems)
        head = registered.tags.get(HEAD)
        if head is not None and head not in history.hashes:
            problems.append(f"the last entry that was written for {name} is gone from {alias_history.FILE}")
        last = {move.alias: move.to_version for move in history.of(name)}
        for alias in sorted(last.keys() | registered.aliases.keys()):
            now, said = str(registered.aliases.get(alias, "")), last.get(alias, "")
            if now != said:
                problems.append(
                    f"@{alias} leads to {f'version {now}' if now else 'nothing'}, and the history says "
                    f"{f'version {said}' if said else 'nothing of it'}: it was moved by other means than `promote`"
                )
        return History(history.moves, history.hashes, tuple(problems))

    # ---------------------------------------------------------------- writing

    def register(self, packaged: Packaged, name: str, serving: Serving) -> Version:
        """Add a model as the next version of `name`, unless it is one already; return that version."""
        _check_name(name, "--name")
        with self._locked(), tracking.plainly(self.uri):
            tracking.Tracker(EXPERIMENT, self.store, self.uri)  # makes the database where there is none
            client = self._client()
            try:
                client.get_registered_model(name)
            except MlflowException as error:
                if _code(error) != "RESOURCE_DOES_NOT_EXIST":
                    raise
                client.create_registered_model(name)
            for known in _versions(client, name):
                if known.tags.get(SHA256) == packaged.sha256 and _is_there(known.source):
                    registrations.note(self.store, name, str(known.version), packaged.sha256)
                    return _version(client, known)
            made = self._created(client, packaged, name, serving)
            registrations.note(self.store, name, made.version, packaged.sha256)
            return made

    def _created(self, client: mlflow.MlflowClient, packaged: Packaged, name: str, serving: Serving) -> Version:
        source, run_id = self._stored(packaged, name, serving)
        tags = {SHA256: packaged.sha256, USABLE: "yes" if packaged.usable else "no"}
        why = "" if packaged.usable else f" Not usable: {'; '.join(packaged.not_usable_because)}"
        made = client.create_model_version(name, source, run_id, tags, description=f"{packaged.title}.{why}")
        return _version(client, made)

    def restore(self, models: Mapping[str, Packaged], serving: Serving) -> tuple[list[Version], list[Version]]:
        """Fill a registry that was lost from what the store remembers: names, versions, aliases, forced promotions.

        `models` are the packaged models of the store by hash. Returns the versions that were made again, and those
        whose files are gone, which keep their number, hash and aliases. Names that MLflow knows are left alone.
        """
        history = alias_history.read(self.store)
        remembered = registrations.known(self.store, history.moves)
        made: list[Version] = []
        if not remembered:
            return [], []
        with self._locked(), tracking.plainly(self.uri):
            tracking.Tracker(EXPERIMENT, self.store, self.uri)  # makes the database where there is none
            client = self._client()
            there = {one.name for one in client.search_registered_models()}
            for name, versions in remembered.items():
                if name in there:
                    continue
                client.create_registered_model(name)
                # MLflow counts versions itself: one that is not known any more would move all later ones.
                for number in range(1, 1 + max(map(int, versions))):
                    sha256 = versions.get(str(number), "")
                    if sha256 in models:
                        made.append(self._created(client, models[sha256], name, serving))
                    else:
                        tags = {SHA256: sha256, USABLE: "no"}
                        gone = f"file://{self.store / alias_history.FOLDER / GONE}"
                        found = client.create_model_version(name, gone, None, tags, description="Its files are gone.")
                        made.append(_version(client, found))
                self._aliases(client, name, history)
        # Read again, with the aliases that lead to them.
        every = [self.find(one.reference) for one in made]
        return [one for one in every if not one.is_gone], [one for one in every if one.is_gone]

    def _aliases(self, client: mlflow.MlflowClient, name: str, history: History) -> None:
        for move, head in zip(history.moves, history.hashes, strict=True):
            if move.name != name:
                continue
            if move.forced:
                client.set_model_version_tag(name, move.to_version, FORCED, f"{move.when} {move.why}")
            client.set_registered_model_alias(name, move.alias, move.to_version)
            client.set_registered_model_tag(name, HEAD, head)

    def _stored(self, packaged: Packaged, name: str, serving: Serving) -> tuple[str, str]:
        """Hand the files to MLflow; return where they are, and the id of the run that they belong to."""
        tracker = tracking.Tracker(EXPERIMENT, self.store, self.uri)
        run_id = tracker.open(KIND, sha256_json([name, packaged.sha256]), name)
        with tracking.closing(tracker, run_id), tempfile.TemporaryDirectory(prefix="maescreen-") as scratch:
            folder = Path(scratch) / PYFUNC
            # MLflow keeps a folder under its own name, whatever it is an artifact as.
            shutil.copytree(packaged.folder, Path(scratch) / MODEL)
            write_pyfunc(folder, Path(scratch) / MODEL, packaged.requirements, serving)
            tracker.client.log_artifacts(run_id, str(folder), PYFUNC)
            tracker.tags(run_id, {SHA256: packaged.sha256})
        uri = tracker.client.get_run(run_id).info.artifact_uri
        return f"{uri}/{PYFUNC}", run_id

    def promote(self, version: Version, alias: str, why: str, not_usable_because: tuple[str, ...], force: bool) -> Move:
        """Let an alias lead to a version, and write down when, from which to which, who and why.

        Raises RegistryError when no reason is given, or the model is not usable and `force` is not given.
        """
        _check_name(alias, "--alias")
        if VERSION_LIKE.fullmatch(alias):
            raise RegistryError(f"--alias {alias} looks like a version; choose a word such as champion")
        why = " ".join(why.split())
        if not why or len(why) > LONGEST_REASON:
            raise RegistryError(f"--why needs a reason, in at most {LONGEST_REASON} characters")
        if not_usable_because and not force:
            raise RegistryError(
                f"{version.reference} is not usable: {'; '.join(not_usable_because)}. It gives scores, never "
                f"decisions. With --force it can be called {alias} all the same; reason and account are shown for ever"
            )
        with self._locked(), tracking.plainly(self.uri):
            client = self._client()
            before = client.get_registered_model(version.name).aliases.get(alias)
            old = _version(client, client.get_model_version(version.name, before)) if before else None
            move = Move(
                when=datetime.now(UTC).isoformat(timespec="seconds"),
                name=version.name,
                alias=alias,
                from_version=old.version if old else "",
                from_sha256=old.sha256 if old else "",
                to_version=version.version,
                to_sha256=version.sha256,
                account=getpass.getuser(),
                why=why,
                forced=bool(not_usable_because),
                not_usable_because=not_usable_because,
            )
            # The line comes first: `history` sees a move that was killed halfway, and could not see one without a line.
            head = alias_history.append(self.store, move)
            if move.forced:
                client.set_model_version_tag(version.name, version.version, FORCED, f"{move.when} {why}")
            client.set_registered_model_alias(version.name, alias, version.version)
            client.set_registered_model_tag(version.name, HEAD, head)
        return move

    # ---------------------------------------------------------------- shared

    def _client(self) -> mlflow.MlflowClient:
        if self.uri is None and not (self.store / "mlflow.db").exists():
            raise RegistryError(f"{self.store} holds no registered models; say with --store or --config where they are")
        uri = self.uri or tracking.default_uri(self.store)
        with tracking.plainly(self.uri):
            tracking.look_for_server(uri)
        return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        folder = self.store / alias_history.FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            yield


def _versions(client: mlflow.MlflowClient, name: str) -> list[Any]:
    return list(client.search_model_versions(f"name = '{name}'"))


def _version(client: mlflow.MlflowClient, found: Any) -> Version:
    aliases = client.get_registered_model(found.name).aliases
    tags: Mapping[str, str] = found.tags
    if SHA256 not in tags:
        raise RegistryError(f"models:/{found.name}/{found.version} was not registered by maescreen")
    return Version(
        name=found.name,
        version=str(found.version),
        sha256=tags[SHA256],
        usable=tags[USABLE] == "yes",
        aliases=tuple(sorted(alias for alias, version in aliases.items() if str(version) == str(found.version))),
        forced=tags.get(FORCED, ""),
        source=found.source.rstrip("/"),
    )


def _is_there(source: str) -> bool:
    """Return whether MLflow's copy of a model is where it was kept; on a server it is taken to be."""
    folder = _folder(source)
    return folder is None or folder.is_dir()


def _folder(source: str) -> Path | None:
    """Return the model's folder where MLflow keeps it on this machine; None when it is on a server."""
    parsed = urlparse(source)
    return Path(unquote(parsed.path)) / ARTIFACT if parsed.scheme in ("", "file") else None


def _check_name(text: str, option: str) -> None:
    if not NAME.fullmatch(text):
        raise RegistryError(f"{option} {text!r} must be letters, digits, dots, dashes and underscores, at most 64")


def _code(error: MlflowException) -> str:
    # Servers give the name, databases the number.
    return ErrorCode.Name(RESOURCE_DOES_NOT_EXIST) if error.error_code == RESOURCE_DOES_NOT_EXIST else error.error_code
