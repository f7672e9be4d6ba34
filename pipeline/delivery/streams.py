"""What a model in use is watched by: referrals, scores, typicality, quality and misses, week by week, with evidence."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.delivery.followup import Followup, Judged
from pipeline.inference.model_folder import TYPICALITY
from pipeline.inference.typicality import Reference
from pipeline.statistics.drift import (
    band_bets,
    first_look,
    likeliest_start,
    p_value_bins,
    p_value_gaps,
    rate_bets,
    restarting,
    urn_bets,
)
from pipeline.statistics.errors import NotEnoughData
from pipeline.statistics.verification import Verified, audits_needed, recall_in_use

NOT_ASSESSABLE = 0.05  # more of them than that is an alarm: they are all looked at, and the model spares nothing
MISSED = 0.005  # audits are counted for this bound of the missed among people not referred
UNUSUAL = 2  # bins of small p-values that are called unusual
RECALL = "recall"


class MonitorError(ValueError):
    """The model cannot be watched; the message says why."""


@dataclass(frozen=True)
class Watched:
    """What new studies are held against: the model's promise, and what is frozen in its folder of the calibration.

    `band` is the share of people referred that is expected at `prevalence`, rounded outwards to whole per cents; None
    when unknown. `edges` and `gaps` are bins of the scores of calibration patients without the condition, below the
    threshold; empty when there are too few. `patients` are those behind the p-values of typicality, None without.
    """

    title: str
    sha256: str
    recall_target: float
    band: tuple[float, float] | None
    prevalence: float | None
    edges: np.ndarray
    gaps: np.ndarray
    patients: int | None

    @classmethod
    def of(cls, folder: Path, content: Mapping[str, Any], sha256: str, prevalence: float | None = None) -> Watched:
        """Return what the model in a checked folder is held against; `prevalence` is the share with the condition here.

        Raises MonitorError when the model gives no decisions.
        """
        points = content["rule"]["operating_points"]
        if not content["rule"]["usable"] or not points:
            why = "; ".join(content["rule"]["not_usable_because"]) or "nothing is certified"
            raise MonitorError(f"the model gives no decisions that could be watched: {why}")
        frozen = content.get("watch") or {"scores_without": {"edges": [], "gaps": [1]}, "expected": None}
        edges, gaps = (np.array(frozen["scores_without"][name]) for name in ("edges", "gaps"))
        below = int((edges <= float.fromhex(points[0]["threshold_hex"])).sum())
        path = folder / TYPICALITY
        reference = Reference.load(path) if path.is_file() else None
        at = prevalence if prevalence is not None else (frozen["expected"] or {}).get("prevalence")
        return cls(
            title=content["title"],
            sha256=sha256,
            recall_target=points[0]["recall_target"],
            band=_band(frozen["expected"], at),
            prevalence=at,
            edges=edges[:below],
            gaps=gaps[:below] if below > 1 else np.empty(0, int),
            patients=reference.patients if reference is not None and reference.usable else None,
        )


def _band(expected: Mapping[str, Any] | None, prevalence: float | None) -> tuple[float, float] | None:
    if expected is None or prevalence is None or expected["specificity"]["low"] is None:
        return None
    low, high = (
        prevalence * expected["expected_recall"] + (1 - prevalence) * (1 - expected["specificity"][end])
        for end in ("high", "low")
    )
    band = max(0.01, math.floor(100 * low) / 100), min(0.99, math.ceil(100 * high) / 100)
    return band if band[0] < band[1] else None


# ---------------------------------------------------------------- streams


@dataclass(frozen=True, eq=False)
class Stream:
    """What one site (None: all of them) showed of one kind, week by week, and the evidence that something is wrong.

    `ones` of `n` in each of the `weeks` (Mondays) that have any. `evidence` (T,) is the logarithm of a test
    martingale. `expected` holds the lowest and highest share of ones when all is well.
    """

    kind: str
    site: str | None
    weeks: Sequence[date]
    ones: np.ndarray
    n: np.ndarray
    expected: tuple[float, float]
    bets: np.ndarray

    @cached_property
    def evidence(self) -> np.ndarray:
        """The logarithm of the evidence after each week."""
        return restarting(self.bets)

    def alarm(self, alarm_at: float) -> int | None:
        """Return the place of the first week whose evidence reaches `alarm_at`; None where none does."""
        return first_look(self.evidence, alarm_at)

    def start(self, at: int) -> int:
        """Return the place of the week with which the change most likely began, as seen after week `at`."""
        return likeliest_start(self.bets, at)


def monday(day: date) -> date:
    """Return the Monday of a day's week."""
    return day - timedelta(days=day.weekday())


def week_name(week: date) -> str:
    """Return a week as one writes it: 2026-W48."""
    year, number, _ = week.isocalendar()
    return f"{year}-W{number:02}"


def _by_week(days: Sequence[date], values: np.ndarray, bins: int) -> tuple[list[date], np.ndarray]:
    """Return the weeks with any value, and how many values (n,) of each of the `bins` each has, (T, bins)."""
    own = [monday(day) for day in days]
    weeks = sorted(set(own))
    place = {week: at for at, week in enumerate(weeks)}
    counts = np.zeros((len(weeks), bins), int)
    for week, value in zip(own, values.tolist(), strict=True):
        counts[place[week], value] += 1
    return weeks, counts


def _rate(days: Sequence[date], hits: Sequence[bool], expected: tuple[float, float]) -> dict[str, Any]:
    """Return what was hit of all there was, week by week."""
    weeks, counts = _by_week(days, np.array(hits, int), 2)
    return {"weeks": weeks, "ones": counts[:, 1], "n": counts.sum(axis=1), "expected": expected}


def _referral(studies: Sequence[Judged], model: Watched) -> dict[str, Any] | None:
    decided = [one for one in studies if one.decision != "not assessable"]
    if model.band is None or not decided:
        return None
    made = _rate([s.day for s in decided], [s.decision == "refer" for s in decided], model.band)
    return made | {"bets": band_bets(made["ones"], made["n"], *model.band)}


def _scores(studies: Sequence[Judged], model: Watched) -> dict[str, Any] | None:
    """Watch scores below the threshold, which hardly depend on how frequent the condition is."""
    if not len(model.gaps):
        return None
    below = [(s.day, s.score) for s in studies if s.score is not None and s.score < model.edges[-1]]
    if not below:
        return None
    bins = np.searchsorted(model.edges, np.array([score for _, score in below]), side="right")
    weeks, counts = _by_week([day for day, _ in below], bins, len(model.gaps))
    upper = len(model.gaps) // 2
    share = model.gaps[upper:].sum() / model.gaps.sum()
    shown = {"ones": counts[:, upper:].sum(axis=1), "n": counts.sum(axis=1), "expected": (share, share)}
    return {"weeks": weeks, **shown, "bets": urn_bets(counts, model.gaps)}


def _typicality(studies: Sequence[Judged], model: Watched) -> dict[str, Any] | None:
    own = [s for s in studies if s.typicality is not None]
    if model.patients is None or not own:
        return None
    gaps = p_value_gaps(model.patients)
    bins = p_value_bins(np.array([s.typicality for s in own]), model.patients)
    weeks, counts = _by_week([s.day for s in own], bins, len(gaps))
    share = gaps[:UNUSUAL].sum() / gaps.sum()
    shown = {"ones": counts[:, :UNUSUAL].sum(axis=1), "n": counts.sum(axis=1), "expected": (0.0, share)}
    return {"weeks": weeks, **shown, "bets": urn_bets(counts, gaps)}


def _quality(studies: Sequence[Judged], _model: Watched) -> dict[str, Any] | None:
    failed = [s.decision == "not assessable" for s in studies]
    made = _rate([s.day for s in studies], failed, (0.0, NOT_ASSESSABLE))
    return made | {"bets": rate_bets(made["ones"], made["n"], NOT_ASSESSABLE)}


UNLABELLED: Mapping[str, Callable[[Sequence[Judged], Watched], dict[str, Any] | None]] = {
    "referral": _referral,
    "scores": _scores,
    "typicality": _typicality,
    "quality": _quality,
}


def sites_of(studies: Sequence[Judged]) -> list[str]:
    """Return the sites, none where there is but one; "" are studies of no stated site."""
    sites = sorted({one.site for one in studies})
    return sites if len(sites) > 1 else []


def streams(followup: Followup, model: Watched, declared: float | None = None) -> list[Stream]:
    """Return all that can be watched, of all studies together (site None) and of each site.

    `declared` is the share of people not referred who are audited, as it was fixed beforehand.
    """
    found = []
    for site in (None, *sites_of(followup.studies)):
        own = followup if site is None else of_site(followup, site)
        made = {kind: watch(own.studies, model) for kind, watch in UNLABELLED.items()}
        seen = verification(own)
        positives = [] if seen.why_not else audited_positives(own, seen, declared)
        made[RECALL] = _recall(positives, model.recall_target)
        found += [Stream(kind, site, **fields) for kind, fields in made.items() if fields is not None]
    return found


def of_site(followup: Followup, site: str) -> Followup:
    """Return the studies and outcomes of one site."""
    return part(followup, [at for at, one in enumerate(followup.studies) if one.site == site])


def part(followup: Followup, places: Sequence[int]) -> Followup:
    """Return the studies at these places, in this order, and their outcomes."""
    outcomes = {new: followup.outcomes[at] for new, at in enumerate(places) if at in followup.outcomes}
    return Followup([followup.studies[at] for at in places], outcomes)


def alarms_at(made: Sequence[Stream], alpha: float) -> dict[str, float]:
    """Return the evidence at which each kind of stream raises the alarm.

    Those without labels share `alpha` among them and the sites, and those of recall among the sites.
    """
    recall = max(1, sum(one.kind == RECALL for one in made))
    others = max(1, len(made) - sum(one.kind == RECALL for one in made))
    return {kind: (recall if kind == RECALL else others) / alpha for kind in (RECALL, *UNLABELLED)}


# ---------------------------------------------------------------- recall


@dataclass(frozen=True)
class Verification:
    """Which outcomes came back, as counts, and why recall cannot be stated; empty when it can."""

    counts: Verified
    looked_at: int
    why_not: str
    audits: int


def verification(followup: Followup) -> Verification:
    """Count the outcomes that came back, and ask whether they tell the recall; see `statistics.verification`."""
    known = {at: outcome for at, outcome in followup.outcomes.items() if outcome.found is not None}
    looked = [at for at, one in enumerate(followup.studies) if one.looked_at]
    others = len(followup.studies) - len(looked)
    back = {kind: [at for at in known if followup.studies[at].looked_at == kind] for kind in (True, False)}
    positives = {kind: sum(bool(known[at].found) for at in own) for kind, own in back.items()}
    counts = Verified(len(back[True]), positives[True], others, len(back[False]), positives[False])
    audits = audits_needed(MISSED, positives=positives[False])
    why = "" if known else "no outcome came back"
    try:
        recall_in_use(counts)
    except NotEnoughData as error:
        why = why or str(error)
        audits = error.needed
    return Verification(counts, len(looked), why, audits)


def audited_positives(followup: Followup, seen: Verification, declared: float | None) -> list[tuple[date, bool]]:
    """Return the day and whether it was missed of audited people with the condition, of all decisions alike.

    Of people not referred a share q is audited, of the others a share v: the found are kept with probability q / v
    where more of them are known, and the missed with v / q otherwise, so that a miss is as frequent as 1 - recall.
    Which are kept depends on a hash of the study alone. q is at most what was `declared` beforehand.
    """
    v = seen.counts.referred / seen.looked_at if seen.looked_at else 1.0
    q = seen.counts.audited / seen.counts.not_referred if seen.counts.not_referred else v
    q = q if declared is None else min(q, declared)
    keep = {True: min(1.0, q / v) if v else 0.0, False: min(1.0, v / q) if q else 0.0}
    found = []
    for at, outcome in followup.outcomes.items():
        one = followup.studies[at]
        if outcome.found and _lot(one) < keep[one.looked_at]:
            found.append((outcome.day or one.day, not one.looked_at))
    return found


def _lot(one: Judged) -> float:
    """Return a number from 0 to 1 that a study draws once for all."""
    digest = hashlib.sha256(f"{one.model}\n{one.site}\n{one.study}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6]) / 2**48


def _recall(positives: Sequence[tuple[date, bool]], target: float) -> dict[str, Any] | None:
    if not positives:
        return None
    made = _rate([day for day, _ in positives], [missed for _, missed in positives], (0.0, 1 - target))
    return made | {"bets": rate_bets(made["ones"], made["n"], 1 - target)}
