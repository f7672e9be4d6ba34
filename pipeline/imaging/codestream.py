"""What a compressed frame says of itself, read before any decoder is trusted with it."""

from __future__ import annotations

from dataclasses import dataclass

END_MARKER = b"\xff\xd9"  # EOI in JPEG and JPEG-LS, EOC in JPEG 2000
# Writers pad frames to even length, some to more; a good frame still ends within these bytes.
TRAILING_BYTES = 64
JPEG_START, J2K_START, SIZ = b"\xff\xd8", b"\xff\x4f", b"\xff\x51"
J2K_BOX_START = b"\x00\x00\x00\x0cjP  "
# Frame headers of every JPEG process, lossless and JPEG-LS (ITU-T T.81 table B.1, T.87 annex C).
FRAME_HEADERS = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}


@dataclass(frozen=True)
class Codestream:
    """Height, width, and whether the samples are signed (JPEG 2000 only)."""

    rows: int
    columns: int
    signed: bool = False


def is_complete(frame: bytes) -> bool:
    """Say whether a JPEG, JPEG-LS or JPEG 2000 frame reaches its end marker."""
    return END_MARKER in frame[-TRAILING_BYTES:]


def read_codestream(frame: bytes) -> Codestream | None:
    """Return what the frame's own header says, or None when it has none that can be read."""
    if frame.startswith(JPEG_START):
        return _jpeg(frame)
    start = 0 if frame.startswith(J2K_START) else frame.find(J2K_START + SIZ)
    if start < 0 or (start > 0 and not frame.startswith(J2K_BOX_START)):
        return None
    return _jpeg_2000(frame[start:])


def _jpeg(frame: bytes) -> Codestream | None:
    position = 2
    while position + 9 <= len(frame):
        if frame[position] != 0xFF:
            return None
        marker = frame[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in FRAME_HEADERS:
            rows = int.from_bytes(frame[position + 5 : position + 7], "big")
            columns = int.from_bytes(frame[position + 7 : position + 9], "big")
            return Codestream(rows, columns)
        position += 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    return None


def _jpeg_2000(frame: bytes) -> Codestream | None:
    """Read the SIZ segment (ITU-T T.800 A.5.1), which follows the start marker at once."""
    if frame[2:4] != SIZ or len(frame) < 43:
        return None
    width, height, left, top = (int.from_bytes(frame[at : at + 4], "big") for at in (8, 12, 16, 20))
    return Codestream(height - top, width - left, signed=bool(frame[42] & 0x80))
