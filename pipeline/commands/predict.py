"""predict: studies in, a folder of results out; the lines that say what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pipeline.delivery.results import Written, write_results
from pipeline.inference.model import Model, StudiesError
from pipeline.inference.result import Result
from pipeline.labels.table_file import read_table_file
from pipeline.store.runlog import RunLog
from pipeline.store.wording import counted

DRAWN = ("pdf", "sc")


def read_studies(table: Path) -> dict[str, str]:
    """Return the study of each path from a table with the columns `path` and `study`.

    Raises StudiesError when a column is missing, a cell empty, or a path has several studies.
    """
    frame = read_table_file(table)
    if missing := [name for name in ("path", "study") if name not in frame]:
        raise StudiesError(f"--table needs the columns path and study; {' and '.join(missing)} is missing")
    rows = frame[["path", "study"]].drop_duplicates()
    if empty := int(rows.isna().any(axis=1).sum()):
        raise StudiesError(f"--table has {counted(empty, 'row')} without a path or a study")
    if twice := int(rows["path"].duplicated().sum()):
        raise StudiesError(f"--table gives {counted(twice, 'path')} more than one study")
    return dict(zip(rows["path"], rows["study"], strict=True))


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
        studies=read_studies(table) if table else None,
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
