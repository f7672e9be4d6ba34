"""The changes that the benchmark of small sets tries, and how it judges them."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))  # as when the script is started

from benchmarks.small_sets import AS_PROPOSED, CHANGES, chosen, compared

from pipeline.settings.load import load_settings
from pipeline.statistics.patients import Patients

CONFIG = Path(__file__).parents[1] / "configs" / "chest_xray_cpu.yaml"


def rows(**options):
    return chosen(Namespace(**{"only": None, "start": None, "flips": [], **options}))


def test_every_change_is_one_of_settings_that_there_are():
    everything = rows(start=Path("encoder.safetensors"), flips=["horizontal", "vertical"])
    assert next(iter(everything)) == AS_PROPOSED
    settings = [load_settings(CONFIG, list(overrides)) for overrides in everything.values()]
    assert len({one.model_dump_json() for one in settings}) == len(settings) == len(CHANGES) + 3


def test_the_settings_as_they_are_come_first_whatever_is_chosen():
    assert list(rows(only=[])) == [AS_PROPOSED]
    assert list(rows(only=["mask ratio 0.9", "EMA of 0.99"])) == [AS_PROPOSED, "mask ratio 0.9", "EMA of 0.99"]


def patients(scores) -> Patients:
    labels = np.array([1, 1, 1, 0, 0, 0])
    return Patients(np.array(list("abcdef")), labels, np.array(scores, float), 6, 0, (1,))


def test_a_change_is_judged_by_the_same_patients():
    base, better = patients([3, 1, 2, 2.5, 0, -1]), patients([4, 5, 6, 1, 2, 3])
    found = compared(better, base)
    assert found["auc"] == 1.0
    assert found["difference"] == pytest.approx(1 - 7 / 9, abs=1e-4)
    assert found["low"] < found["difference"] < found["high"]
