"""The threshold to use from now on, of the main label and of each further one, by the rule that calibrate recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from pipeline.evaluation.performance import Frozen
from pipeline.inference.decision import Decision
from pipeline.statistics.deployment import certified_subgroups, deployment, lowered, pooled
from pipeline.statistics.errors import collect_warnings
from pipeline.statistics.patients import Patients
from pipeline.statistics.subgroups import patient_attributes
from pipeline.store.results.deployment import Certified, Deployment, Group
from pipeline.store.results.threshold import Threshold

if TYPE_CHECKING:
    from pipeline.settings.decision import EvaluateSettings


def deployed(
    settings: EvaluateSettings,
    decision: Decision,
    frozen: Frozen,
    calibration: Patients,
    test: Patients,
    images: pd.DataFrame | None = None,
) -> Deployment:
    """Return what deployment.json of one label says: no threshold where `decision` allows none.

    The rules are those that calibrate recorded before the test patients were read. With further labels the confidence
    is shared out over all of them whatever the rule, so that the promises of all thresholds to use hold at once.
    Subgroups are certified where `images`, the image table, is given: those of the main label.
    """
    certificate = frozen.certificate
    allowed = decision.threshold(certificate)
    return Deployment(
        rule=certificate.deploy,
        subgroup_threshold=certificate.subgroup_threshold if images is not None else "report",
        decided="in the configuration, before this run read the test patients",
        reasons=decision.reasons,
        calibration_threshold_hex=None if allowed.at is None else allowed.at.threshold_hex,
        made=_made(settings, allowed, calibration, test, images) if decision.usable else None,
    )


def _made(
    settings: EvaluateSettings,
    certificate: Threshold,
    calibration: Patients,
    test: Patients,
    images: pd.DataFrame | None,
) -> Certified:
    with collect_warnings():
        first, chosen = (
            deployment(one, calibration, test, certificate, settings.headline_prevalence, settings.level)
            for one in ("calibration", certificate.deploy)
        )
    if images is None:
        return Certified(chosen, (), first.referral)
    on = pooled(calibration, test) if certificate.deploy == "pooled" else calibration
    groups = certified_subgroups(
        on,
        patient_attributes(images[images["patient_id"].isin(on.ids)]),
        certificate.subgroup_attributes,
        certificate.recall_target,
        certificate.confidence,
        certificate.models_compared * certificate.labels_certified,
        chosen.threshold,
    )
    lowest = groups["minimum"]
    if certificate.subgroup_threshold == "minimum" and lowest is not None and lowest < chosen.threshold:
        # A lower threshold refers more, so that the promise over everybody holds all the more.
        chosen = lowered(chosen, lowest, calibration, test, settings.level)
    return Certified(chosen, tuple(Group.from_dict(row) for row in groups["groups"]), first.referral)
