"""From the logits of a study's images to a decision: aggregation, calibrated probability, threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from pipeline.inference.decision import Decision
from pipeline.statistics.calibration import displayed_probability, shift_prior
from pipeline.statistics.calibrators import Calibrator, calibrator_from_dict
from pipeline.statistics.patients import Aggregation, aggregate_scores
from pipeline.store.wording import counted

Referral: TypeAlias = Literal["refer", "no refer", "not assessable"]
# Why a study gets no decision of its own; each is referred.
REASONS = {
    "no_image": "no file of the study is an image that the model takes",
    "image_lost": "an image of the study could not be read, and the others do not refer it",
    "not_usable": "the model has no usable operating point: it gives scores, never decisions",
}


class RuleError(ValueError):
    """An operating point was asked for that was not certified; the message lists those that are."""


@dataclass(frozen=True)
class OperatingPoint:
    """A certified threshold on the score, with the recall that it promises and the confidence of the promise."""

    threshold: float
    recall_target: float
    confidence: float
    positives: int
    source: str

    def to_json(self) -> dict[str, Any]:
        """Return plain values, the threshold also as an exact hexadecimal float."""
        return {**self.__dict__, "threshold_hex": self.threshold.hex()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> OperatingPoint:
        """Return the operating point kept in a model's JSON, bit for bit."""
        threshold = float.fromhex(content["threshold_hex"])
        kept = ("recall_target", "confidence", "positives", "source")
        return cls(threshold, **{name: content[name] for name in kept})


@dataclass(frozen=True)
class Judgement:
    """What is said of a study. `score` is a logit; probabilities and limits are None where there is no score."""

    decision: Referral
    reasons: tuple[str, ...]
    score: float | None = None
    probability: float | None = None
    probability_low: float | None = None
    probability_high: float | None = None
    local_probability: float | None = None


@dataclass(frozen=True)
class Rule:
    """Aggregation, calibrator and operating points of a model, the first of which is used; none when not usable.

    `band` holds scores and limits of the probability (3, K), each row rising, for interpolation; empty when unknown.
    """

    aggregation: Aggregation
    calibrator: Calibrator
    points: tuple[OperatingPoint, ...]
    decision: Decision
    band: np.ndarray
    label: str = ""

    def at(self, recall_target: float) -> Rule:
        """Return the same rule at another certified operating point. Raises RuleError when there is none such."""
        chosen = [point for point in self.points if point.recall_target == recall_target]
        if not chosen:
            certified = ", ".join(f"{point.recall_target:g}" for point in self.points) or "none"
            raise RuleError(f"recall {recall_target:g} is not certified for this model; certified: {certified}")
        others = tuple(point for point in self.points if point is not chosen[0])
        return Rule(self.aggregation, self.calibrator, (*chosen, *others), self.decision, self.band, self.label)

    def of(self, logits: np.ndarray, *, lost: int = 0, prevalence: float | None = None) -> Judgement:
        """Return the judgement on a study from the logits (N,) of its images.

        `lost` images could not be read: unless the others refer the study, nobody knows. With `prevalence`, the share
        with the condition where the model is used, the probability is also carried to it.
        """
        if not len(logits):
            return Judgement("not assessable", ("no_image",))
        _, scores = aggregate_scores(np.asarray(logits, np.float64), np.zeros(len(logits)), self.aggregation)
        score = float(scores[0])
        probability = float(displayed_probability(self.calibrator, [score])[0])
        shown = {
            "score": score,
            "probability": probability,
            **self._limits(score),
            "local_probability": None if prevalence is None else self.carried(probability, prevalence),
        }
        if not self.decision.usable or not self.points:
            return Judgement("not assessable", ("not_usable",), **shown)
        if score >= self.points[0].threshold:
            return Judgement("refer", (), **shown)
        return Judgement("not assessable", ("image_lost",), **shown) if lost else Judgement("no refer", (), **shown)

    def _limits(self, score: float) -> dict[str, float | None]:
        if not self.band.size:
            return {"probability_low": None, "probability_high": None}
        scores, low, high = self.band
        return {
            "probability_low": float(np.interp(score, scores, low)),
            "probability_high": float(np.interp(score, scores, high)),
        }

    def scope(self, population: str) -> list[str]:
        """Return of whom the certificate of the first operating point speaks, in sentences; why there is none if so.

        `population` says in words who the calibration patients were.
        """
        if not self.decision.usable:
            return list(self.decision.reasons)
        point = self.points[0]
        return [
            f"With {100 * point.confidence:g} % confidence at least {100 * point.recall_target:g} % of people with the "
            f"condition who are like the {counted(point.positives, 'person', 'people')} who had it among the "
            f"{point.source} are referred.",
            f"These came from: {population.strip()}.",
            "Nothing is promised of other people, equipment or ways of taking and storing images.",
        ]

    def carried(self, probability: float, prevalence: float) -> float:
        """Return a probability of this model carried to another prevalence."""
        return float(shift_prior([probability], self.calibrator.prevalence, prevalence)[0])

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for a model's JSON."""
        return {
            "label": self.label,
            "aggregation": self.aggregation,
            "calibrator": self.calibrator.to_dict(),
            "operating_points": [point.to_json() for point in self.points],
            "usable": self.decision.usable,
            "not_usable_because": list(self.decision.reasons),
            "probability_band": self.band.tolist(),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Rule:
        """Return the rule kept in a model's JSON. Raises ValueError for a calibrator of another schema."""
        points: Sequence[Mapping[str, Any]] = content["operating_points"]
        return cls(
            aggregation=content["aggregation"],
            calibrator=calibrator_from_dict(content["calibrator"]),
            points=tuple(map(OperatingPoint.from_json, points)) if content["usable"] else (),
            decision=Decision(tuple(content["not_usable_because"])),
            band=np.array(content["probability_band"], np.float64),
            label=content["label"],
        )
