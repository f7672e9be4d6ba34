"""Devices watched for two years: how often a light is red for nothing, and how soon for something. Prints JSON.

    python tests/benchmarks/monitor_simulation.py                1,000 devices, 104 weeks: about ten minutes of one core
    python tests/benchmarks/monitor_simulation.py --devices 50   a look

Outcomes: audited people with the condition, 5 or 50 a week, each missed with probability 1 - recall; the target is
0.95. Without labels: 50 studies a week, 5 in 100 with the condition, of a model whose scores are normal (with the
condition 3 higher) and whose typicality is the rank of a normal value; every device has calibration patients of its
own. Another scanner adds so many standard deviations to the typicality's value and half as many to the scores. An alarm
is one at the level of the product, which four kinds of lights share.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from pipeline.statistics.drift import first_look, p_value_bins, p_value_gaps, restarting, since, urn_bets
from pipeline.statistics.score_bins import score_bins
from pipeline.statistics.sequential import ALPHA, log_e_values

WEEKS, TARGET, PREVALENCE, SEPARATION, STUDIES = 104, 0.95, 0.05, 3.0, 50
THRESHOLD = 1.2  # refers 12 in 100 without the condition, and 96 in 100 with it
KINDS = 4  # lights without labels
BAND, ACCEPTED = (0.13, 0.20), 0.05


@cache
def _rates(weekly: int, at_most: float, looks: int) -> np.ndarray:
    """Return the bets against a rate by weeks (less one) and ones; they are the same for every device."""
    n = weekly * np.arange(1, looks + 1)[:, None]
    ones = np.arange(weekly * looks + 1)[None]
    return np.where(ones <= n, log_e_values(np.minimum(ones, n), n, at_most), -np.inf)


def constant_rate_bets(ones: np.ndarray, weekly: int, at_most: float) -> np.ndarray:
    """Return what `rate_bets` returns of `weekly` outcomes in every week, looked up."""
    looks = len(ones)
    lasting = np.maximum(np.arange(looks)[None] - np.arange(looks)[:, None], 0)
    return _rates(weekly, at_most, looks)[lasting, since(ones)]


def recall_alarm(rng: np.random.Generator, recall: np.ndarray, weekly: int) -> int | None:
    """Return the week (from 0) of the alarm of a device with this recall in each week; None where there is none."""
    missed = rng.binomial(weekly, 1 - recall)
    return first_look(restarting(constant_rate_bets(missed, weekly, 1 - TARGET)), 1 / ALPHA)


@dataclass(frozen=True)
class Device:
    """What is frozen of a device's calibration: typicality values, and bins of scores without the condition."""

    typicality: np.ndarray
    edges: np.ndarray
    gaps: np.ndarray

    @classmethod
    def of(cls, rng: np.random.Generator, patients: int) -> Device:
        """Return a device that was calibrated on so many patients without the condition."""
        edges, gaps = score_bins(rng.normal(size=patients))
        below = int((edges <= THRESHOLD).sum())
        return cls(np.sort(rng.normal(size=patients)), edges[:below], gaps[:below])

    def alarms(self, rng: np.random.Generator, shift: np.ndarray) -> dict[str, int | None]:
        """Return the week of the alarm of each light without labels; `shift` (T,) in standard deviations."""
        shape = (len(shift), STUDIES)
        scores = rng.normal(size=shape) + SEPARATION * (rng.random(shape) < PREVALENCE) + shift[:, None] / 2
        values = rng.normal(size=shape) + shift[:, None]
        failed = rng.binomial(STUDIES, 0.02, len(shift))
        patients, referred = len(self.typicality), (scores >= THRESHOLD).sum(axis=1)
        low, high = BAND
        above = constant_rate_bets(referred, STUDIES, high)
        below = constant_rate_bets(STUDIES - referred, STUDIES, 1 - low)
        p_values = (1 + patients - np.searchsorted(self.typicality, values)) / (patients + 1)
        bins = p_value_bins(p_values.ravel(), patients).reshape(shape)
        of_scores = np.searchsorted(self.edges, scores, side="right")
        bets = {
            "referral": np.logaddexp(above, below) - np.log(2),  # as `band_bets`
            "scores": urn_bets(_counted(of_scores, len(self.gaps)), self.gaps),
            "typicality": urn_bets(_counted(bins, bins.max() + 1), p_value_gaps(patients)[: bins.max() + 1]),
            "quality": constant_rate_bets(failed, STUDIES, ACCEPTED),
        }
        return {kind: first_look(restarting(one), KINDS / ALPHA) for kind, one in bets.items()}


def _counted(bins: np.ndarray, many: int) -> np.ndarray:
    return np.stack([(bins == k).sum(axis=1) for k in range(many)], axis=1)


def delays(devices: int, run: Callable[[np.random.Generator], int | None], change: int, seed: int) -> dict[str, Any]:
    """Return the median delay in weeks of an alarm since `change`, and the shares that came before it, or never."""
    found = [run(np.random.default_rng([seed, device])) for device in range(devices)]
    after = [at - change + 1 if at is not None else np.inf for at in found if at is None or at >= change]
    return {
        "median_weeks": float(np.median(after)),
        "nine_in_ten_weeks": float(np.quantile(after, 0.9, method="inverted_cdf")),
        "before": sum(at is not None and at < change for at in found) / devices,
        "never": sum(at is None for at in found) / devices,
    }


def first_of(alarms: dict[str, int | None]) -> int | None:
    """Return the week of the first alarm of any light."""
    return min((at for at in alarms.values() if at is not None), default=None)


def outcomes(devices: int) -> dict[str, Any]:
    """Return false alarms at the target, and delays of a fall to 0.85 at once, and after a good year, by audits."""
    found: dict[str, Any] = {}
    for weekly in (5, 50):
        steady = np.full(WEEKS, TARGET)
        false = sum(recall_alarm(np.random.default_rng([1, k]), steady, weekly) is not None for k in range(devices))
        found[f"{weekly} audited positives a week"] = {
            "false_alarms": false / devices,
            "0.95 to 0.85 from the first week": _fall(devices, weekly, 0, TARGET),
            "0.95 to 0.85 after a year": _fall(devices, weekly, WEEKS // 2, TARGET),
            "0.98 to 0.85 after a year": _fall(devices, weekly, WEEKS // 2, 0.98),
        }
    return found


def _fall(devices: int, weekly: int, change: int, before: float) -> dict[str, Any]:
    recall = np.where(np.arange(WEEKS) < change, before, 0.85)
    return delays(devices, lambda rng: recall_alarm(rng, recall, weekly), change, 2)


def swaps(devices: int, patients: int) -> dict[str, Any]:
    """Return false alarms of the lights without labels, and delays after another scanner came after a year."""
    steady = [
        Device.of(rng := np.random.default_rng([3, k]), patients).alarms(rng, np.zeros(WEEKS)) for k in range(devices)
    ]
    found: dict[str, Any] = {
        "false_alarms": sum(first_of(one) is not None for one in steady) / devices,
        "by_light": {kind: sum(one[kind] is not None for one in steady) / devices for kind in steady[0]},
    }
    change = WEEKS // 2
    for size in (0.5, 1.0, 2.0):
        shift = np.where(np.arange(WEEKS) < change, 0.0, size)

        def run(rng: np.random.Generator, shift: np.ndarray = shift) -> int | None:
            return first_of(Device.of(rng, patients).alarms(rng, shift))

        found[f"{size:g} standard deviations"] = delays(devices, run, change, 4)
    return found


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=1000)
    devices = parser.parse_args().devices
    found = {"devices": devices, "weeks": WEEKS, "outcomes": outcomes(devices)}
    for patients in (60, 120, 500):
        found[f"without labels, {patients} calibration patients"] = swaps(devices, patients)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
