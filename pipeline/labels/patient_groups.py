"""Patients who must stay together, since they share pictures, and what that does to the sizes of splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import binom

# A split may miss its share by a third, and by what chance does with so many patients in 997 of 1,000 cases.
SHARE_MISSED = 1 / 3
LEAST_CHANCE = 0.003


def units(images: pd.DataFrame, near: pd.DataFrame) -> pd.Series:
    """Return, per image, the smallest pseudonym among the patients linked to its patient by shared pictures."""
    patient, names = pd.factorize(images["patient_id"], sort=True)
    pixels, contents = pd.factorize(images["pixel_hash"])
    of_image = pd.Series(patient, index=images["image_id"])
    nodes = len(names) + len(contents)
    ends = np.concatenate([patient, of_image[near["image_id"]].to_numpy()])
    others = np.concatenate([len(names) + pixels, of_image[near["other_image_id"]].to_numpy()])
    links = coo_array((np.ones(len(ends)), (ends, others)), shape=(nodes, nodes))
    _, component = connected_components(links, directed=False)
    # Patients are sorted, so the first of a component is its smallest.
    first = pd.Series(np.asarray(names)).groupby(component[: len(names)]).first()
    return pd.Series(component[patient], index=images.index).map(first)


def linked(images: pd.DataFrame) -> int:
    """Return the number of patients that share a picture with another one, exactly or nearly."""
    sizes = images.groupby("unit")["patient_id"].nunique()
    return int(sizes[sizes > 1].sum())


def missed_shares(labelled: pd.DataFrame, shares: Mapping[str, Mapping[str, float]]) -> str:
    """Return which splits are far from their shares because patients are linked; nothing when none is.

    `labelled` has patient_id, unit, split and given; `shares` are those of the splits by value of `given`, adding up
    to 1. What a split would have if every patient were divided alone is known, but for chance: the binomial
    distribution, which is the wider where shares of patients differ, says how far that goes.
    """
    patients = labelled.drop_duplicates("patient_id")
    largest = int(patients["unit"].value_counts().max())
    if largest == 1:
        return ""
    chances = pd.DataFrame([shares[given] for given in patients["given"]]).fillna(0.0)
    counts = patients["split"].value_counts().reindex(chances.columns, fill_value=0)
    expected = chances.sum()
    share = np.minimum(expected / len(patients), 1.0)  # sums of fractions can be a little more
    fewer, more = binom.cdf(counts, len(patients), share), binom.sf(counts - 1, len(patients), share)
    by_chance = 2 * np.minimum(fewer, more)
    off = (counts - expected).abs()
    missed = chances.columns[(off > SHARE_MISSED * expected) & (by_chance < LEAST_CHANCE)]
    if not len(missed):
        return ""
    total = len(patients)
    said = [
        f"{name} has {counts[name]} of {total} labelled patients instead of about {expected[name]:.0f}"
        for name in missed
    ]
    return (
        f"{'; '.join(said)}: {linked(labelled)} labelled patients are linked by pictures that they share, exactly or "
        f"nearly, and {largest} of them are one group, which is not divided"
    )


def shares_of(allowed: Sequence[str], fractions: Mapping[str, float]) -> dict[str, float]:
    """Return the shares of the splits that patients may go to, adding up to 1."""
    chosen = {name: fractions.get(name, 1.0) for name in allowed}
    return {name: share / sum(chosen.values()) for name, share in chosen.items()}
