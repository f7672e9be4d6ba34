"""What compressed frames say of themselves, on real files of pydicom."""

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import generate_frames

from pipeline.imaging.formats.codestream import is_complete, read_codestream


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_jpeg_dcmtk.dcm",
        "JPGExtended.dcm",
        "JPEG2000.dcm",
        "693_J2KI.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "JPEGLSNearLossless_16.dcm",
    ],
)
def test_size_of_real_frames(name):
    dataset = dcmread(str(get_testdata_file(name, download=False)))
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    stream = read_codestream(frame)
    assert stream is not None
    assert (stream.rows, stream.columns) == (dataset.Rows, dataset.Columns)
    assert is_complete(frame)
    assert not is_complete(frame[:-70])


def test_a_size_outside_the_code_stream_of_a_jp2_file_is_not_believed():
    dataset = dcmread(str(get_testdata_file("MR_small_jp2klossless.dcm", download=False)))
    inner = next(generate_frames(dataset.PixelData, number_of_frames=1))
    decoy = inner[:4] + (30_000).to_bytes(4, "big") * 8
    boxes = b"\0\0\0\x0cjP  \r\n\x87\n" + (8 + len(decoy)).to_bytes(4, "big") + b"free" + decoy
    stream = read_codestream(boxes + b"\0\0\0\0jp2c" + inner)
    assert stream is not None
    assert (stream.rows, stream.columns) == (dataset.Rows, dataset.Columns)
    assert read_codestream(boxes) is None


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xff\xff", b"\xff\x4f\xff\x51", bytes(100), b"\xff\xd8" * 9]
)
def test_what_is_no_frame_has_no_size(data):
    assert read_codestream(data) is None
