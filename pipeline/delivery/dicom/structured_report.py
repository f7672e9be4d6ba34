"""A result as a Comprehensive 3D SR by TID 1500 (PS3.16), as IHE AI Results asks of a qualitative finding.

Private codes and what they mean are in docs/guides/dicom.md; the dump of an example is a file of the tests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    CodedConcept,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DataElementSequence
from pydicom.sr.codedict import codes
from pydicom.uid import UID

from pipeline import __version__
from pipeline.delivery import sentences
from pipeline.delivery.dicom.equipment import MAKER, model_uid
from pipeline.delivery.dicom.identifiers import derived_uid
from pipeline.delivery.dicom.source import NO_DATE, Instance, SourceStudy
from pipeline.inference.model import Model
from pipeline.inference.result import Result
from pipeline.inference.rule import Judgement

SCHEME = "99MAESCREEN"
# Code values never change their meaning; a new meaning gets a new number.
DECISIONS = {"refer": ("S101", "Refer"), "no refer": ("S102", "No refer"), "not assessable": ("S103", "Not assessable")}
CONCEPTS = {
    "decision": ("S100", "Screening decision"),
    "condition": ("S110", "Condition screened for"),
    "reason": ("S111", "Reason for not assessable"),
    "threshold": ("S112", "Threshold of referral"),
    "certificate": ("S113", "Certificate of recall"),
    "typicality": ("S114", "Typicality of the study"),
    "remark": ("S115", "Remark on the images"),
    "use": ("S116", "Limit of use"),
    "score": ("S120", "Score of the model"),
    "probability": ("S121", "Calibrated probability of the condition"),
    "probability_low": ("S122", "Lower 95 % limit of the calibrated probability"),
    "probability_high": ("S123", "Upper 95 % limit of the calibrated probability"),
}
RESEARCH_ONLY = "Research use only; no medical device. Not for diagnosis."
IMAGING_PROCEDURE = codes.SCT.ImagingProcedure
LONGEST_TEXT = 8000


@dataclass(frozen=True)
class Document:
    """An SR that is already there: what a revised one names as its predecessor."""

    study_uid: str
    series_uid: str
    sop_instance_uid: str
    sop_class_uid: str


def structured_report(
    result: Result,
    model: Model,
    source: SourceStudy,
    *,
    complete: bool,
    predecessors: Sequence[Document] = (),
) -> Dataset:
    """Return the report but for its UIDs, patient, study and times; `complete` is false where something failed."""
    groups = [_group(result, model, source, result.judgement, "")]
    for label_id, judgement in result.further.items():
        groups.append(_group(result, model, source, judgement, label_id))
    report = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=_observer(model, source)),
        procedure_reported=IMAGING_PROCEDURE,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    _name_procedure(report[0], source)
    evidence = [_evidence(one) for one in source.evidence]
    return Comprehensive3DSR(
        evidence=evidence,
        content=report[0],
        series_instance_uid="2.25.0",
        series_number=1,
        sop_instance_uid="2.25.0",
        instance_number=1 + len(predecessors),
        manufacturer=MAKER,
        is_complete=complete,
        is_final=False,
        is_verified=False,
        previous_versions=[_evidence(one) for one in predecessors[-1:]] or None,
        coding_schemes=[
            CodingSchemeIdentificationItem(
                SCHEME, name="maescreen screening results", version="1", responsible_organization=MAKER
            )
        ],
    )


def concept(name: str) -> CodedConcept:
    """Return one of our own codes by its name in CONCEPTS."""
    value, meaning = CONCEPTS[name]
    return CodedConcept(value, SCHEME, meaning)


def _group(
    result: Result, model: Model, source: SourceStudy, judgement: Judgement, label_id: str
) -> MeasurementsAndQualitativeEvaluations:
    label = next(one for one in model.content["labels"] if one["id"] == label_id)
    rule = model.further[label_id] if label_id else model.rule
    usable = rule.decision.usable and bool(rule.points)
    value, meaning = DECISIONS[judgement.decision]
    decision = CodedConcept(value, SCHEME, meaning)
    tracked = derived_uid("finding", [one.sop_instance_uid for one in source.evidence], model.sha256, label_id)
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=UID(tracked), identifier=f"screening {label_id or 'result'}"[:64]),
        finding_type=decision,  # viewers that show nothing else show this
        algorithm_id=AlgorithmIdentification(
            name=source.express(f"maescreen: {' '.join(model.content['title'].split())}")[:256],
            version=f"{__version__}, model {model.sha256}",
            parameters=[f"threshold_sha256 {model.content['threshold_sha256']}"],
        ),
        measurements=list(_measurements(judgement, usable)),
        qualitative_evaluations=[QualitativeEvaluation(concept("decision"), decision)],
        source_images=[
            SourceImageForMeasurementGroup(one.sop_class_uid, one.sop_instance_uid) for one in source.scored
        ],
    )
    condition = f"{label['name']}: {' '.join(label['definition'].split())}"
    texts = [("condition", condition), *_texts(result, model, judgement, label_id, usable), ("use", RESEARCH_ONLY)]
    group[0].ContentSequence.extend(_text(name, source.express(text)) for name, text in texts if text)
    return group


def _measurements(judgement: Judgement, usable: bool) -> Iterator[Measurement]:
    """Yield score and probability, these only where the study's page shows them, too."""
    if judgement.score is not None and math.isfinite(judgement.score):
        yield Measurement(concept("score"), judgement.score, codes.UCUM.NoUnits)
    if not usable or judgement.decision == "not assessable":
        return
    for name in ("probability", "probability_low", "probability_high"):
        value = getattr(judgement, name)
        if value is not None and math.isfinite(value):
            yield Measurement(concept(name), 100 * value, codes.UCUM.Percent)


def _texts(
    result: Result, model: Model, judgement: Judgement, label_id: str, usable: bool
) -> Iterator[tuple[str, str]]:
    if judgement.decision == "not assessable":
        yield from (("reason", sentence) for sentence in sentences.reasons(judgement, result))
    if usable and label_id:
        point = model.further[label_id].points[0]
        yield "threshold", sentences.threshold_of(point)
    if label_id:
        return
    if usable:
        yield "threshold", sentences.threshold(model)
        yield "certificate", " ".join(model.scope)
    else:
        yield "certificate", f"None: {'; '.join(model.rule.decision.reasons)}"
    yield "typicality", sentences.typicality(result)
    yield from (("remark", remark) for remark in (*result.unusual, *result.remarks))
    if judgement.decision != "not assessable":
        yield from (("remark", sentence) for sentence in sentences.refusals(result))


def _text(name: str, value: str) -> TextContentItem:
    return TextContentItem(concept(name), value[:LONGEST_TEXT], RelationshipTypeValues.CONTAINS)


def _observer(model: Model, source: SourceStudy) -> ObserverContext:
    return ObserverContext(
        codes.DCM.Device,
        DeviceObserverIdentifyingAttributes(
            uid=UID(model_uid(model)),
            name=source.express(" ".join(model.content["title"].split()))[:64],
            manufacturer_name=MAKER,
            model_name="maescreen",
        ),
    )


def _name_procedure(root: Dataset, source: SourceStudy) -> None:
    """Report the imaging procedure of the header, its code as it stands there, instead of the general one."""
    named = source.procedures()
    for item in root.ContentSequence if named else ():
        if isinstance(item, CodeContentItem) and item.name == codes.DCM.ProcedureReported:
            item["ConceptCodeSequence"].value = DataElementSequence(named)


def _evidence(instance: Instance | Document) -> Dataset:
    """Return what highdicom takes references from; patient and study are copied later, byte for byte."""
    item = Dataset()
    for keyword, name in (
        ("StudyInstanceUID", "study_uid"),
        ("SeriesInstanceUID", "series_uid"),
        ("SOPInstanceUID", "sop_instance_uid"),
        ("SOPClassUID", "sop_class_uid"),
    ):
        setattr(item, keyword, getattr(instance, name))
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
        setattr(item, keyword, None)
    item.StudyDate, item.StudyTime = NO_DATE, None
    return item
