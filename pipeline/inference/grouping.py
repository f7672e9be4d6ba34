"""Which files make one study: by patient and Study Instance UID where a header has them, else by name or a table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from pipeline.imaging.archive.sources import Source, read_bytes
from pipeline.imaging.channels import of_path
from pipeline.imaging.formats.dicom import is_dicom, study_of
from pipeline.imaging.image import Policy
from pipeline.imaging.pseudonyms import normal_path
from pipeline.imaging.quarantine import Refusal, Refused
from pipeline.imaging.read import FORMATS
from pipeline.store.files import sha256_bytes

# A file that no reader knows is one of a study's when its name says that it was meant to be an image.
IMAGE_NAME = re.compile(
    r"\.(dcm|dicom|ima|nii|nii\.gz|img|img\.gz|hdr|hdr\.gz|png|jpe?g|tiff?|pgm|ppm|pnm|npy)$", re.IGNORECASE
)


@dataclass(frozen=True)
class Glance:
    """What a look at one file tells: its content's hash, and the study it is of.

    `key` groups the files of one study, empty when the file is none's; `study_uid` and `patient` are what a DICOM
    header says.
    """

    sha256: str
    key: str
    study_uid: str = ""
    patient: str = field(default="", repr=False)
    refusal: Refusal | None = None


def glance(source: Source, policy: Policy, named: Mapping[str, str]) -> Glance:
    """Look at a file: whose study is it? `named` are the studies that a table gives to paths.

    A file that cannot be read, and was named or looks like an image by its name, is a study of its own: somebody's.
    """
    path = normal_path(source.path)
    given = named.get(path, "")
    own = own_key(source, named, policy)
    try:
        data = read_bytes(source, policy.max_file_bytes)
    except Refused as refused:
        meant = given or (IMAGE_NAME.search(path) and refused.refusal.reason not in ("left_out", "unsafe_member"))
        return Glance("", own if meant else "", refusal=refused.refusal)
    sha256 = sha256_bytes(data)
    if not given and is_dicom(data):
        patient, uid = study_of(data)
        return Glance(sha256, f"dicom\0{patient}\0{uid}" if uid else own, uid, patient)
    if given or any(one.sniff(data) for one in FORMATS) or IMAGE_NAME.search(path) or data[:2] == b"\x1f\x8b":
        return Glance(sha256, own)
    return Glance(sha256, "", refusal=Refusal("unknown_format"))


def own_key(source: Source, named: Mapping[str, str], policy: Policy) -> str:
    """Return the key of the study that a file is of whatever its content: by the table, else by its name."""
    path = normal_path(source.path)
    return f"table\0{named[path]}" if named.get(path) else f"path\0{source.root}\0{study_name(path, policy)}"


def study_name(path: str, policy: Policy) -> str:
    """Return what the files of one study have in common of their paths: of several channels, what no suffix is."""
    channel, rest = of_path(path, policy.channels)
    return rest if channel and PurePosixPath(rest).name else stem(path)


def stem(path: str) -> str:
    """Return a path without the suffix of an image, compressed or not: `a/b.nii.gz` gives `a/b`."""
    shorter = IMAGE_NAME.sub("", path)
    return shorter if shorter != path and PurePosixPath(shorter).name else path
