"""The row of `images.parquet` that stands for an image, with keyed hashes in place of what identifies."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pipeline.imaging.image import Image, Policy
from pipeline.imaging.pseudonyms import day_shift, path_pseudonym, patient_pseudonym, pseudonym
from pipeline.imaging.quality import quality_flags
from pipeline.imaging.read import read_image
from pipeline.imaging.sources import Source, read_bytes
from pipeline.imaging.verdicts import Refusal, Refused
from pipeline.store.files import sha256_bytes

UID = re.compile(r"[0-9.]{1,64}")


@dataclass(frozen=True)
class Examined:
    """What became of one file: a row or a refusal. `lookup` is for the private table only."""

    source_id: str
    sha256: str
    row: dict[str, Any] | None
    refusal: Refusal | None
    lookup: tuple[tuple[str, str, str], ...] = ()


def examine(source: Source, patient: str | None, policy: Policy, secret: bytes) -> Examined:
    """Read a file once and return its verdict. `patient` comes from the label table, for files without a header."""
    source_id = path_pseudonym(secret, source.path)
    lookup = [("path", source_id, source.path)]
    sha256 = ""
    try:
        data = read_bytes(source, policy.max_file_bytes)
        sha256 = sha256_bytes(data)
        image = read_image(data, policy)
        identifier = image.identity.patient or patient
        if not identifier:
            raise Refused("no_patient")
        patient_id = patient_pseudonym(secret, identifier)
        lookup.append(("patient", patient_id, identifier))
        row = image_row(image, patient_id, source_id, sha256, quality_flags(image, policy), secret)
        return Examined(source_id, sha256, row, None, tuple(lookup))
    except Refused as refused:
        return Examined(source_id, sha256, None, refused.refusal, tuple(lookup))


def image_row(
    image: Image, patient_id: str, source_id: str, sha256: str, flags: list[str], secret: bytes
) -> dict[str, Any]:
    """Return the columns of tables.IMAGES, with `shifted_day` where `study_day` will be.

    The shift is secret and the same for all studies of a patient, so that no date waits on disk.
    """
    identity = image.identity
    # Without a UID the content names the image; with the patient, since two can share a picture.
    uid = identity.sop_instance_uid
    image_id = pseudonym(secret, "image", uid if UID.fullmatch(uid) else f"{patient_id}\0{sha256}")
    study = identity.study_uid if UID.fullmatch(identity.study_uid) else image_id
    shifted = identity.study_date and identity.study_date.toordinal() - day_shift(secret, patient_id)
    planes = image.pixels.shape[-2:]
    return {
        "image_id": image_id,
        "patient_id": patient_id,
        "study_id": pseudonym(secret, "study", study),
        "source_id": source_id,
        "sha256": sha256,
        "pixel_sha256": image.pixel_sha256(),
        "format": image.format,
        "modality": image.modality,
        "site": pseudonym(secret, "site", identity.institution) if identity.institution else "",
        "view": image.view,
        "laterality": image.laterality,
        "body_part": image.body_part,
        "rows": planes[0],
        "columns": planes[1],
        "slices": image.pixels.shape[0] if image.pixels.ndim == 3 else 1,
        "spacing_mm": list(image.spacing_mm) if image.spacing_mm else None,
        "photometric": image.photometric,
        "polarity_fixed": image.polarity_fixed,
        "bits_stored": image.bits_stored,
        "manufacturer": image.manufacturer,
        "sex": image.sex,
        "age_years": image.age_years,
        "shifted_day": shifted,
        "quality_flags": ",".join(flags),
    }
