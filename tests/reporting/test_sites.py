"""Sites leave as letters, and nothing else is changed by that."""

import json

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.reporting.sites import Sites, letter

NAMES = ("itx3sj7hctiwqlp74ybsjgit54", "ykzcjrxf4sowz6uykvgkdrzdoq", "z4cnka43seuzabcdefghijklmn")
SITES = Sites([NAMES[2], NAMES[0], "", NAMES[1], NAMES[0]])


def test_letters_follow_the_order_of_pseudonyms_and_go_on_after_z():
    assert dict(SITES.letters) == dict(zip(NAMES, "ABC", strict=True))
    assert [letter(at) for at in (0, 25, 26, 27, 51, 52, 701, 702)] == ["A", "Z", "AA", "AB", "AZ", "BA", "ZZ", "AAA"]
    assert [SITES.of(name) for name in (NAMES[1], "", "elsewhere")] == ["B", "", ""]


def test_whole_and_shortened_names_are_replaced_in_text_keys_and_lists():
    value = {
        f"site {NAMES[0][:12]}": [f"Site {NAMES[1]}: 3 missed; {NAMES[2][:12]}.", 4, None],
        "group": NAMES[2],
        "longer": f"x{NAMES[0]} {NAMES[0]}y",
    }
    assert SITES.lettered(value) == {
        "site A": ["Site B: 3 missed; C.", 4, None],
        "group": "C",
        "longer": value["longer"],
    }


def test_groups_of_other_attributes_and_unknown_sites_keep_their_names():
    frame = pd.DataFrame(
        {"attribute": ["site", "site", "site", "view"], "group": [NAMES[1], "several", "unknown", NAMES[0]]}
    )
    assert SITES.lettered_groups(frame)["group"].tolist() == ["B", "several", "unknown", NAMES[0]]
    assert SITES.lettered_groups(pd.DataFrame()).empty


def test_without_sites_nothing_changes():
    none = Sites(["", ""])
    assert none.lettered({"a": [NAMES[0]]}) == {"a": [NAMES[0]]}


VALUES = st.recursive(
    st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@settings(max_examples=25)
@given(VALUES)
def test_json_without_sites_is_left_as_it_is(value):
    assert json.dumps(SITES.lettered(value)) == json.dumps(value)
