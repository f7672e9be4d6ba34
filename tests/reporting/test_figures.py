"""Charts and diagrams: what must be visible is drawn, whatever the numbers."""

import math
import re
import xml.etree.ElementTree as ET
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.reporting.diagrams import flow, gallery, icons, whole
from pipeline.reporting.figures import (
    arms,
    decision,
    forest,
    label_curve,
    precision_recall,
    pretraining_loss,
    reliability,
    roc,
    score_histogram,
)
from pipeline.store.results.interval import Interval

UNDEFINED = Interval(math.nan, math.nan, math.nan, 0.95, "wilson", 0)


def point(**changes) -> Any:
    share = Interval(0.9, 0.85, 0.94, 0.95, "wilson", 200)
    return SimpleNamespace(**{"recall": share, "specificity": share, "ppv": share, **changes})


def curve(x, y):
    return pd.DataFrame({"x": x, "y": y, "y_low": np.nan, "y_high": np.nan})


def test_the_histogram_shows_both_classes_however_unequal():
    generator = np.random.default_rng(1)
    score = np.concatenate([generator.normal(0, 1, 2000), generator.normal(2, 1, 12)])
    picture = score_histogram(score, np.repeat([0, 1], [2000, 12]), 0.5).decode()
    for name in ("without_condition", "with_condition"):
        bars = re.findall(rf'<g id="{name}">\s*<path d="([^"]+)"', picture)
        assert len(bars) == 40
        heights = [np.ptp([float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", bar)]) for bar in bars]
        assert max(heights) > 20, f"no visible bar for {name}"
    assert "url(#h" in picture, "the classes differ by hatching, not by colour alone"


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1], [0, 1, 1]])
def test_one_class_or_one_score_still_draws(labels):
    assert ET.fromstring(score_histogram(np.array([0.5, 0.5, 0.5]), np.array(labels), None)) is not None


def test_every_figure_is_well_formed_and_the_same_each_time():
    groups = pd.DataFrame(
        {"name": ["sex: F", "site: $x$_{2}"]}
        | {f"{m}{limit}": [0.9, np.nan] for m in ("recall", "auc") for limit in ("", "_low", "_high")}
    )
    compared = pd.DataFrame(
        {c: [0.9, 0.8] for c in ("auc", "auc_low", "auc_high", "auc_seed_min", "auc_seed_max")} | {"arm": ["a", "b"]}
    )
    fractions = compared.assign(labelled_patients=[10, 1000])
    history = [
        {"epoch": 1, "train_loss": 1.0, "held_out_loss": None},
        {"epoch": 2, "train_loss": 0.5, "held_out_loss": 0.6},
    ]
    draws = {
        "roc": lambda: roc(curve([0, 0, 1], [0, 1, 1]), point()),
        "roc without curve": lambda: roc(curve([], []), None),
        "undefined point": lambda: precision_recall(curve([0.5, 1], [1, 0.5]), 0.5, point(ppv=UNDEFINED)),
        "reliability": lambda: reliability(curve([0.1, 0.9], [0.2, 0.8]), curve([0.5], [0.5])),
        "decision": lambda: decision(
            {"model": curve([0.1, 0.9], [0.3, 0.0]), "all": curve([0.1, 0.9], [0.2, -5])}, 0.2
        ),
        "decision of no use": lambda: decision({"model": curve([0.1, 0.9], [-0.1, -0.2])}, 0.2),
        "forest": lambda: forest(groups, {"recall": "Sensitivity", "auc": "AUC"}, {"recall": 0.9, "auc": float("nan")}),
        "arms": lambda: arms(compared, ["one", "two"]),
        "label curve": lambda: label_curve(dict.fromkeys(("one", "two", "three", "four", "five"), fractions)),
        "loss": lambda: pretraining_loss(history),
        "icons": lambda: icons(48.2, 1.8, 299.5, 1000),
        "flow": lambda: flow(10, ["accepted 8"], {"no pixels": 2}, [["training"], ["test"]]),
        "nothing set aside": lambda: flow(8, ["accepted 8"], {}, [["training"], ["test"]]),
        "gallery": lambda: gallery([np.zeros((8, 8), np.uint8)] * 5, [None, np.eye(8) > 0] * 2 + [None], ["x"] * 5),
    }
    for name, draw in draws.items():
        first = draw()
        assert ET.fromstring(first).tag.endswith("svg"), name
        assert first == draw(), name
        assert b"<dc:date>" not in first, name


def test_a_thousand_marks_are_a_thousand_people():
    assert whole([48.2, 1.8, 299.5, 650.5], 1000) == [48, 2, 300, 650]
    picture = icons(48.2, 1.8, 299.5, 1000).decode()
    marks = picture[: picture.index('<g id="legend_1">')].count("<use ")
    assert marks == 1000


def test_an_outline_stands_beside_the_untouched_image_and_closes_at_its_edges():
    image, area = np.full((8, 8), 100, np.uint8), np.zeros((8, 8), bool)
    area[:4, :4] = True
    plain, outlined = gallery([image], [None], ["x"]), gallery([image], [area], ["x"])
    assert plain.count(b"<image") == 1
    assert outlined.count(b"<image") == 2
    pictures = re.findall(rb'xlink:href="data:image/png;base64,([^"]+)"', outlined)
    assert pictures[0] == pictures[1], "the outline is drawn over the picture, never into it"
    assert plain.count(b"stroke: #ffffff") == 0
    assert outlined.count(b"stroke: #ffffff") == 1
