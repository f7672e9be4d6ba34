"""All that a report rests on, read and verified by the stage, and the one question that decides what is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from pipeline.inference.decision import Decision, Json, decide
from pipeline.reporting.numbers import percent, plain_percent
from pipeline.store.results.deployment import Deployment, ToUse
from pipeline.store.results.finding import Finding
from pipeline.store.results.metrics import Macro, Metrics
from pipeline.store.results.operating_point import MainPoint, OperatingPoint
from pipeline.store.results.threshold import AtThreshold, Threshold

# Artifacts made before fine-tuning recorded what its arms are called.
EARLIER_NAMES = {
    "mae": "pretrained (masked autoencoder)",
    "scratch": "same network, from scratch",
    "imported": "same network, from public weights",
    "linear_probe": "pretrained, frozen (linear probe)",
    "hog": "classical baseline (HOG, logistic regression)",
}


@dataclass(frozen=True)
class Example:
    """A test patient whom the model got wrong: an image (h, w) or (h, w, 3) uint8 as it saw it, and what is known.

    A volume is shown by three planes, see imaging/volumes/orthogonal_planes.py. `outlined` (h, w) is true where half of
    the model's attention lay, `outlined_share` its share of the whole image or volume; None for a model without
    attention.
    """

    patient: str
    image: np.ndarray
    outlined: np.ndarray | None
    outlined_share: float | None
    images: int
    score: float
    probability: float | None
    site: str
    view: str


@dataclass(frozen=True)
class Drawn:
    """A test image with its masks: the picture (h, w) or (h, w, 3) uint8, where the reference and where the prediction
    has any structure, each (h, w). Of a volume, three planes through the middle of the reference. `dice` is the
    patient's mean over structures, `place` says which patient it is by that."""

    patient: str
    image: np.ndarray
    reference: np.ndarray
    predicted: np.ndarray
    dice: float
    place: str


@dataclass(frozen=True)
class Localisation:
    """What evaluate left of masks and marks: segmentation.json, the FROC curves, the arms in pairs; and examples."""

    summary: Json
    froc: pd.DataFrame
    comparison: pd.DataFrame
    examples: Sequence[Drawn]


@dataclass(frozen=True)
class Pretraining:
    """What stage pretrain left: model.json of the encoder, its summary, its history, and the picture of what it fills
    in."""

    encoder: Json
    summary: Json
    history: Sequence[Json]
    reconstructions: bytes


@dataclass(frozen=True)
class Evidence:
    """The contents of earlier artifacts. Names are those of the stages and of their files; tables are data frames.

    `statements` says in words what each statement of `card["study"]` is about. `scores` are the test patients' scores;
    `records` the artifacts' records by step; `date` is ISO 8601; `external` the cards of external test sets by name.
    Sites are letters in all of it. `label_fractions` is None when no arm was trained with fewer labelled patients,
    `calibration_curves` when patients are too few, or in artifacts without them. `threshold` and `further_thresholds`,
    by label id, are what may leave of what was certified. `deployment` is deployment.json of evaluate,
    `further_deployments` those of further labels by id, `certified_groups` subgroups.json of calibrate; None in
    artifacts without them.
    `packaged` is model.json of the packaged model, and `model_sha256` its hash (that of its SHA256SUMS); None and
    empty where none was packaged. `pretraining` is None when no arm needed it, `exam` where the card expects no views
    or sides, `localisation` where no model draws masks. `outline` says how the outlines of examples came about, see
    models/finished.py. `between_sites` is between_sites.json of evaluate; empty without it.
    """

    title: str
    contact: str
    date: str
    card: Json
    statements: Mapping[str, str]
    ingest: Json
    images: pd.DataFrame
    split: Json
    assignment: pd.DataFrame
    pretraining: Pretraining | None
    finetune: Json
    calibrator: Json
    threshold: Threshold
    sweep: pd.DataFrame
    metrics: Metrics
    subgroups: pd.DataFrame
    comparison: pd.DataFrame
    curves: pd.DataFrame
    scores: pd.DataFrame
    findings: Sequence[Finding]
    misses: Sequence[Example]
    false_alarms: Sequence[Example]
    records: Mapping[str, Json]
    label_fractions: pd.DataFrame | None = None
    calibration_curves: pd.DataFrame | None = None
    external: Mapping[str, Json] = field(default_factory=dict)
    further_thresholds: Mapping[str, Threshold] = field(default_factory=dict)
    deployment: Deployment | None = None
    further_deployments: Mapping[str, Deployment | None] = field(default_factory=dict)
    certified_groups: Json | None = None
    between_sites: Sequence[Json] = ()
    packaged: Json | None = None
    model_sha256: str = ""
    outline: str = "attention"
    localisation: Localisation | None = None
    exam: pd.DataFrame | None = None

    @property
    def read_first(self) -> bool:
        """Whether the ledger shows that nothing was chosen after looking: one reading, one model calibrated."""
        return first_look(self.metrics, self.threshold)

    @property
    def volumes(self) -> bool:
        """Whether the model was given volumes."""
        return len(self.records["preprocess"]["settings"]["image_size"]) == 3

    @property
    def channels(self) -> list[str]:
        """The channels of a volume by their names in the card; empty where it lists none."""
        return [channel["name"] for channel in self.card.get("channels", ())]

    @property
    def planes_shown(self) -> str:
        """Of which channel the planes of a volume are, in words; nothing where there is but one, unnamed."""
        return f" in channel {self.channels[0]}" if self.channels else ""

    @property
    def reported_arm(self) -> str:
        """The arm that was calibrated."""
        return self.metrics.arm

    def arm_name(self, arm: str) -> str:
        """Return an arm in words."""
        return self.finetune["arms"].get(arm, {}).get("title") or arm_name(arm)

    @property
    def arms(self) -> list[str]:
        """The arms, in the order of the settings."""
        return list(self.records["finetune"]["settings"].get("arms") or self.finetune["arms"])

    @property
    def decision(self) -> Decision:
        """Whether the operating point may be used."""
        return decide(self.findings, self.threshold, self.metrics)

    @property
    def problems(self) -> list[str]:
        """Why no operating point may be used, in words; empty when it may."""
        return list(self.decision.reasons)

    @property
    def point(self) -> MainPoint | None:
        """The operating point on the test patients, or None when it may not be used."""
        return None if self.problems else self.metrics.operating_point

    @property
    def at(self) -> AtThreshold | None:
        """The certified threshold and what it did on calibration patients, or None when it may not be used."""
        return self.decision.threshold(self.threshold).at

    @property
    def another_to_use(self) -> bool:
        """Whether the threshold to use from now on is another than the one that was tested."""
        to_use = self.to_use
        return to_use is not None and self.at is not None and to_use.threshold_hex != self.at.threshold_hex

    @property
    def to_use(self) -> ToUse | None:
        """The threshold to use from now on, or None when it may not be used."""
        return self.deployment.to_use if self.deployment is not None and self.decision.usable else None

    @property
    def further(self) -> list[str]:
        """The ids of the further labels, in the card's order."""
        return [label["id"] for label in self.card["further_labels"]]

    @property
    def macro(self) -> Macro | None:
        """The means over labels; those that depend on thresholds only when each label's may be used."""
        return self.decision.metrics(self.metrics).macro

    def further_point(self, label_id: str) -> OperatingPoint | None:
        """Return a further label's operating point on the test patients, or None when it, or any, may not be used."""
        return self.decision.metrics(self.metrics).further_labels[label_id].operating_point

    def further_deployment(self, label_id: str) -> Deployment | None:
        """Return the threshold of a further label to use from now on, or None when it, or any, may not be used."""
        made = self.further_deployments.get(label_id)
        return (
            made if made is not None and made.to_use is not None and self.further_point(label_id) is not None else None
        )

    def further_name(self, label_id: str) -> str:
        """Return a further label in words."""
        return next(label["name"] for label in self.card["further_labels"] if label["id"] == label_id)

    def curve(self, name: str, arm: str) -> pd.DataFrame:
        """Return the points of one curve of one arm, in their order."""
        return self.curves[(self.curves["curve"] == name) & (self.curves["arm"] == arm)]


def first_look(metrics: Metrics, threshold: Threshold) -> bool:
    """Return whether test patients were read once and one model was calibrated, as far as a ledger shows."""
    return metrics.readings is not None and metrics.readings.times == 1 and threshold.models_compared == 1


def prevalence_assumed(e: Evidence) -> str:
    """Return what displayed probabilities assume: `at the local prevalence of 5 %`."""
    local = e.threshold.local_prevalence
    if local is not None:
        return f"at the stated local prevalence of {plain_percent(local)}"
    return f"at the calibration patients' prevalence of {percent(e.calibrator['prevalence'])}"


def known_groups(subgroups: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the subgroup table whose attribute is known of some patient: one unknown group is none."""
    if subgroups.empty:
        return subgroups
    known = (subgroups["group"] != "unknown").groupby(subgroups["attribute"]).transform("any")
    return subgroups[known].reset_index(drop=True)


def arm_name(arm: str) -> str:
    """Return an arm in words, where nothing recorded them."""
    return EARLIER_NAMES.get(arm, arm)
