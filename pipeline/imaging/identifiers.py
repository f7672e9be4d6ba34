"""What names an image or a patient: UIDs by their kind, what stands for no identifier, names made from content."""

from __future__ import annotations

import re

from pipeline.imaging.pseudonyms import patient_pseudonym, visible

KINDS = {"sop_instance_uid": "image", "series_instance_uid": "series", "study_instance_uid": "study"}
# Written where somebody removed an identifier or never had one; letters alone are compared.
PLACEHOLDERS = frozenset(
    "ANON ANONYM ANONYMOUS ANONYMIZED ANONYMISED ANONYMOUSPATIENT ANONYMIZEDPATIENT ANONPATIENT DEIDENTIFIED DEID "
    "UNKNOWN UNKNOWNPATIENT NONE NULL NIL NA NAN NOID NONAME NOTAVAILABLE NOTAPPLICABLE UNDEFINED UNSPECIFIED MISSING "
    "EMPTY BLANK DUMMY TEST TESTPATIENT PATIENT PATIENTID PATIENTNAME ID REMOVED REDACTED HIDDEN DEFAULT".split()
)
WORD = "word"


def placeholder(patient: str, secret: bytes) -> str:
    """Return `word` for what stands for no identifier at all, such as ANONYMOUS, and nothing for an identifier.

    Zeros may be the first of many numbers: for these, the pseudonym of the number that follows them.
    """
    text = visible(patient).strip()
    if text and not text.strip("0"):
        return patient_pseudonym(secret, f"{text[:-1]}1")
    letters = re.sub(r"[\W_]+", "", text).upper()
    return WORD if letters in PLACEHOLDERS or not letters.strip("X") else ""


def own_name(patient: str, sha256: str) -> str:
    """Return what names an image without a UID: its content, with the patient, since two can share a picture."""
    return f"{patient}\0{sha256}"
