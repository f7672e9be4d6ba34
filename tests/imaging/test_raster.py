"""Pictures in: grey values exact, colour and animation refused."""

import io
from dataclasses import replace

import imagecodecs
import numpy as np
import pytest
from imaging.files import POLICY, gradient
from PIL import Image as pillow

from pipeline.imaging.quarantine import Refused
from pipeline.imaging.read import read_image

GREY8 = (gradient() // 16).astype(np.uint8)
GREY16 = gradient(top=65535)


def saved(pixels: np.ndarray | pillow.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    picture = pixels if isinstance(pixels, pillow.Image) else pillow.fromarray(pixels)
    picture.save(stream, kind, **options)
    return stream.getvalue()


def reason(data: bytes, policy=POLICY) -> str:
    with pytest.raises(Refused) as refused:
        read_image(data, policy)
    return refused.value.refusal.reason


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("pixels", [GREY8, GREY16], ids=["8 bit", "16 bit"])
def test_grey_values_are_exact(kind, pixels):
    image = read_image(saved(pixels, kind), POLICY)
    assert np.array_equal(image.pixels, pixels)
    of_16 = 32 if kind == "PPM" else 16  # which Pillow reads into 32
    assert image.about.bits_stored == (of_16 if pixels is GREY16 else 8)


def test_a_jpeg_with_three_equal_channels_is_grey():
    equal = np.repeat(GREY8[..., None], 3, axis=2)
    assert np.array_equal(read_image(saved(equal, "PNG"), POLICY).pixels, GREY8)
    data = saved(equal, "JPEG", quality=95)
    assert np.array_equal(read_image(data, POLICY).pixels, np.asarray(pillow.open(io.BytesIO(data)))[..., 0])


def test_colour_and_transparency_are_refused():
    tinted = np.repeat(GREY8[..., None], 3, axis=2)
    tinted[0, 0] = (1, 2, 3)
    assert reason(saved(tinted, "PNG")) == "colour"
    clear = np.dstack([GREY8, np.full_like(GREY8, 128)])
    assert reason(saved(pillow.fromarray(clear, "LA"), "PNG")) == "colour"
    assert reason(saved(pillow.new("CMYK", (48, 40)), "TIFF")) == "colour"


def test_colour_becomes_luminance_where_the_policy_says_so():
    tinted = np.repeat(GREY8[..., None], 3, axis=2)
    tinted[0, 0] = (10, 20, 30)
    image = read_image(saved(tinted, "PNG"), replace(POLICY, accept_colour=True))
    assert image.pixels[0, 0] == pytest.approx(0.299 * 10 + 0.587 * 20 + 0.114 * 30)
    assert image.flags.count("colour_reduced") == 1
    assert np.allclose(image.pixels[1:], GREY8[1:], atol=1e-3)


def test_a_16_bit_tiff_in_which_white_is_zero_is_inverted_once():
    image = read_image(saved(GREY16, "TIFF", tiffinfo={262: 0}), POLICY)
    assert image.polarity_fixed
    assert np.array_equal(image.pixels, 65535 - GREY16)


def test_a_tiff_of_real_numbers_in_which_white_is_zero_is_inverted_too():
    values = gradient().astype(np.float32) / 7
    image = read_image(saved(values, "TIFF", tiffinfo={262: 0}), POLICY)
    assert image.polarity_fixed
    assert np.array_equal(image.pixels, -values)
    assert np.array_equal(read_image(saved(values, "TIFF"), POLICY).pixels, values)


def test_a_tiff_of_numbers_that_are_not_read_is_not_called_damaged():
    of_64_bits = imagecodecs.tiff_encode(gradient().astype(np.float64))
    assert reason(of_64_bits) == "unsupported_encoding"
    assert reason(of_64_bits[:9]) == "damaged_pixels"


def test_an_8_bit_tiff_in_which_white_is_zero_looks_the_same_as_its_positive():
    image = read_image(saved(255 - GREY8, "TIFF", tiffinfo={262: 0}), POLICY)
    shown = np.asarray(pillow.open(io.BytesIO(saved(255 - GREY8, "TIFF", tiffinfo={262: 0}))))
    assert np.array_equal(image.pixels, shown)


def test_the_orientation_tag_is_obeyed_and_said():
    exif = pillow.Exif()
    exif[274] = 6
    image = read_image(saved(GREY8, "PNG", exif=exif), POLICY)
    assert np.array_equal(image.pixels, np.rot90(GREY8, -1))
    assert "rotated" in image.flags


def test_several_pictures_in_one_file():
    pages = [pillow.fromarray(GREY8)] * 2
    assert reason(saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])) == "multi_frame"


PGM = b"P5\n40 40\n%d\n"
TEXT = b"P2\n# P5 is another kind\n40 40\n255\n" + b"\n".join(b"%d" % (value % 256) for value in range(1600)) + b"\n"


@pytest.mark.parametrize("one", [PGM % 255 + bytes(range(200)) * 8, PGM % 4095 + bytes(range(16)) * 200, TEXT])
def test_a_second_picture_behind_the_first_is_not_passed_over(one):
    assert read_image(one + b"\n", POLICY).pixels.shape == (40, 40)
    for more in (one, b"P4\n8 1\n\xff", b"P7\nWIDTH 1\n"):
        assert reason(one + more) == "multi_frame"
    small = pillow.Exif()
    small[270] = "\xff\xd9\xff\xd8\xff"  # a picture inside a segment is no second one
    for picture in (saved(GREY8, "PNG"), saved(GREY8, "JPEG", exif=small), saved(GREY8, "JPEG", progressive=True)):
        assert read_image(picture + b"\n", POLICY).pixels.shape == GREY8.shape
        assert reason(picture + picture) == "multi_frame"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "PPM"])
def test_cut_short(kind):
    data = saved(GREY8, kind)
    assert reason(data[: len(data) * 2 // 3]) == "damaged_pixels"


def test_a_picture_larger_than_the_limit_is_not_decoded():
    assert reason(saved(GREY8, "PNG"), replace(POLICY, max_pixel_bytes=GREY8.size)) == "too_large"


def test_values_that_are_not_numbers_are_refused():
    values = GREY8.astype(np.float32)
    values[0, 0] = np.nan
    assert reason(saved(values, "TIFF")) == "bad_values"


@pytest.mark.parametrize(
    "data", [b"P5,label\n1,0\n", b"<svg/>", b"GIF89a" + bytes(100), b"%PDF-1.7", bytes(500), b"\xff\xfe"]
)
def test_anything_else_has_an_unknown_format(data):
    assert reason(data) == "unknown_format"
