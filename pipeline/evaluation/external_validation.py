"""Patients of other sites and of external test sets, beside those whom the threshold was certified on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline.evaluation.performance import Frozen, findings_of, judge
from pipeline.statistics.image_counts import assess_image_numbers, images_per_patient
from pipeline.statistics.patients import Patients, one_per_unit, patients_of, units_of
from pipeline.statistics.shift import (
    GroupShift,
    Promise,
    among_several,
    assess_shift,
    group_shift,
    sites_beyond_chance,
    unseen_patients,
)
from pipeline.statistics.subgroups import UNKNOWN, patient_attributes
from pipeline.store.results.finding import Finding
from pipeline.store.results.metrics import Excluded, ExternalSet
from pipeline.store.wording import agreeing, counted

if TYPE_CHECKING:
    from pipeline.settings.decision import EvaluateSettings


@dataclass(frozen=True)
class Reference:
    """What was frozen on the calibration patients, and who these are; `images` and `image_numbers` are theirs."""

    settings: EvaluateSettings
    frozen: Frozen
    patients: Patients
    images: pd.DataFrame
    image_numbers: pd.DataFrame

    @property
    def promise(self) -> Promise:
        """What was certified on these patients."""
        certificate = self.frozen.certificate
        counts = (certificate.positives, certificate.at.misses_allowed) if certificate.at else ()
        return Promise(certificate.threshold, certificate.recall_target, certificate.confidence, *counts)

    def shift(self, group: str, members: Patients, unseen: set[str], strange: set[str] | None = None) -> GroupShift:
        """Return how a group of patients differs from the calibration patients; `unseen` are those of other sites.

        `strange` are those of them who speak against the certificate; all, unless it is given.
        """
        return group_shift(
            group,
            self.patients,
            members,
            self.frozen.calibrator.predict(members.s),
            self.promise,
            unseen=len(unseen.intersection(members.ids)),
            strange=None if strange is None else len(strange.intersection(members.ids)),
            level=self.settings.level,
            min_positives=self.settings.min_subgroup_positives,
        )


def shifts(reference: Reference, test: Patients, images: pd.DataFrame, *, given: bool = False) -> list[GroupShift]:
    """Return the shift of the test patients and, when they come from several, of each site that is stated.

    Patients who were divided at random are covered whatever their site: exchangeability does not ask for it. One that
    calibration lacks speaks against the certificate where the dataset's own division was taken (`given`), or where it
    has so many patients that chance would have brought some to calibration.
    """
    unseen = strange = unseen_patients(reference.images, images)
    if not given:
        odd = sites_beyond_chance(reference.images, images)
        strange = set(images.loc[images["site"].isin(odd), "patient_id"])
    site = patient_attributes(images)["site"].loc[test.ids].to_numpy()
    sites = [name for name in sorted(set(site)) if name != UNKNOWN] if len(set(site)) > 1 else []
    members = {f"site {name[:12]}": _those(test, site == name) for name in sites}
    groups = [reference.shift(name, some, unseen, strange) for name, some in members.items()]
    return [reference.shift("test", test, unseen, strange), *among_several(groups, reference.promise)]


def _those(patients: Patients, chosen: np.ndarray) -> Patients:
    return replace(patients, ids=patients.ids[chosen], y=patients.y[chosen], s=patients.s[chosen])


@dataclass(frozen=True)
class External:
    """What came of an external test set; no shift when nobody in it is new. `sites` (n,) are those of the `members`."""

    metrics: ExternalSet
    shift: GroupShift | None
    findings: list[Finding]
    members: Patients | None = None
    sites: np.ndarray | None = None


def judge_external(
    reference: Reference, on: str, scores: pd.DataFrame, images: pd.DataFrame, split: pd.DataFrame, met: pd.Series
) -> External:
    """Judge what was frozen on an external test set; `met` says, by image_id, why images are not new to the run.

    Everybody who shares a patient or a picture with such an image is left out. Findings that would close the gate on
    the test patients warn here: the certificate never spoke of this set.
    """
    settings, frozen = reference.settings, reference.frozen
    again = set(split.loc[split["unit"].isin(split.loc[split["image_id"].isin(met.index), "unit"]), "patient_id"])
    excluded = Excluded(
        patients=scores.loc[scores["patient_id"].isin(again), "patient_id"].nunique(),
        images={str(why): int(count) for why, count in met.value_counts().sort_index().items()},
    )
    findings = _overlap_findings(excluded, scores["patient_id"].nunique(), on)
    left = scores[~scores["patient_id"].isin(again)]
    if left.empty:
        return External(ExternalSet(on, excluded, None), None, findings)
    arm, how = frozen.certificate.arm, frozen.certificate.aggregation
    members = one_per_unit(patients_of(left, arm, how), units_of(split))
    metrics = judge(settings, members, frozen)
    shift = reference.shift(on, members, unseen_patients(reference.images, images, elsewhere=True))
    theirs = images_per_patient(left, arm)
    numbers = {"these patients with the condition": theirs[theirs["label"] == 1]}
    found = [
        *findings_of(settings, members, frozen, metrics, on),
        *assess_shift(shift, on),
        *(assess_image_numbers(reference.image_numbers, numbers, on) if how == "max" else []),
    ]
    findings += [replace(one, level="warn") if one.level == "fail" else one for one in found]
    sites = patient_attributes(images)["site"].loc[members.ids].to_numpy(str)
    return External(ExternalSet(on, excluded, metrics), shift, findings, members, sites)


def _overlap_findings(excluded: Excluded, patients: int, on: str) -> list[Finding]:
    if not excluded.images:
        return []
    reasons = ", ".join(f"{counted(count, 'image')}: {why}" for why, count in excluded.images.items())
    out = excluded.patients
    occur = agreeing(out, "occurs in this run already and was", "occur in this run already and were")
    message = f"{out} of {counted(patients, 'patient')} {occur} left out ({reasons})"
    if "same patient" in excluded.images:
        message += "; where both places number their patients alike, these may be others"
    return [Finding("external_overlap", "warn", on, message)]
