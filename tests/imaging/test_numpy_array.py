"""Arrays as files: exact values, no pickles, limits."""

import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from imaging.files import POLICY, gradient

from pipeline.imaging.archive.sources import find_sources, read_bytes
from pipeline.imaging.quarantine import Refused
from pipeline.imaging.read import read_image


def saved(values: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, **options)
    return stream.getvalue()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_values_are_exact(dtype):
    values = (gradient() // 40).astype(dtype)
    image = read_image(saved(values), POLICY)
    assert np.array_equal(image.pixels, values)
    assert image.about.format == "array"


def test_three_channels_are_colour_and_other_third_axes_a_volume():
    equal = np.repeat(gradient(20, 20)[..., None], 3, axis=2)
    assert read_image(saved(equal), POLICY).pixels.shape == (20, 20)
    assert read_image(saved(np.zeros((9, 20, 20))), POLICY).pixels.shape == (9, 20, 20)


def test_one_channel_at_either_end_and_an_opacity_of_one_value_count_for_nothing():
    grey = gradient(20, 20)
    opaque = np.dstack([grey, grey, grey, np.full_like(grey, 7)])
    for values in (grey[None], grey[..., None], grey[None, ..., None], opaque):
        image = read_image(saved(values), POLICY)
        assert np.array_equal(image.pixels, grey)
    assert image.about.bits_stored == 16
    opaque[3, 4, 3] = 8
    with pytest.raises(Refused) as refused:
        read_image(saved(opaque), POLICY)
    assert refused.value.refusal.reason == "colour"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (saved(np.array([{"a": 1}], dtype=object), allow_pickle=True), "bad_geometry"),
        (saved(np.array([[{"a": 1}]], dtype=object), allow_pickle=True), "bad_values"),
        (saved(np.zeros((8, 8), complex)), "bad_values"),
        (saved(np.full((8, 8), np.nan)), "bad_values"),
        (saved(np.full((8, 8), 1e300)), "bad_values"),
        (saved(np.zeros((8, 8)))[:-9], "damaged_pixels"),
        (2 * saved(np.zeros((8, 8))), "multi_frame"),
        (b"\x93NUMPY\x01\0\xff\xff{", "damaged_header"),
        (saved(np.zeros(9)), "bad_geometry"),
    ],
)
def test_what_is_no_image_has_its_reason(content, reason):
    with pytest.raises(Refused) as refused:
        read_image(content, replace(POLICY, min_side=1))
    assert refused.value.refusal.reason == reason


def test_the_images_of_an_archive_are_sources_of_their_own(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 9, 8)).astype(np.uint8)
    np.savez(tmp_path / "set.npz", train_images=images, train_labels=np.zeros(5))
    sources = find_sources([tmp_path])
    assert [source.path for source in sources] == [f"set.npz/train_images/{n:06d}" for n in range(5)]
    for source, image in zip(sources, images, strict=True):
        read = read_image(read_bytes(source, 10_000), replace(POLICY, min_side=1))
        assert np.array_equal(read.pixels, image)


def test_an_archive_without_images_and_a_damaged_one_are_refused(tmp_path):
    np.savez(tmp_path / "labels.npz", train_labels=np.zeros(5))
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 and no more")
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("x.npy", b"no array")
    assert {source.refusal.reason for source in find_sources([tmp_path]) if source.refusal} == {"damaged_archive"}
    assert len(find_sources([tmp_path])) == 3
