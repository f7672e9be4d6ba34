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
# Baseline and extended sequential JPEG have two codes of at least a bit in every block of 8 x 8, lossless one a sample.
FEWEST_BITS_PER_PIXEL = {0xC0: 2 / 64, 0xC1: 2 / 64, 0xC3: 1.0}


@dataclass(frozen=True)
class Codestream:
    """Height, width, and the marker of the frame header (0 for JPEG 2000)."""

    rows: int
    columns: int
    marker: int = 0

    def fewest_bits(self) -> float:
        """Return the fewest bits that so many pixels can take: for lossless JPEG one each, and two for a block of 64.

        A decoder spends its time and memory on the size that a frame states, however little there is in it.
        """
        return self.rows * self.columns * FEWEST_BITS_PER_PIXEL.get(self.marker, 0.0)


def is_complete(frame: bytes) -> bool:
    """Say whether a JPEG, JPEG-LS or JPEG 2000 frame reaches its end marker."""
    return END_MARKER in frame[-TRAILING_BYTES:]


def read_codestream(frame: bytes) -> Codestream | None:
    """Return what the frame's own header says, or None when it has none that can be read."""
    if frame.startswith(JPEG_START):
        return _jpeg(frame)
    if frame.startswith(J2K_BOX_START):
        frame = _boxed(frame)
    return _jpeg_2000(frame) if frame.startswith(J2K_START) else None


def _boxed(frame: bytes) -> bytes:
    """Return the code stream inside the boxes of a JP2 file (ITU-T T.800 I.4); nothing when there is none."""
    position = 0
    while position + 8 <= len(frame):
        length, kind = int.from_bytes(frame[position : position + 4], "big"), frame[position + 4 : position + 8]
        header = 8
        if length == 1:
            length, header = int.from_bytes(frame[position + 8 : position + 16], "big"), 16
        if kind == b"jp2c":
            return frame[position + header :]
        if length < header:
            break
        position += length
    return b""


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
            return Codestream(rows, columns, marker)
        position += 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    return None


def _jpeg_2000(frame: bytes) -> Codestream | None:
    """Read the SIZ segment (ITU-T T.800 A.5.1), which follows the start marker at once."""
    if frame[2:4] != SIZ or len(frame) < 43:
        return None
    width, height, left, top = (int.from_bytes(frame[at : at + 4], "big") for at in (8, 12, 16, 20))
    return Codestream(height - top, width - left)
