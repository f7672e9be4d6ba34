"""Our pixel values beside those of SimpleITK, which shares no decoder with us, on every file of pydicom both can read.

Where they differ, the table says who is right and why, and the difference must be exactly that one.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import config, dcmread
from pydicom.data import get_testdata_files
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_modality_lut

from pipeline.imaging.formats.decoding import decode
from pipeline.imaging.formats.dicom import PIXEL_ELEMENTS
from pipeline.imaging.quarantine import Refused

pytestmark = pytest.mark.slow
sitk = pytest.importorskip("SimpleITK")


# ---------------------------------------------------------------- how they may differ: (ours, theirs, stored) -> true


def inverted(ours: np.ndarray, theirs: np.ndarray, stored: np.ndarray) -> bool:
    """ITK turns MONOCHROME1 over within the range of the stored bits; we do it later, in the display chain."""
    return np.allclose(ours + theirs.astype(float), float(ours.flat[0]) + float(theirs.flat[0]))


def of_8_bits(ours: np.ndarray, theirs: np.ndarray, stored: np.ndarray) -> bool:
    """ITK keeps the upper byte of 16-bit palette entries."""
    return np.array_equal(ours >> 8, theirs)


def bytes_misplaced(ours: np.ndarray, theirs: np.ndarray, stored: np.ndarray) -> bool:
    """ITK takes the byte planes of RLE colour of more than 8 bits in the wrong order (PS3.5 G.2)."""

    def bytes_of_pixels(values: np.ndarray) -> np.ndarray:
        return np.sort(np.ascontiguousarray(values).view(np.uint8).reshape(-1, 3 * values.itemsize), axis=1)

    return np.array_equal(bytes_of_pixels(ours), bytes_of_pixels(theirs))


def table_ignored(ours: np.ndarray, theirs: np.ndarray, stored: np.ndarray) -> bool:
    """ITK knows slope and intercept, but no Modality LUT Sequence."""
    return np.array_equal(stored, theirs)


def stretched(ours: np.ndarray, theirs: np.ndarray, stored: np.ndarray) -> bool:
    """ITK returns single bits as 0 and 255."""
    return np.array_equal(ours * np.uint8(255), theirs)


def words_swapped(ours: np.ndarray, theirs: np.ndarray, stored: np.ndarray) -> bool:
    """ITK turns over the bytes of each 16-bit word of 32-bit big-endian values, and leaves the words where they are."""
    values = ours.astype(np.uint32)
    return np.array_equal((values >> 16) | (values << 16), theirs)


def rescaled_by_frame(ours: np.ndarray, theirs: np.ndarray, stored: np.ndarray) -> bool:
    """ITK applies the rescaling in the functional groups; ours is applied later, when the volume is assembled."""
    return np.array_equal(stored.astype(int) - 1024, theirs)


Relation = Callable[[np.ndarray, np.ndarray, np.ndarray], bool]
KNOWN: dict[str, Relation] = {
    **dict.fromkeys(("RG1_UNCI.dcm", "RG1_UNCR.dcm", "RG1_J2KI.dcm", "RG1_J2KR.dcm"), inverted),
    **dict.fromkeys(("RG3_UNCI.dcm", "RG3_UNCR.dcm", "RG3_J2KI.dcm", "RG3_J2KR.dcm"), inverted),
    **dict.fromkeys(("6154", "6247", "6278"), inverted),
    **dict.fromkeys(("OBXXXX1A.dcm", "OBXXXX1A_rle.dcm", "examples_palette.dcm"), of_8_bits),
    **dict.fromkeys(("OBXXXX1A_2frame.dcm", "OBXXXX1A_rle_2frame.dcm"), of_8_bits),
    **dict.fromkeys(("SC_rgb_rle_16bit.dcm", "SC_rgb_rle_32bit.dcm"), bytes_misplaced),
    **dict.fromkeys(("SC_rgb_rle_16bit_2frame.dcm", "SC_rgb_rle_32bit_2frame.dcm"), bytes_misplaced),
    **dict.fromkeys(("liver_1frame.dcm", "liver_expb_1frame.dcm", "liver.dcm", "liver_expb.dcm"), stretched),
    "mlut_18.dcm": table_ignored,
    "rtdose_expb.dcm": words_swapped,
    "eCT_Supplemental.dcm": rescaled_by_frame,
}


@pytest.fixture(scope="module")
def decoded() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Our values after the modality transformation, SimpleITK's, and our stored ones, of every file both decode."""
    before = config.settings.reading_validation_mode
    config.settings.reading_validation_mode = config.IGNORE
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in filter(Path.is_file, map(Path, get_testdata_files())):
            pair = _both(path)
            if pair is not None:
                found[path.name] = pair
    config.settings.reading_validation_mode = before
    return found


def _both(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    try:
        dataset = dcmread(path)
        if not any(element in dataset for element in PIXEL_ELEMENTS):
            return None
        stored = decode(dataset)
    except (InvalidDicomError, Refused):
        return None
    try:
        theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except RuntimeError:
        return None
    ours = apply_modality_lut(stored, dataset)
    return ours, theirs.reshape(ours.shape) if theirs.size == ours.size else theirs, stored


def test_most_files_are_read_by_both(decoded):
    assert len(decoded) >= 50
    assert sum(name in decoded for name in KNOWN) >= 9


def test_values_are_equal_where_no_difference_is_known(decoded):
    unequal = [
        f"{name}: {ours.shape} {ours.dtype}, theirs {theirs.shape} {theirs.dtype}"
        for name, (ours, theirs, _) in decoded.items()
        if name not in KNOWN and not np.array_equal(ours, theirs)
    ]
    assert not unequal, "\n".join(unequal)


def test_colour_files_are_among_them_and_differ_only_where_itk_errs(decoded):
    """Where ITK is known to differ, its palettes have 8 bits and run-length coded colour has bytes in a wrong order."""
    colour = {name for name, (ours, _, _) in decoded.items() if ours.shape[-1:] == (3,)}
    assert len(colour) >= 40
    assert {KNOWN[name] for name in colour & {*KNOWN}} <= {of_8_bits, bytes_misplaced}


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_known_difference_is_the_one_that_is_known(decoded, name):
    if name not in decoded:
        pytest.skip("not among the installed files")
    ours, theirs, stored = decoded[name]
    assert not np.array_equal(ours, theirs), "they agree now; take it from the table"
    assert KNOWN[name](ours, theirs, stored)
