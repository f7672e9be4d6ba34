"""The threshold to use from now on, of the main label and of each further one, by the rule that calibrate recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from pipeline.evaluation.performance import Frozen
from pipeline.inference.decision import Decision
from pipeline.statistics.deployment import certified_subgroups, deployment, lowered, pooled
from pipeline.statistics.errors import collect_warnings
from pipeline.statistics.patients import Patients
from pipeline.statistics.subgroups import patient_attributes

if TYPE_CHECKING:
    from pipeline.settings.decision import EvaluateSettings


def deployed(
    settings: EvaluateSettings,
    decision: Decision,
    frozen: Frozen,
    calibration: Patients,
    test: Patients,
    images: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Return the content of deployment.json of one label: no threshold where `decision` allows none.

    The rules are those that calibrate recorded before the test patients were read. With further labels the confidence
    is shared out over all of them whatever the rule, so that the promises of all thresholds to use hold at once.
    Subgroups are certified where `images`, the image table, is given: those of the main label.
    """
    certificate = frozen.certificate
    rule, by_group = certificate.deploy, certificate.subgroup_threshold
    record = {
        "rule": rule,
        "subgroup_threshold": by_group if images is not None else "report",
        "decided": "in the configuration, before this run read the test patients",
        "usable": decision.usable,
        "reasons": list(decision.reasons),
        "calibration_threshold_hex": certificate.at.threshold_hex if decision.usable and certificate.at else None,
    }
    if not decision.usable:
        return record
    with collect_warnings():
        first, chosen = (
            deployment(one, calibration, test, certificate, settings.headline_prevalence, settings.level)
            for one in ("calibration", rule)
        )
    groups = {"groups": [], "minimum": None}
    if images is not None:
        on = pooled(calibration, test) if rule == "pooled" else calibration
        groups = certified_subgroups(
            on,
            patient_attributes(images[images["patient_id"].isin(on.ids)]),
            certificate.subgroup_attributes,
            certificate.recall_target,
            certificate.confidence,
            certificate.models_compared * certificate.labels_certified,
            chosen["threshold"],
        )
        lowest = groups["minimum"]
        if by_group == "minimum" and lowest is not None and lowest < chosen["threshold"]:
            # A lower threshold refers more, so that the promise over everybody holds all the more.
            chosen = lowered(chosen, lowest, calibration, test, settings.level)
    return {
        **record,
        **chosen,
        "subgroups": groups["groups"],
        "referral_of_calibration_alone": first["referral"],
    }
