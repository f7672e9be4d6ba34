"""The page of a study as an Encapsulated PDF (PS3.3 A.45.1)."""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import EncapsulatedPDFStorage

from pipeline.delivery.dicom.equipment import coded
from pipeline.delivery.dicom.source import SourceStudy

TITLE = "Screening result, research use only"


def encapsulated_pdf(page: bytes, source: SourceStudy) -> Dataset:
    """Return the object but for its UIDs, patient, study and times; `page` is the PDF."""
    dataset = Dataset()
    dataset.SOPClassUID = EncapsulatedPDFStorage
    dataset.Modality = "DOC"
    dataset.ConversionType = "WSD"
    dataset.InstanceNumber = 1
    dataset.BurnedInAnnotation = "NO"
    dataset.DocumentTitle = TITLE
    dataset.AcquisitionDateTime = "".join(source.time)
    dataset.ConceptNameCodeSequence = [coded(codes.DCM.ImagingMeasurementReport)]
    dataset.SourceInstanceSequence = [one.reference() for one in source.evidence]
    dataset.MIMETypeOfEncapsulatedDocument = "application/pdf"
    dataset.EncapsulatedDocument = page + b"\0" * (len(page) % 2)
    dataset.EncapsulatedDocumentLength = len(page)
    return dataset
