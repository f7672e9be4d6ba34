"""Stored pixel values out of a DICOM data set, by a decoder that depends on the file alone.

Which plug-in decodes what rests on how each behaves on damaged frames: gdcm aborts the process, pylibjpeg's RLE
decoder panics and its JPEG-LS decoder takes any damage, Pillow shifts some signed JPEG 2000 images by half their range.
None of these is used there.
"""

from __future__ import annotations

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_color_lut, get_decoder, pixel_array
from pydicom.pixels.decoders import (
    JPEGBaseline8BitDecoder,
    JPEGExtended12BitDecoder,
    JPEGLosslessDecoder,
    JPEGLosslessSV1Decoder,
    RLELosslessDecoder,
)

from pipeline.imaging.formats import plugin
from pipeline.imaging.formats.codestream import RGB, Codestream, is_complete, read_codestream
from pipeline.imaging.image import BYTES_PER_PIXEL
from pipeline.imaging.palette import expand_palettes
from pipeline.imaging.quarantine import Refused

GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")
LOSSY_JPEG = [uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit]
CODE_STREAMS = uid.JPEGTransferSyntaxes + uid.JPEGLSTransferSyntaxes + uid.JPEG2000TransferSyntaxes
ITEM_TAG = b"\xfe\xff\x00\xe0"
# Without these, nobody knows what the numbers are: other elements have something that they mean where they are missing.
STATED = ("SamplesPerPixel", "PixelRepresentation")
HTJ2K = (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
PLUGINS = {
    **dict.fromkeys(plugin.DECODER_DEPENDENCIES, plugin.NAME),
    uid.JPEGBaseline8Bit: "pillow",
    uid.JPEGLSLossless: "pyjpegls",
    uid.JPEGLSNearLossless: "pyjpegls",
    **dict.fromkeys((uid.JPEG2000Lossless, uid.JPEG2000, *HTJ2K), "pylibjpeg"),
}

for _decoder, _function in (
    (JPEGBaseline8BitDecoder, "decode_jpeg"),
    (JPEGExtended12BitDecoder, "decode_jpeg"),
    (JPEGLosslessDecoder, "decode_jpeg"),
    (JPEGLosslessSV1Decoder, "decode_jpeg"),
    (RLELosslessDecoder, "decode_rle"),
):
    if plugin.NAME not in _decoder.available_plugins:
        _decoder.add_plugin(plugin.NAME, (plugin.__name__, _function))


def can_decode(syntax: uid.UID) -> bool:
    """Say whether the decoder for a transfer syntax is installed."""
    try:
        return PLUGINS.get(syntax, "") in ("", *get_decoder(syntax).available_plugins)
    except NotImplementedError:
        return False


def frame_count(dataset: Dataset) -> int:
    """Return the number of frames that the header states; 1 when it states none."""
    value = dataset.get("NumberOfFrames")
    return max(1, int(value)) if value not in (None, "") else 1


def check_size(dataset: Dataset, limit: int) -> None:
    """Compare what the header says of its pixels with itself and with `limit` bytes, before anything is decoded.

    Raises Refused.
    """
    rows, columns = integer(dataset, "Rows"), integer(dataset, "Columns")
    samples, bits = integer(dataset, "SamplesPerPixel") or 1, integer(dataset, "BitsAllocated")
    photometric = str(dataset.get("PhotometricInterpretation", "")).strip()
    if "PixelData" in dataset and (missing := [name for name in STATED if dataset.get(name) is None]):
        raise Refused("damaged_header", f"{' and '.join(missing)} missing")
    if rows < 1 or columns < 1 or bits not in (1, 8, 16, 32, 64) or samples not in (1, 3, 4):
        raise Refused("damaged_header", "rows, columns, samples or bits missing or impossible")
    if photometric not in GREY + COLOUR:
        raise Refused("unsupported_encoding", "photometric interpretation")
    if (photometric in GREY or photometric == "PALETTE COLOR") != (samples == 1):
        raise Refused("damaged_header", "samples per pixel contradict the photometric interpretation")
    size = frame_count(dataset) * rows * columns * max(samples * max(1, bits // 8), BYTES_PER_PIXEL)
    if size > limit:
        raise Refused("too_large", f"{frame_count(dataset)} x {rows} x {columns} pixels of {samples} x {bits} bits")


def decode(dataset: Dataset) -> np.ndarray:
    """Return stored values of shape (H, W), colour of shape (H, W, 3), or either with frames in front.

    Unused bits are masked and signs extended; palettes are looked up, YBR becomes RGB. Where a JPEG code stream says
    how its colours are stored and the header contradicts it, the code stream is right; see `contradicts`.

    Raises Refused when there is no decoder, or when pixels are cut off, contradict the header or cannot be decoded.
    """
    syntax = uid.UID(str(dataset.file_meta.get("TransferSyntaxUID", "")))
    if not can_decode(syntax):
        known = syntax.name if syntax in uid.AllTransferSyntaxes else "transfer syntax missing or unknown"
        raise Refused("unsupported_encoding", known)
    if not syntax.is_compressed and bytes(dataset.get("PixelData", b"")[:4]) == ITEM_TAG and _odd_length(dataset):
        raise Refused("damaged_header", "compressed frames under an uncompressed transfer syntax")
    streams = _check_frames(dataset) if syntax in CODE_STREAMS else []
    try:
        stored = _stored(dataset, _plugin(dataset, syntax, streams), syntax)
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            expand_palettes(dataset)  # pydicom would, without a limit
            stored = apply_color_lut(stored, dataset)
    except MemoryError:
        raise Refused("too_large", "no memory to decode") from None
    except Exception as error:
        raise Refused("damaged_pixels", type(error).__name__) from None
    frames = frame_count(dataset)
    plane = stored.shape[1:3] if frames > 1 else stored.shape[:2]
    if plane != (dataset.Rows, dataset.Columns) or (frames > 1 and stored.shape[0] != frames):
        raise Refused("damaged_pixels", "size differs from the header")
    return stored


def contradicts(dataset: Dataset) -> bool:
    """Say whether the first frame of a colour image says otherwise than the header how its colours are stored.

    JPEG 2000 has its own transform, which the header must name (PS3.5 8.2.4); of JPEG see `codestream`.
    """
    syntax = uid.UID(str(dataset.file_meta.get("TransferSyntaxUID", "")))
    if integer(dataset, "SamplesPerPixel") != 3 or syntax not in LOSSY_JPEG + uid.JPEG2000TransferSyntaxes:
        return False
    stream = read_codestream(next(generate_frames(dataset.PixelData, number_of_frames=frame_count(dataset))))
    if stream is None or not stream.colour:
        return False
    if syntax in LOSSY_JPEG:
        return (stream.colour == RGB) != (dataset.PhotometricInterpretation == "RGB")
    return (stream.colour == RGB) == (dataset.PhotometricInterpretation in ("YBR_ICT", "YBR_RCT"))


def _plugin(dataset: Dataset, syntax: uid.UID, streams: list[Codestream]) -> str:
    """Return which plug-in decodes; pydicom knows JFIF, but not what Adobe's marker and others say of colour."""
    stated = RGB if dataset.PhotometricInterpretation == "RGB" else ""
    own = any(one.adobe or (one.colour and (one.colour == RGB) != bool(stated) and not one.jfif) for one in streams)
    in_colour = syntax == uid.JPEGBaseline8Bit and dataset.SamplesPerPixel == 3
    return plugin.NAME if own and in_colour else PLUGINS.get(syntax, "")


def _stored(dataset: Dataset, decoder: str, syntax: uid.UID) -> np.ndarray:
    """Return stored values; of uncompressed ones, those that lie in upper bits are shifted down (PS3.5 8.1.1)."""
    bits = integer(dataset, "BitsStored")
    shift = integer(dataset, "HighBit") + 1 - bits if "HighBit" in dataset else 0
    if shift <= 0 or bits < 1 or syntax.is_compressed or bits + shift > integer(dataset, "BitsAllocated"):
        return pixel_array(dataset, decoding_plugin=decoder)
    dataset.BitsStored = bits + shift
    try:
        return pixel_array(dataset, decoding_plugin=decoder) >> shift
    finally:
        dataset.BitsStored = bits


def _odd_length(dataset: Dataset) -> bool:
    """Say whether uncompressed pixels take another number of bytes than the header says."""
    bits = frame_count(dataset) * dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.BitsAllocated
    return len(dataset.PixelData) not in (-(-bits // 8), -(-bits // 8) + 1)


def _check_frames(dataset: Dataset) -> list[Codestream]:
    """Return what the frames say of themselves; decoders believe it.

    Raises Refused for frames without end marker, or of another size than the header says.
    """
    frames = frame_count(dataset)
    try:
        encoded = list(generate_frames(dataset.PixelData, number_of_frames=frames))
    except Exception as error:
        raise Refused("damaged_pixels", type(error).__name__) from None
    if len(encoded) != frames:
        raise Refused("damaged_pixels", "fewer frames than the header says")
    streams = []
    for frame in encoded:
        if not is_complete(frame):
            raise Refused("damaged_pixels", "no end marker")
        stream = read_codestream(frame)
        if stream is None:
            raise Refused("damaged_pixels", "code stream without frame header")
        if (stream.rows, stream.columns) != (dataset.Rows, dataset.Columns):
            raise Refused("damaged_pixels", "code stream and header differ in size")
        if 8 * len(frame) < stream.fewest_bits():
            raise Refused("damaged_pixels", "too few bytes for so many pixels")
        streams.append(stream)
    return streams


def integer(dataset: Dataset, keyword: str) -> int:
    """Return a whole number of a header; 0 when it is absent or empty."""
    value = dataset.get(keyword)
    return int(value) if value not in (None, "") else 0
