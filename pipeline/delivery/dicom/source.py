"""What an object takes over from the images that it is about: whose they are, which they are, when they were made.

Texts are copied as the bytes that they are, with the character set that they are in: a name that was decoded and
encoded again may come out as other bytes, and an archive would take it for somebody else's.
"""

from __future__ import annotations

import logging
import re
import unicodedata
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date

from pydicom.charset import convert_encodings, default_encoding, python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag

from pipeline.imaging.archive.sources import Source, read_bytes
from pipeline.imaging.formats.dicom import is_dicom, read_header
from pipeline.imaging.image import Policy
from pipeline.imaging.quarantine import Refused
from pipeline.store.files import sha256_json

WHY_NONE = {
    "not_dicom": "the study did not come as DICOM",
    "several_studies": "its files are of more than one study or patient by their headers",
    "no_uids": "its headers lack the UIDs by which a result names its images",
}
# In every object, empty where the source has nothing (type 2 of PS3.3); identity is kept as it is, right or wrong.
KEPT = ("PatientName", "PatientID", "ReferringPhysicianName", "StudyID", "AccessionNumber")
CHECKED = {
    "PatientBirthDate": "date",
    "PatientSex": r"[MFO]",
    "StudyDate": "date",
    "StudyTime": r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?",
}
# Left out where the source has nothing, or nothing valid.
OPTIONAL = {
    "IssuerOfPatientID": r".{1,64}",
    "StudyDescription": r".{1,64}",
    "PatientAge": r"\d{3}[DWMY]",
    "TimezoneOffsetFromUTC": r"[+-](0\d|1[0-4])[0-5]\d",
}
CODE = ("CodeValue", "CodingSchemeDesignator", "CodingSchemeVersion", "CodeMeaning")
LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
TIMES = ("Acquisition", "Content", "Series", "Study")
IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "PatientID")
WANTED = (
    *("SpecificCharacterSet", "Modality", "BurnedInAnnotation", "ProcedureCodeSequence", "RequestAttributesSequence"),
    *(f"{name}{part}" for name in TIMES for part in ("Date", "Time")),
    *IDENTITY,
    *KEPT,
    *CHECKED,
    *OPTIONAL,
    *LOSSY,
)
# When no header states a time: a day on which no digital image was made.
NO_DATE, NO_TIME = "19000101", "000000"
MARKS = {"≥": ">=", "≤": "<=", "–": "-", "—": "-", "−": "-", "·": "*", "×": "x", "…": "...", "’": "'", "‘": "'"}
MARKS |= {"“": '"', "”": '"', "„": '"', "°": " deg", "ß": "ss", "\u00a0": " ", "\u202f": " "}
FORBIDDEN = {"\\": "/", "~": "-"}  # separates values, and is another character in JIS X 0201


@contextmanager
def quietly() -> Iterator[None]:
    """Keep pydicom and pynetdicom from saying anything: their warnings and logs quote header values."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "pynetdicom")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL + 1)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


class NoObjectsError(ValueError):
    """No object can be made about a study; `reason` is a key of WHY_NONE."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Instance:
    """An image, or another object, of the source study."""

    study_uid: str
    series_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    path: str
    header: Dataset = field(repr=False, compare=False)

    def reference(self) -> Dataset:
        """Return what names it, as an item of a sequence."""
        item = Dataset()
        item.ReferencedSOPClassUID = self.sop_class_uid
        item.ReferencedSOPInstanceUID = self.sop_instance_uid
        return item


@dataclass(frozen=True)
class SourceStudy:
    """A DICOM study: `scored` are the images that made the score, `lost` those that could not be used."""

    scored: tuple[Instance, ...]
    lost: tuple[Instance, ...]

    @property
    def evidence(self) -> tuple[Instance, ...]:
        """What the result is about: what was scored, and what may hide a finding."""
        return (*self.scored, *self.lost)

    @property
    def first(self) -> Instance:
        """The instance whose patient and study all objects take over."""
        return self.evidence[0]

    @property
    def patient(self) -> str:
        """The patient's identifier, decoded as far as it goes, for hashes."""
        return text_of(self.first.header, "PatientID")

    @property
    def subject(self) -> str:
        """What is the same for all results about one patient's study: a hash."""
        return subject_of(self.first.study_uid, self.first.header)

    @property
    def names(self) -> tuple[str, ...]:
        """The SOP Instance UIDs of what the result is about, in order."""
        return tuple(sorted(one.sop_instance_uid for one in self.evidence))

    @property
    def character_set(self) -> str:
        """The specific character set of the texts that are taken over, as written."""
        return text_of(self.first.header, "SpecificCharacterSet")

    @property
    def time(self) -> tuple[str, str]:
        """Date and time (DA, TM) of the latest image."""
        return max(map(_time, self.evidence))

    def procedures(self) -> list[Dataset]:
        """Return the codes of the imaging procedure that the header names; none when it names no valid one."""
        header = self.first.header
        items = list(_items(header, "ProcedureCodeSequence"))
        for request in _items(header, "RequestAttributesSequence"):
            items += _items(request, "RequestedProcedureCodeSequence")
        codes = [copied_code(item) for item in items]
        return [code for code in codes if code is not None][:1]

    def express(self, text: str) -> str:
        """Return a text of our own as the character set of the source can hold it."""
        return expressible(text, self.character_set)


def read_source(
    sources: Sequence[Source], refused: Collection[str], lost: Collection[str], policy: Policy
) -> SourceStudy:
    """Read the headers of a study's files. `refused` are the paths that made no score, `lost` those that matter of it.

    Where nothing was scored and nothing lost, every object with UIDs counts as lost: the result has to name something.
    Raises NoObjectsError.
    """
    found: dict[str, Instance] = {}
    foreign = False
    for source in sources:
        try:
            data = read_bytes(source, policy.max_file_bytes)
            instance = _instance(source.path, read_header(data, policy, WANTED)) if is_dicom(data) else None
            foreign |= instance is None and source.path not in refused and not is_dicom(data)
        except Refused:
            continue
        if instance is not None:
            found.setdefault(instance.sop_instance_uid, instance)
    if foreign:
        raise NoObjectsError("not_dicom")
    named = [one for one in found.values() if _complete(one)]
    if not named:
        raise NoObjectsError("no_uids" if found else "not_dicom")
    if len({(one.study_uid, text_of(one.header, "PatientID")) for one in named}) > 1:
        raise NoObjectsError("several_studies")
    ordered = sorted(named, key=lambda one: (one.series_uid, one.sop_instance_uid))
    scored = tuple(one for one in ordered if one.path not in refused)
    left = tuple(one for one in ordered if one.path in lost)
    return SourceStudy(scored, left) if scored or left else SourceStudy((), tuple(ordered))


def subject_of(study_uid: str, header: Dataset) -> str:
    """Return a hash of a study and its patient, by which results about it are found again."""
    return sha256_json([study_uid, text_of(header, "PatientID")])


def _instance(path: str, header: Dataset) -> Instance:
    uids = (text_of(header, name).strip("\0 ") for name in IDENTITY[:4])
    study, series, instance, sop_class = uids
    return Instance(study, series, instance, sop_class, path, header)


def _complete(one: Instance) -> bool:
    return bool(one.study_uid and one.series_uid and one.sop_instance_uid and one.sop_class_uid)


# ---------------------------------------------------------------- elements


def copy_identity(source: SourceStudy, into: Dataset) -> None:
    """Copy character set, patient and study of the source."""
    header = source.first.header
    _set(into, "SpecificCharacterSet", raw_value(header, "SpecificCharacterSet"), always=False)
    for name in KEPT:
        _set(into, name, raw_value(header, name))
    for name, pattern in CHECKED.items():
        value = raw_value(header, name)
        _set(into, name, value if _valid(value, pattern) else b"")
    for name, pattern in OPTIONAL.items():
        value = raw_value(header, name)
        _set(into, name, value if _valid(value, pattern) else b"", always=False)
    into.StudyInstanceUID = source.first.study_uid
    keep_bytes(into)


def copy_lossy(source: SourceStudy, into: Dataset) -> None:
    """Say that the pixels once were compressed with loss, where the source says so of any image."""
    for one in source.scored:
        if text_of(one.header, "LossyImageCompression") == "01" and raw_value(one.header, LOSSY[1]):
            for name in LOSSY:
                _set(into, name, raw_value(one.header, name), always=False)
            return


def keep_bytes(dataset: Dataset) -> None:
    """Say that elements set as bytes are encoded as they will be written: the writer would decode them otherwise."""
    named = dataset.get("SpecificCharacterSet")
    dataset.set_original_encoding(False, True, convert_encodings(named) if named else default_encoding)


def raw_value(header: Dataset, keyword: str) -> bytes:
    """Return an element's value as the bytes of the file; none where there is no such element, or it is a sequence."""
    tag = Tag(keyword)
    if tag not in header:
        return b""
    element = header.get_item(tag)
    if isinstance(element, RawDataElement):
        return element.value or b""
    # Only the character set itself was decoded by the reader.
    value = element.value if element.VR != "SQ" else ""
    return ("\\".join(value) if isinstance(value, MultiValue) else str(value or "")).encode("ascii", "replace")


def text_of(header: Dataset, keyword: str) -> str:
    """Return an element's value as text for comparisons; bytes outside of ASCII stand for themselves."""
    return raw_value(header, keyword).decode("latin-1").strip("\0 ")


def copied_code(item: Dataset) -> Dataset | None:
    """Return the code of an item, its texts as the bytes that they are; None when it is no whole code."""
    values = {name: raw_value(item, name) for name in CODE}
    if not (values["CodeValue"].strip() and values["CodingSchemeDesignator"].strip() and values["CodeMeaning"].strip()):
        return None
    if max(len(values["CodeValue"].strip()), len(values["CodingSchemeDesignator"].strip())) > 16:
        return None
    code = Dataset()
    for name, value in values.items():
        _set(code, name, value, always=False)
    keep_bytes(code)
    return code


def _set(into: Dataset, keyword: str, value: bytes, always: bool = True) -> None:
    if not value and not always:
        return
    padded = value + b" " * (len(value) % 2)
    tag = Tag(keyword)
    into[tag] = RawDataElement(tag, dictionary_VR(tag), len(padded), padded, 0, False, True, True)


def _items(dataset: Dataset, keyword: str) -> Iterator[Dataset]:
    try:
        yield from dataset.get(keyword) or ()
    except Exception:  # a sequence that cannot be parsed names nothing; the result goes out without it
        return


def _valid(value: bytes, pattern: str) -> bool:
    text = value.decode("latin-1").strip("\0 ")
    return bool(_day(text)) if pattern == "date" else re.fullmatch(pattern, text) is not None


def _day(text: str) -> str:
    """Return a DA value, nothing when it is no day of the calendar."""
    try:
        return text if re.fullmatch(r"\d{8}", text) and date(int(text[:4]), int(text[4:6]), int(text[6:])) else ""
    except ValueError:
        return ""


def _time(one: Instance) -> tuple[str, str]:
    for name in TIMES:
        if day := _day(text_of(one.header, f"{name}Date")):
            time = text_of(one.header, f"{name}Time")
            return day, time if re.fullmatch(CHECKED["StudyTime"], time) else NO_TIME
    return NO_DATE, NO_TIME


# ---------------------------------------------------------------- our own texts


def expressible(text: str, character_set: str) -> str:
    """Return `text` as a character set can hold it: whole where it can, else in the letters of ASCII.

    With several sets, which are changed by escape sequences, ASCII is the one that is always there.
    """
    for mark, other in FORBIDDEN.items():
        text = text.replace(mark, other)
    encoding = python_encoding.get(character_set) if character_set and "\\" not in character_set else None
    if isinstance(encoding, str) and character_set != "ISO_IR 13":
        try:
            text.encode(encoding)
            return text
        except UnicodeEncodeError:
            pass
    for mark, other in MARKS.items():
        text = text.replace(mark, other)
    plain = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(plain).encode("ascii", "replace").decode()
