"""Every figure of the statistical review, again, with the product's own functions. Prints a Markdown table.

    python tests/benchmarks/statistics_table.py --out DIR            every row that DIR lacks: about an hour of one core
    python tests/benchmarks/statistics_table.py --out DIR --only A7  one finding
    python tests/benchmarks/statistics_table.py --out DIR --scale 0.05    a look

A row is kept as JSON in DIR when it is finished, so that whoever is interrupted goes on. Scores are normal with equal
variance, apart by what the AUC asks for, unless a row says otherwise. `n+` are patients with the condition. Shares have
Wilson's 95 % interval of the repetitions; what is exact has none. A promise is called broken when the whole interval at
99.9 % lies on its wrong side, since there are a hundred rows.
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from scipy.stats import binom, norm

from pipeline.reporting.sections.readings import verdict
from pipeline.statistics.arms import matched_decisions
from pipeline.statistics.band import joint_confidence, local_level, recall_band
from pipeline.statistics.between_sites import between_sites
from pipeline.statistics.compare import delong_test
from pipeline.statistics.deployment import certify_groups, deployment
from pipeline.statistics.discrimination import roc_auc
from pipeline.statistics.errors import NotEnoughData, collect_warnings
from pipeline.statistics.gate import assess_discrimination
from pipeline.statistics.image_counts import assess_image_numbers
from pipeline.statistics.intervals import proportion_ci
from pipeline.statistics.metrics import Counts, net_benefit, net_benefit_at
from pipeline.statistics.patients import Patients, one_per_unit
from pipeline.statistics.planner import chance_of_confirmation, confirming_positives, equal_sets_for, expected_referral
from pipeline.statistics.reliability import brier, calibration_summary, log_loss, log_loss_change
from pipeline.statistics.sequential import (
    alarm_counts,
    alarm_probability,
    band_alarm_probability,
    outcomes_to_notice,
    people_to_notice,
)
from pipeline.statistics.shift import (
    Promise,
    among_several,
    group_shift,
    score_shift,
    sites_beyond_chance,
    tail_test,
    unseen_patients,
)
from pipeline.statistics.subgroups import subgroup_table
from pipeline.statistics.threshold import certifiable_recall, certify_threshold, max_misses, verify_threshold
from pipeline.statistics.verification import Verified, audits_needed, recall_in_use
from pipeline.store.files import atomic
from pipeline.store.ledger import Ledger, Reading
from pipeline.store.results.threshold import Target

SEED = 20261129
LEVEL = 0.95


@dataclass(frozen=True)
class Figure:
    """A line of the table: `new` with its `low` and `high` where it was simulated in `runs` repetitions."""

    what: str
    old: str
    new: float
    low: float | None
    high: float | None
    runs: int
    promised: str
    kept: bool


@dataclass
class Simulation:
    """What a row is given: its random numbers, and how many repetitions to make of each figure."""

    rng: np.random.Generator
    scale: float

    def runs(self, wanted: int) -> range:
        """Return the repetitions to make where `wanted` were asked for."""
        return range(max(10, round(wanted * self.scale)))


def share(
    what: str, old: str, hits: float, runs: int, *, least: float = 0.0, most: float = 1.0, said: str = ""
) -> Figure:
    """Return a simulated share, which was promised to lie between `least` and `most`."""
    found, wide = proportion_ci(int(hits), runs), proportion_ci(int(hits), runs, 0.999)
    bounds = [f"≥ {least:g}"] * (least > 0) + [f"≤ {most:g}"] * (most < 1)
    kept = wide.high >= least and wide.low <= most
    return Figure(what, old, found.value, found.low, found.high, runs, said or ", ".join(bounds), bool(kept))


def printed(what: str, old: str, hits: int, runs: int, stated: float) -> Figure:
    """Return a simulated share that the product states as `stated`: broken outside the 99.9 % interval."""
    wide = proportion_ci(hits, runs, 0.999)
    found = share(what, old, hits, runs, said=f"as stated: {stated:.3f}")
    return replace(found, kept=wide.low <= stated <= wide.high)


def exact(what: str, old: str, value: float, said: str, kept: bool = True) -> Figure:
    """Return a figure that was computed, not simulated."""
    return Figure(what, old, float(value), None, None, 0, said, bool(kept))


def apart(auc: float) -> float:
    """Return how far the means of two normal scores lie apart."""
    return float(math.sqrt(2) * norm.ppf(auc))


def sample(rng: np.random.Generator, positives: int, negatives: int, distance: float, name: str = "c") -> Patients:
    """Return patients with normal scores."""
    y = np.repeat([1, 0], [positives, negatives])
    s = rng.normal(size=len(y)) + distance * y
    return Patients(np.array([f"{name}{i:05d}" for i in range(len(y))]), y, s, len(y), 0, (1,))


def certified(s: np.ndarray, **more: object) -> float:
    """Return the threshold that certifies a recall of 0.95 on these scores of positives."""
    with collect_warnings():
        return certify_threshold(np.ones(len(s), int), s, **more).threshold


# ---------------------------------------------------------------- A


def a0_certificate(sim: Simulation) -> Iterator[Figure]:
    """The share of calibrations after which the recall of the certified threshold is at least 0.95."""
    for n, old in ((59, ".950"), (93, ".949"), (111, ".973"), (200, ".968")):
        runs = sim.runs(4000)
        held = sum(norm.sf(certified(sim.rng.normal(size=n))) >= 0.95 for _ in runs)
        yield share(f"certificate holds, n+ {n}", old, held, len(runs), least=0.95)
    for grain in (0.1, 0.5):
        runs = sim.runs(4000)
        held = 0
        for _ in runs:
            t = certified(np.round(sim.rng.normal(size=111) / grain) * grain)
            held += norm.sf(t - grain / 2) >= 0.95
        yield share(f"scores rounded to {grain:g}, n+ 111", ".984", held, len(runs), least=0.95)


def a1_images(sim: Simulation) -> Iterator[Figure]:
    """The highest score of 1 + Poisson(1) images, within-patient correlation 0.6, n+ 111; then patients with one."""

    def highest(images: np.ndarray) -> np.ndarray:
        own = math.sqrt(0.6) * sim.rng.normal(size=len(images))
        rest = math.sqrt(0.4) * sim.rng.normal(size=(len(images), images.max()))
        rest[np.arange(images.max()) >= images[:, None]] = -np.inf
        return own + rest.max(axis=1)

    many, runs = np.sort(highest(1 + sim.rng.poisson(1, 400_000))), sim.runs(1500)
    same = one = said = alarm = 0
    for _ in runs:
        numbers = 1 + sim.rng.poisson(1, 111)
        t = certified(highest(numbers))
        same += 1 - np.searchsorted(many, t) / len(many) >= 0.95
        one += norm.sf(t) >= 0.95
        frame = pd.DataFrame({"images": numbers, "label": 1})
        for theirs in (np.ones(116, int), 1 + sim.rng.poisson(1, 116)):
            found = bool(assess_image_numbers(frame, {"others": pd.DataFrame({"images": theirs})}, "test"))
            said, alarm = (said + found, alarm) if theirs.max() == 1 else (said, alarm + found)
    yield share("promise holds, as many images", ".978", same, len(runs), least=0.95)
    yield share(
        "promise holds for patients with one image", ".80", one, len(runs), said="nothing: the next row says so"
    )
    yield share("… and `image_numbers_differ` says so", "never", said, len(runs), least=0.99)
    yield share("… or where numbers are alike", "never", alarm, len(runs), most=0.05)


def a2_linked(sim: Simulation) -> Iterator[Figure]:
    """Patients in clusters of correlated scores: the certificate on all of them, and on one per unit."""
    cases = [(2, 0.5, 111, ".971", ".978"), (2, 1.0, 200, ".882", ".975"), (4, 0.9, 200, ".856", ".957")]
    for size, icc, n, old_all, old_one in cases:
        runs, held = sim.runs(1500), {"all": 0, "one": 0}
        ids = np.array([f"p{i:04d}" for i in range(n)])
        cluster = np.arange(n) // size
        units = pd.Series([f"u{i:04d}" for i in cluster], index=ids)
        for _ in runs:
            shared = sim.rng.normal(size=cluster.max() + 1)[cluster]
            s = math.sqrt(icc) * shared + math.sqrt(1 - icc) * sim.rng.normal(size=n)
            everyone = Patients(ids, np.ones(n, int), s, n, 0, (1,))
            held["all"] += norm.sf(certified(s)) >= 0.95
            try:
                held["one"] += norm.sf(certified(one_per_unit(everyone, units).s)) >= 0.95
            except NotEnoughData:  # no promise is made
                held["one"] += 1
        yield share(f"clusters of {size}, correlation {icc:g}, n+ {n}: all", old_all, held["all"], len(runs),
                    said="nothing; not done")  # fmt: skip
        yield share("… one per unit", old_one, held["one"], len(runs), least=0.95)


def _counted(setting: dict[str, object], earlier: list[Reading]) -> int:
    return Ledger.distinct(earlier, setting)


def a3_second_look(sim: Simulation) -> Iterator[Figure]:
    """Several settings calibrated in one store, that with the lowest referral of calibration patients is taken."""
    distance = apart(0.95)
    cases = [("best of 4 arms, correlation 0.7", 4, 0.7, ".927", ".986"), ("best of 10 split seeds", 10, 0, ".827", "")]
    for what, k, rho, old, old_counted in cases:
        runs, held = sim.runs(1500), {"one": 0, "all": 0, "as counted": 0}
        settings = [{"arm": f"arm{i}", "finetune": f"key{i}"} for i in range(k)]
        readings = [Reading("calibrate", f"key{i}", "patients", settings[i]) for i in range(k)]
        # What the ledger makes of the settings one after the other; a count of all once all are in it.
        counts = [_counted(settings[i], readings[:i]) for i in range(k)]
        for _ in runs:
            y = np.repeat([1, 0], [111, 54])
            shared = sim.rng.normal(size=len(y))
            own = sim.rng.normal(size=(k, len(y)))
            scores = math.sqrt(rho) * shared + math.sqrt(1 - rho) * own + distance * y
            for how, models in (("one", [1] * k), ("all", [k] * k), ("as counted", counts)):
                thresholds, referral = [], []
                for s, n_models in zip(scores, models, strict=True):
                    try:
                        t = certified(s[y == 1], n_models=n_models)
                    except NotEnoughData:
                        continue
                    thresholds.append(t)
                    referral.append((s[y == 0] >= t).mean())
                best = thresholds[int(np.argmin(referral))] if thresholds else -math.inf
                held[how] += norm.sf(best - distance) >= 0.95
        yield share(f"{what}, n+ 111: not counted", old, held["one"], len(runs), said="nothing; not done")
        yield share("… all counted", old_counted or "—", held["all"], len(runs), least=0.95)
        yield share("… each as the ledger counts when it is calibrated", "—", held["as counted"], len(runs),
                    said="nothing; the first report says it was the first")  # fmt: skip
    for k, old in ((3, ".88"), (10, ".998")):
        runs, printed = sim.runs(1500), 0
        for _ in runs:
            words = []
            for look in range(k):
                t = certified(sim.rng.normal(size=111))
                s = sim.rng.normal(size=116)
                words.append(verdict(verify_threshold(np.ones(116, int), s, t, 0.95, 0.95), first=look == 0))
            printed += "confirmed" in words
        yield share(f"“confirmed” printed within {k} looks, 111/116", old, printed, len(runs),
                    most=0.53, said="as often as at one look: 0.48")  # fmt: skip


def a4_verdict(sim: Simulation) -> Iterator[Figure]:
    """Verdicts of other patients: exact sums over what may be found, and many sites."""
    confirmed, contradicted = [], []
    for n in (10, 30, 60, 116, 250, 500, 1000):
        words = [
            verify_threshold(np.ones(n, int), np.r_[np.zeros(k), np.ones(n - k)], 0.5, 0.95, 0.95)
            for k in range(min(n, 120) + 1)
        ]
        p = binom.pmf(np.arange(len(words)), n, 0.05)
        confirmed.append(p[[w == "confirmed" for w in words]].sum())
        contradicted.append(p[[w == "contradicted" for w in words]].sum())
    yield exact("largest P(confirmed), recall just below .95, n+ 10 … 1,000", "≤ .048", max(confirmed), "≤ 0.05",
                max(confirmed) <= 0.05)  # fmt: skip
    yield exact("largest P(contradicted), recall just .95", "≤ .045", max(contradicted), "≤ 0.05",
                max(contradicted) <= 0.05)  # fmt: skip
    for n, m, old in ((111, 116, ".48"), (200, 200, ".50"), (500, 500, ".50"), (500, 116, ".12")):
        chance, runs = chance_of_confirmation(n, max_misses(n) or 0, m), sim.runs(2000)
        hits = 0
        for _ in runs:
            t = certified(sim.rng.normal(size=n))
            hits += verify_threshold(np.ones(m, int), sim.rng.normal(size=m), t, 0.95, 0.95) == "confirmed"
        yield printed(f"P(confirmed) when nothing differs, {n}/{m}", old, hits, len(runs), chance)
    runs, alone, together = sim.runs(300), 0, 0
    for _ in runs:
        calibration = sample(sim.rng, 500, 50, 3.0)
        t = certified(calibration.s[calibration.y == 1])
        promise = Promise(t, 0.95, 0.95, 500, 16)
        sites = []
        for _site in range(20):
            one = sample(sim.rng, 60, 2, 3.0, "t")
            with collect_warnings():
                sites.append(group_shift("site", calibration, one, expit(one.s), promise))
        alone += any(one.verification == "contradicted" for one in sites)
        together += any(one.verification == "contradicted" for one in among_several(sites, promise))
    yield share("some of 20 sites contradicted when nothing differs: each alone", ".12", alone, len(runs),
                said="nothing; not printed")  # fmt: skip
    yield share("… by Holm's rule", "—", together, len(runs), most=0.05)
    for targets, n, old in (((0.95, 0.9), 200, ".95"), ((0.95, 0.9, 0.85), 300, ".92–.94")):
        misses = [max_misses(n, r) or 0 for r in targets]
        joint, runs = joint_confidence(n, misses, targets), sim.runs(20_000)
        u = np.sort(sim.rng.random((len(runs), n)), axis=1)
        held = np.all([u[:, k] <= 1 - r for k, r in zip(misses, targets, strict=True)], axis=0).sum()
        yield printed(f"{len(targets)} targets hold at once, n+ {n}", old, int(held), len(runs), joint)
    for n, old in ((59, ".18"), (111, ".22"), (200, ".27"), (500, ".31")):
        runs, wrong = sim.runs(20_000), {}
        u = np.sort(sim.rng.random((len(runs), n)), axis=1)
        k = np.arange(int(0.25 * n) + 1)
        for how, limits in (
            ("alone", np.array([certifiable_recall(n, int(i), 0.95) for i in k])),
            ("band", recall_band(n, 0.95)),
        ):
            wrong[how] = int((1 - u[:, : len(limits)] < limits).any(axis=1).sum())
        yield share(f"some row of the sweep false, n+ {n}: each alone", old, wrong["alone"], len(runs),
                    said="nothing; not printed as certified")  # fmt: skip
        yield share("… by the band, rows up to 10 % missed", "—", wrong["band"], len(runs), most=0.05)


def a5_auc(sim: Simulation) -> Iterator[Figure]:
    """Coverage of the interval of the AUC, now that there is one at 1, too."""
    cases = [(0.97, 116, 66, ".92–.97"), (0.99, 116, 66, ".925–.955"), (0.99, 20, 20, ".925–.955; none in 29 %"),
             (0.999, 100, 66, ".93–.97; none"), (0.999, 50, 50, ".93–.97; none in 44 %")]  # fmt: skip
    for auc, n1, n0, old in cases:
        runs, held, at_one, of_one = sim.runs(1500), 0, 0, 0
        for _ in runs:
            one = sample(sim.rng, n1, n0, apart(auc))
            with collect_warnings():
                found = roc_auc(one.y, one.s)
            right = found.low <= auc <= found.high
            held += right
            of_one += found.value == 1
            at_one += right and found.value == 1
        yield share(f"AUC {auc:g}, {n1}/{n0}: covered, in all runs", old, held, len(runs), least=0.92)
        if of_one:
            yield share("… of those that show an AUC of 1", "no interval", at_one, of_one, said="—")


def a6_calibration(sim: Simulation) -> Iterator[Figure]:
    """Limits of Brier score and log loss of a perfect model, and whether that of its ECE reaches 0."""
    cases = [(0.05, 0.95, 400, (".81", ".83", ".87")), (0.05, 0.90, 400, (".71", ".79", ".89")),
             (0.10, 0.90, 400, (".84", ".84", ".90")), (0.64, 0.97, 182, (".90", ".89", ".93"))]  # fmt: skip
    for prevalence, auc, n, old in cases:
        distance = apart(auc)

        def perfect(size: int, d: float = distance, pi: float = prevalence) -> tuple[np.ndarray, np.ndarray]:
            y = (sim.rng.random(size) < pi).astype(int)
            x = sim.rng.normal(size=size) + d * y
            return y, expit(d * x - d * d / 2 + logit(pi))

        y, p = perfect(2_000_000)
        truth = {"brier": brier(y, p), "log_loss": log_loss(y, p), "ece": 0.0}
        runs, held = sim.runs(400), dict.fromkeys(truth, 0)
        for run in runs:
            y, p = perfect(n)
            with collect_warnings():
                found = calibration_summary(y, p, resamples=400, seed=run)
            for name, value in truth.items():
                held[name] += found[name].low <= value <= found[name].high
        # [spec] of the review: percentiles of few non-zero terms stay a little narrow at high AUC.
        least = {"brier": 0.90, "log_loss": 0.87, "ece": 0.90}
        for (name, hits), before in zip(held.items(), old, strict=True):
            what = "reaches 0" if name == "ece" else "covered"
            yield share(f"{name} {what}, {n} patients, {100 * prevalence:g} % ill, AUC {auc:g}", before, hits,
                        len(runs), least=least[name], said=f"0.95 wanted, ≥ {least[name]:g} kept to")  # fmt: skip
    runs, worse = sim.runs(400), 0
    for run in runs:
        x = sim.rng.normal(-2, 1.5, 300)
        y = (sim.rng.random(300) < expit(x)).astype(int)
        worse += log_loss_change(y, expit(x - 0.2), expit(x + 0.1997), seed=run, resamples=400).low > 0
    yield share("`calibration_worse` when nothing got worse", "no such finding", worse, len(runs), most=0.05)


def a7_matched(sim: Simulation) -> Iterator[Figure]:
    """Two arms of one distribution at matched sensitivity: how often their specificities are called different."""
    cases = [(111, 66, 0.7, 0.95, ".36"), (111, 66, 0.9, 0.95, ".33"), (111, 66, 0.7, 0.99, ".22"),
             (111, 500, 0.7, 0.95, ".77"), (500, 500, 0.7, 0.95, ".39")]  # fmt: skip
    for n, negatives, rho, auc, old in cases:

        def scored(
            positives: int, others: int, name: str, r: float = rho, d: float = apart(auc)
        ) -> dict[str, Patients]:
            y = np.repeat([1, 0], [positives, others])
            shared = sim.rng.normal(size=len(y))
            ids = np.array([f"{name}{i:05d}" for i in range(len(y))])
            return {
                arm: Patients(ids, y, math.sqrt(r) * shared + math.sqrt(1 - r) * sim.rng.normal(size=len(y)) + d * y,
                              len(y), 0, (1,))
                for arm in ("mae", "hog")
            }  # fmt: skip

        runs, differ = sim.runs(400), 0
        for run in runs:
            row = matched_decisions(scored(n, 0, "c"), scored(116, negatives, "t"), "mae", max_misses(n) or 0,
                                    seed=run, resamples=600)["hog"]  # fmt: skip
            differ += not row["specificity_difference_low"] <= 0 <= row["specificity_difference_high"]
        yield share(f"n+ {n}, {negatives} test negatives, correlation {rho:g}, AUC {auc:g}: called different", old,
                    differ, len(runs), most=0.05)  # fmt: skip


def a8_subgroups(sim: Simulation) -> Iterator[Figure]:
    """Groups that differ in nothing: 40 positives each, recall 0.98."""
    for groups, old in ((4, ".17"), (10, ".37"), (20, ".62")):
        n, runs, below, gaps = 45, sim.runs(400), 0, 0
        label = np.tile(np.repeat([1, 0], [40, 5]), groups)
        site = np.repeat(np.arange(groups), n).astype(str)
        for _ in runs:
            found = (sim.rng.random(groups * n) < 0.98).astype(float)
            frame = pd.DataFrame({"label": label, "score": np.where(label == 1, found, 0.1), "site": site})
            table = subgroup_table(frame, ["site"], 0.5)
            lowest = table.loc[table["recall"].idxmin()]
            below += lowest["recall_high_simultaneous"] < 0.98
            gaps += bool(((table["recall_gap_low"] > 0) | (table["recall_gap_high"] < 0)).any())
        yield share(f"lowest of {groups} equal groups wholly below the truth", old, below, len(runs), most=0.05)
        yield share("… some gap called a difference", "not printed", gaps, len(runs), most=0.05)
    frame = pd.DataFrame({"label": sim.rng.random(800) < 0.05, "score": sim.rng.normal(size=800),
                          "site": sim.rng.choice(list("abcde"), 800)})  # fmt: skip
    table = subgroup_table(frame, ["site"], 0.5)
    yield exact("sites of 5 with a specificity, 800 screened, 5 % ill", "2", table["specificity"].notna().sum(), "5",
                bool(table["specificity"].notna().all()))  # fmt: skip


def a9_shift(sim: Simulation) -> Iterator[Figure]:
    """Unseen sites of a random division, 165 and 182 patients in sites of Zipf's sizes; power of the tail test."""
    for sites, old in ((10, ".007"), (30, ".91"), (100, "1.00")):
        at = 1 / np.arange(1, sites + 1)
        runs, unseen, said = sim.runs(600), 0, 0
        for _ in runs:
            calibration, tested = (
                pd.DataFrame({"site": sim.rng.choice(sites, n, p=at / at.sum()).astype(str),
                              "patient_id": [f"{name}{i}" for i in range(n)]})
                for n, name in ((165, "c"), (182, "t"))
            )  # fmt: skip
            unseen += bool(unseen_patients(calibration, tested))
            said += bool(sites_beyond_chance(calibration, tested))
        yield share(f"{sites} sites, divided at random: called not covered", old, said, len(runs), most=0.01)
    for n, m, hard, old in ((111, 116, 0.1, ".01"), (200, 200, 0.1, "—"), (500, 500, 0.1, ".22"),
                            (111, 116, 0.05, ".005"), (500, 500, 0.05, ".02")):  # fmt: skip
        runs, tail, ks = sim.runs(1500), 0, 0
        k = max_misses(n) or 0
        for _ in runs:
            calibration = sim.rng.normal(size=n)
            promise = Promise(certified(calibration), 0.95, 0.95, n, k)
            same = sim.rng.normal(size=m)
            other = np.where(np.arange(m) < round(hard * m), same - 3, same)
            found = tail_test(int((other < promise.threshold).sum()), m, promise)
            seen = score_shift(calibration, other).p < 0.001
            ks += seen
            tail += (found is not None and found.p < 0.001) or seen
        yield share(f"{100 * hard:g} % hard positives, {n}/{m}: noticed", f"{old} (KS)", tail, len(runs),
                    said=f"more than KS alone ({ks / len(runs):.3f})")  # fmt: skip
    for n, m in ((111, 116), (500, 500)):
        runs, k = sim.runs(20_000), max_misses(n) or 0
        thresholds = np.partition(sim.rng.random((len(runs), n)), k, axis=1)[:, k]
        misses = (sim.rng.random((len(runs), m)) < thresholds[:, None]).sum(axis=1)
        tests = {int(x): tail_test(int(x), m, Promise(0.0, 0.95, 0.95, n, k)) for x in np.unique(misses)}
        alarm = sum(one is not None and one.p < 0.001 for x in misses if (one := tests[int(x)]))
        yield share(f"the tail test when nothing differs, {n}/{m}", "—", alarm, len(runs), most=0.001)


def a10_compare(sim: Simulation) -> Iterator[Figure]:
    """Equal runs beside each other: unchanged figures, of which the comparison now says what choosing does."""
    for k, old, old_cover in ((4, ".10", ".88"), (10, ".24", ".87"), (26, ".36", ".75")):
        runs, better, held = sim.runs(200), 0, 0
        for _ in runs:
            y = np.repeat([1, 0], [116, 66])
            shared, distance = sim.rng.normal(size=len(y)), apart(0.97)
            scores = [math.sqrt(0.7) * shared + math.sqrt(0.3) * sim.rng.normal(size=len(y)) + distance * y
                      for _ in range(k)]  # fmt: skip
            with collect_warnings():
                intervals = [roc_auc(y, s) for s in scores]
                better += any(delong_test(y, scores[0], s).high < 0 for s in scores[1:])
            best = max(intervals, key=lambda one: one.value)
            held += best.low <= 0.97 <= best.high
        yield share(f"some of {k} equal runs “better” than the first", old, better, len(runs),
                    said="nothing; the box of `compare` says so")  # fmt: skip
        yield share("… interval of the best covers", old_cover, held, len(runs), said="nothing; the box says so")


def a11_gate(sim: Simulation) -> Iterator[Figure]:
    """How often the gate stops a model on its calibration patients."""
    cases = [(0.5, 111, 54, "1.00", 0.99, 1.0), (0.8, 111, 54, ".48", 0.0, 1.0), (0.8, 111, 540, ".29", 0.0, 1.0),
             (0.85, 111, 54, ".20", 0.0, 1.0), (0.85, 111, 540, ".07", 0.0, 1.0), (0.95, 200, 10, ".73", 0.0, 0.05),
             (0.99, 200, 10, ".16", 0.0, 0.01), (0.95, 111, 54, ".004", 0.0, 0.01)]  # fmt: skip
    for auc, n1, n0, old, least, most in cases:
        runs, stopped = sim.runs(500), 0
        for _ in runs:
            one = sample(sim.rng, n1, n0, apart(auc))
            t = certified(one.s[one.y == 1])
            with collect_warnings():
                found = assess_discrimination(one.y, one.s, expit(one.s), t)
            stopped += any(finding.level == "fail" for finding in found)
        said = "" if least or most < 1 else "by specificity, whatever the share ill"
        yield share(f"AUC {auc:g}, {n1}/{n0}: stopped", old, stopped, len(runs), least=least, most=most, said=said)


def a14_stop_rule(sim: Simulation) -> Iterator[Figure]:
    """Watching referral, the band being page one's 0.32 to 0.54: exact."""
    for people, old in ((200, ".21 (in month one)"), (2400, ".86 (in a year)")):
        within = max(band_alarm_probability(rate, 0.32, 0.54, longest=people)[-1] for rate in (0.32, 0.43, 0.54))
        yield exact(f"alarm within {people:,} people when nothing changed", old, within, "≤ 0.05", within <= 0.05)


def a15_prevalence(sim: Simulation) -> Iterator[Figure]:
    """Net benefit per 100 of the demo's counts then (116 of 116 found, 26 of 66 false alarms), exact."""
    counts = Counts(tp=116, fn=0, fp=26, tn=40)
    for pt, old, there in ((0.1, "62.1 at 64 %", 0.8), (0.2, "60.2", -4.4), (0.5, "49.5", -32.4)):
        value = 100 * net_benefit_at(counts, pt, 0.05).value
        yield exact(f"referring from {100 * pt:g} %, at 5 % ill", old, value, f"{there:g} as the review computed",
                    abs(value - there) < 0.06)  # fmt: skip
    own = 100 * net_benefit(counts, 0.1).value
    yield exact("… at these patients' own share", "62.1", own, "62.1", abs(own - 62.1) < 0.06)


# ---------------------------------------------------------------- B

RULE = Target(
    certified=True, at=None, recall_target=0.95, confidence=0.95, confidence_used=0.95, models_compared=1,
    labels_certified=1, positives=111, negatives=54, certifiable_recall=0.97, positives_needed=59, message="",
    advice="",
)  # fmt: skip


def b1_pooled(sim: Simulation) -> Iterator[Figure]:
    """The threshold certified on 111 and 116 positives together, and what it refers at 5 %."""
    for auc, old in ((0.9, ".658 → .581"), (0.95, ".474 → .393"), (0.98, ".284 → .218")):
        d, runs, kept, held = apart(auc), sim.runs(1000), 0, 0
        referral: dict[str, list[float]] = {"calibration": [], "pooled": []}
        for _ in runs:
            sets = sample(sim.rng, 111, 54, d), sample(sim.rng, 116, 66, d, "t")
            with collect_warnings():
                made = {rule: deployment(rule, *sets, RULE, 0.05) for rule in referral}
            for rule, one in made.items():
                referral[rule].append(one.referral.value)
            t, specificity = made["pooled"].threshold, made["pooled"].specificity
            kept += norm.sf(t - d) >= 0.95
            held += specificity["low"] <= norm.cdf(t) <= specificity["high"]
        yield share(f"pooled promise holds, AUC {auc:g}", ".974", kept, len(runs), least=0.945)
        yield share("… specificity covered", "—", held, len(runs), least=0.92)
        first, both = (float(np.mean(referral[rule])) for rule in ("calibration", "pooled"))
        yield exact(f"… mean referral (calibration alone: {first:.3f})", old, both, "lower", both < first)


def b1_labels(sim: Simulation) -> Iterator[Figure]:
    """Three labels on the same patients, each pooled with the confidence shared out: all promises at once."""
    runs, kept, d = sim.runs(1000), 0, apart(0.95)
    for _ in runs:
        right = True
        for _label in range(3):
            sets = sample(sim.rng, 150, 54, d), sample(sim.rng, 150, 66, d, "t")
            with collect_warnings():
                made = deployment("pooled", *sets, replace(RULE, labels_certified=3), 0.05)
            right &= norm.sf(made.threshold - d) >= 0.95
        kept += right
    yield share("three labels, pooled, all promises at once", ".972–.975 (not pooled)", kept, len(runs), least=0.945)


def b2_watching(sim: Simulation) -> Iterator[Figure]:
    """The exact law of the alarm."""
    counts = alarm_counts(2000, 0.05)
    for recall, old, most in ((0.95, ".026", 0.05), (0.98, ".001", 0.01)):
        value = alarm_probability(counts, 1 - recall)[-1]
        yield exact(f"alarm within 2,000 positives, recall {recall:g}", old, value, f"≤ {most:g}", value <= most)
    for recall, old in ((0.9, "221"), (0.85, "58"), (0.8, "25")):
        median = outcomes_to_notice(1 - recall, 0.05) or math.nan
        yield exact(f"median positives to the alarm, recall {recall:g}", old, median, "as printed beforehand")
    for rate, old in ((0.6, "554"), (0.65, "153"), (0.75, "40"), (0.25, "370")):
        median = people_to_notice(rate, 0.32, 0.54) or math.nan
        yield exact(f"median people to the alarm, referral {rate:g}, band .32–.54", old, median, "as printed")


def b3_band(sim: Simulation) -> Iterator[Figure]:
    """The price of the band: misses at 0.95 and the local level, exact."""
    for n, level, misses in ((59, ".017", "none"), (111, ".011", "0"), (200, ".010", "3"), (500, ".0064", "13"),
                             (1000, ".0048", "32")):  # fmt: skip
        band = recall_band(n, 0.95)
        yield exact(f"local level, n+ {n}", level, local_level(n, len(band), 0.95), "exact")
        most = int((band >= 0.95).sum()) - 1
        value = math.nan if most < 0 else most
        yield exact("… misses allowed at 0.95", misses, value, misses, shown(value) == misses)


def b4_planner(sim: Simulation) -> Iterator[Figure]:
    """Closed forms of the planner."""
    for certify, old in ((0.96, 1239), (0.97, 153), (0.98, 153)):
        found = equal_sets_for(0.9, certify) or math.nan
        yield exact(f"positives in each of two equal sets, certified {certify:g}, 90 %", f"{old:,}", found,
                    "the fewest", found <= old)  # fmt: skip
    for n, for_80, for_90 in ((111, 260, 624), (200, 530, 1415), (300, 991, 3062), (500, 1701, 5287)):
        for chance, old in ((0.8, for_80), (0.9, for_90)):
            found = confirming_positives(chance, n, max_misses(n) or 0)
            yield exact(f"test positives for {100 * chance:g} %, n+ {n}", f"{old:,}", found or math.nan, f"{old:,}",
                        found == old)  # fmt: skip
    for auc, old in ((0.9, ".593"), (0.95, ".404"), (0.98, ".226")):
        value = expected_referral(auc, 200, max_misses(200) or 0)
        yield exact(f"expected referral at 5 %, n+ 200, AUC {auc:g}", old, value, old, abs(value - float(old)) < 0.002)


def b55_groups(sim: Simulation) -> Iterator[Figure]:
    """A fifth of positives half a standard deviation harder: the promise over everybody and that of the groups."""
    for n, old in ((300, ".24"), (1000, ".001")):
        runs, overall, lowest = sim.runs(1000), 0, 0
        group = np.repeat(["easy", "hard"], [n - n // 5, n // 5])
        for _ in runs:
            s = sim.rng.normal(size=n) - 0.5 * (group == "hard")
            t = certified(s)
            rows = certify_groups(np.ones(n, int), s, group, 0.95, 0.95, t, 2)
            overall += norm.sf(t + 0.5) >= 0.95
            made = [row["threshold"] for row in rows if row["certified"]]
            hard = next(row for row in rows if row["group"] == "hard")
            # A group that cannot be certified is told what can: that has to hold.
            lowest += (norm.sf(min(made) + 0.5) >= 0.95 if hard["certified"]
                       else norm.sf(t + 0.5) >= hard["certifiable_recall"])  # fmt: skip
        yield share(f"holds for the harder fifth, n+ {n}: one for everybody", old, overall, len(runs),
                    said="nothing; the groups' rows say so")  # fmt: skip
        yield share("… the lowest of the groups', or what it is told", "—", lowest, len(runs), least=0.95)


def sites(sim: Simulation) -> Iterator[Figure]:
    """True recall of another site within its prediction interval: sites of 40 positives, mean recall about 0.97."""
    for k, tau in ((5, 0.0), (5, 1.0), (10, 0.5), (10, 1.0), (20, 1.0)):
        runs, held = sim.runs(400), 0
        for _ in runs:
            theta = logit(0.97) + tau * sim.rng.normal(size=k + 1)
            found = sim.rng.binomial(40, expit(theta[:k]))
            s = np.concatenate([np.arange(40) < one for one in found]).astype(float)
            everyone = Patients(np.arange(len(s)).astype(str), np.ones(len(s), int), s, len(s), 0, (1,))
            made = between_sites(everyone, np.repeat(np.arange(k), 40).astype(str), "recall", 0.5, 10)
            low, high = made.another if made is not None and made.another is not None else (1.0, 0.0)
            held += low <= expit(theta[k]) <= high
        yield share(f"{k} sites, spread {tau:g}: recall of another site covered", "no such interval", held, len(runs),
                    least=0.9, said="0.95 wanted, ≥ 0.9 kept to")  # fmt: skip


def b57_verification(sim: Simulation) -> Iterator[Figure]:
    """Recall from an audit of 600 of 5,000 people not referred, where it is 0.9."""
    runs, held = sim.runs(2000), 0
    for _ in runs:
        ill = sim.rng.binomial(10_000, 0.05)
        found = sim.rng.binomial(ill, 0.9)
        missed = ill - found
        audited = sim.rng.hypergeometric(missed, 5_000 - missed, 600)
        interval = recall_in_use(Verified(5_000, found, 5_000, 600, int(audited)))
        held += interval.low <= found / ill <= interval.high
    yield share("recall covered by an audit of 600", "—", held, len(runs), least=0.95)
    yield exact("audits without a find that bound the missed at 5 per 1,000", "600", audits_needed(0.005), "598",
                audits_needed(0.005) == 598)  # fmt: skip


ROWS: dict[str, Callable[[Simulation], Iterator[Figure]]] = {
    "A0": a0_certificate,
    "A1": a1_images,
    "A2": a2_linked,
    "A3": a3_second_look,
    "A4": a4_verdict,
    "A5": a5_auc,
    "A6": a6_calibration,
    "A7": a7_matched,
    "A8": a8_subgroups,
    "A9": a9_shift,
    "A10": a10_compare,
    "A11": a11_gate,
    "A14": a14_stop_rule,
    "A15": a15_prevalence,
    "B1": b1_pooled,
    "B1 labels": b1_labels,
    "B2": b2_watching,
    "B3": b3_band,
    "B4": b4_planner,
    "B5.5": b55_groups,
    "B5.7": b57_verification,
    "sites": sites,
}


def shown(value: float) -> str:
    """Return a number with as many digits as tell something."""
    if math.isnan(value):
        return "none"
    if value == int(value) and abs(value) != 1:
        return f"{int(value):,}".replace("-", "−")
    return f"{value:.{3 if abs(value) < 1.5 else 1}f}".replace("-", "−")


def table(done: dict[str, list[dict]]) -> str:
    """Return the rows that are finished as Markdown."""
    lines = [
        "| finding | what | old | new | Monte-Carlo 95 % interval (runs) | promised |",
        "|---|---|---|---|---|---|",
    ]
    for name, figures in done.items():
        for one in figures:
            interval = "exact" if not one["runs"] else f"{one['low']:.3f}–{one['high']:.3f} ({one['runs']:,})"
            promised = one["promised"] + ("" if one["kept"] else " **broken**")
            lines.append(f"| {name} | {one['what']} | {one['old']} | {shown(one['new'])} | {interval} | {promised} |")
    return "\n".join(lines)


def main() -> None:
    """Make the rows that are missing, and print all that there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of finished rows")
    parser.add_argument("--only", nargs="*", default=list(ROWS), help="findings; default: all")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the repetitions to make")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in asked.only:
        path = asked.out / f"{name.replace(' ', '_')}.json"
        if path.exists():
            continue
        sim = Simulation(np.random.default_rng([SEED, zlib.crc32(name.encode())]), asked.scale)
        figures = [asdict(one) for one in ROWS[name](sim)]
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(figures, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    paths = {name: asked.out / f"{name.replace(' ', '_')}.json" for name in ROWS}
    print(table({name: json.loads(path.read_text("utf-8")) for name, path in paths.items() if path.exists()}))


if __name__ == "__main__":
    main()
