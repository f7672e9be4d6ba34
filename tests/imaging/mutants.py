"""Damaged DICOM and NIfTI files, made from good ones with a seed; beside each, the verdicts that are right for it.

A DICOM mutant starts from a real file of pydicom or of our demonstration data whose header was made to say DX and
a patient, so that only the damage decides. A verdict is "accepted" or a reason of `verdicts.REASONS`.
"""

from __future__ import annotations

import base64
import gzip
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from imaging.files import DX, make_dataset, make_dicom, to_bytes
from PIL import Image as pillow
from pydicom import config, dcmread
from pydicom.data import get_testdata_file
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filewriter import dcmwrite
from pydicom.pixels import get_decoder
from pydicom.uid import UID, ExplicitVRBigEndian, JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes

from pipeline.imaging.quarantine import REASONS

SEED = 20261125
DEMO = Path(__file__).parents[2] / "data_manifests/demo_chest_xray/studies.zip"

Verdicts = frozenset[str]
ACCEPTED = frozenset({"accepted"})
# Damage in an open place may be invisible or look like anything; but it may neither crash nor hang a decoder.
EITHER = frozenset({"accepted", *REASONS}) - {"decoder_crash", "timeout"}
DAMAGED = frozenset({"damaged_header", "damaged_pixels"})
# A header that breaks off has lost its pixels as well.
BROKEN_HEADER = DAMAGED | {"not_an_image"}
TOO_LARGE = frozenset({"too_large"})
COLOUR = frozenset({"colour"})
# More than a worker may take, and little enough not to harm whoever else uses a machine where it is taken.
BOMB_MIB = 1600

# A ramp of 48 x 48 pixels of 16 bits, compressed without loss by OpenJPH: pydicom has no grey HTJ2K file.
HTJ2K = base64.b85decode(
    "|4;u>04YEK0000m0000m00000000000000m0000m0000000000009pH0sl|{2mk^A000XAQUDA90ssL31q1{@0smY86Cj9?kdTm&kdTm&kdTmwh=~"
    "7W02crOPjF>!N>E53R%LP^FfKASE;BCwkN^q*00000=l}u#lfVEg09*eE`w{!c_5y*l0KfnfKmZc}<M;pzbO7V{00J}szyK9c00mGYMMVCAkKv1U"
    "03t<-{J=4R{<Z+X02QzR1#l1u1OkEl+zNVe0(StA5C{YU`ScL>Apz{T0KfnioB#oAfQDfhhG7_nVHorJdU|?#aDsXOM#C@+!!QiPF#i8y0SF%bgd"
    "ltN5P|H!0Kfn(*Z>94fbQ<@?(XjH?(XjH?)`t@r>Cc<r>Cc<r>CdFaRJ`l-QC^Y-QC^Y-QE9wcyfF9$?xAMzkHtk@_YBm?6m>^*#"
)
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0"


@dataclass(frozen=True)
class Mutant:
    """A file and the verdicts that are right for it."""

    name: str
    data: bytes
    expected: Verdicts


# ---------------------------------------------------------------- good DICOM files


@dataclass(frozen=True)
class Place:
    """Where an element lies in `Base.body`: its tag, its value, and the end of its value."""

    start: int
    value: int
    end: int


@dataclass(frozen=True)
class Base:
    """A good file: `head` is preamble and file meta information, `body` the data set, inflated if it was deflated."""

    name: str
    syntax: UID
    head: bytes
    body: bytes

    @property
    def order(self) -> str:
        return ">" if self.syntax == ExplicitVRBigEndian else "<"

    @property
    def explicit(self) -> bool:
        return not self.syntax.is_implicit_VR

    @property
    def compressed(self) -> bool:
        return self.syntax.is_encapsulated

    @property
    def strict(self) -> bool:
        """Whether a decoder is to be had that notices missing data."""
        return self.syntax in JPEGLSTransferSyntaxes + JPEG2000TransferSyntaxes

    @property
    def damaged(self) -> Verdicts:
        """What damage to pixels that stays unseen or is found may give: in a colour JPEG it may colour a grey image."""
        return DAMAGED | ACCEPTED | (COLOUR if self.name == "jpeg_baseline" else frozenset())

    def file(self, body: bytes | None = None) -> bytes:
        """Return the file with another data set."""
        body = self.body if body is None else body
        return self.head + (_deflate(body) if self.syntax.is_deflated else body)

    def dataset(self) -> Dataset:
        return dcmread(io.BytesIO(self.file()))

    def place(self, keyword: str) -> Place:
        element = self.dataset().get_item(keyword)
        assert isinstance(element, RawDataElement)
        value = element.value_tell - (0 if self.syntax.is_deflated else len(self.head))
        long = element.VR in ("OB", "OW", "OF", "OD", "SQ", "UN", "UT") and self.explicit
        end = len(self.body) if element.length == UNDEFINED else value + element.length
        return Place(value - (12 if long else 8), value, end)

    def patched(self, keyword: str, value: bytes) -> bytes:
        """Return the file with the first bytes of a value replaced."""
        return self.file(_overwrite(self.body, self.place(keyword).value, value))

    def number(self, keyword: str, value: int) -> bytes:
        return self.patched(keyword, struct.pack(f"{self.order}H", value))

    def without(self, keyword: str) -> bytes:
        place = self.place(keyword)
        return self.file(self.body[: place.start] + self.body[place.end :])

    def inserted(self, content: bytes) -> bytes:
        """Return the file with bytes before the element Rows, where a reader is well inside the header."""
        start = self.place("Rows").start
        return self.file(self.body[:start] + content + self.body[start:])

    def element(self, group: int, number: int, vr: str, value: bytes, length: int | None = None) -> bytes:
        """Return an encoded element whose header may lie about the length."""
        length = len(value) if length is None else length
        tag = struct.pack(f"{self.order}HH", group, number)
        if not self.explicit:
            return tag + struct.pack("<I", length) + value
        if vr in ("OB", "SQ", "UN"):
            return tag + vr.encode() + b"\0\0" + struct.pack(f"{self.order}I", length) + value
        return tag + vr.encode() + struct.pack(f"{self.order}H", length) + value


@cache
def bases() -> tuple[Base, ...]:
    """Return one good file for every transfer syntax that we decode."""
    with zipfile.ZipFile(DEMO) as archive:
        demo = archive.read("studies/0001/0001-1.dcm")
    lossless = _bundled("JPEG-LL.dcm")
    near = _bundled("MR_small_jpeg_ls_lossless.dcm")
    ramp = _dicom_with_frame(HTJ2K, 48, 48, 16, "1.2.840.10008.1.2.4.201")
    # The demonstration's JPEGs store their grey in three components.
    grey = io.BytesIO()
    pillow.open(io.BytesIO(next(generate_frames(dcmread(io.BytesIO(demo)).PixelData, number_of_frames=1)))).convert(
        "L"
    ).save(grey, "JPEG", quality=90)
    # A stream of a narrower process is one of the wider process, too: three syntaxes have no grey file of their own.
    return (
        _base("implicit", _bundled("MR_small_implicit.dcm")),
        _base("explicit", _bundled("CT_small.dcm")),
        _base("big_endian", _bundled("MR_small_bigendian.dcm")),
        _base("deflated", _bundled("image_dfl.dcm")),
        _base("rle", _bundled("MR_small_RLE.dcm")),
        _base("jpeg_baseline", demo),
        _base("jpeg_grey", _dicom_with_frame(grey.getvalue(), 224, 224, 8, "1.2.840.10008.1.2.4.50")),
        _base("jpeg_extended", _bundled("JPGExtended.dcm")),
        _base("jpeg_lossless", lossless, "1.2.840.10008.1.2.4.57"),
        _base("jpeg_lossless_sv1", lossless),
        _base("jpeg_ls", near),
        _base("jpeg_ls_near", near, "1.2.840.10008.1.2.4.81"),
        _base("jpeg_2000_lossless", _bundled("MR_small_jp2klossless.dcm")),
        _base("jpeg_2000", _bundled("693_J2KI.dcm")),
        _base("htj2k_lossless", ramp),
        _base("htj2k_rpcl", ramp, "1.2.840.10008.1.2.4.202"),
        _base("htj2k", ramp, "1.2.840.10008.1.2.4.203"),
    )


def _bundled(name: str) -> bytes:
    return Path(str(get_testdata_file(name, download=False))).read_bytes()


def _base(name: str, data: bytes, syntax: str | None = None) -> Base:
    dataset = dcmread(io.BytesIO(data))
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = DX
    dataset.Modality, dataset.PatientID = "DX", "P1"
    # Four digits of room, to write a false number over the true one.
    dataset.NumberOfFrames = 1
    dataset.file_meta.TransferSyntaxUID = UID(syntax or dataset.file_meta.TransferSyntaxUID)
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        # One fragment, so that damage can be aimed at it or at the items round it.
        dataset.PixelData = encapsulate([next(generate_frames(dataset.PixelData, number_of_frames=1))])
    stream = io.BytesIO()
    dcmwrite(stream, dataset, enforce_file_format=True)
    data = stream.getvalue()
    start = 144 + int.from_bytes(data[140:144], "little")
    body = data[start:]
    if dataset.file_meta.TransferSyntaxUID.is_deflated:
        body = zlib.decompress(body, -zlib.MAX_WBITS)
    return Base(name, dataset.file_meta.TransferSyntaxUID, data[:start], body)


def _dicom_with_frame(frame: bytes, rows: int, columns: int, bits: int, syntax: str, **elements: Any) -> bytes:
    """Return a file that says it holds an image of this size, compressed; the frame need not agree."""
    elements = {"Rows": rows, "Columns": columns, "BitsAllocated": bits, "BitsStored": bits} | elements
    dataset = make_dataset(np.zeros((1, 1), f"u{bits // 8}"), TransferSyntaxUID=syntax, **elements)
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return to_bytes(dataset)


def _deflate(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


# ---------------------------------------------------------------- damage


def dicom_mutants() -> list[Mutant]:
    """Return all damaged DICOM files, always the same ones."""
    # pydicom would refuse to write much of this, or warn of it.
    with config.disable_value_validation():
        plain = next(base for base in bases() if base.name == "explicit")
        found = [Mutant(f"explicit.{name}", data, expected) for name, data, expected in _header_values(plain)]
        found += [Mutant(*made) for made in (*_deep_and_many(plain), *_bombs(), *_contradictions())]
        for base in bases():
            for damage in (_header_damage, _length_damage, _shape_damage, _missing_elements, _pixel_damage):
                rng = random.Random(f"{SEED} {base.name} {damage.__name__}")
                found += [_mutant(base, *made) for made in damage(base, rng)]
    return found


def _mutant(base: Base, name: str, data: bytes, expected: Verdicts) -> Mutant:
    installed = get_decoder(base.syntax).is_available
    return Mutant(f"{base.name}.{name}", data, expected if installed else expected | {"unsupported_encoding"})


Made = Iterator[tuple[str, bytes, Verdicts]]


def _header_damage(base: Base, rng: random.Random) -> Made:
    yield "unharmed", base.file(), ACCEPTED
    pixels = base.place("PixelData").start
    for number in range(3):
        yield f"header_bit_{number}", base.file(_flip(base.body, rng, 0, pixels)), EITHER
    yield "meta_bit", _flip(base.file(), rng, 132, len(base.head)), EITHER
    yield "cut_in_header", base.file(base.body[: rng.randrange(8, pixels)]), BROKEN_HEADER
    yield "cut_in_meta", base.file()[: rng.randrange(150, len(base.head) - 8)], BROKEN_HEADER | {"unsupported_encoding"}
    yield "group_length", _overwrite(base.file(), 140, rng.randbytes(4)), EITHER
    if base.explicit:
        vr = base.place("Rows").value - 4
        for name in (b"ZZ", b"OB", b"SQ", b"FD", b"AT", b"UT", b"\0\0"):
            yield f"vr_{name.hex()}", base.file(_overwrite(base.body, vr, name)), EITHER


def _length_damage(base: Base, rng: random.Random) -> Made:
    beyond = rng.randrange(1 << 24, 1 << 31) * 2
    yield "length_beyond_file", base.inserted(base.element(0x27, 0x1010, "OB", b"abcd", beyond)), BROKEN_HEADER
    yield "odd_length", base.inserted(base.element(0x27, 0x1010, "OB", b"abc")), ACCEPTED
    yield "length_too_long", base.inserted(base.element(0x27, 0x1010, "OB", b"abcd", 4 + rng.randrange(1, 30))), EITHER
    yield "length_too_short", base.inserted(base.element(0x27, 0x1010, "OB", bytes(64), rng.randrange(64))), EITHER
    yield (
        "sequence_without_end",
        base.inserted(base.element(0x27, 0x1010, "SQ", base.element(0xFFFE, 0xE000, "", b""), UNDEFINED)),
        BROKEN_HEADER,
    )


def _shape_damage(base: Base, rng: random.Random) -> Made:
    dataset = base.dataset()
    yield "rows_doubled", base.number("Rows", 2 * dataset.Rows), DAMAGED
    yield "rows_halved", base.number("Rows", dataset.Rows // 2), DAMAGED
    yield "columns_odd", base.number("Columns", dataset.Columns + 1), DAMAGED
    yield "rows_zero", base.number("Rows", 0), DAMAGED
    yield "columns_65535", base.number("Columns", 65535), DAMAGED | TOO_LARGE
    yield "huge", _base(base.name, base.number("Rows", 65535)).number("Columns", 65535), TOO_LARGE
    yield "bits_allocated_12", base.number("BitsAllocated", 12), DAMAGED
    yield "bits_allocated_other", base.number("BitsAllocated", 24 - dataset.BitsAllocated), DAMAGED
    yield "bits_stored_0", base.number("BitsStored", 0), DAMAGED
    yield "bits_stored_99", base.number("BitsStored", 99), DAMAGED
    yield "high_bit", base.number("HighBit", rng.choice([0, 40, 65535])), DAMAGED | ACCEPTED
    yield "samples_2", base.number("SamplesPerPixel", 2), DAMAGED
    yield "samples_other", base.number("SamplesPerPixel", 4 - dataset.SamplesPerPixel), DAMAGED
    yield "representation_7", base.number("PixelRepresentation", 7), DAMAGED
    frames = base.place("NumberOfFrames").start
    for name, digits, expected in (
        ("huge", b"2147483647", TOO_LARGE | {"multi_frame"}),
        ("negative", b"-5", DAMAGED),
        ("text", b"1A", DAMAGED),
    ):
        body = base.body[:frames] + base.element(0x28, 0x8, "IS", digits) + base.body[frames + 10 :]
        yield f"frames_{name}", base.file(body), expected


def _missing_elements(base: Base, rng: random.Random) -> Made:
    for keyword, expected in {
        "Rows": DAMAGED,
        "Columns": DAMAGED,
        "BitsAllocated": DAMAGED,
        "BitsStored": DAMAGED,
        "PixelRepresentation": DAMAGED,
        "PhotometricInterpretation": DAMAGED | {"unsupported_encoding"},
        "SamplesPerPixel": DAMAGED | ACCEPTED,
        "SOPClassUID": BROKEN_HEADER | ACCEPTED,
        "SOPInstanceUID": ACCEPTED,
        "Modality": ACCEPTED,
        "PixelData": DAMAGED,
    }.items():
        yield f"without_{keyword}", base.without(keyword), expected


def _pixel_damage(base: Base, rng: random.Random) -> Made:
    place = base.place("PixelData")
    if base.syntax.is_deflated:
        yield "stream_bit", _flip(base.file(), rng, len(base.head), len(base.file())), EITHER
        yield "stream_cut", base.file()[: rng.randrange(len(base.head) + 9, len(base.file()) - 9)], BROKEN_HEADER
    if not base.compressed:
        for number in range(3):
            yield f"pixel_bit_{number}", base.file(_flip(base.body, rng, place.value, place.end)), ACCEPTED
        for number in range(2):
            yield f"cut_{number}", base.file(base.body[: rng.randrange(place.value, place.end)]), DAMAGED
        length = place.value - 4
        for name, value in (
            ("beyond", 0x7FFFFFFE),
            ("short", 64),
            ("odd", 4095),
            ("zero", 0),
            ("undefined", UNDEFINED),
        ):
            body = _overwrite(base.body, length, struct.pack(f"{base.order}I", value))
            # Beyond the file, the pixels are whole, whatever the length says.
            yield f"pixel_length_{name}", base.file(body), BROKEN_HEADER | (ACCEPTED if name == "beyond" else set())
        return
    fragment = next(generate_frames(base.dataset().PixelData, number_of_frames=1))
    frame = base.body.index(fragment)
    end = frame + len(fragment)
    for number in range(6):
        damaged = _flip(base.body, rng, frame, end)
        yield f"pixel_bit_{number}", base.file(damaged), base.damaged
    for number in range(4):
        noise = _overwrite(base.body, rng.randrange(frame, end - 32), rng.randbytes(32))
        yield f"noise_{number}", base.file(noise), base.damaged
    for number in range(3):
        yield f"cut_{number}", base.file(base.body[: rng.randrange(frame, end - 80)]), DAMAGED
        # JPEG and RLE decoders fill in what is missing when the end marker is where it should be; the others notice.
        short = rng.randrange(frame, end - 80)
        ended = base.body[:short] + base.body[short + 64 :]
        yield f"gap_{number}", base.file(_relength(ended, frame, -64)), DAMAGED if base.strict else base.damaged
    yield from _encapsulation_damage(base, rng, place.value, frame, fragment)


def _encapsulation_damage(base: Base, rng: random.Random, start: int, frame: int, fragment: bytes) -> Made:
    """Damage the items round the one fragment, which is whole."""
    for number in range(4):
        yield f"offset_bit_{number}", base.file(_flip(base.body, rng, start, frame)), base.damaged

    def with_items(*items: tuple[bytes, int, bytes], end: bytes = SEQUENCE_END + bytes(4)) -> bytes:
        content = b"".join(tag + struct.pack("<I", length) + value for tag, length, value in items)
        return base.file(base.body[:start] + content + end)

    size, empty = len(fragment), (ITEM, 0, b"")
    whole, at = (ITEM, size, fragment), rng.randrange(1, size // 2) * 2
    yield "two_fragments", with_items(empty, (ITEM, at, fragment[:at]), (ITEM, size - at, fragment[at:])), ACCEPTED
    # The pixels are whole, whatever the length says.
    yield "item_beyond_file", with_items(empty, (ITEM, 0xFFFFFFF0, fragment)), DAMAGED | ACCEPTED
    yield "item_undefined", with_items(empty, (ITEM, UNDEFINED, fragment)), DAMAGED
    yield "item_too_short", with_items(empty, (ITEM, size // 4 * 2, fragment)), DAMAGED
    yield "item_tag", with_items(empty, (b"\xfe\xff\x01\xe0", size, fragment)), DAMAGED
    yield "no_items", with_items(empty), DAMAGED
    yield "no_offset_item", with_items(whole), DAMAGED
    yield "empty_fragment", with_items(empty, (ITEM, 0, b"")), DAMAGED
    yield "no_delimiter", with_items(empty, whole, end=b""), base.damaged
    yield "offsets_beyond", with_items((ITEM, 4, struct.pack("<I", 0xFFFFFFF0)), whole), base.damaged
    yield "offsets_many", with_items((ITEM, 4000, rng.randbytes(4000)), whole), base.damaged
    yield "offset_length_odd", with_items((ITEM, 3, b"abc"), whole), base.damaged


def _header_values(base: Base) -> Made:
    """Values that a header may not have, or that identify nobody: bogus character sets and identifiers."""

    def edited(**elements: Any) -> bytes:
        return make_dicom(None, **{"Rows": 40, "Columns": 48} | elements)

    bad = frozenset({"bad_values"})
    for name, slope, expected in (
        ("zero", "0", bad),
        ("nan", "nan", bad | DAMAGED),
        ("inf", "1e400", bad | DAMAGED),
        ("steep", "1e300", bad),
        ("text", "one", bad | DAMAGED),
    ):
        yield f"slope_{name}", _with_text(base, 0x1053, slope), expected
        yield f"window_{name}", _with_text(base, 0x1051, slope), ACCEPTED | DAMAGED
    for name, charset in (
        ("unknown", "ISO_IR 99999"),
        ("many", "\\".join(["ISO 2022 IR 87"] * 200)),
        ("utf7", "utf_7"),
    ):
        content = base.element(0x8, 0x5, "CS", charset.encode()) + base.element(0x10, 0x10, "PN", bytes(range(256)))
        yield f"charset_{name}", base.inserted(content), ACCEPTED
    for name, uid in (
        ("escaping", "../../x"),
        ("absolute", "/tmp/x"),
        ("long", "1." * 400 + "1"),
        ("null", "1.2\0../x"),
    ):
        yield f"uid_{name}", edited(SOPInstanceUID=uid, StudyInstanceUID=uid), ACCEPTED


def _with_text(base: Base, number: int, value: str) -> bytes:
    """Return the file with a decimal string in group 0028, and its companion where it needs one."""
    padded = value.encode() + b" " * (len(value) % 2)
    companion = {0x1053: (0x1052, "0 "), 0x1051: (0x1050, "40")}[number]
    body, start = base.body, base.place("PixelData").start
    for tag in (0x1050, 0x1051, 0x1052, 0x1053):
        key = struct.pack("<HH", 0x28, tag) + b"DS"
        at = body.find(key)
        if at >= 0:
            end = at + 8 + int.from_bytes(body[at + 6 : at + 8], "little")
            body, start = body[:at] + body[end:], start - (end - at)
    content = base.element(0x28, companion[0], "DS", companion[1].encode()) + base.element(0x28, number, "DS", padded)
    return base.file(body[:start] + content + body[start:])


def _deep_and_many(base: Base) -> Made:
    """Headers that are expensive to walk."""
    opening = base.element(0x40, 0xA730, "SQ", ITEM + struct.pack("<I", UNDEFINED), UNDEFINED)
    closing = ITEM_END + bytes(4) + SEQUENCE_END + bytes(4)
    yield "nested_6000", base.inserted(opening * 6000 + closing * 6000), DAMAGED | ACCEPTED
    yield "nested_6000_open", base.inserted(opening * 6000), BROKEN_HEADER
    table = base.element(0x28, 0x3000, "SQ", ITEM + struct.pack("<I", UNDEFINED), UNDEFINED)
    yield "nested_6000_modality_tables", base.inserted(table * 6000 + closing * 6000), DAMAGED | {"bad_values"}
    many = b"".join(base.element(0x29, number, "LO", b"ab") for number in range(60_000))
    yield "elements_60000", base.inserted(many), ACCEPTED
    items = ITEM + bytes(4)
    yield "items_100000", base.inserted(base.element(0x40, 0xA730, "SQ", items * 100_000)), ACCEPTED


# ---------------------------------------------------------------- bombs


def zeros_deflated(megabytes: int) -> bytes:
    """Return the deflate blocks of that many MiB of zeros, without an end: made of one block, so in no time."""
    packer = zlib.compressobj(level=9, wbits=-zlib.MAX_WBITS)
    return (packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)) * megabytes


DEFLATE_END = b"\x03\x00"


def deflated_bomb(megabytes: int) -> bytes:
    """Return a deflated DICOM file with a private element of so many MiB before a good image."""
    base = next(base for base in bases() if base.name == "deflated")
    start = base.place("Rows").start
    opening = base.body[:start] + base.element(0x27, 0x1010, "OB", b"", megabytes << 20)
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    head = packer.compress(opening) + packer.flush(zlib.Z_FULL_FLUSH)
    return base.head + head + zeros_deflated(megabytes) + _deflate(base.body[start:])


def _bombs() -> Made:
    yield "bomb.deflated", deflated_bomb(BOMB_MIB), TOO_LARGE
    yield "bomb.deflated_within_limit", deflated_bomb(400), ACCEPTED | TOO_LARGE
    lying = deflated_bomb(BOMB_MIB)
    yield "bomb.deflated_group_length_0", _overwrite(lying, 140, bytes(4)), TOO_LARGE | DAMAGED
    yield "bomb.deflated_group_length_huge", _overwrite(lying, 140, b"\xf0\xff\xff\x7f"), TOO_LARGE | DAMAGED
    yield "bomb.deflated_no_group_length", lying[:132] + lying[144:], TOO_LARGE | DAMAGED
    yield "bomb.palette_doubling", _palette_bomb(11), EITHER - ACCEPTED
    yield "bomb.palette_endless", _palette_bomb(1, count=2), EITHER - ACCEPTED
    frames: dict[str, tuple[Callable[[int, int], bytes], int]] = {
        "1.2.840.10008.1.2.4.50": (_jpeg_of_size, 8),
        "1.2.840.10008.1.2.4.70": (_jpeg_lossless_of_size, 16),
        "1.2.840.10008.1.2.4.80": (_jpeg_ls_of_size, 16),
        "1.2.840.10008.1.2.4.90": (_jpeg_2000_of_size, 16),
        "1.2.840.10008.1.2.4.201": (_htj2k_of_size, 16),
    }
    for syntax, (make, bits) in frames.items():
        name = UID(syntax).keyword
        for said, side, expected in (
            ("both_65500", 65500, TOO_LARGE),
            ("frame_65500", 64, DAMAGED),
            ("both_12000", 12000, DAMAGED | TOO_LARGE),
        ):
            frame = make(side if said.startswith("both") else 65500, side if said.startswith("both") else 65500)
            yield f"bomb.{name}.{said}", _dicom_with_frame(frame, side, side, bits, syntax), expected
    lossy = "1.2.840.10008.1.2.4.91"
    yield "bomb.jpeg_2000_tiles", _dicom_with_frame(_siz(XTsiz=1, YTsiz=1), 512, 512, 16, lossy), DAMAGED
    yield "bomb.jpeg_2000_components", _dicom_with_frame(_siz(Csiz=16384), 512, 512, 16, lossy), DAMAGED
    offset = _siz(Xsiz=UNDEFINED, XOsiz=UNDEFINED - 512, XTOsiz=UNDEFINED - 512)
    yield "bomb.jpeg_2000_offset", _dicom_with_frame(offset, 512, 512, 16, lossy), DAMAGED | ACCEPTED
    decoy = _jp2_with_decoy(_siz(), _jpeg_2000_of_size(30_000, 30_000))
    yield "bomb.jpeg_2000_decoy", _dicom_with_frame(decoy, 512, 512, 16, lossy), DAMAGED
    jpeg = _frame("jpeg_grey")
    at = jpeg.index(b"\xff\xc0")
    second = jpeg[: at + 2 + jpeg[at + 3]] + _jpeg_of_size(65500, 65500)[at:]
    yield "bomb.jpeg_two_frame_headers", _dicom_with_frame(second, 224, 224, 8, "1.2.840.10008.1.2.4.50"), DAMAGED
    for count in (65535, 16):
        header = struct.pack("<16I", count, *[64] * 15)
        data = _dicom_with_frame(header + bytes(100), 64, 64, 16, "1.2.840.10008.1.2.5")
        yield f"bomb.rle_segments_{count}", data, DAMAGED
    run = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * (1 << 20)
    yield "bomb.rle_run_too_long", _dicom_with_frame(run, 64, 64, 8, "1.2.840.10008.1.2.5"), DAMAGED | ACCEPTED


def _frame(name: str) -> bytes:
    base = next(base for base in bases() if base.name == name)
    return next(generate_frames(base.dataset().PixelData, number_of_frames=1))


def _sof_of_size(frame: bytes, marker: bytes, rows: int, columns: int) -> bytes:
    return _overwrite(frame, frame.index(marker) + 5, struct.pack(">HH", rows, columns))


def _jpeg_of_size(rows: int, columns: int) -> bytes:
    return _sof_of_size(_frame("jpeg_grey"), b"\xff\xc0", rows, columns)


def _jpeg_lossless_of_size(rows: int, columns: int) -> bytes:
    return _sof_of_size(_frame("jpeg_lossless"), b"\xff\xc3", rows, columns)


def _jpeg_ls_of_size(rows: int, columns: int) -> bytes:
    return _sof_of_size(_frame("jpeg_ls"), b"\xff\xf7", rows, columns)


def _jpeg_2000_of_size(rows: int, columns: int) -> bytes:
    return _siz(Xsiz=columns, Ysiz=rows, XTsiz=columns, YTsiz=rows)


def _htj2k_of_size(rows: int, columns: int) -> bytes:
    return _siz(HTJ2K, Xsiz=columns, Ysiz=rows, XTsiz=columns, YTsiz=rows)


def _siz(frame: bytes | None = None, **fields: int) -> bytes:
    """Return a JPEG 2000 stream with fields of its SIZ segment (ITU-T T.800 A.5.1) replaced."""
    frame = _frame("jpeg_2000") if frame is None else frame
    start = frame.index(b"\xff\x4f\xff\x51")
    names = ("Xsiz", "Ysiz", "XOsiz", "YOsiz", "XTsiz", "YTsiz", "XTOsiz", "YTOsiz")
    for name, value in fields.items():
        if name == "Csiz":
            frame = _overwrite(frame, start + 40, struct.pack(">H", value))
        else:
            frame = _overwrite(frame, start + 8 + 4 * names.index(name), struct.pack(">I", value))
    return frame


def _jp2_with_decoy(decoy: bytes, stream: bytes) -> bytes:
    """Return a JP2 file whose first SIZ segment lies in a box that decoders skip."""

    def box(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", 8 + len(content)) + kind + content

    rows, columns = struct.unpack(">II", stream[12:16] + stream[8:12])
    image = box(b"ihdr", struct.pack(">IIHBBBB", rows, columns, 1, 15, 7, 0, 0))
    colour = box(b"colr", struct.pack(">BBBI", 1, 0, 0, 17))
    return (
        box(b"jP  ", b"\r\n\x87\n")
        + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
        + box(b"free", decoy[:200])
        + box(b"jp2h", image + colour)
        + box(b"jp2c", stream)
    )


def _palette_bomb(doublings: int, count: int | None = None) -> bytes:
    """Return a picture whose segmented palette (PS3.3 C.7.9.2) doubles with every segment, or names itself."""
    segments = [0, 1, 7, 1, 60_000, 7]
    for number in range(doublings):
        segments += [2, count if count is not None else 2 + number, 0, 0]
    if count is not None:
        segments += [2, 60_000, 0, 0]
    table = struct.pack(f"<{len(segments)}H", *segments)
    elements: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour in ("Red", "Green", "Blue"):
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        elements[f"Segmented{colour}PaletteColorLookupTableData"] = table
    return make_dicom(np.zeros((40, 48), np.uint8), **elements)


def _contradictions() -> Made:
    """Files whose parts do not belong together."""
    frame = _frame("jpeg_grey")
    for syntax in (".50", ".51", ".57", ".70", ".80", ".81", ".90", ".91", ".201", ".202", ".203"):
        uid = f"1.2.840.10008.1.2.4{syntax}"
        for name, content in (("random", random.Random(SEED).randbytes(2000)), ("nothing", b"\0\0")):
            yield f"{UID(uid).keyword}.{name}", _dicom_with_frame(content, 64, 64, 16, uid), DAMAGED
        if syntax not in (".50", ".51"):
            # Some decoders look at the stream only, and so find the right picture.
            mislabelled = _dicom_with_frame(frame, 224, 224, 8, uid)
            yield f"{UID(uid).keyword}.of_baseline_jpeg", mislabelled, DAMAGED | ACCEPTED
    baseline = "1.2.840.10008.1.2.4.50"
    film = _dicom_with_frame(frame, 224, 224, 8, baseline)
    unknown = frozenset({"unsupported_encoding", *DAMAGED})
    yield "syntax.mpeg", _dicom_with_frame(frame, 224, 224, 8, "1.2.840.10008.1.2.4.100"), unknown
    for name, uid in (("unknown", "1.2.840.10008.1.2.4.99"), ("private", "1.2.3"), ("path", "../../x"), ("none", "")):
        yield f"syntax.{name}", film.replace(baseline.encode(), uid.encode().ljust(len(baseline), b"\0"), 1), unknown
    native = make_dataset(np.zeros((64, 64), np.uint8))
    native.PixelData = encapsulate([frame])
    native["PixelData"].is_undefined_length = True
    yield "native_syntax_with_fragments", to_bytes(native), DAMAGED
    floats = make_dataset(np.zeros((64, 64), np.uint16), BitsAllocated=32, BitsStored=32)
    del floats.PixelData
    floats.FloatPixelData = np.full((64, 64), np.nan, np.float32).tobytes()
    yield "float_pixels_nan", to_bytes(floats), frozenset({"bad_values", *DAMAGED})


# ---------------------------------------------------------------- NIfTI


SHAPE = (12, 14, 16)
# Byte offsets in the NIfTI-1 header (nifti1.h).
DIM, DATATYPE, BITPIX, PIXDIM, VOX_OFFSET, SLOPE, INTERCEPT = 40, 70, 72, 76, 108, 112, 116
XYZT_UNITS, QFORM_CODE, SFORM_CODE, QUATERN, SROW, MAGIC = 123, 252, 254, 256, 280, 344


def _volume(kind: type[nib.Nifti1Image] = nib.Nifti1Image, data: np.ndarray | None = None, big: bool = False) -> bytes:
    data = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) if data is None else data
    header = kind.header_class(endianness=">" if big else "<")
    header.set_data_dtype(data.dtype)
    image = kind(data, np.diag([-1.0, 2.0, 3.0, 1.0]), header)
    image.header.set_xyzt_units("mm")
    return image.to_bytes()


def nifti_mutants() -> list[Mutant]:
    """Return all damaged volumes, always the same ones; names end in .nii or .nii.gz."""
    found = [Mutant(f"{name}.nii", data, expected) for name, data, expected in _nifti_headers()]
    return found + [Mutant(f"{name}.nii.gz", data, expected) for name, data, expected in _gzip_damage()]


def _nifti_headers() -> Made:
    whole = _volume()
    geometry = frozenset({"bad_geometry"})
    values = frozenset({"bad_values", "damaged_header"})
    refused = DAMAGED | geometry

    def put(offset: int, form: str, *numbers: float) -> bytes:
        return _overwrite(whole, offset, struct.pack(f"<{form}", *numbers))

    yield "whole", whole, ACCEPTED
    yield "big_endian", _volume(big=True), ACCEPTED
    yield "nifti2", _volume(nib.Nifti2Image), ACCEPTED
    yield "nifti2_big_endian", _volume(nib.Nifti2Image, big=True), ACCEPTED
    for count in (0, 1, 2, 8, 300, -1):
        yield f"axes_{count}", put(DIM, "h", count), refused
    yield "axes_7_of_zeros", put(DIM, "8h", 7, 12, 14, 16, 0, 0, 0, 0), refused
    yield "side_0", put(DIM + 2, "h", 0), refused
    yield "side_negative", put(DIM + 2, "h", -5), refused
    yield "side_longer", put(DIM + 2, "h", 13), DAMAGED
    yield "sides_32767", put(DIM + 2, "3h", 32767, 32767, 32767), TOO_LARGE
    yield "sides_within_limit", put(DIM + 2, "3h", 500, 500, 500), DAMAGED | TOO_LARGE
    yield "four_axes", _volume(data=np.zeros((8, 8, 8, 3), np.int16)), geometry
    yield "four_axes_of_one", _volume(data=np.arange(512, dtype=np.int16).reshape(8, 8, 8, 1)), ACCEPTED
    yield "complex", _volume(data=np.zeros(SHAPE, np.complex64)), values
    yield "complex128", _volume(data=np.zeros(SHAPE, np.complex128)), values
    rgb = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    yield "rgb", _volume(data=rgb), COLOUR
    for code in (0, 1, 2304, 1536, 9999, -1):
        expected = values | DAMAGED | COLOUR
        yield f"datatype_{code}", put(DATATYPE, "h", code), expected
    yield "datatype_wider", put(DATATYPE, "h", 64), DAMAGED
    yield "bitpix_64", put(BITPIX, "h", 64), DAMAGED | ACCEPTED
    for name, offset in (("0", 0), ("100", 100), ("351", 351), ("beyond", 1e9), ("negative", -400), ("nan", np.nan)):
        yield f"vox_offset_{name}", put(VOX_OFFSET, "f", offset), DAMAGED
    yield "slope_nan", put(SLOPE, "f", np.nan), ACCEPTED  # how nibabel writes "not scaled"
    yield "slope_0", put(SLOPE, "f", 0), ACCEPTED  # not scaled, by the standard
    yield "slope_inf", put(SLOPE, "f", np.inf), values
    yield "slope_huge", put(SLOPE, "f", 1e38), values
    yield "intercept_inf", put(SLOPE, "2f", 1, np.inf), values
    yield "intercept_nan", put(SLOPE, "2f", 1, np.nan), values
    for name, number in (("nan", np.nan), ("inf", np.inf), ("zero", 0.0), ("huge", 1e38)):
        matrix = put(SFORM_CODE, "h", 1)
        expected = geometry | (DAMAGED if name == "huge" else frozenset())
        yield f"sform_{name}", _overwrite(matrix, SROW, struct.pack("<12f", *[number] * 12)), expected
        qform = _overwrite(put(SFORM_CODE, "h", 0), QFORM_CODE, struct.pack("<h", 1))
        yield (
            f"quaternion_{name}",
            _overwrite(qform, QUATERN, struct.pack("<3f", *[number] * 3)),
            (ACCEPTED if name == "zero" else refused),
        )
        expected = geometry | DAMAGED | (ACCEPTED if name == "zero" else frozenset())
        yield f"pixdim_{name}", _overwrite(qform, PIXDIM + 4, struct.pack("<3f", *[number] * 3)), expected
    yield "units_unknown", put(XYZT_UNITS, "B", 0xFF), ACCEPTED | refused
    yield "magic_pair", _overwrite(whole, MAGIC, b"ni1\0"), frozenset({"damaged_pixels"})
    yield "magic_none", _overwrite(whole, MAGIC, bytes(4)), frozenset({"unknown_format"})
    yield "header_size_0", put(0, "i", 0), frozenset({"unknown_format"})
    yield "nan_voxels", _volume(data=np.full(SHAPE, np.nan, np.float32)), frozenset({"bad_values"})
    yield "cut_header", whole[:347], BROKEN_HEADER | {"unknown_format"}
    yield "cut_4_bytes", whole[:4], frozenset({"unknown_format"})
    extended = whole[:348] + b"\1\0\0\0" + struct.pack("<ii", 0x7FFFFFF0, 6) + whole[352:]
    yield "extension_beyond", extended, DAMAGED | ACCEPTED
    yield "extension_0", whole[:348] + b"\1\0\0\0" + bytes(8) + whole[352:], DAMAGED | ACCEPTED
    rng = random.Random(f"{SEED} nifti")
    for number in range(10):
        yield f"header_bit_{number}", _flip(whole, rng, 0, 352), EITHER
    for number in range(4):
        yield f"cut_{number}", whole[: rng.randrange(352, len(whole))], DAMAGED


def _gzip_damage() -> Made:
    rng = random.Random(f"{SEED} gzip")
    whole = _volume()
    packed = _gzipped(whole)
    yield "whole", packed, ACCEPTED
    for number in range(6):
        yield f"bit_{number}", _flip(packed, rng, 10, len(packed)), DAMAGED | ACCEPTED
    yield "checksum", _overwrite(packed, len(packed) - 8, bytes(4)), DAMAGED
    yield "length", _overwrite(packed, len(packed) - 4, b"\1\2\3\4"), DAMAGED
    for number in range(3):
        yield f"cut_{number}", packed[: rng.randrange(20, len(packed))], DAMAGED
    yield "nothing", _gzipped(b""), frozenset({"unknown_format", "empty_file"})
    yield "twice", _gzipped(packed), frozenset({"unknown_format", "archive"})
    yield "followed_by_text", packed + b"text", DAMAGED
    yield "followed_by_zeros", packed + bytes(64), ACCEPTED
    yield "two_members", _gzipped(whole[:1000]) + _gzipped(whole[1000:]), ACCEPTED
    yield "extra_field", packed[:3] + b"\4" + packed[4:10] + b"\xff\xff" + packed[10:], DAMAGED
    head = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    header = _overwrite(whole[:352], DIM + 2, struct.pack("<3h", 500, 500, 500))
    start = packed[:10] + head.compress(header) + head.flush(zlib.Z_FULL_FLUSH)
    yield "bomb", start + zeros_deflated(BOMB_MIB) + DEFLATE_END + bytes(8), TOO_LARGE
    # 500 x 500 x 500 voxels of 16 bits, all zero: a whole file within every limit.
    size = 500**3 * 2
    content = head.compress(b"") + zeros_deflated(size >> 20) + _deflate(bytes(size & ((1 << 20) - 1)))
    checksum = zlib.crc32(header)
    for _ in range(size >> 20):
        checksum = zlib.crc32(bytes(1 << 20), checksum)
    checksum = zlib.crc32(bytes(size & ((1 << 20) - 1)), checksum)
    trailer = struct.pack("<II", checksum, 352 + size)
    yield "zeros_within_limit", start + content + trailer, ACCEPTED | TOO_LARGE


# ---------------------------------------------------------------- bytes


def _gzipped(content: bytes) -> bytes:
    """Return a gzip file that does not know what time it is."""
    return gzip.compress(content, mtime=0)


def _flip(data: bytes, rng: random.Random, start: int, end: int) -> bytes:
    """Return the data with one bit between two places turned over."""
    at, bit = rng.randrange(start, end), 1 << rng.randrange(8)
    return _overwrite(data, at, bytes([data[at] ^ bit]))


def _relength(data: bytes, frame: int, change: int) -> bytes:
    """Return the data with the length of the item that begins before `frame` corrected."""
    length = int.from_bytes(data[frame - 4 : frame], "little") + change
    return _overwrite(data, frame - 4, struct.pack("<I", length))


def _overwrite(data: bytes, at: int, content: bytes) -> bytes:
    return data[:at] + content + data[at + len(content) :]
