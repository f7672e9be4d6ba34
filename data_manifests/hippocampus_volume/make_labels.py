"""Make a label for the hippocampus volumes of the Medical Segmentation Decathlon: a measured size, not a disease.

    python make_labels.py IMAGES MASKS OUTPUT.csv

IMAGES holds `hippocampus_<number>.nii.gz`; MASKS holds the reference mask of each under the same name, with 1 for the
anterior and 2 for the posterior part. A hippocampus's volume is the number of voxels of both parts times the size of
a voxel. A person is "large" when the mean volume over their files is at or above the median of all persons.

The files name no person, but their numbers seem to: 2k - 1 and 2k are taken to be of one person. Of the 260 files with
a mask, 90 such pairs are complete and their volumes correlate by 0.91; those of the 91 pairs 2k and 2k + 1 correlate by
0.06. Both correlations are printed, so that another copy of the data can be checked.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd


def main() -> None:
    """Read the arguments, write the table, print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("masks", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    # Some copies of the archive hold hidden files of the same names with another system's attributes.
    names = sorted(path.name for path in arguments.images.glob("hippocampus_*.nii.gz"))
    volumes = pd.Series({_number(name): _volume_mm3(arguments.masks / name) for name in names})
    table = label(volumes)
    table.insert(0, "path", names)
    table.to_csv(arguments.output, index=False, lineterminator="\n")
    persons = table.drop_duplicates("patient_id")
    large = table.loc[table["label"] == "large", "patient_id"].nunique()
    print(f"{len(table)} volumes of {len(persons)} persons, {large} of them large")
    print(f"median of the persons' mean volumes: {_person_means(volumes).median():.1f} mm3")
    for words, remainder in (("2k - 1 and 2k", 1), ("2k and 2k + 1", 0)):
        pairs, correlation = neighbours(volumes, remainder)
        print(f"numbers {words}: {pairs} pairs, correlation of volumes {correlation:.2f}")


def label(volumes: pd.Series) -> pd.DataFrame:
    """Return patient_id, volume_mm3 and label of each file, from volumes in mm3 by the number of the file."""
    means = _person_means(volumes)
    large = means >= means.median()
    persons = _persons(volumes)
    return pd.DataFrame(
        {
            "patient_id": [f"person_{person:03d}" for person in persons],
            "volume_mm3": volumes.round(1).to_numpy(),
            "label": ["large" if large[person] else "small" for person in persons],
        }
    )


def neighbours(volumes: pd.Series, remainder: int) -> tuple[int, float]:
    """Return how many n with n % 2 == `remainder` have a neighbour n + 1, and the correlation of the two volumes."""
    first = [n for n in volumes.index if n % 2 == remainder and n + 1 in volumes.index]
    second = [n + 1 for n in first]
    return len(first), float(np.corrcoef(volumes[first], volumes[second])[0, 1])


def _person_means(volumes: pd.Series) -> pd.Series:
    return volumes.groupby(_persons(volumes)).mean()


def _persons(volumes: pd.Series) -> list[int]:
    return [(number + 1) // 2 for number in volumes.index]


def _number(name: str) -> int:
    match = re.fullmatch(r"hippocampus_(\d+)\.nii\.gz", name)
    if match is None:
        raise SystemExit(f"{name}: expected hippocampus_<number>.nii.gz")
    return int(match[1])


def _volume_mm3(mask: Path) -> float:
    image = nib.load(mask)
    voxel_mm3 = abs(np.linalg.det(image.affine[:3, :3]))
    return float(np.isin(np.asarray(image.dataobj), (1, 2)).sum() * voxel_mm3)


if __name__ == "__main__":
    main()
