"""Segmented palettes of DICOM, written as few numbers and expanded to a table of as many entries as the header says."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset

COLOURS = ("Red", "Green", "Blue")
DISCRETE, LINEAR, INDIRECT = range(3)  # kinds of segments; an indirect one repeats others, none of them indirect
MOST_ENTRIES = 1 << 16
OFFSET_BYTES = 4


def expand_palettes(dataset: Dataset) -> None:
    """Replace the segmented palettes of a data set by plain ones (PS3.3 C.7.9.2 by C.7.6.3.1.6).

    Raises ValueError when a palette is damaged, or has not as many entries as its descriptor says.
    """
    for colour in COLOURS:
        segmented, plain = (f"{kind}{colour}PaletteColorLookupTableData" for kind in ("Segmented", ""))
        if segmented in dataset and plain not in dataset:
            entries, _, bits = dataset[f"{colour}PaletteColorLookupTableDescriptor"].value
            little = bool(dataset.file_meta.TransferSyntaxUID.is_little_endian)
            table = expand(bytes(dataset[segmented].value), int(bits), int(entries) or MOST_ENTRIES, little)
            setattr(dataset, plain, table.tobytes())
            del dataset[segmented]


def expand(data: bytes, bits: int, entries: int, little_endian: bool = True) -> np.ndarray:
    """Return a palette of `entries` values of 8 or 16 bits.

    Where a copied segment lies is stated in bytes by the standard, and read in values by most programs: the reading
    that gives the number of entries is right. No more is expanded than so many entries, however many the bytes ask for.

    Raises ValueError when neither reading gives it, or both do and differ.
    """
    if bits not in (8, 16):
        raise ValueError("a palette has entries of 8 or 16 bits")
    size = bits // 8
    values = np.frombuffer(data[: len(data) // size * size], f"{'<' if little_endian else '>'}u{size}").tolist()
    found = set()
    for unit in {1, size}:
        try:
            found.add(tuple(_expanded(values, entries, size, unit, little_endian)))
        except (ValueError, IndexError):
            continue
    if len(found) != 1:
        raise ValueError("a segmented palette that does not give as many entries as its descriptor says")
    return np.array(found.pop(), f"u{size}")


def _expanded(values: list[int], entries: int, size: int, unit: int, little_endian: bool) -> list[int]:
    """Return the table; `size` is the number of bytes of a value, `unit` by how much an offset rises from one to next.

    Raises ValueError or IndexError when the segments do not give so many entries.
    """
    table: list[int] = []
    at = 0
    while at + 2 < len(values):  # at the end, a zero can stand for an even length
        if values[at] != INDIRECT:
            at = _append(table, values, at, entries)
            continue
        start = at + 2
        at = start + OFFSET_BYTES // size
        offset = b"".join(value.to_bytes(size, "little") for value in values[start:at])
        if size == 1 and not little_endian:
            offset = offset[1::-1] + offset[:1:-1]  # two big-endian words, the lower one first
        place = int.from_bytes(offset, "little") // unit
        for _ in range(values[start - 1]):
            place = _append(table, values, place, entries)
    if len(table) != entries:
        raise ValueError("number of entries")
    return table


def _append(table: list[int], values: list[int], at: int, entries: int) -> int:
    """Append the entries of a discrete or linear segment; return where the next one is.

    Raises ValueError or IndexError when it is damaged, or gives more entries than there are.
    """
    kind, count = values[at], values[at + 1]
    if kind not in (DISCRETE, LINEAR) or not 0 < count <= entries - len(table):
        raise ValueError("segment")
    if kind == DISCRETE:
        found = values[at + 2 : at + 2 + count]
        if len(found) != count:
            raise ValueError("segment cut off")
        table += found
        return at + 2 + count
    first, last = table[-1], values[at + 2]
    step = (last - first) / count
    table += np.rint(np.linspace(first + step, last, count)).astype(int).tolist()
    return at + 3
