"""The promises of monitor on simulated devices: few false alarms in two years, falls and scanners noticed."""

import numpy as np
from benchmarks.monitor_simulation import BAND, WEEKS, Device, constant_rate_bets, delays, first_of, recall_alarm

from pipeline.statistics.drift import rate_bets, restarting


def test_bets_that_are_looked_up_are_those_of_the_product():
    ones = np.random.default_rng(0).binomial(50, 0.2, 30)
    for at_most in (0.05, BAND[1], 1 - BAND[0]):
        own = restarting(constant_rate_bets(ones, 50, at_most))
        np.testing.assert_allclose(own, restarting(rate_bets(ones, np.full(30, 50), at_most)))


def test_at_exactly_the_target_few_devices_ever_cry_wolf():
    steady = np.full(WEEKS, 0.95)
    alarms = sum(recall_alarm(np.random.default_rng([9, k]), steady, 5) is not None for k in range(100))
    assert alarms <= 5


def test_a_fall_after_a_good_year_is_noticed_within_weeks():
    recall = np.where(np.arange(WEEKS) < 52, 0.95, 0.85)
    found = delays(20, lambda rng: recall_alarm(rng, recall, 50), 52, 1)
    assert found["median_weeks"] <= 6
    assert found["never"] == 0


def test_another_scanner_is_noticed_without_labels_and_the_same_one_is_not():
    swap = np.where(np.arange(WEEKS) < 52, 0.0, 1.0)

    def run(rng, shift=swap):
        return first_of(Device.of(rng, 120).alarms(rng, shift))

    assert delays(6, run, 52, 1)["median_weeks"] <= 3
    assert sum(run(np.random.default_rng([2, k]), np.zeros(WEEKS)) is not None for k in range(20)) <= 1
