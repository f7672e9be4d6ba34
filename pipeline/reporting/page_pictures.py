"""The pictures of a study's page as SVG text, made by hand: a chart library takes longer than the whole page."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

BLUE, GREY, PALE = "#0b5394", "#444444", "#e3e8ee"
# The outline in shares of the picture's longer side: white on black, to be seen on any grey.
OUTLINE = (("black", 0.011), ("white", 0.0045))
PER = 1000


def as_seen(image: np.ndarray) -> str:
    """Return an image, grey (h, w) or in colour (h, w, 3), uint8, as SVG, every pixel as it is.

    Raises ValueError when the image is no picture of bytes.
    """
    if image.shape[2:] not in ((), (3,)) or image.ndim < 2 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"a picture of shape {image.shape} and type {image.dtype} is not (h, w) or (h, w, 3) uint8")
    height, width = image.shape[:2]
    packed = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(packed, "png", compress_level=1)
    pixels = base64.b64encode(packed.getvalue()).decode()
    # Blocks, not a blur: what is seen is what the network got.
    return _svg(
        width,
        height,
        [
            f'<image width="{width}" height="{height}" image-rendering="optimizeSpeed" '
            f'xlink:href="data:image/png;base64,{pixels}"/>'
        ],
    )


def outline(area: np.ndarray) -> str:
    """Return the border of an area (h, w) as SVG to lay over the picture of this shape; closed at its edges."""
    height, width = area.shape
    border = _border(area)
    return _svg(
        width,
        height,
        [
            f'<path d="{border}" fill="none" stroke="{colour}" stroke-width="{share * max(height, width):.2f}" '
            'stroke-linecap="square"/>'
            for colour, share in OUTLINE
        ],
    )


def people_bar(share: float, low: float | None, high: float | None) -> str:
    """Return a bar of a thousand people with a share of them filled and its interval as a line below it, as SVG."""
    parts = [
        f'<rect width="{PER}" height="30" fill="{PALE}" stroke="{GREY}" stroke-width="2"/>',
        f'<rect width="{PER * share:.1f}" height="30" fill="{BLUE}"/>',
        *(f'<path d="M{at} 0V30" stroke="white" stroke-width="2"/>' for at in range(100, PER, 100)),
    ]
    if low is not None and high is not None:
        start, end = PER * low, PER * high
        line = f"M{start:.1f} 40H{end:.1f}M{start:.1f} 34V46M{end:.1f} 34V46"
        parts.append(f'<path d="{line}" stroke="black" stroke-width="3"/>')
    return _svg(PER, 48, parts)


def _svg(width: int, height: int, parts: list[str]) -> str:
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f"<svg {names} {size}>{''.join(parts)}</svg>"


def _border(area: np.ndarray) -> str:
    """Return the border of an area (h, w) as straight pieces of a path, the longest ones possible."""
    framed = np.pad(area.astype(bool), 1)
    across = _runs(framed[1:] != framed[:-1])  # (h + 1, w + 2): between a row and the next
    down = _runs((framed[:, 1:] != framed[:, :-1]).T)
    pieces = [f"M{start - 1} {row}H{end - 1}" for row, start, end in across]
    pieces += [f"M{column} {start - 1}V{end - 1}" for column, start, end in down]
    return "".join(pieces)


def _runs(edges: np.ndarray) -> np.ndarray:
    """Return line, first and behind the last place of every unbroken run of true values in the lines of (n, m)."""
    steps = np.diff(edges.astype(np.int8), axis=1, prepend=0, append=0)
    lines, starts = np.nonzero(steps == 1)
    return np.stack([lines, starts, np.nonzero(steps == -1)[1]], axis=1)
