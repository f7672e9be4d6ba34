"""One of each image per patient is kept, conflicts are refused, sharing between patients is flagged."""

import pandas as pd

from pipeline.imaging.copies.duplicates import met_before, resolve_duplicates


def table(*rows: tuple[str, str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["first_source", "image_id", "patient_id", "pixel_hash"])


def refused(frame: pd.DataFrame) -> dict[str, str]:
    result = resolve_duplicates(frame).refused
    return dict(zip(result["first_source"], result["reason"], strict=True))


def test_an_image_of_another_dataset_is_met_again_by_pixels_identifier_or_patient():
    known = pd.DataFrame({"image_id": ["a", "b"], "patient_id": ["p", "q"], "pixel_hash": ["x", "y"]})
    images = pd.DataFrame(
        {"image_id": ["c", "b", "d", "e"], "patient_id": ["r", "s", "q", "t"], "pixel_hash": ["x", "u", "v", "w"]}
    )
    assert met_before(known, images).to_dict() == {"c": "same image", "b": "same image", "d": "same patient"}


def test_different_images_are_kept():
    result = resolve_duplicates(table(("s1", "i1", "p1", "x"), ("s2", "i2", "p1", "y")))
    assert len(result.kept) == 2
    assert not any(result.counts.values())


def test_the_first_of_equal_images_is_kept_in_whatever_order_they_come():
    rows = [("s3", "i1", "p1", "x"), ("s1", "i1", "p1", "x"), ("s2", "i2", "p1", "x")]
    for order in (rows, rows[::-1]):
        result = resolve_duplicates(table(*order))
        assert result.kept["first_source"].tolist() == ["s1"]
        assert refused(table(*order)) == {"s2": "duplicate", "s3": "duplicate"}
        assert (result.counts["same_image"], result.counts["same_pixels"]) == (1, 1)


def test_different_pixels_or_patients_under_one_uid_are_all_refused():
    frame = table(("s1", "i1", "p1", "x"), ("s2", "i1", "p1", "y"), ("s3", "i2", "p1", "z"), ("s4", "i2", "p2", "z"))
    assert refused(frame) == dict.fromkeys(("s1", "s2", "s3", "s4"), "uid_conflict")


def test_pixels_shared_by_patients_are_kept_and_flagged():
    result = resolve_duplicates(table(("s1", "i1", "p1", "x"), ("s2", "i2", "p2", "x"), ("s3", "i3", "p3", "y")))
    assert result.kept["shared"].tolist() == [True, True, False]
    assert result.counts["images_shared_between_patients"] == 2
    assert result.counts["patients_sharing_images"] == 2
