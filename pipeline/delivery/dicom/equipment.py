"""Who made an object: the program as equipment, the model as a contributing device with a UID of its own."""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from pipeline import __version__
from pipeline.delivery.dicom.identifiers import derived_uid
from pipeline.delivery.dicom.source import SourceStudy
from pipeline.inference.model import Model

MAKER = "maescreen"
RESEARCH_SERIES = "RESEARCH USE ONLY"


def model_uid(model: Model) -> str:
    """Return the Device UID of a model; it changes with every byte of it."""
    return derived_uid("device", model.sha256)


def add_equipment(into: Dataset, model: Model, source: SourceStudy) -> None:
    """Write the equipment of the series, and the model as contributing equipment (PS3.3 C.12.1)."""
    into.Manufacturer = MAKER
    into.ManufacturerModelName = MAKER
    into.SoftwareVersions = __version__
    into.DeviceSerialNumber = model.sha256[:16]
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [coded(codes.DCM.ProcessingEquipment)]
    item.Manufacturer = MAKER
    item.ManufacturerModelName = source.express(" ".join(model.content["title"].split()))[:64]
    item.SoftwareVersions = [__version__, f"model {model.sha256[:56]}"]
    item.DeviceSerialNumber = model.sha256[:16]
    item.DeviceUID = model_uid(model)
    item.ContributionDescription = "Screening score and decision; research use only"
    into.ContributingEquipmentSequence = [item]


def coded(code: Code) -> Dataset:
    """Return a code as an item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item
