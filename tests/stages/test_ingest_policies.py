"""Each setting of ingest changes its own verdict and no other.

One file stands for each setting. All are read with the default settings, then once more with each setting changed.
"""

import io
from pathlib import Path

import numpy as np
import pytest
from imaging.files import make_dicom
from PIL import Image
from stages.sources_run import SECRET, Archive, make_card

from pipeline.imaging.pseudonyms import path_pseudonym
from pipeline.settings.images import IngestSettings

SECONDARY_CAPTURE, CT = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.2"
SLICES = 8
Verdict = str | frozenset[str]


def picture(number: int, rows: int = 64, columns: int = 64) -> np.ndarray:
    """Return a smooth picture of 12 bits that looks like no other number's."""
    random = np.random.default_rng(number)
    y, x = np.mgrid[:rows, :columns] / max(rows, columns)
    waves = [(i, j) for i in range(5) for j in range(5) if i + j]
    values = sum(random.normal() * np.cos(np.pi * (i * y + j * x) + random.uniform(0, 6)) / (i + j) for i, j in waves)
    values = (values - np.min(values)) / np.ptp(values) * 3500 + 300 * random.random((rows, columns))
    return values.round().astype(np.uint16)


def film(number: int, pixels: np.ndarray | None = None, **elements) -> bytes:
    facts = {"PatientID": f"P{number}", "SOPInstanceUID": f"2.25.{number}", "StudyInstanceUID": f"2.25.{1000 + number}"}
    facts["PixelSpacing"] = ["0.2", "0.2"]
    return make_dicom(picture(number) if pixels is None else pixels, **{**facts, **elements})


def png(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue()


def half_black(number: int) -> np.ndarray:
    pixels = picture(number)
    pixels[:, ::2] = 0
    return pixels


def files() -> dict[str, bytes]:
    colours = np.stack([picture(n) >> 4 for n in (30, 31, 32)], axis=-1).astype(np.uint8)
    copied = picture(40)
    found = {
        "plain.dcm": film(1),
        "burned_in.dcm": film(2, BurnedInAnnotation="YES"),
        "secondary.dcm": film(3, SOPClassUID=SECONDARY_CAPTURE),
        "derived.dcm": film(4, ImageType=["DERIVED", "PRIMARY"]),
        "other_modality.dcm": film(5, Modality="CR"),
        "small.dcm": film(6, picture(6, 24, 24)),
        "long.dcm": film(7, picture(7, 200, 64)),
        "clipped.dcm": film(8, half_black(8)),
        "fine.dcm": film(9, PixelSpacing=["0.02", "0.02"]),
        "coarse.dcm": film(10, PixelSpacing=["8", "8"]),
        "large.dcm": film(11, picture(11, 300, 300)),
        "colour.png": png(colours),
        "one.dcm": film(41, copied),
        "nearly_one.dcm": film(42, copied + np.uint16(1)),
    }
    for at in range(SLICES):
        found[f"slices/{at}.dcm"] = film(
            50,
            picture(50 + at),
            SOPClassUID=CT,
            Modality="CT",
            SOPInstanceUID=f"2.25.{500 + at}",
            SeriesInstanceUID="2.25.600",
            FrameOfReferenceUID="2.25.601",
            ImageOrientationPatient=["1", "0", "0", "0", "1", "0"],
            ImagePositionPatient=["0", "0", str(2 * at)],
            SliceThickness="2",
        )
    return found


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Archive:
    made = Archive(tmp_path_factory.mktemp("policies"))
    for name, content in files().items():
        made.add(name, content)
    made.label([{"path": "colour.png", "patient_id": "P30"}])
    return made


def verdicts(archive: Archive, folder: Path, **settings) -> dict[str, Verdict]:
    """Return what became of every file: the reason it was refused for, or its flags and whether it is in a volume."""
    card = make_card(path="path", patient_id="patient_id")
    mine = Archive(folder, card, sources=(str(archive.studies),), label_table=str(archive.folder / "labels.csv"))
    mine.run("ingest", **settings)
    names = {path_pseudonym(SECRET, name): name for name in files()}
    refused = mine.table("ingest", "quarantine").set_index("source_id")["reason"].to_dict()
    images = mine.table("ingest", "images").set_index("image_id")
    found: dict[str, Verdict] = {names[source]: reason for source, reason in refused.items()}
    for file in mine.table("ingest", "files").itertuples():
        image = images.loc[file.image_id]
        volume = {"volume"} if image["axes"] == 3 else set()
        found[names[file.source_id]] = frozenset({*filter(None, image["quality_flags"].split(","))} | volume)
    return found


@pytest.fixture(scope="module")
def usual(archive, tmp_path_factory) -> dict[str, Verdict]:
    return verdicts(archive, tmp_path_factory.mktemp("usual"))


def slices(verdict: Verdict) -> dict[str, Verdict]:
    return {f"slices/{at}.dcm": verdict for at in range(SLICES)}


def test_each_file_shows_what_it_stands_for(usual):
    assert set(usual) == set(files())
    plain = usual["plain.dcm"]
    assert isinstance(plain, frozenset)
    expected = dict.fromkeys(files(), plain) | {
        "burned_in.dcm": "burned_in_text",
        "secondary.dcm": "secondary_capture",
        "small.dcm": "too_small",
        "colour.png": "colour",
        "clipped.dcm": plain | {"clipped"},
        "one.dcm": plain | {"near_duplicate_across_patients"},
        "nearly_one.dcm": plain | {"near_duplicate_across_patients"},
    }
    assert {name: verdict for name, verdict in usual.items() if not name.startswith("slices/")} == {
        name: verdict for name, verdict in expected.items() if not name.startswith("slices/")
    }
    assert all("volume" in usual[name] for name in slices(""))


CHANGES = [
    ({"burned_in_annotation": "accept"}, {"burned_in.dcm"}),
    ({"secondary_capture": "accept"}, {"secondary.dcm"}),
    ({"derived": "quarantine"}, {"derived.dcm"}),
    ({"modalities": ["DX", "CT"]}, {"other_modality.dcm"}),
    ({"colour": "luminance"}, {"colour.png"}),
    ({"min_side": 16}, {"small.dcm"}),
    ({"max_aspect": 2.0}, {"long.dcm"}),
    ({"max_clipped": 0.9}, {"clipped.dcm"}),
    ({"min_spacing_mm": 0.1}, {"fine.dcm"}),
    ({"max_spacing_mm": 5.0}, {"coarse.dcm"}),
    ({"max_file_mb": 0.1}, {"large.dcm"}),
    ({"max_pixels_mb": 0.3}, {"large.dcm"}),
    ({"near_duplicates": False}, {"one.dcm", "nearly_one.dcm"}),
    ({"slices": "separate"}, set(slices(""))),
]


@pytest.mark.parametrize(("change", "changed"), CHANGES, ids=lambda value: "-".join(sorted(value)))
def test_a_setting_changes_its_own_verdict_alone(archive, usual, tmp_path, change, changed):
    assert set(change) <= set(IngestSettings.model_fields)
    found = verdicts(archive, tmp_path, **change)
    assert {name for name in usual if found[name] != usual[name]} == changed
