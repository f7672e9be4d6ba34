"""What is said of a study in words, the same on its page and in its DICOM objects."""

from __future__ import annotations

from collections import Counter

from pipeline.imaging.quarantine import REASONS as REFUSALS
from pipeline.inference.model import Model
from pipeline.inference.result import Result
from pipeline.inference.rule import REASONS, Judgement, OperatingPoint


def reasons(judgement: Judgement, result: Result) -> list[str]:
    """Return why the study is not assessable by one of the labels, and what was wrong with its files."""
    return [*(REASONS[reason] for reason in judgement.reasons), *refusals(result)]


def refusals(result: Result) -> list[str]:
    """Return what was wrong with files of the study, each reason with how many it is about."""
    counts = Counter(refusal.reason for _, refusal in result.refused)
    return [f"{n} of its files: {REFUSALS[reason]}" for reason, n in sorted(counts.items())]


def threshold(model: Model) -> str:
    """Return from which score a study is referred; nothing when the model may not refer."""
    return threshold_of(model.rule.points[0]) if model.usable else ""


def threshold_of(point: OperatingPoint) -> str:
    """Return the same of an operating point."""
    return (
        f"A study is referred from a score of {point.threshold:.2f} on, certified for a recall of "
        f"{100 * point.recall_target:g} % with {100 * point.confidence:g} % confidence."
    )


def typicality(result: Result) -> str:
    """Return whether a study is like those of the certificate."""
    if result.typicality is None:
        return "Whether this study is like those of the certificate is not known."
    share = f"{100 * result.typicality.p_value:.2g} %"
    if result.typicality.flagged:
        return f"At most {share} of people like those of the calibration are as unusual: {result.typicality.largest}."
    return f"As usual as others: at most {share} of people like those of the calibration are as unusual."
