"""Images that came in more than once, and images that different patients share, exactly or nearly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.imaging.copies.fingerprints import BITS, SMALL_SIDE, SmallCopies, links
from pipeline.store.tables.io import iterate

HASH_BYTES, SMALL_BYTES = BITS // 8, SMALL_SIDE**2
Hashes = tuple[np.ndarray, np.ndarray, np.ndarray]
ACROSS_PATIENTS = "duplicate_across_patients"
NEARLY_ACROSS_PATIENTS = "near_duplicate_across_patients"


@dataclass(frozen=True)
class Deduplicated:
    """The rows kept, with `shared` where another patient has the picture too, the refused ones, and counts."""

    kept: pd.DataFrame
    refused: pd.DataFrame
    counts: dict[str, int]


def resolve_duplicates(images: pd.DataFrame) -> Deduplicated:
    """Keep one of each image per patient: the first by `first_source`, which no order of reading changes.

    `images` has image_id, patient_id, pixel_hash and first_source; the refused rows have reason and detail besides.

    Different pixels or patients under one image_id (one UID) are all refused, as nobody can tell which is right.
    Equal pixels of different patients are kept and flagged: they may be an error of either patient.
    """
    images = images.sort_values("first_source", kind="stable")
    by_uid = images.groupby("image_id")
    conflict = (by_uid["pixel_hash"].transform("nunique") > 1) | (by_uid["patient_id"].transform("nunique") > 1)
    same_uid = ~conflict & images.duplicated("image_id")
    left = images[~conflict & ~same_uid]
    same_pixels = left.duplicated(["patient_id", "pixel_hash"]).reindex(images.index, fill_value=False)
    refused = pd.concat(
        [
            images[conflict].assign(reason="uid_conflict", detail=""),
            images[same_uid].assign(reason="duplicate", detail="same UID or same bytes"),
            images[same_pixels].assign(reason="duplicate", detail="same pixels"),
        ]
    )
    kept = images[~conflict & ~same_uid & ~same_pixels].copy()
    shared = kept.groupby("pixel_hash")["patient_id"].transform("nunique") > 1
    counts = {
        "same_image": int(same_uid.sum()),
        "same_pixels": int(same_pixels.sum()),
        "uid_conflicts": int(conflict.sum()),
        "images_shared_between_patients": int(shared.sum()),
        "patients_sharing_images": int(kept.loc[shared, "patient_id"].nunique()),
    }
    return Deduplicated(kept.assign(shared=shared), refused, counts)


def met_before(known: pd.DataFrame, images: pd.DataFrame) -> pd.Series:
    """Return, by image_id, why images of another dataset are not new: `same image` or `same patient`.

    The frames have image_id, patient_id and pixel_hash, pseudonyms under the same key.
    """
    same = images["pixel_hash"].isin(known["pixel_hash"]) | images["image_id"].isin(known["image_id"])
    patient = images["patient_id"].isin(known["patient_id"])
    why = pd.Series(np.select([same, patient], ["same image", "same patient"], ""), index=images["image_id"])
    return why[why != ""]


def read_fingerprints(files: Sequence[Path], image_ids: pd.Series, scratch: Path) -> tuple[Hashes, SmallCopies]:
    """Return the perceptual, mirrored and gradient hashes (N, 32) of N images, and a reader of their small copies.

    `files` are tables of what was examined and assembled; `scratch` is where the small copies lie on disk.
    """
    places = pd.Index(image_ids)
    perceptual, mirrored, gradient = (np.zeros((len(places), HASH_BYTES), np.uint8) for _ in range(3))
    columns = ("perceptual", "mirrored", "gradient")
    with scratch.open("wb") as stream:
        stream.truncate(len(places) * SMALL_BYTES)
        for file in files:
            for piece in iterate(file, ["image_id", *columns, "small"], where="reason"):
                piece = piece.filter(piece["small"].is_valid())
                rows = places.get_indexer(piece["image_id"].to_pandas()) if piece.num_rows else np.empty(0, int)
                for column, into in zip(columns, (perceptual, mirrored, gradient), strict=True):
                    for row, value in zip(rows, piece[column].to_pylist(), strict=True):
                        if row >= 0:
                            into[row] = np.frombuffer(value, np.uint8)
                for row, value in zip(rows, piece["small"].to_pylist(), strict=True):
                    if row >= 0:
                        stream.seek(int(row) * SMALL_BYTES)
                        stream.write(value)

    def small(start: int, stop: int) -> np.ndarray:
        count = (min(stop, len(places)) - start) * SMALL_BYTES
        return np.fromfile(scratch, np.uint8, count, offset=start * SMALL_BYTES).reshape(-1, SMALL_BYTES)

    return (perceptual, mirrored, gradient), small


def near_copies(known: tuple[Hashes, SmallCopies], new: tuple[Hashes, SmallCopies]) -> np.ndarray:
    """Return which of the M new images show nearly the same as one of the N known ones, boolean (M,).

    Both are as `read_fingerprints` returns them.
    """
    (hashes, known_small), (others, new_small) = known, new
    count = len(hashes[0])

    def small(start: int, stop: int) -> np.ndarray:
        parts = [known_small(start, min(stop, count))] if start < count else []
        parts += [new_small(max(start - count, 0), stop - count)] if stop > count else []
        return np.concatenate(parts)

    perceptual, mirrored, gradient = (np.concatenate(pair) for pair in zip(hashes, others, strict=True))
    found = np.zeros(len(others[0]), bool)
    found[[link.second - count for link in links(perceptual, mirrored, gradient, small, known=count)]] = True
    return found


def find_near_duplicates(images: pd.DataFrame, hashes: Hashes, small: SmallCopies) -> pd.DataFrame:
    """Return the columns of tables.NEAR_DUPLICATES for pairs of different pictures that show nearly the same.

    `hashes` are the perceptual, mirrored and gradient hashes (N, 32) of the N rows of `images`, all zero when blank;
    `small` reads their small copies.
    """
    names, patients, pixels = (images[name].to_numpy() for name in ("image_id", "patient_id", "pixel_hash"))
    rows = []
    for link in links(*hashes, small):
        first, second = sorted((link.first, link.second), key=lambda row: names[row])
        if pixels[first] != pixels[second]:
            across = patients[first] != patients[second]
            rows.append((names[first], names[second], link.how, link.distance, link.correlation, across))
    columns = ["image_id", "other_image_id", "how", "distance", "correlation", "across_patients"]
    return pd.DataFrame(rows, columns=columns)


def with_flag(images: pd.DataFrame, chosen: pd.Series | np.ndarray, flag: str) -> pd.DataFrame:
    """Return `images` with a quality flag added to the chosen rows."""
    flags = images["quality_flags"].copy()
    flags[chosen] = [",".join(sorted({*filter(None, old.split(",")), flag})) for old in flags[chosen]]
    return images.assign(quality_flags=flags)
