"""What stages leave as JSON and others read back: the same to the last bit, or refused with what to do."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pipeline.inference.decision import Decision
from pipeline.store.files import finite
from pipeline.store.results.deployment import Certified, Deployment, Group, ToUse
from pipeline.store.results.finding import Finding, findings_from
from pipeline.store.results.interval import Interval
from pipeline.store.results.metrics import (
    Calibration,
    ComparedGroup,
    Discrimination,
    Excluded,
    ExternalSet,
    FurtherMetrics,
    GroupMetrics,
    LabelFractions,
    Macro,
    MakeUp,
    Metrics,
    Readings,
    Reliability,
    ScoreShift,
    Shift,
    Stability,
)
from pipeline.store.results.operating_point import (
    AtTarget,
    Band,
    Counts,
    FirstImage,
    Gap,
    Held,
    LowestGroup,
    LowestGroups,
    MainPoint,
    OperatingPoint,
    OtherPoint,
    PrevalenceRow,
    Tail,
    Watching,
)
from pipeline.store.results.threshold import AtThreshold, Costs, Target, Threshold

SHARE = Interval(0.9, 0.8, 0.95, 0.95, "wilson", 40)
NOWHERE = Interval(math.nan, math.nan, math.nan, 0.95, "wilson", 0)
AT = AtThreshold(0.1 + 0.2, 0.4, 0.951, 3, 3, SHARE, NOWHERE, SHARE)
LOWER = Target(
    certified=True, at=AT, recall_target=0.9, confidence=0.95, confidence_used=0.975, models_compared=2,
    labels_certified=1, positives=111, negatives=54, certifiable_recall=0.97, positives_needed=59, message="promised",
    advice="",
)  # fmt: skip
REFUSED = replace(LOWER, certified=False, at=None, recall_target=0.99, message="too few", advice="add patients")
THRESHOLD = Threshold(
    **vars(LOWER), other_operating_points=(REFUSED,), local_prevalence=None, probability_prevalence=0.3,
    costs=Costs(0.0, 1.0), deploy="pooled", subgroup_threshold="report", subgroup_attributes=("site",),
    band_missed_share=0.1, joint_confidence=0.95, planning={"test_positives_for_0.8": None}, linked_patients=0,
    arm="mae", seeds=(1, 2), aggregation="max", model_sha256={"1": "a"}, data_sha256="b", warnings=(),
)  # fmt: skip


def kept(threshold: Threshold) -> dict[str, Any]:
    """Return what the file holds, as somebody reads it."""
    return json.loads(json.dumps(finite(threshold.to_json())))


def test_a_threshold_is_read_back_bit_for_bit():
    content = kept(THRESHOLD)
    again = Threshold.from_json(content)
    assert kept(again) == content
    assert again.at is not None
    assert again.at.threshold_hex == (0.1 + 0.2).hex() == content["threshold_hex"]
    assert math.isnan(again.at.specificity.value)
    assert again.other_operating_points == (REFUSED,)
    assert replace(again, at=None) == replace(THRESHOLD, at=None)


def test_a_file_from_before_schema_numbers_is_read_and_one_from_later_is_not():
    content = kept(THRESHOLD)
    assert list(content)[:3] == ["schema", "certified", "threshold"]
    del content["schema"]
    assert Threshold.from_json(content).arm == "mae"
    with pytest.raises(ValueError, match=r"threshold.json is of schema 2, .* schema 1; rebuild with --rebuild calibr"):
        Threshold.from_json({**content, "schema": 2})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.pop("confidence"), "confidence: Field required"),
        (lambda content: content.update(smoker="Jane Roe"), "smoker: Unexpected keyword argument"),
        (lambda content: content.update(positives="Jane Roe"), "positives: Input should be a valid integer"),
        (lambda content: content["recall"].pop("low"), "at.recall.low: Field required"),
        (lambda content: content.pop("misses_seen"), "at.misses_seen: Field required"),
        (lambda content: content["other_operating_points"][0].pop("advice"), "advice: Field required"),
    ],
)
def test_missing_unknown_and_other_fields_are_refused_with_what_to_do(change: Callable[[Any], None], said: str):
    content = kept(THRESHOLD)
    change(content)
    with pytest.raises(ValueError, match="rebuild with --rebuild calibrate") as refused:
        Threshold.from_json(content)
    assert said in str(refused.value)
    assert "Jane" not in str(refused.value), "values may be somebody's words"


def test_findings_are_read_back_and_others_refused():
    finding = Finding("x", "fail", "test", "the model knows nothing")
    assert findings_from([finding.to_dict()]) == [finding]
    with pytest.raises(ValueError, match=r"level: Input should be .*; rebuild with --rebuild calibrate"):
        findings_from([{**finding.to_dict(), "level": "worst"}])


def test_after_a_failed_gate_there_is_no_threshold_to_be_had():
    withheld = Decision(("why not",)).threshold(THRESHOLD)
    assert withheld.threshold is withheld.at is withheld.probability_prevalence is None
    assert withheld.other_operating_points == ()
    text = json.dumps(withheld.to_dict())
    assert not [number for number in ("0.30000000000000004", "0x1.3", "0.951", "promised") if number in text]
    assert set(kept(withheld)) == set(kept(THRESHOLD))
    assert Decision(()).threshold(THRESHOLD) is THRESHOLD


# ---------------------------------------------------------------- the threshold to use


def to_use(**changes: Any) -> Deployment:
    made = ToUse(
        threshold=0.3, recall_target=0.9, confidence=0.95, confidence_used=0.95, models_compared=1, labels_certified=1,
        positives=227, negatives=120, misses_allowed=5, misses_seen=5, specificity=NOWHERE, certified_recall=0.951,
        certifiable_recall=0.98, positives_needed=59, threshold_hex=(0.3).hex(), expected_recall=0.97, prevalence=0.05,
        referral=SHARE,
    )  # fmt: skip
    group = Group("site", "A", 9, 4, 59, 1, 0.5, False, None, None, None, None)
    fields = {"reasons": (), "calibration_threshold_hex": (0.3).hex(), "made": Certified(made, (group,), SHARE)}
    return Deployment(rule="pooled", subgroup_threshold="report", decided="before", **{**fields, **changes})


@pytest.mark.parametrize(
    ("deployment", "usable"),
    [(to_use(), True), (to_use(reasons=("why not",), calibration_threshold_hex=None, made=None), False)],
)
def test_a_deployment_is_read_back_flat_as_it_was(deployment: Deployment, usable: bool):
    content = json.loads(json.dumps(finite(deployment.to_json())))
    first = ["schema", "rule", "subgroup_threshold", "decided", "usable", "reasons", "calibration_threshold_hex"]
    assert list(content)[:7] == first
    assert content["usable"] is usable
    assert ("threshold" in content) is ("subgroups" in content) is usable
    again = Deployment.from_json(content)
    assert (again.to_use is not None) is usable
    assert json.dumps(finite(again.to_json())) == json.dumps(content)


def test_a_deployment_that_lacks_its_threshold_is_refused():
    content = to_use().to_json()
    del content["threshold"]
    with pytest.raises(ValueError, match=r"made.to_use.threshold: Field required.* --rebuild evaluate"):
        Deployment.from_json(content)


# ---------------------------------------------------------------- metrics.json

POINT = AtTarget(
    threshold=0.1 + 0.2, probability=0.4, probability_prevalence=None, counts=Counts(tp=38, fp=5, tn=49, fn=2),
    **dict.fromkeys(("recall", "specificity", "ppv", "npv", "referral_rate", "f1"), SHARE),
    **dict.fromkeys(("youden", "balanced_accuracy", "lr_positive", "lr_negative"), NOWHERE),
    verification="confirmed", recall_lower_one_sided=0.9, recall_upper_one_sided=0.97, positives_to_confirm=59,
    can_confirm=False, chance_of_confirmation=0.1, verification_in_words="in words",
)  # fmt: skip
ROW = PrevalenceRow(0.05, 1000, SHARE, SHARE, SHARE, SHARE, SHARE, SHARE, NOWHERE)
RELIABILITY = Reliability(SHARE, NOWHERE, SHARE, SHARE, NOWHERE, NOWHERE, NOWHERE)
GROUP = GroupMetrics(
    patients=94, positives=40, prevalence=SHARE, images=120, linked=0, discrimination=Discrimination(SHARE, SHARE),
    operating_point=OperatingPoint(**vars(POINT), first_image=FirstImage(SHARE, SHARE)),
    other_operating_points=(OtherPoint(0.99, None), OtherPoint(0.9, POINT)), consequences=(ROW,),
    headline_prevalence=0.05, calibration=Calibration(10, RELIABILITY, RELIABILITY, NOWHERE),
)  # fmt: skip
BAD = Finding("reversed", "fail", "test", "the model is reversed")
LOWEST = LowestGroup("sex", "F", 0.8, 0.7, 0.9, 2, 0.6, "site", "A", (Gap("sex", "F", -0.1, -0.2, math.nan),))
TESTED = MainPoint(
    **vars(GROUP.operating_point), lowest_groups=LowestGroups(level=0.95, recall=LOWEST, specificity=None),
    watching=Watching(0.05, 20.0, 0.95, {"0.9": 153, "0.8": None}, {"0.005": 598}, Band(0.3, 0.5), {"0.16": 12}),
    held_against_certificate=(Held("test", Tail(2, 40, 1.5, 0.3, {"0.9": 0.4}), "confirmed"), Held("A", None, None)),
)  # fmt: skip
COMPARED = ComparedGroup(
    group="test", patients=94, positives=40, unseen=0, prevalence=SHARE, score_ks=ScoreShift(0.1, 0.4),
    stability=Stability(0.1, math.nan, 10), slope=NOWHERE, in_the_large=SHARE, recall=SHARE, verification="confirmed",
    differences=("other scores",), covered=False,
)  # fmt: skip
METRICS = Metrics(
    **vars(replace(GROUP, operating_point=TESTED)), arm="mae", arm_title="pretrained", seeds=(1, 2), aggregation="max",
    comparison_sentence="better", label_fractions=LabelFractions("enough", {"auc_mae_with_100_labelled": SHARE}),
    further_labels={"own": FurtherMetrics(**vars(GROUP), problems=()),
                    "bad": FurtherMetrics(**vars(GROUP), problems=(BAD,))},
    macro=Macro(3, SHARE, SHARE, SHARE),
    external={"b": ExternalSet("external set b", Excluded(1, {"same image": 2}), GROUP),
              "c": ExternalSet("external set c", Excluded(9, {"same image": 9}), None)},
    shift=Shift(MakeUp(94, 40, SHARE), (COMPARED,)), readings=Readings(1, 1, ("mae",)),
)  # fmt: skip


def content_of(metrics: Metrics) -> dict[str, Any]:
    return json.loads(json.dumps(finite(metrics.to_json())))


def test_metrics_are_read_back_in_their_order_to_the_last_bit():
    content = content_of(METRICS)
    assert list(content)[:7] == ["schema", "arm", "arm_title", "seeds", "aggregation", "patients", "positives"]
    assert content["external"]["c"] == {
        "group": "external set c",
        "patients": 0,
        "excluded": {"patients": 9, "images": {"same image": 9}},
    }
    assert list(content["external"]["b"])[:3] == ["group", "excluded", "patients"]
    again = Metrics.from_json(content)
    assert json.dumps(finite(again.to_json())) == json.dumps(content)
    assert again.operating_point is not None
    assert again.operating_point.threshold == 0.1 + 0.2
    assert again.further_labels["bad"].problems == (BAD,)


def test_what_earlier_metrics_lack_has_a_default_and_what_no_version_lacked_is_asked_for():
    content = content_of(METRICS)
    for later in ("schema", "arm_title", "label_fractions", "further_labels", "macro", "external", "readings"):
        del content[later]
    again = Metrics.from_json(content)
    assert (again.external, again.further_labels, again.macro, again.label_fractions.sentence) == ({}, {}, None, "")
    del content["operating_point"]["recall"]["low"]
    with pytest.raises(ValueError, match=r"operating_point.recall.low: Field required.* --rebuild evaluate"):
        Metrics.from_json(content)


def test_after_a_failed_gate_nothing_at_a_threshold_leaves_the_metrics():
    withheld = Decision(("why not",)).metrics(METRICS)
    groups = [withheld, *withheld.further_labels.values(), withheld.external["b"].judged]
    assert all(one is not None and one.operating_point is None for one in groups)
    text = json.dumps(finite(withheld.to_dict()))
    assert not [key for key in ("threshold", "ppv", "verification_in_words", "lowest_groups") if f'"{key}"' in text]
    assert withheld.shift.groups[0].recall is withheld.shift.groups[0].verification is None
    assert withheld.discrimination == METRICS.discrimination
    assert withheld.external["c"] == METRICS.external["c"]


def test_a_further_label_with_problems_keeps_its_results_and_those_of_the_mean_alone():
    allowed = Decision(()).metrics(METRICS)
    assert allowed.further_labels["bad"].operating_point is None
    assert allowed.further_labels["own"] == METRICS.further_labels["own"]
    assert allowed.operating_point == TESTED
    assert allowed.macro == Macro(3, SHARE, None, None)
