"""The one door: whether an operating point may be used, and what leaves the store of threshold and results if not.

Report, `--json`, MLflow, comparison, the packaged model and predict take thresholds, certificates and results at a
threshold from here alone. The store keeps the record of what was computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.store.results.finding import Finding, that_fail
from pipeline.store.results.metrics import Metrics
from pipeline.store.results.threshold import Threshold

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Decision:
    """Why no operating point may be used, in words; usable when there is no reason against it."""

    reasons: tuple[str, ...]

    @property
    def usable(self) -> bool:
        """Whether threshold and results at it may leave the store."""
        return not self.reasons

    def threshold(self, threshold: Threshold) -> Threshold:
        """Return what may leave of what was certified; its message only where it refuses a certificate."""
        if self.usable:
            return threshold
        message = "withheld: the operating point may not be used" if threshold.certified else threshold.message
        return replace(threshold, at=None, probability_prevalence=None, message=message, other_operating_points=())

    def of_further_label(self, problems: Sequence[Finding]) -> Decision:
        """Return whether a further label's operating point may be used: where this one may, and nothing is against it.

        `problems` are its findings that would close the gate, were it the main label.
        """
        return Decision((*self.reasons, *(one.in_words for one in problems)))

    def metrics(self, metrics: Metrics) -> Metrics:
        """Return what may leave of metrics.json; a further label's results only when its own may, too."""
        further = {
            label_id: its if self.usable and not its.problems else its.withheld()
            for label_id, its in metrics.further_labels.items()
        }
        allowed = replace(metrics, further_labels=further)
        if not self.usable:
            groups = tuple(replace(group, recall=None, verification=None) for group in metrics.shift.groups)
            external = {
                name: replace(its, judged=its.judged and its.judged.withheld())
                for name, its in metrics.external.items()
            }
            allowed = replace(allowed.withheld(), external=external, shift=replace(metrics.shift, groups=groups))
        if metrics.macro and not all(its.operating_point for its in (allowed, *further.values())):
            return replace(allowed, macro=replace(metrics.macro, recall=None, specificity=None))
        return allowed


def decide(findings: Sequence[Finding], threshold: Threshold, metrics: Metrics | None = None) -> Decision:
    """Decide from the findings of the gate and what was certified; `metrics` is None before the test set was read."""
    found = [one.in_words for one in that_fail(findings)]
    # A refusal is also among the findings; these lines hold for artifacts in which it is not.
    if not found and not threshold.certified:
        found.append(threshold.message)
    if not found and metrics is not None and metrics.operating_point is None:
        found.append("the test results hold no operating point")
    return Decision(tuple(found))
