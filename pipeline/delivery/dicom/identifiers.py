"""UIDs that follow from what an object is: the same object gets the same UID wherever and whenever it is made."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from pydicom.uid import UID

from pipeline.store.files import sha256_json


def derived_uid(*parts: object) -> str:
    """Return a UID of the root 2.25 (PS3.5 B.2) from the hash of `parts`, which are plain values."""
    digest = bytes.fromhex(sha256_json(["maescreen", *parts]))
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


def series_uid(study_uid: str, patient: str, model_sha256: str, kind: str) -> str:
    """Return the UID of the series that holds the objects of one kind by one model in a patient's study."""
    return derived_uid("series", study_uid, patient, model_sha256, kind)


def instance_uid(sources: Sequence[str], model_sha256: str, settings_sha256: str, kind: str, content: str) -> str:
    """Return the SOP Instance UID of an object.

    `sources` are the SOP Instance UIDs of what it is about, in any order. `content` is the hash of all else in it: a
    file that arrives anew, under its old UID but whole this time, can change what is said.
    """
    return derived_uid("instance", sorted(sources), model_sha256, settings_sha256, kind, content)


IMPLEMENTATION = UID(derived_uid("implementation"))
