"""The evidence of a run as if it had shown something else."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from pipeline.reporting.evidence import Evidence
from pipeline.store.results.metrics import ComparedGroup, Excluded, ExternalSet, GroupMetrics, Metrics


def with_metrics(e: Evidence, **changes: Any) -> Evidence:
    """Return the run with other contents of metrics.json."""
    return replace(e, metrics=replace(e.metrics, **changes))


def with_point(e: Evidence, **changes: Any) -> Evidence:
    """Return the run with another operating point, which it must have."""
    assert e.metrics.operating_point is not None
    return with_metrics(e, operating_point=replace(e.metrics.operating_point, **changes))


def with_external_sets(e: Evidence, sets: dict[str, ExternalSet], groups: list[ComparedGroup]) -> Evidence:
    """Return the run with external sets of the same card, and with these groups compared besides its own."""
    shift = replace(e.metrics.shift, groups=(*e.metrics.shift.groups, *groups))
    return replace(with_metrics(e, external=sets, shift=shift), external=dict.fromkeys(sets, e.card))


def an_external_set(metrics: Metrics, group: str, patients: int = 1, images: int = 1) -> ExternalSet:
    """Return the test patients as an external set, of which so many patients with so many images were left out."""
    judged = GroupMetrics(**{one.name: getattr(metrics, one.name) for one in fields(GroupMetrics)})
    return ExternalSet(group, Excluded(patients, {"same image": images}), judged)
