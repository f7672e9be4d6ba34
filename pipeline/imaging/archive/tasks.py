"""What worker processes do for an archive. One module: workers are kept for later calls with the same one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.imaging.archive.contact_sheet import thumbnail
from pipeline.imaging.archive.examination import Assembled, Examined, Rules, examine, examine_series
from pipeline.imaging.archive.members import Member
from pipeline.imaging.archive.sources import Source
from pipeline.imaging.image import Policy
from pipeline.imaging.masks.examination import Checked, Pair, check_pair
from pipeline.imaging.masks.structures import Structures
from pipeline.imaging.quarantine import Refusal


def examine_file(rules: Rules, item: tuple[Source, ...]) -> Examined:
    """Return the verdict on one file."""
    return examine(item[0], rules)


def examine_members(rules: Rules, item: tuple[tuple[Member, ...], tuple[str, ...]]) -> list[Assembled] | Refusal:
    """Return the verdicts on the files of one series; `item` has them and the patients that they name."""
    members, patients = item
    if len(patients) > 1:
        return Refusal("uid_conflict", "one series of several patients")
    return examine_series(members, patients[0] if patients else "", rules)


def check_mask(structures: Structures, policy: Policy, pair: Pair) -> Checked:
    """Return the verdict on a mask for an image."""
    return check_pair(structures, policy, pair)


def small_picture(policy: Policy, item: tuple[Sequence[Source], int, str]) -> np.ndarray:
    """Return the thumbnail of an image: its files, axes and pixel hash."""
    return thumbnail(*item, policy)
