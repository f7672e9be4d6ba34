"""The contract of every format in FORMATS: an image or a verdict, never both, never neither; a new one is one entry."""

from __future__ import annotations

import io

import nibabel as nib
import numpy as np
import pytest
from imaging.files import POLICY, gradient, make_dicom
from PIL import Image as Pillow

from pipeline.imaging import read
from pipeline.imaging.image import About, Image
from pipeline.imaging.quarantine import Refused
from pipeline.imaging.read import FORMATS, Format, read_image


def png() -> bytes:
    stream = io.BytesIO()
    Pillow.fromarray(gradient()).save(stream, format="PNG")
    return stream.getvalue()


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, gradient())
    return stream.getvalue()


def nifti() -> bytes:
    image = nib.Nifti1Image(np.arange(20 * 24 * 6, dtype=np.int16).reshape(20, 24, 6), np.eye(4))
    image.set_sform(np.eye(4), code=1)
    return image.to_bytes()


WHOLE = {"dicom": make_dicom, "nifti": nifti, "raster": png, "array": npy}


def test_every_format_has_a_file_here():
    assert {one.name for one in FORMATS} == set(WHOLE)


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_file_is_an_image_of_its_format(name):
    image = read_image(WHOLE[name](), POLICY)
    assert isinstance(image, Image)
    assert image.about.format == name
    assert image.pixels.dtype == np.float32
    assert np.isfinite(image.pixels).all()


@pytest.mark.parametrize("name", WHOLE)
def test_a_damaged_file_is_an_image_or_refused_and_nothing_else(name):
    data = WHOLE[name]()
    rng = np.random.default_rng(4)
    for _ in range(60):
        damaged = bytearray(data[: rng.integers(1, len(data))] if rng.random() < 0.5 else data)
        damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
        try:
            assert np.isfinite(read_image(bytes(damaged), POLICY).pixels).all()
        except Refused:
            continue
        except AttributeError:  # a Part has no pixels
            assert name in ("dicom", "nifti")


def test_a_new_format_is_one_entry(monkeypatch):
    def toy(data: bytes, policy) -> Image:
        if len(data) < 4 + 64:
            raise Refused("damaged_pixels", "cut off")
        pixels = np.frombuffer(data, np.uint8, 64, 4).reshape(8, 8).astype(np.float32)
        return Image(pixels, About("toy", bits_stored=8))

    monkeypatch.setattr(read, "FORMATS", (Format("toy", lambda data: data[:4] == b"TOY!", toy), *FORMATS))
    image = read_image(b"TOY!" + bytes(range(64)), POLICY)
    assert image.pixels[7, 7] == 63
    assert image.about.format == "toy"
    with pytest.raises(Refused):
        read_image(b"TOY!", POLICY)
