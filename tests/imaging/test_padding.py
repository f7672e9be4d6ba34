"""CT of one maker with far more pixels at the lowest value than another's is told of."""

import numpy as np
import pandas as pd
import pytest
from imaging.files import make_dicom
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.imaging.padding import padding_of_maker


def archive(*makers: tuple[str, str, float], patients: int = 6) -> pd.DataFrame:
    """Return images of (modality, maker, share of pixels at the lowest value)."""
    rows = [(*maker, f"{number}{n}") for number, maker in enumerate(makers) for n in range(patients)]
    return pd.DataFrame(rows, columns=["modality", "manufacturer", "clipped_share", "patient_id"])


def test_the_maker_that_fills_is_the_one_that_is_flagged():
    found = padding_of_maker(archive(("CT", "GE", 0.22), ("CT", "Siemens", 0.01), ("CT", "Philips", 0.05)))
    assert found.tolist() == [True] * 6 + [False] * 12


@pytest.mark.parametrize(
    "images",
    [
        pytest.param(archive(("CT", "GE", 0.22), ("CT", "Siemens", 0.18)), id="alike"),
        pytest.param(archive(("MR", "GE", 0.4), ("MR", "Siemens", 0.0)), id="air of MR is no padding"),
        pytest.param(archive(("CT", "GE", 0.4), ("CT", "", 0.0)), id="one maker, the other not named"),
        pytest.param(archive(("CT", "GE", 0.4), ("CT", "Siemens", 0.0), patients=4), id="too few to tell"),
        pytest.param(archive(), id="nothing"),
    ],
)
def test_what_tells_nothing_is_not_flagged(images):
    assert not padding_of_maker(images).any()


def test_inspect_says_so_and_names_the_setting(tmp_path):
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :64] / 31.5 - 1
    for n in range(10):
        pixels = generator.integers(-900, 300, (64, 64)).astype(np.int16)
        if n % 2:
            pixels[rows**2 + columns**2 > 1] = -1024  # no header says so, and it is no impossible CT number
        uids = {"SOPInstanceUID": f"2.25.1{n}", "SeriesInstanceUID": f"2.25.2{n}", "StudyInstanceUID": f"2.25.3{n}"}
        place = {
            "ImagePositionPatient": [0, 0, 0],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "PixelSpacing": [1, 1],
        }
        maker = {"Manufacturer": "GE MEDICAL SYSTEMS" if n % 2 else "SIEMENS", "PatientID": f"P{n}"}
        content = make_dicom(
            pixels, SOPClassUID="1.2.840.10008.5.1.4.1.1.2", Modality="CT", BitsStored=16, **uids, **place, **maker
        )
        (tmp_path / f"{n}.dcm").write_bytes(content)
    done = CliRunner().invoke(app, ["inspect", str(tmp_path)])
    assert done.exit_code == 0, done.stderr
    assert "5  padding_of_maker" in done.stdout
    assert "preprocess.window" in done.stdout
