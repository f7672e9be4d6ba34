"""From evidence to the one document that PDF, HTML and JSON show. Formats; computes no statistic."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pipeline.reporting.document import Document, shortened
from pipeline.reporting.evidence import Evidence, Json
from pipeline.reporting.sections import (
    background,
    deployment,
    elsewhere,
    exam,
    examples,
    further_labels,
    groups,
    localisation,
    model,
    operating,
    provenance,
    results,
    summary,
)
from pipeline.reporting.sections.crosswalk import crosswalk, items, places

# In the order in which they are read. A section without blocks stands in the appendix alone.
SECTIONS = (
    summary.summary,
    background.intended_use,
    background.reference_standard,
    background.studies,
    operating.operating_point,
    operating.consequences,
    deployment.deployment,
    further_labels.further_labels,
    results.discrimination,
    results.calibration,
    results.decision_curve,
    groups.subgroups,
    exam.views_and_sides,
    elsewhere.shift,
    elsewhere.external,
    groups.comparison,
    localisation.localisation,
    examples.examples,
    provenance.statements,
    model.model,
    provenance.provenance,
)


def build(e: Evidence) -> Document:
    """Return the document of a run."""
    usable = e.point is not None
    threshold = e.records["calibrate"]["files"]["threshold.json"][:12] if usable else "none usable"
    sections = [made for section in SECTIONS if (made := section(e)) is not None]
    weights = " ".join(s[:12] for s in e.threshold.model_sha256.values())
    return Document(
        title=shortened(e.title, 80),
        subtitle=shortened(e.card["title"], 120),
        date=e.date,
        contact=e.contact,
        footer=f"Report of {e.date} · model {shortened(weights, 40)} · threshold {threshold}",
        keys={step: record["key"] for step, record in e.records.items()},
        usable=usable,
        sections=[*sections, crosswalk(e)],
        numbers=all_numbers(e),
        more=[results.methods(e), *provenance.more(e), *items(e, places(sections))],
    )


def raw_tables(e: Evidence) -> dict[str, pd.DataFrame]:
    """Return the tables that go beside the report in full, by name; without a usable threshold, less what gives one.

    A point of a ROC curve is enough for that: whoever refers so large a share of the highest scores is there.
    """
    tables = {"comparison": e.comparison, "curves": e.curves, "subgroups": e.subgroups}
    if e.label_fractions is not None:
        tables["label_fractions"] = e.label_fractions
    if e.localisation is not None:
        tables |= {"froc": e.localisation.froc, "localisation_comparison": e.localisation.comparison}
    if e.exam is not None:
        tables["exam"] = e.exam
    if e.point is not None:
        return {**tables, "sweep": e.sweep}
    tables["curves"] = e.curves[e.curves["curve"].str.startswith("reliability")]
    withheld = ("threshold", "referred", "recall", "specificity")
    return {
        name: table.drop(columns=[c for c in table.columns if str(c).startswith(withheld)])
        for name, table in tables.items()
    }


def all_numbers(e: Evidence) -> dict[str, Any]:
    """Return every number for programs. A threshold that may not be used is not there to be used by mistake."""
    return {
        "metrics": e.decision.metrics(e.metrics).to_dict(),
        "threshold": e.decision.threshold(e.threshold).to_dict(),
        "further_thresholds": {
            label_id: e.decision.threshold(threshold).to_dict() for label_id, threshold in e.further_thresholds.items()
        },
        "deployment": e.deployment.to_dict() if e.deployment is not None and e.decision.usable else None,
        "further_deployments": {
            label_id: None if (made := e.further_deployment(label_id)) is None else made.to_dict()
            for label_id in e.further_deployments
        },
        "between_sites": [_between(e, group) for group in e.between_sites],
        "certified_groups": e.certified_groups if e.decision.usable else None,
        "model_sha256": e.model_sha256 or None,
        "calibrator": e.calibrator,
        "findings": [one.to_dict() for one in e.findings],
        "ingest": e.ingest,
        "split": e.split,
        "finetune": e.finetune,
        **({} if e.localisation is None else {"localisation": e.localisation.summary}),
        **{name: _rows(table) for name, table in raw_tables(e).items() if name != "curves"},
    }


def _between(e: Evidence, group: Json) -> dict[str, Any]:
    """Return the variation between sites, less what is at a threshold that may not be used."""
    return dict(group) if e.decision.usable else {**group, "recall": None, "specificity": None}


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as plain Python values, missing ones as None."""
    columns = [str(name) for name in frame.columns]
    return [
        {name: None if pd.isna(value) else value for name, value in zip(columns, row, strict=True)}
        for row in frame.astype(object).itertuples(index=False)
    ]
