"""What predict says of one study: a row of results.json, whose fields and their meaning are named here once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.imaging.quarantine import Refusal
from pipeline.inference.rule import Judgement
from pipeline.inference.typicality import Typicality

if TYPE_CHECKING:
    from pipeline.inference.placement import DrawnMask

SCHEMA = "results/1"
# Reasons for refusal that hide no image of the kind that the model judges; every other one may hide a finding.
HARMLESS = frozenset(
    "left_out symbolic_link special_file unknown_format not_an_image modality secondary_capture derived mosaic "
    "no_channel image_type for_processing few_slices localiser mixed_orientation duplicate".split()
)
MEANINGS = {
    "study": "the study as it was named: by the table, its Study Instance UID, or its path without suffix",
    "path": "its first file, relative to the path that was named",
    "study_uid": "Study Instance UID of its DICOM headers; empty when there is none",
    "patient": "patient's identifier in the header, written only with --identified",
    "images": "images that were scored",
    "files_refused": "files of the study that are no image that the model takes; see quarantine.csv",
    "decision": "refer, no refer or not assessable; a study that is not assessable must be looked at, too",
    "reasons": "why the study is not assessable, from a closed list",
    "score": "the model's score, a logit: higher is more suspicious",
    "score_hex": "the same, exactly",
    "probability": "calibrated probability of the condition, for people as frequent as among the calibration patients",
    "probability_low": "lower limit of it, 95 %, for the fit of the calibrator alone",
    "probability_high": "upper limit of it",
    "local_probability": "the probability carried to the prevalence given by --prevalence",
    "threshold": "score from which a study is referred; missing when the model has no usable operating point",
    "threshold_hex": "the same, exactly",
    "recall_target": "share of people with the condition that is referred at least, as certified",
    "confidence": "confidence of that certificate",
    "typicality": "conformal p-value: at most this share of patients like those of the calibration is as unusual",
    "typical": "false: the certificate does not speak for this study; missing when unknown",
    "most_unusual": "of a study that is not typical, what is most unusual about it",
    "header_unlike_training": "what its headers state and hardly any training image had",
    "remarks": "what is odd about its images",
    "further_labels": "the same of each further label, by its id",
    "model_sha256": "SHA-256 of the model folder's SHA256SUMS",
    "threshold_sha256": "SHA-256 of the operating points",
    "dicom": "with --dicom: the objects made about the study, relative to the folder",
    "dicom_missing": "with --dicom: why an object that was asked for was not made",
    "masks": "with --masks: a file for each image that was scored, relative to the folder; 0 is background, the "
    "structures are numbered as under `model`",
    "masks_of": "with --masks: the first file of the image that each is of",
    "masks_missing": "with --masks: images without such a file, and why",
    "supersedes": "with --dicom: the objects about fewer or other files of the study that these replace",
    "superseded_by": "of a row under `superseded`: the objects that hold instead",
}
# Fields that a row has only when they were asked for.
ON_REQUEST = frozenset(
    {"patient", "dicom", "dicom_missing", "masks", "masks_of", "masks_missing", "supersedes", "superseded_by"}
)


@dataclass(frozen=True)
class Picture:
    """The image that made the score, for the study's page: (C, H, W) or (1, D, H, W) uint8, and where networks looked.

    `shares` are by cell of a grid, `outline` says how they are known, `files` are the paths of the image's files. Of a
    model that segments, `mask` is what it marked, as the network saw it, and there are no shares.
    """

    array: np.ndarray
    shares: np.ndarray | None
    outline: str = "attention"
    files: tuple[str, ...] = ()
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Result:
    """What is said of a study. `identity` is a hash of its files' names and contents; `drawn` are the masks of its
    images, where they were asked for."""

    study: str
    path: str
    study_uid: str
    images: int
    judgement: Judgement
    further: Mapping[str, Judgement]
    threshold: Mapping[str, Any]
    typicality: Typicality | None
    unusual: tuple[str, ...]
    remarks: tuple[str, ...]
    refused: tuple[tuple[str, Refusal], ...]
    model: Mapping[str, str]
    identity: str
    patient: str = field(default="", repr=False)
    picture: Picture | None = field(default=None, compare=False, repr=False)
    drawn: tuple[DrawnMask, ...] = field(default=(), compare=False, repr=False)

    def to_row(self, identified: bool = False) -> dict[str, Any]:
        """Return the row of results.json."""
        score = self.judgement.score
        return {
            "study": self.study,
            "path": self.path,
            "study_uid": self.study_uid,
            **({"patient": self.patient} if identified else {}),
            "images": self.images,
            "files_refused": len(self.refused),
            **_said(self.judgement),
            "score_hex": None if score is None else score.hex(),
            **self.threshold,
            "typicality": self.typicality.p_value if self.typicality else None,
            "typical": not self.typicality.flagged if self.typicality else None,
            "most_unusual": self.typicality.largest if self.typicality and self.typicality.flagged else "",
            "header_unlike_training": list(self.unusual),
            "remarks": list(self.remarks),
            "further_labels": {label_id: _said(one) for label_id, one in self.further.items()},
            **self.model,
        }

    def quarantine(self) -> list[dict[str, str]]:
        """Return a row for each file that was not used."""
        return [refused_row(path, refusal, self.study) for path, refusal in self.refused]


def refused_row(path: str, refusal: Refusal, study: str = "") -> dict[str, str]:
    """Return the row of quarantine.csv of a file."""
    return {"path": path, "study": study, "reason": refusal.reason, "detail": refusal.detail}


def _said(judgement: Judgement) -> dict[str, Any]:
    return {**judgement.__dict__, "reasons": list(judgement.reasons)}
