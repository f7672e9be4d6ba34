"""The changes that the benchmark of small sets tries, and how it judges them."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))  # as when the script is started

from benchmarks import small_sets
from benchmarks.small_sets import AS_PROPOSED, CHANGES, VARIANTS, chosen, compared, program

from pipeline.settings.load import load_settings
from pipeline.statistics.patients import Patients

CONFIG = Path(__file__).parents[1] / "configs" / "chest_xray_cpu.yaml"


def rows(**options):
    return chosen(Namespace(**{"only": None, "start": None, "flips": [], **options}))


def test_every_change_is_one_of_settings_that_there_are():
    everything = rows(start=Path("encoder.safetensors"), flips=["horizontal", "vertical"])
    assert next(iter(everything)) == AS_PROPOSED
    settings = {name: load_settings(CONFIG, list(overrides)) for name, overrides in everything.items()}
    assert len(settings) == len(CHANGES) + 3
    told_apart = {one.model_dump_json() for name, one in settings.items() if name not in VARIANTS}
    assert len(told_apart) == len(settings) - len(VARIANTS)


def test_what_no_setting_does_is_run_by_the_script_of_variants():
    assert [name for name, overrides in rows().items() if not overrides] == [AS_PROPOSED, *VARIANTS]
    for name in rows():
        assert (program(name)[1:] == [str(Path(small_sets.__file__).with_name("variants.py")), name]) == (
            name in VARIANTS
        )


def test_the_settings_as_they_are_come_first_whatever_is_chosen():
    assert list(rows(only=[])) == [AS_PROPOSED]
    assert list(rows(only=["mask ratio 0.9", "EMA of 0.99"])) == [AS_PROPOSED, "mask ratio 0.9", "EMA of 0.99"]


def patients(scores) -> Patients:
    labels = np.array([1, 1, 1, 0, 0, 0])
    return Patients(np.array(list("abcdef")), labels, np.array(scores, float), 6, 0, (1,))


def test_a_change_is_judged_by_the_same_patients():
    base, better = patients([3, 1, 2, 2.5, 0, -1]), patients([4, 5, 6, 1, 2, 3])
    found = compared(better, base)
    assert (found["auc"], found["auc_high"]) == (1.0, 1.0)
    assert 0.3 < found["auc_low"] < 0.9  # Newcombe's, of three and three
    assert found["difference"] == pytest.approx(1 - 7 / 9, abs=1e-4)
    assert found["low"] < found["difference"] < found["high"]
