"""Results as DICOM objects beside the images that they are about: structured report, page as PDF, picture."""

KINDS = {
    "sr": "structured report",
    "pdf": "page of the study as an encapsulated PDF",
    "sc": "the image that made the score, with the outline, as a secondary capture",
}
