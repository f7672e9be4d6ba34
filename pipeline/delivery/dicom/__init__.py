"""Results as DICOM objects beside the images that they are about: structured report, page as PDF, picture."""

KINDS = {
    "sr": "structured report",
    "pdf": "page of the study as an encapsulated PDF",
    "sc": "the image that made the score, with the outline, as a secondary capture",
}


class KindsError(ValueError):
    """A kind of object was asked for that there is not."""


def kinds(asked: str) -> tuple[str, ...]:
    """Return kinds of DICOM objects from a list with commas, in the order of KINDS. Raises KindsError."""
    named = {one.strip() for one in asked.split(",") if one.strip()}
    if unknown := named - KINDS.keys():
        raise KindsError(f"--dicom takes {', '.join(KINDS)}, with commas between, not {', '.join(sorted(unknown))}")
    return tuple(kind for kind in KINDS if kind in named)
