"""What differs is named by closed lists and bands; what a header says in words of its own never appears."""

import pytest

from pipeline.inference.header_remarks import (
    AGE_BANDS,
    SPACING_BANDS,
    age_band,
    header_remarks,
    header_values,
    spacing_band,
)

TRAINING = {
    "modality": {"DX": 1200, "CR": 34},
    "view": {"AP": 700, "PA": 534},
    "body_part": {"CHEST": 1234},
    "pixel_spacing": {"0.1 to 0.2 mm": 1234},
    "age": {"1 to 4 years": 1200, "5 to 17 years": 4},
}
LIKE_THEM = {"modality": "DX", "view": "PA", "body_part": "CHEST", "spacing_mm": (0.14, 0.14), "age_years": 3.5}


def test_a_study_like_the_training_images_has_no_remark():
    assert header_remarks(LIKE_THEM, TRAINING) == []


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        (
            {"modality": "CT"},
            "modality: CT; none of 1,234 training images had it (most frequent: 1,200 DX, 34 CR)",
        ),
        ({"view": "LL"}, "view: LL; none of 1,234 training images had it (most frequent: 700 AP, 534 PA)"),
        (
            {"body_part": "Knee"},
            "body part: KNEE; none of 1,234 training images had it (most frequent: 1,234 CHEST)",
        ),
        (
            {"spacing_mm": (0.5, 0.5)},
            "pixel spacing: 0.4 to 0.8 mm; none of 1,234 training images had it (most frequent: 1,234 0.1 to 0.2 mm)",
        ),
        (
            {"age_years": 70},
            "age: 65 years or more; none of 1,204 training images had it "
            "(most frequent: 1,200 1 to 4 years, 4 5 to 17 years)",
        ),
        (
            {"age_years": 9.0},
            "age: 5 to 17 years; only 4 of 1,204 training images had it "
            "(most frequent: 1,200 1 to 4 years, 4 5 to 17 years)",
        ),
    ],
)
def test_each_difference_is_named(change, remark):
    assert header_remarks(LIKE_THEM | change, TRAINING) == [remark]


def test_text_of_a_header_or_of_the_counts_never_appears():
    seen = {"modality": "Jane Doe", "view": "Jane Doe", "body_part": "Jane Doe's chest", "patient": "Jane Doe"}
    counts = {**TRAINING, "modality": {"DX": 5, "John Roe": 500}}
    remarks = header_remarks(seen, counts)
    assert len(remarks) == 2
    assert remarks[0].startswith("modality: one that is not in the list; none of 5 training images")
    assert not [remark for remark in remarks if "Doe" in remark or "Roe" in remark]


def test_what_one_side_does_not_state_is_no_difference():
    assert header_remarks({}, TRAINING) == []
    empty = {"modality": "", "view": None, "spacing_mm": None, "age_years": float("nan")}
    assert header_remarks(empty, TRAINING) == []
    assert header_remarks(LIKE_THEM, {"modality": {}}) == []


def test_volumes_have_a_spacing_of_slices_in_whatever_axis():
    for spacing_mm in ((5.0, 0.7, 0.7), (0.7, 5.0, 0.7)):
        values = header_values({"spacing_mm": spacing_mm})
        assert values == {"pixel_spacing": "0.4 to 0.8 mm", "slice_spacing": "3.2 to 6.4 mm"}


def test_bands_cover_everything_without_overlap():
    assert [spacing_band(mm) for mm in (0.01, 0.05, 0.0999, 0.1, 6.4, 90)] == [
        SPACING_BANDS[n] for n in (0, 1, 1, 2, 8, 8)
    ]
    assert [age_band(years) for years in (0.5, 1, 4.9, 5, 17, 18, 64, 90)] == [
        AGE_BANDS[n] for n in (0, 1, 1, 2, 2, 3, 4, 5)
    ]
