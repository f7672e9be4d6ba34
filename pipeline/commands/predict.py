"""predict: studies in, a folder of results out; the lines that say what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pipeline.delivery.results import Written, write_results
from pipeline.imaging.channels import by_table
from pipeline.inference.model import Model, StudiesError
from pipeline.inference.result import Result
from pipeline.labels.table_file import read_table_file
from pipeline.store.runlog import RunLog
from pipeline.store.wording import counted

DRAWN = ("pdf", "sc")


def read_studies(table: Path, channels: Sequence[str] = ()) -> tuple[dict[str, str], dict[str, str]]:
    """Return the study of each path from a table with the columns `path` and `study`, and with `channels`, the names of
    those of a model, which of them it is, from the column `channel`.

    Raises StudiesError when a column is missing, a cell empty, a channel unknown, or a path has several studies.
    """
    frame, names = read_table_file(table), ["path", "study", *(["channel"] if channels else [])]
    if missing := [name for name in names if name not in frame]:
        raise StudiesError(f"--table needs the columns {' and '.join(names)}; {' and '.join(missing)} is missing")
    rows = frame[names].drop_duplicates()
    if empty := int(rows.isna().any(axis=1).sum()):
        raise StudiesError(f"--table has {counted(empty, 'row')} without a {' or a '.join(names)}")
    if twice := int(rows["path"].duplicated().sum()):
        raise StudiesError(f"--table gives {counted(twice, 'path')} more than one {' or '.join(names[1:])}")
    if channels and (other := int((~rows["channel"].isin(channels)).sum())):
        raise StudiesError(
            f"--table has {counted(other, 'row')} with another channel than the model's: {', '.join(channels)}"
        )
    of_path = rows.set_index("path")
    return of_path["study"].to_dict(), of_path["channel"].to_dict() if channels else {}


def predict(
    model: Model,
    paths: list[Path],
    out: Path,
    *,
    table: Path | None = None,
    recall_target: float | None = None,
    prevalence: float | None = None,
    workers: int = 2,
    pages: bool = True,
    identified: bool = False,
    dicom: Sequence[str] = (),
    masks: bool = False,
    say: Callable[[str], None] = print,
) -> Written:
    """Judge all studies and write the results; see `Model.predict` for what is raised. `say` is told of progress.

    `dicom` names the kinds of objects to write. Raises StudiesError for a kind that needs the pages that are left out.
    """
    if not pages and (drawn := [kind for kind in dicom if kind in DRAWN]):
        raise StudiesError(f"--dicom {','.join(drawn)} shows what the pages show; leave out --no-pages")
    channels = [one.name for one in model.task.policy.channels] if by_table(model.task.policy.channels) else []
    if channels and table is None:
        raise StudiesError(
            f"a table told the channels of this model ({', '.join(channels)}): give --table with the columns path, "
            "study and channel"
        )
    studies, told = read_studies(table, channels) if table else ({}, {})
    log = RunLog("predict", progress_only=True)

    def track(results: Iterable[Result], done: int, total: int) -> Iterable[Result]:
        return log.track(results, "studies", total, done)

    said = time.monotonic()

    def progress(what: str, done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said >= log.interval_s:
            said = time.monotonic()
            say(f"predict: {what}: {done} of {total}")

    predictions = model.predict(
        paths,
        studies=studies,
        channels=told,
        recall_target=recall_target,
        prevalence=prevalence,
        workers=workers,
        pictures=pages,
        masks=masks,
        progress=progress,
    )
    return write_results(predictions, out, identified=identified, dicom=dicom, track=track)


def lines(model: Model, written: Written, out: Path) -> list[str]:
    """Return what is said at the end."""
    counts = written.counts()
    said = [f"{counted(len(written.rows), 'study', 'studies')}: " + ", ".join(f"{n} {k}" for k, n in counts.items())]
    if counts["not assessable"] and model.usable:
        said.append(
            "studies that are not assessable must be looked at like those that are referred; results.csv says why"
        )
    if written.quarantined:
        said.append(f"{counted(written.quarantined, 'file')} not used; {out / 'quarantine.csv'} says why")
    if any("dicom" in row for row in written.rows):
        made = sum(bool(row["dicom"]) for row in written.rows)
        said.append(f"DICOM objects for {made} of {len(written.rows)} studies in {out / 'dicom'}; they hold identities")
    if any("masks" in row for row in written.rows):
        made, missing = (sum(len(row[name]) for row in written.rows) for name in ("masks", "masks_missing"))
        why = f", {missing} not written; results.csv says why" if missing else ""
        said.append(f"{counted(made, 'mask')} in {out / 'masks'}{why}; those of DICOM images hold identities")
    if not model.usable:
        said.append("the model is not usable: " + "; ".join(model.rule.decision.reasons))
    return said
