"""The images with most quality flags on one sheet, for a person to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image as pillow
from PIL import ImageDraw, ImageFont

from pipeline.imaging.archive.loading import load
from pipeline.imaging.archive.sources import Source
from pipeline.imaging.image import Policy
from pipeline.imaging.volumes.orthogonal_planes import three_planes
from pipeline.store.files import atomic

# What is no fault of the picture.
HARMLESS = {
    *("spacing_unknown", "units_assumed", "rotated", "spacing_assumed", "spacing_at_detector"),
    *("colour_reduced", "grey_repeated", "profile_converted", "channels_resampled"),
}
SHOWN, PER_ROW = 24, 6
PICTURE, MARGIN, LINE = 200, 12, 15
LINES = 4
PERCENTILES = (0.5, 99.5)


def worst(images: pd.DataFrame) -> pd.DataFrame:
    """Return up to SHOWN images that have flags worth a look, those with most first."""
    flags = images["quality_flags"].str.split(",").map(lambda names: len({*names} - HARMLESS - {""}))
    chosen = images.assign(worth=flags)[flags > 0].sort_values(["worth", "image_id"], ascending=[False, True])
    return chosen.head(SHOWN)


def contact_sheet(path: Path, images: pd.DataFrame, pictures: Mapping[str, np.ndarray]) -> None:
    """Write a PNG with the thumbnail of each image above its pseudonym and flags; a grey square where there is none."""
    rows = max(1, -(-len(images) // PER_ROW))
    width, height = PICTURE + MARGIN, PICTURE + LINE * (LINES + 1) + MARGIN
    mode = "RGB" if any(picture.ndim == 3 for picture in pictures.values()) else "L"
    sheet = pillow.new(mode, (PER_ROW * width + MARGIN, rows * height + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(LINE - 3)
    if images.empty:
        draw.text((MARGIN, MARGIN), "no image has a quality flag worth a look", fill=0, font=font)
    for number, image in enumerate(images.to_dict("records")):
        left, top = MARGIN + number % PER_ROW * width, MARGIN + number // PER_ROW * height
        name = image["image_id"]
        square = pillow.new(mode, (PICTURE, PICTURE), "#808080")
        if name in pictures:
            picture = pillow.fromarray(pictures[name])
            square.paste(picture, ((PICTURE - picture.width) // 2, (PICTURE - picture.height) // 2))
        sheet.paste(square, (left, top))
        words = [name[:8], *sorted({*image["quality_flags"].split(",")} - HARMLESS)]
        for line, word in enumerate(words[: LINES + 1]):
            draw.text((left, top + PICTURE + line * LINE), word.replace("_", " ")[:34], fill=0, font=font)
    with atomic(path) as temporary:
        sheet.save(temporary, "PNG")


def thumbnail(sources: Sequence[Source], axes: int, pixel_hash: str, policy: Policy) -> np.ndarray:
    """Return uint8 of at most PICTURE x PICTURE, (h, w) or in colour (h, w, 3), between two percentiles.

    Of a volume, three planes are shown; of several channels, those of the first.

    Raises Refused when the files no longer hold that image.
    """
    image = load(sources, axes, pixel_hash, policy)
    plane = image.pixels if image.pixels.ndim == 2 else three_planes(image.pixels)
    if image.colour is not None:
        plane = np.moveaxis(image.colour, 0, -1)
    low, high = np.percentile(plane, PERCENTILES)
    scaled = (plane - low) * (255 / (high - low)) if high > low else np.zeros_like(plane)
    picture = pillow.fromarray(scaled.clip(0, 255).astype(np.uint8))
    picture.thumbnail((PICTURE, PICTURE))
    return np.asarray(picture)
