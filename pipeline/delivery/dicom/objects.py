"""The objects about one study, as files: what they have in common, their UIDs, and which could not be made."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRLittleEndian

from pipeline import __version__
from pipeline.delivery import pages
from pipeline.delivery.dicom.encapsulated_pdf import encapsulated_pdf
from pipeline.delivery.dicom.equipment import RESEARCH_SERIES, add_equipment
from pipeline.delivery.dicom.identifiers import IMPLEMENTATION, instance_uid, series_uid
from pipeline.delivery.dicom.secondary_capture import draw, secondary_capture
from pipeline.delivery.dicom.source import WHY_NONE, NoObjectsError, SourceStudy, copy_identity, read_source
from pipeline.delivery.dicom.structured_report import Document, structured_report
from pipeline.inference.batch import Group
from pipeline.inference.model import Predictions
from pipeline.inference.result import HARMLESS, Result
from pipeline.store.files import atomic, sha256_bytes, sha256_json

FOLDER = "dicom"
NO_PICTURE = "sc: the study has no image that was scored"
SERIES_NUMBERS = {"sr": 9001, "pdf": 9002, "sc": 9003}
DRAFT = "2.25.0"


@dataclass(frozen=True)
class Made:
    """What was made of a study: the files by kind, why others are missing, and of whom and what they are.

    `subject` is a hash of patient and study, `document` what a revised report names as its predecessor.
    """

    files: dict[str, str]
    missing: tuple[str, ...]
    subject: str
    document: Document | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the journal."""
        return {**asdict(self), "missing": list(self.missing)}


def document_of(made: dict[str, Any]) -> Document | None:
    """Return the report that a line of the journal names."""
    return Document(**made["document"]) if made.get("document") else None


def subject_of(source: SourceStudy) -> str:
    """Return what is the same for all results about one patient's study."""
    return sha256_json([source.first.study_uid, source.patient])


def source_of(result: Result, group: Group, predictions: Predictions) -> SourceStudy:
    """Return the study that a result is about. Raises NoObjectsError."""
    refused = {path for path, _ in result.refused}
    lost = {path for path, refusal in result.refused if refusal.reason not in HARMLESS}
    return read_source(group.sources, refused, lost, predictions.model.policy)


def none_made(error: NoObjectsError) -> Made:
    """Return what is kept of a study about which no object can be made."""
    return Made({}, (WHY_NONE[error.reason],), "", None)


def write_objects(
    folder: Path,
    result: Result,
    source: SourceStudy,
    predictions: Predictions,
    kinds: Sequence[str],
    predecessors: Sequence[Document] = (),
) -> Made:
    """Write the objects of these kinds below `folder`; the same study gives the same bytes again.

    `predecessors` are earlier reports about the study, the latest last.
    """
    place = f"{FOLDER}/{Path(pages.file_name(result.study)).stem}"
    files, document, missing = {}, None, []
    for kind in kinds:
        dataset = _dataset(kind, result, source, predictions, predecessors)
        if dataset is None:
            missing.append(NO_PICTURE)
            continue
        content = _finished(dataset, kind, source, predictions)
        files[kind] = f"{place}/{kind}-{sha256_json(dataset.SOPInstanceUID)[:8]}.dcm"
        with atomic(folder / files[kind]) as temporary:
            temporary.write_bytes(content)
        if kind == "sr":
            uids = (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID, dataset.SOPClassUID)
            document = Document(*map(str, uids))
    return Made(files, tuple(missing), subject_of(source), document)


def _dataset(
    kind: str, result: Result, source: SourceStudy, predictions: Predictions, predecessors: Sequence[Document]
) -> Dataset | None:
    if kind == "sr":
        return structured_report(
            result,
            predictions.model,
            source,
            complete=bool(result.images) and not source.lost,
            predecessors=predecessors,
        )
    if kind == "pdf":
        page = pages.page(result, predictions, _moment(source), pages.LATEST_IMAGE)
        return encapsulated_pdf(page, source)
    if result.picture is None or not source.scored:
        return None
    score = "" if result.judgement.score is None else f", score {result.judgement.score:.2f}"
    verdict = result.judgement.decision.upper() if predictions.model.usable else "NO DECISION"
    return secondary_capture(draw(result.picture, f"{verdict}{score}"), result.picture, source)


def _finished(dataset: Dataset, kind: str, source: SourceStudy, predictions: Predictions) -> bytes:
    """Write into an object what all have in common, its UIDs last; return the file."""
    model = predictions.model
    copy_identity(source, dataset)
    add_equipment(dataset, model, source)
    dataset.SeriesInstanceUID = series_uid(source.first.study_uid, source.patient, model.sha256, kind)
    dataset.SeriesNumber = SERIES_NUMBERS[kind]
    dataset.SeriesDescription = f"maescreen {kind.upper()}, {RESEARCH_SERIES}"
    dataset.ContentDate, dataset.ContentTime = source.time
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
        if keyword in dataset:
            del dataset[keyword]
    dataset.SOPInstanceUID = DRAFT
    content = sha256_bytes(_to_bytes(dataset))
    named = [one.sop_instance_uid for one in source.evidence]
    dataset.SOPInstanceUID = instance_uid(named, model.sha256, predictions.settings_sha256, kind, content)
    return _to_bytes(dataset)


def _to_bytes(dataset: Dataset) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION
    meta.ImplementationVersionName = f"MAESCREEN {__version__}"[:16]
    dataset.file_meta = meta
    stream = io.BytesIO()
    dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def _moment(source: SourceStudy) -> str:
    """Return the time of the latest image as ISO 8601."""
    day, time = source.time
    digits = f"{time.partition('.')[0]:0<6}"
    return datetime.strptime(day + digits, "%Y%m%d%H%M%S").replace(tzinfo=UTC).isoformat(timespec="seconds")
