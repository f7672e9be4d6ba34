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
JFIF, ADOBE = 0xE0, 0xEE
ADOBE_TRANSFORM = 11  # where in its segment the marker says how colours are stored
COD = b"\xff\x52"
RGB, YBR = "RGB", "YBR"
FEWEST_BITS_PER_PIXEL = {0xC0: 2 / 64, 0xC1: 2 / 64, 0xC3: 1.0}


@dataclass(frozen=True)
class Codestream:
    """Height, width, the marker of the frame header (0 for JPEG 2000), and what it says of colour.

    `colour` is how three components are stored, RGB or YBR; empty where the code stream leaves it to the header around
    it. `adobe` and `jfif` tell whether these markers are there.
    """

    rows: int
    columns: int
    marker: int = 0
    colour: str = ""
    adobe: bool = False
    jfif: bool = False

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
    position, jfif, adobe = 2, False, None
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
            first, count = position + 10, int.from_bytes(frame[position + 9 : position + 10], "big")
            components = [frame[at : at + 2] for at in range(first, first + 3 * count, 3)]
            colour = _jpeg_colour(components, jfif, adobe)
            return Codestream(rows, columns, marker, colour, adobe is not None, jfif)
        segment = frame[position + 4 : position + 2 + int.from_bytes(frame[position + 2 : position + 4], "big")]
        jfif |= marker == JFIF and segment.startswith(b"JFIF")
        if marker == ADOBE and segment.startswith(b"Adobe") and len(segment) > ADOBE_TRANSFORM:
            adobe = segment[ADOBE_TRANSFORM]
        position += 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    return None


def _jpeg_colour(components: list[bytes], jfif: bool, adobe: int | None) -> str:
    """Return how components, each an identifier and its sampling, are stored: the rules of libjpeg, and one more.

    A JFIF file is YBR; else the transform of Adobe's marker says it (0 is none); else identifiers R, G and B do. Where
    components are sampled differently, they are YBR: nobody thins out red or blue.
    """
    if len(components) != 3:
        return ""
    if jfif or adobe is not None:
        return YBR if jfif or adobe else RGB
    if b"".join(one[:1] for one in components).upper() == b"RGB":
        return RGB
    return YBR if len({one[1:] for one in components}) > 1 else ""


def _jpeg_2000(frame: bytes) -> Codestream | None:
    """Read the SIZ segment (ITU-T T.800 A.5.1), which follows the start marker at once."""
    if frame[2:4] != SIZ or len(frame) < 43:
        return None
    width, height, left, top = (int.from_bytes(frame[at : at + 4], "big") for at in (8, 12, 16, 20))
    return Codestream(height - top, width - left, colour=_component_transform(frame))


def _component_transform(frame: bytes) -> str:
    """Return YBR where a transform of the components has to be undone, RGB where none has (ITU-T T.800 A.6.1)."""
    position = 2
    while position + 9 <= len(frame) and frame[position] == 0xFF:
        if frame[position : position + 2] == COD:
            return YBR if frame[position + 8] else RGB
        position += 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    return ""
