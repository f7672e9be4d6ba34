"""Copies are found although they were changed; images of different patients are not."""

import io

import numpy as np
import pytest
from benchmarks.near_copies import CHANGES, disc
from PIL import Image as pillow
from PIL import ImageEnhance

from pipeline.imaging.copies.fingerprints import CORRELATION, PERCEPTUAL_DISTANCE, Fingerprint, Link, fingerprint, links

SIDE = 200


def picture(number: int) -> np.ndarray:
    """Return a bright oval with structures of its own, as chests have in common and apart."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE * 2 - 1
    bumps = np.random.default_rng(number).normal(size=(9, 9)).astype(np.float32)
    rough = np.asarray(pillow.fromarray(bumps).resize((SIDE, SIDE), pillow.Resampling.BICUBIC))
    return ((1.3 - x**2 - y**2 + 0.25 * rough) * 100).clip(0, 255).astype(np.uint8)


def found(pictures: list[np.ndarray], known: int | None = None) -> list[Link]:
    prints = [fingerprint(p.astype(np.float32)) for p in pictures]
    hashes = [
        np.stack([np.frombuffer(getattr(p, name), np.uint8) if p else np.zeros(32, np.uint8) for p in prints])
        for name in ("perceptual", "mirrored", "gradient")
    ]
    small = np.stack([np.frombuffer(p.small, np.uint8) if p else np.zeros(1024, np.uint8) for p in prints])
    return list(links(*hashes, lambda start, stop: small[start:stop], known))


def jpeg(pixels: np.ndarray) -> np.ndarray:
    stream = io.BytesIO()
    pillow.fromarray(pixels).save(stream, "JPEG", quality=50)
    return np.asarray(pillow.open(stream))


@pytest.mark.parametrize(
    ("how", "change"),
    [
        ("copy", jpeg),
        ("copy", lambda p: np.asarray(pillow.fromarray(p).resize((117, 131)))),
        ("copy", lambda p: (p * 0.7 + 20).astype(np.uint8)),
        ("copy", lambda p: np.asarray(ImageEnhance.Contrast(pillow.fromarray(p)).enhance(1.3))),
        ("copy", lambda p: (255 * (p / 255) ** 0.8).astype(np.uint8)),
        ("copy", lambda p: p.astype(np.uint16) * 16),
        ("mirrored", lambda p: p[:, ::-1]),
        ("inverted", lambda p: 255 - p),
    ],
    ids=["jpeg", "resized", "window", "contrast", "gamma", "bits", "mirrored", "inverted"],
)
def test_a_changed_copy_is_found(how, change):
    pictures = [picture(n) for n in range(20)]
    result = found([*pictures, change(pictures[7])])
    assert [(link.first, link.second, link.how) for link in result] == [(7, 20, how)]
    assert result[0].distance <= PERCEPTUAL_DISTANCE or result[0].correlation > CORRELATION


def test_different_pictures_are_not_linked_beyond_one_block_either(monkeypatch):
    monkeypatch.setattr("pipeline.imaging.copies.fingerprints.BLOCK", 16)
    pictures = [picture(n) for n in range(60)]
    assert found(pictures) == []
    assert [(link.first, link.second) for link in found([*pictures, jpeg(pictures[3])])] == [(3, 60)]


def test_of_two_sets_only_pairs_between_them_are_found(monkeypatch):
    monkeypatch.setattr("pipeline.imaging.copies.fingerprints.BLOCK", 16)
    known = [picture(n) for n in range(37)]
    pictures = [*known, known[5], *(picture(n) for n in range(50, 90)), known[36], picture(60)]
    pairs = [(link.first, link.second) for link in found([*pictures[:36], known[5], *pictures[37:]], known=37)]
    assert sorted(pairs) == [(5, 37), (36, 37)]
    assert sorted((link.first, link.second) for link in found(pictures, known=37)) == [(5, 37), (36, 78)]
    assert found(pictures, known=0) == []


def test_a_blank_image_has_no_fingerprint_and_no_duplicates():
    assert fingerprint(np.full((50, 60), 7, np.float32)) is None
    blank = np.full((SIDE, SIDE), 7, np.uint8)
    assert found([blank, blank, picture(1)]) == []


def test_a_volume_is_known_by_its_middle_plane():
    volume = np.stack([picture(n) for n in range(5)]).astype(np.float32)
    of_volume, of_plane = fingerprint(volume), fingerprint(volume[2])
    assert isinstance(of_volume, Fingerprint)
    assert of_volume == of_plane


ALIKE = [disc(number) for number in range(200)]


def test_pictures_that_are_all_alike_are_not_taken_for_copies():
    prints = [fingerprint(p.astype(np.float32)) for p in ALIKE]
    hashes = np.stack([np.frombuffer(p.perceptual, np.uint8) for p in prints])
    differing = np.unpackbits(hashes[:, None] ^ hashes[None], axis=2).sum(axis=2)
    assert np.triu(differing <= PERCEPTUAL_DISTANCE, 1).sum() > 2, "hashes alone would link them"
    assert found(ALIKE) == []


def test_copies_among_pictures_that_are_all_alike_are_found():
    # These leave a clear mark on so few pictures of 160 pixels; the benchmark has all changes, on more.
    sure = ("brightened", "noise 2 %", "JPEG quality 50", "mirrored", "inverted", "half the size", "turned by 1 degree")
    changes = [CHANGES[name] for name in sure]
    copies = [np.clip(np.asarray(change(ALIKE[20 * n])), 0, 255).astype(np.uint8) for n, change in enumerate(changes)]
    pairs = {(link.first, link.second) for link in found([*ALIKE, *copies])}
    assert pairs == {(20 * n, 200 + n) for n in range(len(copies))}


def test_many_copies_of_one_picture_do_not_hide_each_other():
    pairs = {(link.first, link.second) for link in found([*ALIKE[:100], *[jpeg(ALIKE[7])] * 60])}
    same = [7, *range(100, 160)]
    assert pairs >= {(first, second) for first in same for second in same if first < second}
