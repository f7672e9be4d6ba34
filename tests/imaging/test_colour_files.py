"""The same colour picture through every format, and files that contradict themselves about how colours are stored."""

import io
import struct
from dataclasses import replace

import imagecodecs
import numpy as np
import pytest
from imaging.files import POLICY, make_dataset, make_dicom, to_bytes
from PIL import Image as pillow
from PIL import ImageCms
from pydicom.encaps import encapsulate
from pydicom.pixels import convert_color_space
from pydicom.uid import JPEG2000, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

from pipeline.imaging.image import Image
from pipeline.imaging.quarantine import Refused
from pipeline.imaging.read import read_image

IN_COLOUR = replace(POLICY, keep_colour=True)
JPEG_LOSES = 4  # grey levels of 255 that quality 100 changes at most here: rounding, and the conversion of colours
ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"


def tinted(top: int = 255) -> np.ndarray:
    """Return (40, 48, 3): red rises down, green across, blue falls down; nowhere are red and blue equal."""
    down, across = np.mgrid[:40, :48]
    picture = np.stack([100 + 3 * down, 2 * across + 20, 90 - 2 * down], axis=-1)
    return (picture * (top // 255)).astype(np.uint8 if top == 255 else np.uint16)


def raster(kind: str, pixels: np.ndarray | pillow.Image | None = None, **options) -> bytes:
    stream = io.BytesIO()
    picture = pixels if isinstance(pixels, pillow.Image) else pillow.fromarray(tinted() if pixels is None else pixels)
    picture.save(stream, kind, **options)
    return stream.getvalue()


def dicom(pixels: np.ndarray, photometric: str, planar: int = 0, **elements) -> bytes:
    values = np.ascontiguousarray(np.moveaxis(pixels, -1, 0)) if planar else pixels
    shape = {"Rows": pixels.shape[0], "Columns": pixels.shape[1], "BitsStored": 8 * pixels.dtype.itemsize}
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": photometric, "PlanarConfiguration": planar}
    return make_dicom(values, **shape, **colour, **elements)


def compressed(frame: bytes, photometric: str, syntax: str) -> bytes:
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": photometric, "PlanarConfiguration": 0}
    dataset = make_dataset(tinted(), TransferSyntaxUID=syntax, **colour)
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    return to_bytes(dataset)


def run_length() -> bytes:
    dataset = make_dataset(tinted(), SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    dataset.compress(RLELossless, generate_instance_uid=False)
    return to_bytes(dataset)


def palette() -> bytes:
    """A picture of 40 x 48 different colours needs a table of 16-bit places."""
    table = tinted().reshape(-1, 3).astype(np.uint16) * 257
    places = np.arange(len(table), dtype=np.uint16).reshape(tinted().shape[:2])
    tables = {}
    for channel, name in enumerate(("Red", "Green", "Blue")):
        tables[f"{name}PaletteColorLookupTableDescriptor"] = [len(table), 0, 16]
        tables[f"{name}PaletteColorLookupTableData"] = table[:, channel].tobytes()
    return make_dicom(places, PhotometricInterpretation="PALETTE COLOR", BitsStored=16, **tables)


def tiff(pixels: np.ndarray, extra: int | None = None) -> bytes:
    """Return an uncompressed TIFF of (H, W, C) of 8 or 16 bits; `extra` says what the last channel is (TIFF 6.0)."""
    height, width, channels = pixels.shape
    bits = struct.pack(f"<{channels}H", *[8 * pixels.dtype.itemsize] * channels)
    tags = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, channels, 8), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, 8 + len(bits)), (277, 3, 1, channels), (278, 3, 1, height), (279, 4, 1, pixels.nbytes),
        *([] if extra is None else [(338, 3, 1, extra)]),
    ]  # fmt: skip
    start = 8 + len(bits) + pixels.nbytes
    ifd = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", start) + bits + pixels.tobytes() + ifd


def array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, tinted())
    return stream.getvalue()


def channels_of(data: bytes, policy=IN_COLOUR) -> np.ndarray:
    """Return the colour of a file as (H, W, 3)."""
    image = read_image(data, policy)
    assert isinstance(image, Image)
    assert image.colour is not None, image.flags
    return np.moveaxis(image.colour, 0, -1)


EXACT = {
    "png": lambda: raster("PNG"),
    "png palette": lambda: raster("PNG", pillow.fromarray(tinted() // 64 * 64).quantize(256)),
    "tiff": lambda: raster("TIFF"),
    "tiff lzw": lambda: raster("TIFF", compression="tiff_lzw"),
    "ppm": lambda: raster("PPM"),
    "array": array,
    "rgb": lambda: dicom(tinted(), "RGB"),
    "rgb by planes": lambda: dicom(tinted(), "RGB", planar=1),
    "run length": run_length,
    "jpeg-ls": lambda: compressed(imagecodecs.jpegls_encode(tinted()), "RGB", JPEGLSLossless),
    "jpeg 2000 rct": lambda: compressed(
        imagecodecs.jpeg2k_encode(tinted(), level=0, reversible=True, mct=True, codecformat="j2k"),
        "YBR_RCT",
        JPEG2000Lossless,
    ),
}
NEARLY = {
    "jpeg": lambda: raster("JPEG", quality=100, subsampling=0),
    "ybr full": lambda: dicom(convert_color_space(tinted(), "RGB", "YBR_FULL"), "YBR_FULL"),
    "ybr full by planes": lambda: dicom(convert_color_space(tinted(), "RGB", "YBR_FULL"), "YBR_FULL", planar=1),
    "dicom jpeg": lambda: compressed(raster("JPEG", quality=100, subsampling=0), "YBR_FULL_422", JPEGBaseline8Bit),
    "dicom jpeg 422": lambda: compressed(raster("JPEG", quality=100, subsampling=1), "YBR_FULL_422", JPEGBaseline8Bit),
    "jpeg 2000 ict": lambda: compressed(
        imagecodecs.jpeg2k_encode(tinted(), level=60, reversible=False, mct=True, codecformat="j2k"),
        "YBR_ICT",
        JPEG2000,
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_one_picture_in_every_lossless_format_is_one_array(name):
    wanted = tinted() // 64 * 64 if name == "png palette" else tinted()
    assert np.array_equal(channels_of(EXACT[name]()), wanted)


@pytest.mark.parametrize("name", NEARLY)
def test_and_in_every_lossy_one_within_what_it_loses(name):
    assert np.abs(channels_of(NEARLY[name]()) - tinted()).max() <= JPEG_LOSES


def test_palettes_of_16_bits_keep_them():
    assert np.array_equal(channels_of(palette()), tinted() * np.float32(257))


def test_uncompressed_422_has_a_colour_for_two_pixels():
    ybr = convert_color_space(tinted(), "RGB", "YBR_FULL").reshape(-1, 2, 3)
    pairs = np.concatenate([ybr[:, :, 0], ybr[:, :1, 1], ybr[:, :1, 2]], axis=1).reshape(40, -1)
    shape = {"Rows": 40, "Columns": 48, "SamplesPerPixel": 3, "PlanarConfiguration": 0}
    found = channels_of(make_dicom(pairs, PhotometricInterpretation="YBR_FULL_422", **shape))
    assert np.abs(found - tinted()).max() <= JPEG_LOSES


@pytest.mark.parametrize(
    "data",
    [
        lambda: imagecodecs.png_encode(tinted(top=65535)),
        lambda: tiff(tinted(top=65535)),
        lambda: dicom(tinted(top=65535), "RGB"),
    ],
)
def test_16_bits_stay(data):
    assert np.array_equal(channels_of(data()), tinted(top=65535))


# ---------------------------------------------------------------- opacity, profiles, orientation, other spaces


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_transparency_is_seen_on_black_and_said(kind):
    opacity = np.linspace(0, 255, 48).astype(np.uint8)[None].repeat(40, axis=0)
    picture = pillow.fromarray(np.dstack([tinted(), opacity]))
    image = read_image(raster(kind, picture), IN_COLOUR)
    assert isinstance(image, Image)
    assert "transparent_on_black" in image.flags
    wanted = pillow.alpha_composite(pillow.new("RGBA", picture.size, "black"), picture).convert("RGB")
    assert np.abs(image.channels - np.moveaxis(np.asarray(wanted), -1, 0)).max() <= 1
    with pytest.raises(Refused):
        read_image(raster(kind, picture), replace(POLICY, accept_colour=True))


@pytest.mark.parametrize(("extra", "factor"), [(2, 0.5), (1, 1.0)])
def test_16_bit_opacity_is_multiplied_unless_it_was_already(extra, factor):
    half = np.full((40, 48, 1), 32768, np.uint16)
    found = channels_of(tiff(np.dstack([tinted(top=65535), half]), extra))
    assert np.abs(found - tinted(top=65535) * factor).max() <= 1


def test_an_opaque_picture_is_not_flagged():
    picture = pillow.fromarray(np.dstack([tinted(), np.full((40, 48), 255, np.uint8)]))
    image = read_image(raster("PNG", picture), IN_COLOUR)
    assert image.flags == ("spacing_unknown",)  # type: ignore[union-attr]


def swapped_profile() -> bytes:
    """Return an ICC profile like sRGB whose red is blue and whose blue is red."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))
    return profile.replace(b"rXYZ", b"none").replace(b"bXYZ", b"rXYZ").replace(b"none", b"bXYZ")


@pytest.mark.parametrize("bits", [8, 16])
def test_a_profile_is_converted_to_srgb(bits):
    if bits == 8:
        data = raster("PNG", icc_profile=swapped_profile())
    else:
        stored = imagecodecs.png_encode(tinted(top=65535))
        chunk = b"iCCPp\0\0" + imagecodecs.zlib_encode(swapped_profile())
        check = struct.pack(">I", imagecodecs.zlib_crc32(chunk))
        data = stored[:33] + struct.pack(">I", len(chunk) - 4) + chunk + check + stored[33:]
    image = read_image(data, IN_COLOUR)
    assert isinstance(image, Image)
    assert "profile_converted" in image.flags
    blue, green, red = image.channels / np.float32(255 if bits == 8 else 65535)
    wanted = np.moveaxis(tinted() / 255, -1, 0)
    assert np.abs(np.stack([red, green, blue]) - wanted).max() < 0.02


def test_the_profile_of_a_dicom_file_is_converted_too():
    found = channels_of(dicom(tinted(), "RGB", ICCProfile=swapped_profile()))
    assert np.abs(found[..., ::-1] - tinted()).max() < 5


def test_srgb_stays_as_it_is_and_a_damaged_profile_is_told():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(channels_of(raster("PNG", icc_profile=srgb)), tinted())
    image = read_image(raster("PNG", icc_profile=b"no profile"), IN_COLOUR)
    assert "profile_ignored" in image.flags  # type: ignore[union-attr]


def test_the_orientation_tag_turns_all_channels():
    exif = pillow.Exif()
    exif[274] = 6
    assert np.array_equal(channels_of(raster("TIFF", exif=exif)), np.rot90(tinted(), -1))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_colour_spaces_of_print_and_video_are_refused(mode):
    with pytest.raises(Refused) as refused:
        read_image(raster("TIFF", pillow.new(mode, (48, 40))), IN_COLOUR)
    assert refused.value.refusal.reason == "colour"


# ---------------------------------------------------------------- what JPEG says, against what the header says


def unmarked(jpeg: bytes) -> bytes:
    """Return a JPEG without its application segments."""
    kept, at = jpeg[:2], 2
    while jpeg[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        kept += b"" if 0xE0 <= jpeg[at + 1] <= 0xEF else jpeg[at:end]
        at = end
    return kept + jpeg[at:]


def jpeg(
    stored: str, subsampling: str = "444", adobe: int | None = None, identifiers: bytes = b"\x01\x02\x03"
) -> bytes:
    """Return a JPEG whose components are RGB or YCBCR, with nothing that says so but what is asked for."""
    frame = unmarked(
        imagecodecs.jpeg8_encode(tinted(), level=100, colorspace="RGB", outcolorspace=stored, subsampling=subsampling)
    )
    own = b"RGB" if stored == "RGB" else b"\x01\x02\x03"
    start = frame.index(b"\xff\xc0") + 10
    for number in range(3):  # in the frame header and in that of the scan
        frame = frame[: start + 3 * number] + identifiers[number : number + 1] + frame[start + 3 * number + 1 :]
    scan = frame.index(b"\xff\xda") + 5
    for number in range(3):
        assert frame[scan + 2 * number] == own[number]
        frame = frame[: scan + 2 * number] + identifiers[number : number + 1] + frame[scan + 2 * number + 1 :]
    return frame if adobe is None else frame[:2] + ADOBE + bytes([adobe]) + frame[2:]


JFIF = raster("JPEG", quality=100, subsampling=0)


@pytest.mark.parametrize(
    ("frame", "photometric", "contradicts"),
    [
        (jpeg("RGB", adobe=0), "RGB", False),
        (jpeg("RGB", adobe=0), "YBR_FULL_422", True),
        (jpeg("YCBCR", adobe=1), "YBR_FULL_422", False),
        (jpeg("YCBCR", adobe=1), "RGB", True),
        (JFIF[:20] + ADOBE + b"\x01" + JFIF[20:], "YBR_FULL", False),
        (JFIF, "RGB", True),
        (jpeg("RGB", identifiers=b"RGB"), "YBR_FULL", True),
        (jpeg("YCBCR", subsampling="422"), "RGB", True),
        (jpeg("RGB"), "RGB", False),
        (jpeg("YCBCR"), "YBR_FULL", False),
    ],
)
def test_the_code_stream_is_right_and_a_contradiction_is_told(frame, photometric, contradicts):
    image = read_image(compressed(frame, photometric, JPEGBaseline8Bit), IN_COLOUR)
    assert isinstance(image, Image)
    assert np.abs(np.moveaxis(image.channels, 0, -1) - tinted()).max() <= 2 * JPEG_LOSES
    assert ("photometric_contradicts" in image.flags) == contradicts


def test_what_neither_marker_nor_sampling_tells_cannot_be_detected():
    """As docs/concepts/colour.md says: the header alone is left, and it is believed."""
    image = read_image(compressed(jpeg("YCBCR"), "RGB", JPEGBaseline8Bit), IN_COLOUR)
    assert isinstance(image, Image)
    assert "photometric_contradicts" not in image.flags
    assert np.abs(np.moveaxis(image.channels, 0, -1) - tinted()).max() > 50


@pytest.mark.parametrize(("mct", "photometric"), [(True, "RGB"), (False, "YBR_RCT")])
def test_the_transform_of_jpeg_2000_is_in_its_code_stream(mct, photometric):
    frame = imagecodecs.jpeg2k_encode(tinted(), level=0, reversible=True, mct=mct, codecformat="j2k")
    image = read_image(compressed(frame, photometric, JPEG2000Lossless), IN_COLOUR)
    assert isinstance(image, Image)
    assert np.array_equal(np.moveaxis(image.channels, 0, -1), tinted())
    assert "photometric_contradicts" in image.flags
