"""The image that made the score, with the outline and what it may be used for, as a Secondary Capture (PS3.3 A.8.1)."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image as pillow
from PIL import ImageDraw, ImageFont
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import SecondaryCaptureImageStorage
from scipy.ndimage import binary_erosion

from pipeline.delivery.dicom.equipment import coded
from pipeline.delivery.dicom.source import SourceStudy, copy_lossy
from pipeline.inference.outline import pictured
from pipeline.inference.result import Picture
from pipeline.reporting.outlines import WORDS

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
RESEARCH_ONLY = "RESEARCH USE ONLY - no medical device"
NO_OUTLINE = "No outline is available."
SMALLEST_SIDE = 512  # pixels of the longer side, below which a picture is enlarged
LINE_SHARE, LARGEST_TEXT, MARGIN = 0.004, 0.035, 0.012  # of the longer side
ORANGE, WHITE, BLACK = (255, 165, 0), (255, 255, 255), (0, 0, 0)


def draw(picture: Picture, verdict: str) -> np.ndarray:
    """Return the picture (h, w, 3) uint8: above it what it may be used for, below the verdict and what is outlined.

    No word covers a pixel of the image, which is enlarged by a whole number, so that no value of it is invented.
    """
    image, outlined = pictured(picture)
    factor = max(1, math.ceil(SMALLEST_SIDE / max(image.shape[:2])))
    large = np.repeat(np.repeat(image, factor, 0), factor, 1)
    colour = large if large.ndim == 3 else np.repeat(large[..., None], 3, 2)
    side = max(large.shape[:2])
    if outlined is not None:
        inside = np.repeat(np.repeat(outlined, factor, 0), factor, 1)
        width = max(1, round(LINE_SHARE * side))
        colour[inside & ~binary_erosion(inside, iterations=width, border_value=0)] = ORANGE
    below = [verdict, _outlined(picture) if outlined is not None else NO_OUTLINE]
    top, bottom = (_band(lines, large.shape[1], side) for lines in ([RESEARCH_ONLY], below))
    return np.concatenate([top, colour, bottom])


def _outlined(picture: Picture) -> str:
    return f"Outline: {WORDS[picture.outline].half}. It is no finding."


def _band(lines: list[str], width: int, side: int) -> np.ndarray:
    """Return lines of text as a black strip of a width; the letters shrink until the longest line fits."""
    margin = max(2, round(MARGIN * side))
    size = max(6, round(LARGEST_TEXT * side))
    while size > 6 and max(_font(size).getlength(line) for line in lines) > width - 2 * margin:
        size -= 1
    step = round(1.4 * size)
    band = pillow.new("RGB", (width, step * len(lines) + 2 * margin), BLACK)
    for row, line in enumerate(lines):
        ImageDraw.Draw(band).text((margin, margin + row * step), line, fill=WHITE, font=_font(size))
    return np.asarray(band)


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONT, size)


def secondary_capture(pixels: np.ndarray, picture: Picture, source: SourceStudy) -> Dataset:
    """Return the object but for its UIDs, patient, study and times; `pixels` are (h, w, 3) uint8."""
    dataset = Dataset()
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.Modality = "OT"
    dataset.ConversionType = "WSD"
    dataset.InstanceNumber = 1
    dataset.PatientOrientation = dataset.Laterality = None
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.BurnedInAnnotation = "NO"
    dataset.DerivationDescription = "As the network saw it, enlarged; outline and caption burned in"
    used = [one for one in source.scored if one.path in picture.files] or list(source.scored)
    dataset.SourceImageSequence = []
    for one in used:
        item = one.reference()
        item.PurposeOfReferenceCodeSequence = [coded(codes.DCM.SourceImageForImageProcessingOperation)]
        dataset.SourceImageSequence.append(item)
    copy_lossy(source, dataset)
    dataset.SamplesPerPixel = 3
    dataset.PhotometricInterpretation = "RGB"
    dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0
    content = np.ascontiguousarray(pixels).tobytes()
    dataset.add_new("PixelData", "OB", content + b"\0" * (len(content) % 2))
    return dataset
