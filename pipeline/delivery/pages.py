"""A page per study, and the summary of the batch: what predict found, in words for people."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scipy.stats import kstest

from pipeline import __version__
from pipeline.delivery import sentences
from pipeline.imaging.quarantine import REASONS as REFUSALS
from pipeline.inference.model import Model, Predictions
from pipeline.inference.outline import outlined_share, pictured
from pipeline.inference.result import Result
from pipeline.inference.rule import REASONS
from pipeline.reporting.batch_summary import Batch, SummaryRow, render_summary
from pipeline.reporting.study_page import PREDICTED_AT, StudyPage, render_page
from pipeline.store.files import write_bytes

UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
LONGEST_NAME = 80
LATEST_IMAGE = "Latest image"
BAND_LEVEL = 0.95
# A batch of fewer studies says nothing of a shift; of a hundred that are checked, one in a thousand cries wolf.
LEAST_STUDIES, SHIFT_LEVEL = 30, 0.001


def now() -> str:
    """Return the time that pages state."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def file_name(study: str) -> str:
    """Return the name of a study's page: readable, safe on every file system, and different for every study."""
    digest = hashlib.sha256(study.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{UNSAFE.sub('_', study).strip('._')[-LONGEST_NAME:]}-{digest}.pdf"


def page(result: Result, predictions: Predictions, at: str, time_is: str = PREDICTED_AT) -> bytes:
    """Return the page of a study as a PDF of one sheet; `time_is` says of what `at` is the time."""
    model, judged = predictions.model, result.judgement
    picture = result.picture
    image, outlined = pictured(picture) if picture else (None, None)
    local = judged.local_probability
    carried = {} if local is None or predictions.prevalence is None else _carried(model, judged, predictions.prevalence)
    calibrated = {
        "probability": judged.probability,
        "probability_low": judged.probability_low,
        "probability_high": judged.probability_high,
        "prevalence": round(model.content["prevalence"], 3),
    }
    return render_page(
        StudyPage(
            study=result.study,
            decision=judged.decision,
            usable=model.usable,
            model_title=model.content["title"],
            version=__version__,
            model_hash=model.sha256,
            predicted_at=at,
            time_is=time_is,
            why_not="; ".join(model.rule.decision.reasons),
            reasons=sentences.reasons(judged, result),
            image=image,
            outlined=outlined,
            outlined_share=outlined_share(picture) if picture else None,
            outline=picture.outline if picture else "attention",
            volume=picture is not None and picture.array.ndim == 4,
            channel=next(iter(model.rendering.channel_names), ""),
            score=judged.score,
            **{**calibrated, **carried},
            interval_level=BAND_LEVEL,
            prevalence_is_local=bool(carried),
            condition=model.content["labels"][0]["name"],
            threshold=sentences.threshold(model),
            certificate=" ".join(model.scope),
            typical=None if result.typicality is None else not result.typicality.flagged,
            typicality=sentences.typicality(result),
            remarks=list(result.unusual),
            quality=list(result.remarks),
            not_for=model.content["not_for"],
        )
    )


def _carried(model: Model, judged: Any, prevalence: float) -> dict[str, float | None]:
    limits = {name: getattr(judged, name) for name in ("probability_low", "probability_high")}
    moved = {name: None if value is None else model.rule.carried(value, prevalence) for name, value in limits.items()}
    return {"probability": judged.local_probability, "prevalence": prevalence, **moved}


def summary(
    rows: Iterable[Mapping[str, Any]], quarantine: Iterable[Mapping[str, str]], predictions: Predictions, at: str
) -> bytes:
    """Return the summary of the batch as a PDF from the rows of results.json and quarantine.csv."""
    model, rows = predictions.model, list(rows)
    refused = Counter(REFUSALS[row["reason"]] for row in quarantine)
    batch = Batch(
        model_title=model.content["title"],
        version=__version__,
        model_hash=model.sha256,
        predicted_at=at,
        usable=model.usable,
        why_not="; ".join(model.rule.decision.reasons),
        files_read=len(predictions.sources) - sum(refused.values()),
        refused=refused,
        threshold=sentences.threshold(model),
        certificate=" ".join(model.scope),
        shift=shift([row["typicality"] for row in rows]),
        not_for=model.content["not_for"],
    )
    return render_summary(map(_summary_row, rows), batch)


def _summary_row(row: Mapping[str, Any]) -> SummaryRow:
    kept = {name: row[name] for name in ("study", "decision", "score", "probability", "typical")}
    return SummaryRow(**kept, reason=REASONS[row["reasons"][0]] if row["reasons"] else "")


def shift(p_values: Iterable[float | None]) -> str:
    """Return a warning when the studies together are more unusual than chance explains; an empty text otherwise.

    Conformal p-values of ordinary studies are spread evenly from 0 to 1, or above; tested one-sided by Kolmogorov and
    Smirnov, at 1 in 1,000.
    """
    known = [value for value in p_values if value is not None]
    if len(known) < LEAST_STUDIES or kstest(known, "uniform", alternative="greater").pvalue >= SHIFT_LEVEL:
        return ""
    return (
        "Taken together, these studies differ from those of the calibration more than chance explains: the certificate "
        "may not speak for this batch. Look at how its images were taken, stored and chosen."
    )


def write_page(folder: Path, result: Result, predictions: Predictions, at: str) -> None:
    """Write the page of a study into `pages/`."""
    write_bytes(folder / "pages" / file_name(result.study), page(result, predictions, at))
