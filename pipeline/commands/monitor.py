"""monitor: results and outcomes in, a PDF and a JSON out; the lines that say what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from pipeline.delivery.followup import joined, read_outcomes, read_places
from pipeline.delivery.monitoring import NAMES, Light, Monitored, monitor
from pipeline.delivery.streams import Watched
from pipeline.inference.model_folder import verified
from pipeline.reporting import pdf
from pipeline.reporting.monitor_pages import build
from pipeline.store.files import write_json

PDF, JSON = "monitor.pdf", "monitor.json"


def watch(
    folder: Path,
    places: Sequence[str],
    out: Path,
    *,
    outcomes: Path | None = None,
    prevalence: float | None = None,
    audited: float | None = None,
    since: date | None = None,
) -> Monitored:
    """Watch the model in `folder` over results in `places` (DIR or SITE=DIR) and write both files into `out`.

    Raises ModelError, MonitorError, FollowupError and LabelsError.
    """
    model = Watched.of(folder, *verified(folder), prevalence)
    studies, back = read_places(places)
    days = {}
    if outcomes is not None:
        told, days = read_outcomes(outcomes)
        back += told
    found = monitor(joined(studies, back, model.sha256, days, since), model, audited)
    write_json(out / JSON, found.content)
    pdf.write(out / PDF, build(found.content, NAMES))
    return found


def lines(lights: Sequence[Light]) -> list[str]:
    """Return a line per light, and below it what to do."""
    said = []
    for light in lights:
        where = "" if light.site is None else f" ({light.site or 'no site stated'})"
        said.append(f"{light.level:<6} {light.name.lower()}{where}: {light.sentence}")
        said += [f"       {light.todo}"] if light.todo else []
    return said
