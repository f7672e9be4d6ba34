"""The objects about one study, as files: what they have in common, their UIDs, and which could not be made."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
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
from pipeline.delivery.dicom.source import WHY_NONE, NoObjectsError, SourceStudy, copy_identity, quietly, read_source
from pipeline.delivery.dicom.structured_report import Document, structured_report
from pipeline.inference.batch import Group
from pipeline.inference.model import Predictions
from pipeline.inference.result import HARMLESS, Result
from pipeline.store.files import sha256_bytes, sha256_json, write_bytes

FOLDER = "dicom"
NO_PICTURE = "sc: the study has no image that was scored"
SERIES_NUMBERS = {"sr": 9001, "pdf": 9002, "sc": 9003, "seg": 9004}
DRAFT = "2.25.0"


@dataclass(frozen=True)
class Objects:
    """The objects about a study: files by kind, the report for those that will replace it, why others are missing."""

    files: dict[str, bytes]
    uids: dict[str, str]
    document: Document | None
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Made:
    """What was made of a study: the files by kind, why others are missing, and of whom and what they are.

    `subject` is a hash of patient and study, `evidence` names the images, `document` is the report.
    """

    files: dict[str, str]
    missing: tuple[str, ...]
    subject: str = ""
    evidence: tuple[str, ...] = ()
    document: Document | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a journal."""
        return {**asdict(self), "missing": list(self.missing), "evidence": list(self.evidence)}


def document_of(made: Mapping[str, Any]) -> Document | None:
    """Return the report that a line of a journal names."""
    return Document(**made["document"]) if made.get("document") else None


def replaces(source: SourceStudy, made: Mapping[str, Any]) -> bool:
    """Say whether a result about `source` replaces an earlier one: of the same study, and about all its images.

    A result about some of them does not: what it does not see, the earlier may have found.
    """
    earlier = made.get("evidence")
    return bool(earlier) and made["subject"] == source.subject and {*earlier} <= {*source.names}


@quietly()
def source_of(result: Result, group: Group, predictions: Predictions) -> SourceStudy:
    """Return the study that a result is about. Raises NoObjectsError."""
    refused = {path for path, _ in result.refused}
    lost = {path for path, refusal in result.refused if refusal.reason not in HARMLESS}
    return read_source(group.sources, refused, lost, predictions.model.policy)


def none_made(error: NoObjectsError) -> Made:
    """Return what is kept of a study about which no object can be made."""
    return Made({}, (WHY_NONE[error.reason],))


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
    made = make_objects(result, source, predictions, kinds, predecessors)
    place = f"{FOLDER}/{Path(pages.file_name(result.study)).stem}"
    files = {kind: f"{place}/{kind}-{sha256_json(uid)[:8]}.dcm" for kind, uid in made.uids.items()}
    for kind, content in made.files.items():
        write_bytes(folder / files[kind], content)
    return Made(files, made.missing, source.subject, source.names, made.document)


@quietly()
def make_objects(
    result: Result,
    source: SourceStudy,
    predictions: Predictions,
    kinds: Sequence[str],
    predecessors: Sequence[Document] = (),
) -> Objects:
    """Return the objects of these kinds as files; `predecessors` are earlier reports, the latest last."""
    files, uids, document, missing = {}, {}, None, []
    for kind in kinds:
        dataset = _dataset(kind, result, source, predictions, predecessors)
        if dataset is None:
            missing.append(NO_PICTURE)
            continue
        files[kind] = finished(dataset, kind, source, predictions)
        uids[kind] = str(dataset.SOPInstanceUID)
        if kind == "sr":
            named = (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID, dataset.SOPClassUID)
            document = Document(*map(str, named))
    return Objects(files, uids, document, tuple(missing))


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


def finished(dataset: Dataset, kind: str, source: SourceStudy, predictions: Predictions) -> bytes:
    """Write into an object of a kind what all have in common, its UIDs last; return the file."""
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
    dataset.SOPInstanceUID = instance_uid(source.names, model.sha256, predictions.settings_sha256, kind, content)
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
