"""Make a label for the fundus photographs of CHASE_DB1: how much of a picture is vessel, a measurement, not a disease.

    python make_labels.py FOLDER OUTPUT.csv

FOLDER holds `images/Image_<number><L or R>.jpg` and, under the same name as .png, `masks`, those of the first observer.
The share of vessel is that of a mask's pixels that are not 0. A child is "dense" when the mean over both eyes is at or
above the median of all children.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image


def main() -> None:
    """Read the arguments, write the table, print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    rows = []
    for image in sorted((arguments.folder / "images").glob("Image_*.jpg")):
        match = re.fullmatch(r"Image_(\d+)[LR]", image.stem)
        if match is None:
            raise SystemExit(f"{image.name}: expected Image_<number><L or R>.jpg")
        mask = f"masks/{image.stem}.png"
        share = float((np.asarray(Image.open(arguments.folder / mask).convert("L")) > 0).mean())
        rows.append((f"images/{image.name}", f"C{match[1]}", mask, round(share, 4)))
    table = pd.DataFrame(rows, columns=["path", "patient_id", "mask", "vessel_share"])
    means = table.groupby("patient_id")["vessel_share"].mean()
    dense = table["patient_id"].map(means >= means.median())
    table["label"] = dense.map({True: "dense", False: "sparse"})
    table.to_csv(arguments.output, index=False, lineterminator="\n")
    print(f"{len(table)} photographs of {len(means)} children, {int((means >= means.median()).sum())} of them dense")
    print(f"median of the children's mean shares: {means.median():.4f}")


if __name__ == "__main__":
    main()
