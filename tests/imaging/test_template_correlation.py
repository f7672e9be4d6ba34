"""A negative among positives is unlike the average of its kind; few or blank images have no likeness."""

import numpy as np
import pandas as pd

from pipeline.imaging.copies.template_correlation import FEWEST_OF_A_KIND, INVERTED_BELOW, likeness


def compared(small: np.ndarray, views: list[str]) -> np.ndarray:
    images = pd.DataFrame({"axes": 2, "modality": "DX", "body_part": "CHEST", "view": views})
    return likeness(images, lambda start, stop: small[start:stop])


def ovals(count: int) -> np.ndarray:
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    noise = np.random.default_rng(0).normal(0, 30, (count, 32, 32))
    return (200 - 150 * (x**2 + y**2) + noise).clip(0, 255).astype(np.uint8).reshape(count, -1)


def test_a_negative_is_far_below_the_others():
    small = ovals(40)
    small[11] = 255 - small[11]
    found = compared(small, ["PA"] * 40)
    assert found[11] < INVERTED_BELOW
    assert np.delete(found, 11).min() > 0.5


def test_kinds_are_compared_with_their_own():
    small = ovals(60)
    small[30:] = 255 - small[30:]  # as lateral views might look
    assert compared(small, ["PA"] * 30 + ["LL"] * 30).min() > 0.5


def test_few_of_a_kind_and_blank_images_have_none():
    small = ovals(FEWEST_OF_A_KIND + 1)
    small[0] = 9
    assert np.isnan(compared(small, ["PA"] * len(small))[0])
    assert np.isnan(compared(small[: FEWEST_OF_A_KIND - 1], ["PA"] * (FEWEST_OF_A_KIND - 1))).all()
    assert compared(small[:0], []).size == 0
