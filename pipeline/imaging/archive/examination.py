"""What is kept of a file: a verdict, and the row that stands for its image, with keyed hashes for what identifies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.imaging.archive.channel_groups import channel_file, read_channels
from pipeline.imaging.archive.members import Member, contents
from pipeline.imaging.archive.quality import Limits, Quality, assess
from pipeline.imaging.archive.sources import Source, read_bytes
from pipeline.imaging.copies.fingerprints import fingerprint
from pipeline.imaging.formats.nifti import read_nifti
from pipeline.imaging.identifiers import KINDS, own_name, placeholder
from pipeline.imaging.image import About, Identity, Image, Part, Policy
from pipeline.imaging.pseudonyms import day_shift, path_pseudonym, patient_pseudonym, pseudonym
from pipeline.imaging.quarantine import Refusal, Refused
from pipeline.imaging.read import read_image
from pipeline.imaging.volumes.assemble import Volume, read_series
from pipeline.store.files import sha256_bytes

UID = re.compile(r"[0-9.]{1,64}")
VOXELS_SUFFIXES = (".img", ".img.gz")
HEADER_SUFFIXES = (".hdr", ".hdr.gz")
KINDS_BY_AXES = {2: "a picture", 3: "a volume"}
SUFFIX = re.compile(r"\.(img|hdr)(\.gz)?$", re.IGNORECASE)


@dataclass(frozen=True)
class Rules:
    """What is accepted, where an image counts as odd, the key of the pseudonyms, and what joins labels to files."""

    policy: Policy
    limits: Limits
    secret: bytes
    join: str = "path"


@dataclass(frozen=True)
class Examined:
    """What became of one file: the row of an image, a part of a volume, or a refusal.

    `part_of` is a pseudonym of what the parts of one volume have in common; of parts, `row` has what is known before
    they are assembled. `patient_id` is what the header says, nothing where it says nothing, and `placeholder` whether
    that may be nobody; `row_id` is what a label table joins by, if it is a UID. `lookup` is for the private table only.
    """

    source_id: str
    sha256: str
    row: dict[str, Any] | None = None
    refusal: Refusal | None = None
    part_of: str = ""
    patient_id: str = ""
    placeholder: str = ""
    row_id: str = ""
    lookup: tuple[tuple[str, str, str], ...] = ()


def examine(source: Source, rules: Rules) -> Examined:
    """Read a file once and return its verdict. Whose it is, the label table may say otherwise: see `identity`."""
    source_id = path_pseudonym(rules.secret, source.place)
    lookup = [("path", source_id, source.place.replace("\0", "/"))]
    sha256 = ""
    try:
        data = read_bytes(source, rules.policy.max_file_bytes)
        sha256 = sha256_bytes(data)
        found = read_file(source, data, rules.policy)
        if isinstance(found, Part) and rules.policy.axes == 2:
            raise Refused("axes", "a part of a volume")
        identity = found.about.identity
        patient_id = patient_pseudonym(rules.secret, identity.patient) if identity.patient else ""
        if patient_id:
            lookup.append(("patient", patient_id, identity.patient))
        if isinstance(found, Part):
            part_of, row = pseudonym(rules.secret, "part", found.series), part_row(found.about, patient_id, rules)
        else:
            uid = identity.sop_instance_uid
            name = uid if UID.fullmatch(uid) else own_name(patient_id, sha256)
            part_of, row = "", image_row(found, patient_id, name, rules)
    except Refused as refused:
        return Examined(source_id, sha256, refusal=refused.refusal, lookup=tuple(lookup))
    return Examined(
        source_id,
        sha256,
        row,
        part_of=part_of,
        patient_id=patient_id,
        placeholder=placeholder(identity.patient, rules.secret) if patient_id else "",
        row_id=_row_id(identity, rules),
        lookup=tuple(lookup),
    )


def _row_id(identity: Identity, rules: Rules) -> str:
    """Return the pseudonym of the UID that the label table joins by; nothing where there is none."""
    uids = {
        "sop_instance_uid": identity.sop_instance_uid,
        "series_instance_uid": identity.series_uid,
        "study_instance_uid": identity.study_uid,
    }
    uid = uids.get(rules.join, "")
    return pseudonym(rules.secret, KINDS[rules.join], uid) if uid else ""


def read_file(source: Source, data: bytes, policy: Policy) -> Image | Part:
    """Read an image, or note that the file is one of a pair: a NIfTI header (.hdr) or its voxels (.img).

    Raises Refused.
    """
    if policy.joins and policy.joins_files:
        return channel_file(source, data, policy)
    stem = f"pair\0{SUFFIX.sub('', source.place)}"
    try:
        found = read_image(data, policy)
    except Refused as refused:
        if refused.refusal.reason == "unknown_format" and source.path.lower().endswith(VOXELS_SUFFIXES):
            return Part(About("nifti", bits_stored=0), stem)
        raise
    if isinstance(found, Part) and found.about.format == "nifti":
        if not source.path.lower().endswith(HEADER_SUFFIXES):
            raise Refused("damaged_pixels", "the header of a pair in a file that is not called .hdr")
        return Part(found.about, stem)
    return found


@dataclass(frozen=True)
class Assembled:
    """The files of one volume, in order, with its row; or one file, refused."""

    source_ids: tuple[str, ...]
    row: dict[str, Any] | None = None
    refusal: Refusal | None = None


def examine_series(members: Sequence[Member], patient_id: str, rules: Rules) -> list[Assembled]:
    """Read the files of one series and return the volumes in it, and a refusal for each file that is in none.

    Raises Refused when the series as a whole cannot be used.
    """
    if not patient_id:
        raise Refused("no_patient")
    volumes, refused = read_group(members, rules.policy)
    found = [_assembled(volume, patient_id, rules) for volume in volumes]
    return found + [Assembled((source_id,), refusal=refusal) for source_id, refusal in refused]


def read_group(members: Sequence[Member], policy: Policy) -> tuple[list[Volume], list[tuple[str, Refusal]]]:
    """Return the volumes in the parts of one series, of one pair of NIfTI files, or of one study with several channels,
    and every file that is in none.

    Raises Refused when they cannot be used as a whole.
    """
    if policy.joins:
        return read_channels(members, policy)
    if SUFFIX.search(members[0].source.path) and any(_is_pair_part(member) for member in members):
        return [_pair(members, policy)], []
    return read_series(contents(members, policy), policy)


def _assembled(volume: Volume, patient_id: str, rules: Rules) -> Assembled:
    # The content of a pair names it for one patient alone, since two can share a picture.
    name = f"{patient_id}\0{volume.name}" if volume.image.about.format == "nifti" else volume.name
    try:
        return Assembled(volume.source_ids, image_row(volume.image, patient_id, name, rules))
    except Refused as refused:
        return Assembled(volume.source_ids, refusal=refused.refusal)


def _is_pair_part(member: Member) -> bool:
    return member.source.path.lower().endswith((*VOXELS_SUFFIXES, *HEADER_SUFFIXES))


def _pair(members: Sequence[Member], policy: Policy) -> Volume:
    """Read a NIfTI whose header and voxels are two files."""
    headers = [m for m in members if m.source.path.lower().endswith(HEADER_SUFFIXES)]
    voxels = [m for m in members if m.source.path.lower().endswith(VOXELS_SUFFIXES)]
    if len(headers) != 1 or len(voxels) != 1:
        raise Refused("damaged_pixels" if headers else "unknown_format", "one .hdr and one .img file make an image")
    both = (headers[0], voxels[0])
    header, content = (data for _, data in contents(both, policy))
    image = read_nifti(header, policy, content)
    return Volume(image, tuple(member.source_id for member in both), f"{both[0].sha256}\0{both[1].sha256}")


def part_row(about: About, patient_id: str, rules: Rules) -> dict[str, Any]:
    """Return what tells of a part whose it may be."""
    identity = about.identity
    shifted = identity.study_date and identity.study_date.toordinal() - day_shift(rules.secret, patient_id)
    study = pseudonym(rules.secret, "study", identity.study_uid) if UID.fullmatch(identity.study_uid) else ""
    named = {"format": about.format, "sex": about.sex, "age_years": about.age_years}
    return {**named, "patient_id": patient_id, "study_id": study, "shifted_day": shifted}


def image_row(image: Image, patient_id: str, name: str, rules: Rules) -> dict[str, Any]:
    """Return the columns of tables.IMAGE_COLUMNS and MEASURED_COLUMNS; `name` is what makes the image this one.

    The day of the study is shifted by a secret number, the same for all studies of a patient, so that no date waits
    on disk. Raises Refused when the policy excludes an image with such axes or flags.
    """
    about, secret = image.about, rules.secret
    identity = about.identity
    quality = assess(image, rules.limits)
    check_accepted(image, quality, rules.policy)
    marks = fingerprint(image.pixels)
    image_id = pseudonym(secret, "image", name)
    study = identity.study_uid if UID.fullmatch(identity.study_uid) else image_id
    shifted = identity.study_date and identity.study_date.toordinal() - day_shift(secret, patient_id)
    planes = image.pixels.shape[-2:]
    return {
        "image_id": image_id,
        "patient_id": patient_id,
        "study_id": pseudonym(secret, "study", study),
        "series_id": pseudonym(secret, "series", identity.series_uid) if UID.fullmatch(identity.series_uid) else "",
        "pixel_hash": image.pixel_hash(),
        "format": about.format,
        "axes": image.pixels.ndim,
        "modality": about.modality,
        "site": pseudonym(secret, "site", identity.institution) if identity.institution else "",
        "view": about.view,
        "laterality": about.laterality,
        "body_part": about.body_part,
        "rows": planes[0],
        "columns": planes[1],
        "slices": image.pixels.shape[0] if image.pixels.ndim == 3 else 1,
        "spacing_mm": list(image.spacing_mm) if image.spacing_mm else None,
        "photometric": about.photometric,
        "polarity_fixed": image.polarity_fixed,
        "bits_stored": about.bits_stored,
        "manufacturer": about.manufacturer,
        "sex": about.sex,
        "age_years": about.age_years,
        "quality_flags": ",".join(quality.flags),
        "shifted_day": shifted,
        "lowest": quality.lowest,
        "highest": quality.highest,
        "clipped_share": quality.clipped_share,
        "perceptual": marks and marks.perceptual,
        "mirrored": marks and marks.mirrored,
        "gradient": marks and marks.gradient,
        "small": marks and marks.small,
    }


def check_accepted(image: Image, quality: Quality, policy: Policy) -> None:
    """Raise Refused when the policy excludes an image with such axes or flags."""
    if policy.axes not in (None, image.pixels.ndim):
        raise Refused("axes", KINDS_BY_AXES[image.pixels.ndim])
    for flag in quality.flags:
        if flag in policy.refused_flags:
            raise Refused(flag)
