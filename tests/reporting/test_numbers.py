"""How numbers are written."""

import math

import pytest

from pipeline.reporting.numbers import (
    count,
    interval,
    limits,
    number,
    p_value,
    people_interval,
    percent,
    plain_percent,
    probability,
    share,
    short_interval,
)
from pipeline.store.results.interval import Interval


def an_interval(value, low, high, n=312):
    return Interval(value, low, high, 0.95, "wilson", n)


def test_an_interval_says_value_level_limits_and_n():
    assert interval(an_interval(0.953, 0.9214, 0.9761)) == "0.953 (95 % interval 0.921–0.976, n = 312)"
    assert (
        interval(an_interval(0.953, 0.9214, 0.9761), as_percent=True) == "95.3 % (95 % interval 92.1–97.6 %, n = 312)"
    )


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_a_number_that_does_not_exist_says_so_and_why(nothing):
    whole = interval(an_interval(nothing, nothing, nothing, 0), why="nobody was referred")
    assert whole == "not estimable (nobody was referred; n = 0)"
    without_limits = interval(an_interval(1.0, nothing, nothing), why="it is exactly 1")
    assert without_limits == "1.000 (95 % interval not estimable: it is exactly 1; n = 312)"
    assert number(nothing) == percent(nothing) == count(nothing) == p_value(nothing) == "not estimable"
    assert short_interval(nothing, nothing, nothing) == "not estimable"


def test_an_interval_with_one_limit():
    assert limits(3.1, None) == "at least 3.100"
    assert interval(an_interval(None, 3.1, None)) == "not estimable (95 % interval at least 3.100, n = 312)"


def test_signs_and_dashes_cannot_be_confused():
    assert number(-0.12) == "−0.120"
    assert number(-0.0001) == "0.000"
    assert limits(-0.12, 0.03) == "−0.120 to 0.030"


def test_digits_may_be_none():
    assert limits(89.6, 110.2, digits=0) == "90–110"
    assert short_interval(0.123, 0.1, 0.2, digits=0, scale=100) == "12 (10–20)"


def test_counts_and_shares():
    assert count(5216) == "5,216"
    assert share(12, 340) == "12 of 340 (3.5 %)"
    assert share(0, 0) == "0 of 0"
    assert [plain_percent(p) for p in (0.05, 0.005, 0.95, 0.975)] == ["5 %", "0.5 %", "95 %", "97.5 %"]
    assert p_value(0.00004) == "below 0.001"


def test_people_are_whole_and_rounding_never_narrows_an_interval():
    assert people_interval(an_interval(347.6, 320.6, 376.1), 1000) == "348 (320–377)"
    assert people_interval(an_interval(0.3, 0.01, 0.9), 1000) == "fewer than 1 (0–1)"
    assert people_interval(an_interval(999.8, 998.2, 1000.0), 1000) == "1,000 (998–1,000)"
    assert people_interval(an_interval(0.0, 0.0, 1.2), 1000) == "0 (0–2)"


@pytest.mark.parametrize(
    ("p", "text"), [(0.0003, "< 0.001"), (0.0006, "0.001"), (0.5, "0.500"), (0.9994, "0.999"), (0.9996, "> 0.999")]
)
def test_no_probability_reads_as_0_or_1(p, text):
    assert probability(p) == text
    assert probability(None) == probability(float("nan")) == "not estimable"
