"""Reporting guidelines: complete item lists, and answers that depend on the card and the data."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.reporting.checklists import CLAIM, FACTS, GUIDELINES, STARD_AI, TRIPOD_AI, Guideline, Item, answer
from pipeline.reporting.content import SECTIONS
from pipeline.reporting.evidence import Example
from pipeline.settings.card import Card, StudyStatements
from pipeline.store.results.metrics import Excluded, ExternalSet

CARD: dict[str, Any] = {
    "source": "a hospital",
    "known_traps": [],
    "intended_use": {"user": "a radiologist", "place": "not stated"},
    "label": {"definition": "both readers see it"},
    "study": StudyStatements(funding="a foundation").model_dump(),
}


def evidence(**changes: Any) -> Any:
    """Return the part of the evidence that decides about items."""
    images = pd.DataFrame({"sex": ["F", ""], "age_years": [np.nan] * 2, "site": ["a", "a"], "manufacturer": ["", ""]})
    return SimpleNamespace(
        **{
            "card": CARD,
            "images": images,
            "subgroups": pd.DataFrame(),
            "point": None,
            "misses": [],
            "false_alarms": [],
            "metrics": SimpleNamespace(external={}),
            "read_first": False,
            "between_sites": (),
        }
        | changes
    )


@pytest.mark.parametrize(
    ("guideline", "numbers", "parts"),
    [
        (STARD_AI, 40, {"15": "abcd", "16": "abc", "17": "ab", "26": "ab", "40": "ab"}),
        (CLAIM, 44, {}),
        (TRIPOD_AI, 27, {"3": "abc", "5": "ab", "6": "abc", "8": "abc", "9": "abc", "12": "abcdefg", "18": "abcdef",
                         "20": "abc", "23": "ab", "27": "abc"}),
    ],
)  # fmt: skip
def test_every_item_of_a_guideline_is_there_once_and_in_order(guideline: Guideline, numbers: int, parts: dict):
    expected = [f"{n}{part}" for n in range(1, numbers + 1) for part in parts.get(str(n), [""])]
    assert [item.number for item in guideline.items] == expected
    assert "doi:" in guideline.publication


def test_items_lead_to_sections_that_exist_and_need_what_can_be_had():
    fields = {f"study.{name}" for name in StudyStatements.model_fields}
    sections = {function.__name__ for function in SECTIONS}
    for item in (item for guideline in GUIDELINES for item in guideline.items):
        assert not item.section or item.section in sections, item
        assert bool(item.section) or item.why
        for need in item.needs:
            top = need.split(".")[0]
            assert need in FACTS or need in fields or top in set(Card.model_fields) - {"study"}, item
    asked = {need for guideline in GUIDELINES for item in guideline.items for need in item.needs}
    assert fields <= asked, "a statement that no guideline asks for need not be asked for"


def test_an_item_is_missing_until_the_card_states_it():
    item = Item("1", "what was done, and who paid", "statements", ("study.ethics", "study.funding"))
    assert answer(item, evidence()).section == ""
    assert answer(item, evidence()).missing == "the card does not state study.ethics"
    for said, there in (("approved", True), ("", False), (" Not stated ", False)):
        card = CARD | {"study": CARD["study"] | {"ethics": said}}
        assert bool(answer(item, evidence(card=card)).section) is there
    assert answer(Item("2", "limits", "intended_use", ("known_traps",)), evidence()).missing
    assert not answer(Item("3", "user", "intended_use", ("intended_use.user",)), evidence()).missing


def test_an_item_is_missing_until_the_data_hold_it():
    example = Example("p", np.zeros((2, 2)), np.ones((2, 2), bool), 1.0, 1, 0.0, None, "", "")
    images = evidence().images
    holding = {
        "demographics": {},
        "manufacturer": {"images": images.assign(manufacturer="GE")},
        "subgroups": {"subgroups": pd.DataFrame({"attribute": ["sex", "site"], "group": ["F", "unknown"]})},
        "first reading": {"read_first": True},
        "gaps": {"point": {"threshold": 1}, "subgroups": pd.DataFrame({"recall_gap": [0.1, np.nan]})},
        "between sites": {"between_sites": [{"recall": None, "specificity": None, "auc": {"sites": 2}}]},
        "operating point": {"point": {"threshold": 1}},
        "external set": {"metrics": SimpleNamespace(external={"b": SimpleNamespace(judged=object())})},
        "outlines": {"misses": [replace(example, outlined=None), example]},
    }
    without = {
        "gaps": {"point": {"threshold": 1}, "subgroups": pd.DataFrame({"recall_gap": [np.nan]})},
        "demographics": {"images": images.assign(sex="")},
        "between sites": {"between_sites": [{"recall": None, "specificity": None, "auc": None}]},
        "subgroups": {"subgroups": pd.DataFrame({"attribute": ["sex", "site"], "group": ["unknown", "unknown"]})},
        "external set": {"metrics": SimpleNamespace(external={"b": ExternalSet("b", Excluded(7, {}), None)})},
        "outlines": {"misses": [replace(example, outlined=None)]},
    }
    assert set(holding) == set(FACTS)
    for fact, changes in holding.items():
        item = Item("1", "something", "studies", (fact,))
        assert answer(item, evidence(**changes)).section == "studies"
        assert answer(item, evidence(**without.get(fact, {}))).missing == FACTS[fact][1]


def test_what_the_pipeline_cannot_know_is_missing_whatever_the_card_says():
    assert answer(Item("1", "the future", why="nobody knows"), evidence()).missing == "nobody knows"
