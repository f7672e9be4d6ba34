"""A folder of things that should not be in a folder of studies, and the verdicts that are right for them.

Everything is small on disk: large contents are sparse or repeat one compressed block.
"""

from __future__ import annotations

import bz2
import io
import os
import socket
import stat
import struct
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from imaging.files import gradient, make_dataset, make_dicom, to_bytes
from imaging.mutants import (
    ACCEPTED,
    BOMB_MIB,
    BROKEN_HEADER,
    COLOUR,
    DAMAGED,
    DEFLATE_END,
    TOO_LARGE,
    Verdicts,
    zeros_deflated,
)
from PIL import Image as pillow
from PIL import PngImagePlugin
from pydicom import config
from pydicom.data import get_testdata_file

UNSAFE = frozenset({"unsafe_member"})
DAMAGED_ARCHIVE = frozenset({"damaged_archive"})
ARCHIVE = frozenset({"archive"})
UNKNOWN = frozenset({"unknown_format"})


def build(folder: Path) -> dict[str, Verdicts]:
    """Fill a new folder; return the verdicts that are right for each path in it.

    A path that ends with a slash stands for everything below it that has no entry of its own; an archive may as well
    get one verdict as a whole.
    """
    expected: dict[str, Verdicts] = {}
    for name, fill in {
        "zip": _zips,
        "tar": _tars,
        "special": _special_files,
        "names": _names,
        "dicom": _dicoms,
        "pictures": _pictures,
    }.items():
        (folder / name).mkdir(parents=True)
        with config.disable_value_validation():
            verdicts = fill(folder / name)
        expected |= {f"{name}/{path}": expectation for path, expectation in verdicts.items()}
    return expected


def right(expected: dict[str, Verdicts], path: str) -> Verdicts:
    """Return what is right for a path: its own entry, or that of the nearest folder or archive above."""
    if path not in expected:
        path += "/"
    while path not in expected:
        path = path[: path.rindex("/", 0, -1) + 1]
    return expected[path]


def image() -> bytes:
    """Return a DICOM file that is accepted."""
    return make_dicom()


# ---------------------------------------------------------------- zip


def _zips(folder: Path) -> dict[str, Verdicts]:
    expected: dict[str, Verdicts] = {}

    def write(name: str, members: dict[str, Verdicts], content: bytes | None = None, **choices: Any) -> Path:
        with zipfile.ZipFile(folder / name, "w", **choices) as archive:
            for member in members:
                archive.writestr(zipfile.ZipInfo(member), image() if content is None else content)
        expected.update({f"{name}/{member}": verdicts for member, verdicts in members.items()})
        return folder / name

    escaping = "../up.dcm ../../up.dcm a/../../b.dcm /etc/up.dcm //server/up.dcm C:up.dcm C:/up.dcm a/..".split()
    write("slip.zip", dict.fromkeys(escaping, UNSAFE) | {"good.dcm": ACCEPTED})
    for number, name in enumerate(("..\\up.dcm", "C:\\up.dcm", "\\\\server\\up.dcm", "a\0../up.dcm")):
        path = write(f"slip_{number}.zip", {"n" * len(name): UNSAFE})
        path.write_bytes(path.read_bytes().replace(b"n" * len(name), name.encode()))
        del expected[f"slip_{number}.zip/{'n' * len(name)}"]
        expected[f"slip_{number}.zip/"] = UNSAFE
    _special_members(folder / "special.zip", expected)
    _twice(folder / "twice.zip", expected)
    _large_members(folder, expected)
    _lying_members(folder, expected)
    with zipfile.ZipFile(folder / "many.zip", "w") as archive:
        for number in range(20_000):
            archive.writestr(zipfile.ZipInfo(str(number)), b"x")
    expected["many.zip/"] = UNKNOWN
    inner = (folder / "slip.zip").read_bytes()
    write("nested.zip", {"inner.zip": ARCHIVE, "inner": ARCHIVE}, inner)
    (folder / "no_suffix").write_bytes(inner)
    expected["no_suffix"] = ARCHIVE
    (folder / "dicom.zip").write_bytes(image())
    expected["dicom.zip"] = DAMAGED_ARCHIVE
    (folder / "prefixed.zip").write_bytes(b"#!/bin/sh\n" + inner)
    expected["prefixed.zip/"] = UNSAFE
    expected["prefixed.zip/good.dcm"] = ACCEPTED
    expected["empty.zip"] = DAMAGED_ARCHIVE
    (folder / "empty.zip").touch()
    return expected


def _special_members(path: Path, expected: dict[str, Verdicts]) -> None:
    """Write members that call themselves links, pipes and devices, and one that is encrypted."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, kind in (("link", stat.S_IFLNK), ("pipe", stat.S_IFIFO), ("device", stat.S_IFBLK)):
            member = zipfile.ZipInfo(f"{name}.dcm")
            member.external_attr = (kind | 0o777) << 16
            archive.writestr(member, b"/etc/passwd" if name == "link" else image())
            # A member is read, never made: a pipe's bytes are as good as any.
            expected[f"{path.name}/{name}.dcm"] = UNSAFE if name == "link" else UNSAFE | ACCEPTED
    with zipfile.ZipFile(path.with_name("encrypted.zip"), "w") as archive:
        archive.writestr("a.dcm", image())
    content = bytearray(path.with_name("encrypted.zip").read_bytes())
    content[content.rindex(b"PK\1\2") + 8] |= 1
    content[6] |= 1
    path.with_name("encrypted.zip").write_bytes(content)
    expected["encrypted.zip/a.dcm"] = frozenset({"encrypted"})


def _twice(path: Path, expected: dict[str, Verdicts]) -> None:
    """Write one name for two contents: what is listed must be what is read."""
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("a.dcm", image())
        archive.writestr("a.dcm", b"not the file that was listed")
    expected[f"{path.name}/a.dcm"] = ACCEPTED | UNSAFE
    expected[f"{path.name}/"] = UNSAFE


def _zip_of(name: str, method: int, packed: bytes, size: int, checksum: int = 0, extra: bytes = b"") -> bytes:
    """Return a zip archive with one member whose header says what it is told to."""
    encoded = name.encode()
    common = struct.pack("<HHHHHIIIHH", 20, 0, method, 0, 0x21, checksum, len(packed), size, len(encoded), 0)
    local = b"PK\3\4" + common + encoded + packed
    central = b"PK\1\2" + struct.pack("<H", 20) + common + bytes(10) + struct.pack("<I", 0) + encoded
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)
    return local + central + end + extra


def _large_members(folder: Path, expected: dict[str, Verdicts]) -> None:
    packed = zeros_deflated(2048) + DEFLATE_END
    (folder / "deflated_2GB.zip").write_bytes(_zip_of("zeros", zipfile.ZIP_DEFLATED, packed, 2 << 30))
    expected["deflated_2GB.zip/zeros"] = TOO_LARGE
    # A member that says it is small, of which most is never to be inflated.
    (folder / "deflated_lying.zip").write_bytes(_zip_of("zeros", zipfile.ZIP_DEFLATED, packed, 1000))
    expected["deflated_lying.zip/zeros"] = DAMAGED_ARCHIVE | TOO_LARGE
    (folder / "bzip2.zip").write_bytes(
        _zip_of("zeros", zipfile.ZIP_BZIP2, _zeros_bzip2(BOMB_MIB), BOMB_MIB * 1_000_000)
    )
    expected["bzip2.zip/zeros"] = TOO_LARGE | DAMAGED_ARCHIVE
    # Properties that ask for a dictionary of 4 GB (LZMA specification 1.2), and no data.
    lzma = struct.pack("<HH", 0x0409, 5) + b"\x5d\xff\xff\xff\xff" + bytes(64)
    (folder / "lzma_dictionary.zip").write_bytes(_zip_of("a", zipfile.ZIP_LZMA, lzma, 100))
    expected["lzma_dictionary.zip/a"] = DAMAGED_ARCHIVE | TOO_LARGE


def _zeros_bzip2(megabytes: int) -> bytes:
    """Return a bzip2 stream of about so many MB of zeros: one block's bits, repeated, without an end."""
    # Longer than a block of 900 kB, so that the first block is full, after its run lengths are packed.
    whole = bz2.compress(bytes(100_000_000))
    bits = bin(int.from_bytes(whole, "big"))[2:].zfill(8 * len(whole))
    magic = f"{0x314159265359:048b}"
    first, second = bits.index(magic), bits.index(magic, bits.index(magic) + 48)
    zeros_per_block = 900_000 // 5 * 259
    blocks = bits[first:second] * (megabytes * 1_000_000 // zeros_per_block + 1)
    stream = bits[:first] + blocks
    stream += "0" * (-len(stream) % 8)
    return int(stream, 2).to_bytes(len(stream) // 8, "big")


def _lying_members(folder: Path, expected: dict[str, Verdicts]) -> None:
    content = image()
    good, packed = zlib.crc32(content), zlib.compress(content)[2:-4]
    for name, method, stored, size, checksum in (
        ("size_smaller", 0, content, 100, good),
        ("size_larger", 0, content, len(content) + 1000, good),
        ("deflated_size_larger", 8, packed, len(content) + 1000, good),
        ("deflated_size_smaller", 8, packed, 100, good),
        ("checksum", 0, content, len(content), good ^ 1),
        ("method", 97, content, len(content), good),
        ("deflated_noise", 8, content, len(content), good),
        ("deflated_cut", 8, packed[: len(packed) // 2], len(content), good),
    ):
        (folder / f"{name}.zip").write_bytes(_zip_of("a.dcm", method, stored, size, checksum))
        expected[f"{name}.zip/"] = DAMAGED_ARCHIVE
    whole = _zip_of("a.dcm", 0, content, len(content), good)
    middle = whole.rindex(b"PK\1\2")
    for name, damaged in {
        "no_directory": whole[:middle],
        "cut": whole[: len(whole) // 2],
        "directory_cut": whole[: middle + 20],
        "directory_noise": whole[:middle] + bytes(range(46)) + whole[middle + 46 :],
        "offset_beyond": whole[: middle + 42] + b"\xff\xff\xff\x7f" + whole[middle + 46 :],
        "count_many": whole[:-12] + b"\xff\x7f\xff\x7f" + whole[-8:-4] + whole[-4:],
    }.items():
        (folder / f"{name}.zip").write_bytes(damaged)
        expected[f"{name}.zip/"] = DAMAGED_ARCHIVE
    _overlapping(folder, expected)


def _overlapping(folder: Path, expected: dict[str, Verdicts]) -> None:
    """Write archives whose members share one compressed kernel (Fifield, A better zip bomb, WOOT 2019)."""
    kernel = zeros_deflated(600) + DEFLATE_END
    for name, padding in (("overlap", 0), ("overlap_padded", 8_000_000)):
        members, central, offset = b"", b"", 0
        count = 3
        for number in range(count):
            rest = count - 1 - number
            # Each member quotes the headers of those behind it as stored deflate blocks, then shares the kernel.
            size = rest * (5 + 35) + len(kernel)
            common = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0x21, 0, size, (600 << 20) + 35 * rest, 5, 0)
            header = b"PK\3\4" + common + b"%05d" % number
            central += b"PK\1\2" + struct.pack("<H", 20) + common + bytes(10) + struct.pack("<I", offset)
            central += b"%05d" % number
            members += header + (b"\0" + struct.pack("<HH", 35, 35 ^ 0xFFFF) if rest else b"")
            offset = len(members)
        body = members + kernel + bytes(padding)
        end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, len(central), len(body), 0)
        (folder / f"{name}.zip").write_bytes(body + central + end)
        expected[f"{name}.zip/"] = DAMAGED_ARCHIVE


# ---------------------------------------------------------------- tar


def _tars(folder: Path) -> dict[str, Verdicts]:
    for name, mode in (("plain.tar", "w"), ("packed.tar.gz", "w:gz"), ("packed.tgz", "w:gz"), ("no_suffix", "w")):
        with tarfile.open(folder / name, mode) as archive:
            for member, kind in (
                ("../up.dcm", tarfile.REGTYPE),
                ("/tmp/up.dcm", tarfile.REGTYPE),
                ("link", tarfile.SYMTYPE),
                ("hard", tarfile.LNKTYPE),
                ("pipe", tarfile.FIFOTYPE),
                ("device", tarfile.BLKTYPE),
            ):
                info = tarfile.TarInfo(member)
                info.type, info.linkname = kind, "/etc/passwd"
                info.size = len(image()) if kind == tarfile.REGTYPE else 0
                archive.addfile(info, io.BytesIO(image()))
    header = b"\x1f\x8b\x08" + bytes(6) + b"\xff"
    (folder / "bomb.gz").write_bytes(header + zeros_deflated(BOMB_MIB) + DEFLATE_END + bytes(8))
    (folder / "bomb.tar.gz").write_bytes(
        header + zlib.compress((folder / "plain.tar").read_bytes()[:512])[2:-6] + zeros_deflated(BOMB_MIB)
    )
    return dict.fromkeys(("plain.tar", "packed.tar.gz", "packed.tgz", "no_suffix"), ARCHIVE) | {
        "bomb.gz": TOO_LARGE,
        "bomb.tar.gz": TOO_LARGE | DAMAGED,
    }


# ---------------------------------------------------------------- folder entries


def _special_files(folder: Path) -> dict[str, Verdicts]:
    link, special = frozenset({"symbolic_link"}), frozenset({"special_file"})
    (folder / "real").write_bytes(image())
    (folder / "loop").symlink_to(folder)
    (folder / "chain_a").symlink_to("chain_b")
    (folder / "chain_b").symlink_to("chain_a")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "outside").symlink_to("/etc")
    (folder / "device").symlink_to("/dev/zero")
    (folder / "good").symlink_to("real")
    os.mkfifo(folder / "pipe.dcm")
    _bind_socket(folder / "socket.dcm")
    (folder / "empty.dcm").touch()
    with (folder / "sparse_3GB").open("wb") as stream:
        stream.truncate(3 << 30)
    expected = dict.fromkeys(("loop", "chain_a", "chain_b", "dangling", "outside", "device", "good"), link)
    expected |= {
        "real": ACCEPTED,
        "pipe.dcm": special,
        "socket.dcm": special,
        "empty.dcm": frozenset({"empty_file"}),
        "sparse_3GB": TOO_LARGE,
    }
    if os.geteuid():  # root reads everything
        for name in ("locked_file", "locked_folder/a"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(image())
        (folder / "locked_file").chmod(0)
        (folder / "locked_folder").chmod(0)
        expected |= dict.fromkeys(("locked_file", "locked_folder/"), frozenset({"unreadable"}))
    return expected


def _bind_socket(path: Path) -> None:
    """Leave a Unix socket, by a path short enough for its address."""
    before = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
    finally:
        os.chdir(before)


def dig(folder: Path, depth: int) -> None:
    """Make folders in folders, with an image at the bottom."""
    handle = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=handle)
        below = os.open("d", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = below
    with open(os.open("a.dcm", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=handle), "wb") as stream:
        stream.write(image())
    os.close(handle)


def _names(folder: Path) -> dict[str, Verdicts]:
    names = [
        b"new\nline.dcm",
        b"\x1b[31mred\x07.dcm",
        b"<script>alert(1)</script>.dcm".replace(b"/", b":"),
        b"'quote\"; DROP TABLE images;--.dcm",
        b"=cmd|' :C calc'!A0.dcm",
        "\u202emcd.exe".encode(),
        b"not \xff\xfe text.dcm",
        b"$(touch up)`touch up`.dcm",
        b"-rf",
        b"%s%n%s.dcm",
        b"{0.__class__}.dcm",
        b"#typst[*bold*].dcm",
        b"n" * 255,
        b" ",
        b"con.dcm",
    ]
    for name in names:
        with open(os.path.join(os.fsencode(folder), name), "wb") as stream:
            stream.write(image())
    return {os.fsdecode(name): ACCEPTED for name in names}


# ---------------------------------------------------------------- DICOM


def _dicoms(folder: Path) -> dict[str, Verdicts]:
    expected: dict[str, Verdicts] = {}

    def write(name: str, content: bytes, verdicts: Verdicts) -> None:
        (folder / name).write_bytes(content)
        expected[name] = verdicts

    good = image()
    for name, magic in (
        ("pe", b"MZ\x90\0"),
        ("elf", b"\x7fELF\2\1\1"),
        ("script", b"#!/bin/sh\nrm -rf /\n"),
        ("pdf", b"%PDF-1.7\n"),
        ("zip", b"PK\3\4\x14\0"),
        ("java", b"\xca\xfe\xba\xbe\0\0\0\x34"),
        ("html", b"<html><script>"),
        ("gzip", b"\x1f\x8b\x08\0"),
        ("macho", b"\xcf\xfa\xed\xfe\7\0\0\1"),
    ):
        verdicts = frozenset({"suspicious_preamble"})
        # What is neither a program nor a document does no harm, but need not be accepted either.
        verdicts |= DAMAGED if name == "gzip" else ACCEPTED if name == "macho" else frozenset()
        write(f"preamble_{name}.dcm", magic + good[len(magic) :], verdicts)
    write("preamble_tiff.dcm", b"II*\0" + good[4:], ACCEPTED)
    write("no_preamble.dcm", good[128:], frozenset({"unknown_format"}))
    write("prefix_only.dcm", good[:132], BROKEN_HEADER)
    for name, file, reason in (
        ("directory", "DICOMDIR", "not_an_image"),
        ("report", "reportsi.dcm", "not_an_image"),
        ("plan", "rtplan.dcm", "not_an_image"),
        ("slice", "CT_small.dcm", "accepted"),
    ):
        content = Path(str(get_testdata_file(file, download=False))).read_bytes()
        write(f"{name}.dcm", content, frozenset({reason}))
    capture = "1.2.840.10008.5.1.4.1.1.7"
    write("capture.dcm", make_dicom(SOPClassUID=capture), frozenset({"secondary_capture"}))
    write("burned_in.dcm", make_dicom(BurnedInAnnotation="YES"), frozenset({"burned_in_text"}))
    write("uid_as_path.dcm", make_dicom(SOPInstanceUID="../../x", StudyInstanceUID="/tmp/x"), ACCEPTED)
    element = b"\x27\0\x10\x10OB\0\0" + struct.pack("<I", 1 << 30)
    at = good.index(b"\x28\0\2\0US")
    write("declared_1GB.dcm", good[:at] + element + good[at:], BROKEN_HEADER)
    for name, size, verdicts in (("sparse_1GB.dcm", 1 << 30, TOO_LARGE), ("sparse_400MB.dcm", 400 << 20, ACCEPTED)):
        with (folder / name).open("wb") as stream:
            stream.write(good[:at] + element[:8] + struct.pack("<I", size))
            stream.seek(size, os.SEEK_CUR)
            stream.write(good[at:])
        expected[name] = verdicts | (TOO_LARGE if name == "sparse_400MB.dcm" else frozenset())
    _large_image(folder / "black_16000.dcm", 16_000)
    # Within the limits of the default settings; to refuse it is no shame, to take gigabytes is.
    return expected | {"black_16000.dcm": ACCEPTED | TOO_LARGE}


def _large_image(path: Path, side: int) -> None:
    """Write a square 8-bit image of zeros, sparse."""
    start = to_bytes(make_dataset(np.zeros((side, 2), np.uint8), Columns=side))[: -2 * side]
    with path.open("wb") as stream:
        stream.write(start[:-4] + struct.pack("<I", side * side))
        stream.truncate(len(start) + side * side)


# ---------------------------------------------------------------- pictures


def _pictures(folder: Path) -> dict[str, Verdicts]:
    expected: dict[str, Verdicts] = {}

    def write(name: str, content: bytes, verdicts: Verdicts) -> None:
        (folder / name).write_bytes(content)
        expected[name] = verdicts

    grey = (gradient(64, 80) // 16).astype(np.uint8)
    frames = frozenset({"multi_frame"})
    picture = pillow.fromarray(grey)
    other = pillow.fromarray(255 - grey)
    write("grey.png", _saved(picture, "PNG"), ACCEPTED)
    write("16_bit.png", _saved(pillow.fromarray(gradient(64, 80)), "PNG"), ACCEPTED)
    write("opaque.png", _saved(picture.convert("RGBA"), "PNG"), ACCEPTED)
    write("transparent.png", _saved(pillow.merge("RGBA", [picture] * 4), "PNG"), COLOUR)
    write("colour.png", _saved(pillow.merge("RGB", [picture, other, picture]), "PNG"), COLOUR)
    write("animated.png", _saved(picture, "PNG", save_all=True, append_images=[other]), frames)
    write("pages.tif", _saved(picture, "TIFF", save_all=True, append_images=[other]), frames)
    write("grey.pgm", _saved(picture, "PPM"), ACCEPTED)
    write("16_bit.pgm", b"P5 64 64 65535 " + np.arange(4096, dtype=">u2").tobytes(), ACCEPTED)
    jpeg = _saved(picture, "JPEG")
    exif = pillow.Exif()
    exif[274] = 6
    write("turned.jpg", _saved(picture, "JPEG", exif=exif), ACCEPTED)
    write("cut.jpg", jpeg[: len(jpeg) * 2 // 3], DAMAGED)
    write("cut.png", _saved(picture, "PNG")[:-80], DAMAGED)
    write("cut.tif", _saved(picture, "TIFF")[:-400], DAMAGED)
    write("cut.pgm", _saved(picture, "PPM")[:-400], DAMAGED)
    start = jpeg.index(b"\xff\xc0")
    write("huge.jpg", jpeg[: start + 5] + struct.pack(">HH", 65500, 65500) + jpeg[start + 9 :], TOO_LARGE)
    write("huge.png", _png(60_000, 60_000, zeros_deflated(BOMB_MIB)), TOO_LARGE)
    write("more_than_declared.png", _png(64, 64, zeros_deflated(BOMB_MIB)), DAMAGED | ACCEPTED)
    write("black_11000.png", _png(11_000, 11_000, zeros_deflated(121)), ACCEPTED | TOO_LARGE | DAMAGED)
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x")
    bomb = b"Comment\0\0\x78\x9c" + zeros_deflated(BOMB_MIB)
    whole = _saved(picture, "PNG", pnginfo=text)
    write("text_bomb.png", whole[:33] + _chunk(b"zTXt", bomb) + whole[33:], DAMAGED | ACCEPTED | TOO_LARGE)
    write("profile_bomb.png", whole[:33] + _chunk(b"iCCP", bomb) + whole[33:], DAMAGED | ACCEPTED | TOO_LARGE)
    write("huge.pgm", b"P5 60000 60000 255 " + bytes(1000), TOO_LARGE)
    write("digits.pgm", b"P5 " + b"9" * 5000 + b" 1 255 x", DAMAGED | TOO_LARGE)
    write("noise.png", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4, DAMAGED)
    write("noise.tif", b"II*\0\x08\0\0\0" + bytes(range(256)) * 4, DAMAGED)
    write(
        "loop.tif",
        _tiff({256: 64, 257: 64, 258: 8, 259: 1, 262: 1, 273: 8, 279: 4096}, following=8),
        ACCEPTED | DAMAGED | frames,
    )
    tiles = {256: 64, 257: 64, 258: 8, 259: 5, 262: 1, 322: 60_000, 323: 60_000, 324: 8, 325: 100}
    write("tiles.tif", _tiff(tiles), DAMAGED | TOO_LARGE)
    write("strip.tif", _tiff({256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 273: 8, 278: 64, 279: 0xFFFFFFF0}), DAMAGED)
    write("huge.tif", _tiff({256: 60_000, 257: 60_000, 258: 8, 259: 1, 262: 1, 273: 8, 279: 100}), TOO_LARGE)
    write("page.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", UNKNOWN)
    write("labels.csv", b"path,label\n=1+1,0\n", UNKNOWN)
    return expected


def _saved(picture: pillow.Image, kind: str, **choices: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **choices)
    return stream.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(rows: int, columns: int, deflated: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", b"\x78\x9c" + deflated + DEFLATE_END)
        + _chunk(b"IEND", b"")
    )


def _tiff(tags: dict[int, int], following: int = 0) -> bytes:
    """Return a TIFF file with one directory at byte 8, of long values, and the offset of the next."""
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + struct.pack("<I", following) + bytes(4096)
