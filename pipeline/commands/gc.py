"""What the store holds that nothing needs any more: found, with size and reason, and removed when asked.

Needed is an artifact that a kept report, a registered model, the newest runs or the next run of the config rests on,
directly or not. Everything else that is kept is kept because it is not this config's to remove.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from pypdf.errors import PdfReadError

from pipeline.orchestration.graph import NAMES
from pipeline.orchestration.plan import RunError, plan
from pipeline.reporting.pdf import read_keys
from pipeline.settings.card import Card
from pipeline.settings.config import Config
from pipeline.store.artifacts import Store
from pipeline.store.files import sha256_file
from pipeline.store.indexed import forget
from pipeline.store.inventory import Lying, folder_bytes, inventory, remove
from pipeline.store.run_records import FOLDER, RunRecord, every_record, record_path
from pipeline.store.tracking import KnownRun, known_runs, registered_models, remove_run
from pipeline.store.wording import counted

Place = tuple[str, str]  # stage and key of an artifact
NOBODY = "no kept report, registered model, newest or next run needs it"
AT_WORK = "a run is at work in this store and may read it"
WORDS = {
    "artifact": NOBODY,
    "unfinished": "unfinished, and no run of this config goes on with it",
    "superseded": "its successor is complete",
    "torn": "left of an interrupted removal",
    "request": "asks to make anew what is not there",
    "lock": "nothing is left to guard",
}


@dataclass(frozen=True)
class Item:
    """Something that lies there, whether it is kept, and why."""

    kind: str
    name: str
    size_bytes: int
    changed: datetime
    kept: bool
    reason: str
    thing: Lying | KnownRun | Path

    def to_dict(self) -> dict[str, Any]:
        """Return it for --json."""
        changed = self.changed.isoformat(timespec="seconds")
        return {"kind": self.kind, "name": self.name, "bytes": self.size_bytes, "changed": changed,
                "reason": self.reason}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """All that lies there, and remarks on how it was judged."""

    items: Sequence[Item]
    remarks: Sequence[str]

    @property
    def removable(self) -> list[Item]:
        """What may go."""
        return [item for item in self.items if not item.kept]

    @property
    def kept(self) -> list[Item]:
        """What stays."""
        return [item for item in self.items if item.kept]


@dataclass
class Needs:
    """Why each artifact stays: the first reason that was found."""

    records: Mapping[Place, Mapping[str, Any] | None]
    reasons: dict[Place, str] = field(default_factory=dict)

    def add(self, places: Iterable[Place], reason: str) -> None:
        """Keep artifacts, and all that they were made from."""
        waiting = list(places)
        while waiting:
            place = waiting.pop()
            if place in self.reasons:
                continue
            self.reasons[place] = reason
            record = self.records.get(place) or {}
            waiting += [(step.partition("@")[0], key) for step, key in record.get("inputs", {}).items()]


def examine(
    config: Config, card: Card, secret: bytes | None, keep_last: int = 1, older_than_days: float = 0.0
) -> Found:
    """Judge everything that lies in the store; change nothing.

    `keep_last` runs of the project stay, and what is younger than `older_than_days`. Raises RunError when there are
    reports in the store and the folder of kept ones is not there, TrackingError when MLflow cannot be asked.
    """
    store = Store(config.store)
    lying = inventory(store, NAMES)
    runs = known_runs(config.store, config.tracking.uri)
    records = every_record(store)
    artifacts = {(one.stage, one.key): one.record for one in lying if one.kind == "artifact"}
    young = datetime.now(UTC) - timedelta(days=older_than_days)
    remarks: list[str] = []

    needs = Needs(artifacts)
    _keep_reports(needs, config, remarks)
    models = registered_models(config.store, config.tracking.uri)
    for model in models:
        needs.add(_places([*model.keys, *inside(model.source, config.store)]), f"registered model {model.name}")
    own = [one for one in records if one.project == config.project and _whole(one, artifacts)]
    for record in own[-keep_last:]:
        needs.add(_of_record(record), f"newest run {record.name}")
    planned = _planned(config, card, secret, remarks)
    needs.add(planned or (), "the next run of this config uses it")
    for record in records:
        if record.project != config.project:
            needs.add(_of_record(record), f"a run of {record.project}, another project")
    for place, record in artifacts.items():
        if record is None:
            needs.add([place], "its record is damaged, so that nobody knows whose it is")
        elif record.get("project") != config.project:
            needs.add([place], f"it is of {record.get('project')}, another project")
    busy = any(one.held for one in lying) or any(run.at_work for run in runs)
    if busy:
        remarks.append(f"{AT_WORK}: no artifact is removed before it has ended")
        needs.add(artifacts, AT_WORK)
    if older_than_days:
        needs.add(
            [(one.stage, one.key) for one in lying if one.kind == "artifact" and one.changed > young],
            f"younger than {older_than_days:g} days",
        )

    judge = _Judge(needs, artifacts, planned, busy, young, older_than_days, _owners(runs, config.project))
    items = [judge.lying(one) for one in lying]
    items = [_lock(item, items) for item in items]
    gone = {_place(item) for item in items if item.kind == "artifact" and not item.kept}
    there = {_place(item) for item in items if item.kind in ("artifact", "unfinished") and item.kept}
    registered = {model.run_id for model in models}
    mine = [run for run in runs if run.project == config.project]
    items += [
        judge.run(run, there | set(planned or ()), gone, registered, config.tracking.uri is not None) for run in mine
    ]
    items += [_record(store, one, gone, artifacts) for one in records if one.project == config.project]
    return Found(items, remarks)


def delete(config: Config, found: Found, say: Callable[[str], None]) -> list[Item]:
    """Remove what may go; return what went. What another process took meanwhile stays, and is said."""
    store, gone = Store(config.store), []
    forget(config.store)
    for item in found.removable:
        thing = item.thing
        if isinstance(thing, KnownRun):
            remove_run(config.store, config.tracking.uri, thing)
        elif isinstance(thing, Path):
            thing.unlink(missing_ok=True)
        elif not remove(store, thing):
            say(f"{item.name} stays: another process works on it by now")
            continue
        gone.append(item)
    return gone


def lines(going: Sequence[Item], kept: Sequence[Item]) -> list[str]:
    """Return what goes, one line each, and what stays in one line per reason."""
    shown = [
        f"{item.kind:<10} {item.name:<26} {human(item.size_bytes):>9}  {item.changed:%Y-%m-%d}  {item.reason}"
        for item in going
        if item.kind != "lock"
    ]
    if locks := [item for item in going if item.kind == "lock"]:
        shown.append(f"lock       {counted(len(locks), 'lock'):<26} {human(total(locks)):>9}  {WORDS['lock']}")
    stays: dict[str, list[Item]] = {}
    for item in kept:
        if item.kind != "lock":
            stays.setdefault(item.reason, []).append(item)
    return shown + [
        f"kept       {counted(len(items), 'thing'):<26} {human(sum(i.size_bytes for i in items)):>9}  {reason}"
        for reason, items in stays.items()
    ]


def human(size_bytes: int) -> str:
    """Return a size as one says it: `512 B`, `3.4 MB`."""
    size, units = float(size_bytes), ["B", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.{0 if units[0] == 'B' or size >= 99.5 else 1}f} {units[0]}"


def total(items: Iterable[Item]) -> int:
    """Return the bytes of all items."""
    return sum(item.size_bytes for item in items)


# ---------------------------------------------------------------- what is needed


def _keep_reports(needs: Needs, config: Config, remarks: list[str]) -> None:
    """Keep what the reports that lie in the folder of reports rest on, and the artifacts that they are copies of."""
    made = [(place, record) for place, record in needs.records.items() if place[0] == "report" and record is not None]
    if not config.reports.is_dir():
        if any(record.get("project") == config.project for _, record in made):
            raise RunError(
                f"{config.reports}: there is no such folder, although this project has reports: what they rest on "
                "cannot be known; mount it, or make it if they are all to go"
            )
        remarks.append(f"no kept report: {config.reports} is not made yet")
        return
    originals = {record["files"].get("report.pdf"): place for place, record in made}
    kept = 0
    for pdf in sorted(config.reports.rglob("*.pdf")):
        try:
            keys = read_keys(pdf)
        except (PdfReadError, OSError):
            remarks.append(f"{pdf}: cannot be read as a PDF; what it may rest on is not known")
            continue
        places = [(step.partition("@")[0], key) for step, key in keys.items() if step.partition("@")[0] in NAMES]
        if not places:
            continue  # a comparison, or nothing of ours
        kept += 1
        original = originals.get(sha256_file(pdf))
        needs.add([*places, *([original] if original else [])], f"kept report {pdf.relative_to(config.reports)}")
    remarks.append(f"{counted(kept, 'kept report')} in {config.reports}")


def _planned(config: Config, card: Card, secret: bytes | None, remarks: list[str]) -> list[Place] | None:
    """Return the artifacts that the next run of the config uses or makes; None when that cannot be known."""
    try:
        return [(step.stage.name, step.key) for step in plan(config, card, secret)]
    except (ValueError, RuntimeError, OSError) as error:  # the studies are not mounted, a label table is damaged
        remarks.append(
            f"what the next run of this config needs cannot be known ({type(error).__name__}; see maescreen plan "
            "CONFIG): no unfinished work is removed"
        )
        return None


def _whole(record: RunRecord, artifacts: Mapping[Place, Any]) -> bool:
    return all(place in artifacts for place in _of_record(record))


def _of_record(record: RunRecord) -> list[Place]:
    return [(stage, key) for stage, key in record.artifacts.values()]


def _places(keys: Iterable[str]) -> list[Place]:
    """Return artifacts by the keys that MLflow has of them: `stage/key`, of trainings with more behind it."""
    return [(parts[0], parts[1]) for key in keys if len(parts := key.split("/")) > 1]


def inside(source: str, store: Path) -> list[str]:
    """Return the artifact in whose folder a registered model lies, if it does."""
    address = urlparse(source)
    path = Path(url2pathname(address.path) if address.scheme == "file" else source)
    return [path.relative_to(store).as_posix()] if path.is_relative_to(store) else []


def _owners(runs: Iterable[KnownRun], project: str) -> dict[Place, str]:
    """Return which other project began what is unfinished, by the run that MLflow has of it."""
    others = [run for run in runs if run.kind == "stage" and run.project != project]
    return {place: run.project for run in others for place in _places([run.key])}


# ---------------------------------------------------------------- what that means for each thing


@dataclass(frozen=True)
class _Judge:
    needs: Needs
    artifacts: Mapping[Place, Any]
    planned: Sequence[Place] | None
    busy: bool
    young: datetime
    days: float
    owners: Mapping[Place, str]

    def lying(self, one: Lying) -> Item:
        place = (one.stage, one.key)
        why = self._why_kept(one, place)
        return Item(
            one.kind, f"{one.stage}/{one.key}", one.size_bytes, one.changed, bool(why), why or WORDS[one.kind], one
        )

    def _why_kept(self, one: Lying, place: Place) -> str:
        """Return why something in the folder of a stage stays, or an empty text."""
        if one.held:
            return "another process is working on it"
        if one.kind == "artifact":
            return self.needs.reasons.get(place, "")
        if one.kind == "lock":
            return ""  # goes with the last of what it guards, see `_lock`
        if one.kind in ("unfinished", "request") and (why := self._why_goes_on(place)):
            return why
        if self.days and one.changed > self.young:
            return f"younger than {self.days:g} days"
        return ""

    def _why_goes_on(self, place: Place) -> str:
        """Return why unfinished work stays, or an empty text."""
        if self.busy:
            return AT_WORK
        if self.planned is None:
            return "the next run of this config may go on with it"
        if place in self.planned:
            return "the next run of this config goes on with it"
        if place in self.owners:
            return f"it is of {self.owners[place]}, another project"
        # A rebuild of a needed artifact that was interrupted.
        return self.needs.reasons[place] if place in self.needs.reasons and place in self.artifacts else ""

    def run(self, run: KnownRun, there: set[Place], gone: set[Place], registered: set[str], elsewhere: bool) -> Item:
        place = next(iter(_places([run.key])), ("", ""))
        why = self._why_run_kept(run, place, there, registered)
        if not why and elsewhere and place not in gone:
            # A server is shared: what is not in this store may be in that of somebody else.
            why = "on a server, and not of what is removed here"
        size = 0 if run.folder is None else folder_bytes(run.folder)
        words = why or f"{run.kind} run of an artifact that is gone, or goes"
        return Item("mlflow", run.name, size, run.changed, bool(why), words, run)

    def _why_run_kept(self, run: KnownRun, place: Place, there: set[Place], registered: set[str]) -> str:
        if run.at_work:
            return "its process is at work"
        if run.run_id in registered:
            return "a registered model is of it"
        if place in there or (self.planned is None and place not in self.artifacts):
            return "its artifact stays"
        return f"younger than {self.days:g} days" if self.days and run.changed > self.young else ""


def _lock(item: Item, items: Sequence[Item]) -> Item:
    """Keep a lock as long as something of its key stays, or another process holds it."""
    if item.kind != "lock" or item.kept:
        return item
    others = [one for one in items if one.name == item.name and one.kind != "lock" and one.kept]
    return replace(item, kept=True, reason=others[0].reason) if others else item


def _place(item: Item) -> Place:
    stage, _, key = item.name.partition("/")
    return stage, key


def _record(store: Store, record: RunRecord, gone: set[Place], artifacts: Mapping[Place, Any]) -> Item:
    """Judge the note of a finished run: it stays as long as all its artifacts do."""
    path = record_path(store, record)
    stays = not any(place in gone or place not in artifacts for place in _of_record(record))
    why = "all its artifacts stay" if stays else "an artifact of this run is gone, or goes"
    changed = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return Item("record", f"{FOLDER}/{record.name}", path.stat().st_size, changed, stays, why, path)
