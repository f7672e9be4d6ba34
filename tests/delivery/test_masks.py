"""predict --masks: what the model marked, voxel for voxel on the grid of the files, of every kind of file.

And the same masks from services: over HTTP, and to the archive.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from delivery.dicom_files import errors_of
from imaging.phantom import Case, Grid, write_case
from PIL import Image as pillow
from pypdf import PdfReader
from service import judged, running
from small_model import image, picture, small_model
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.delivery.dicom.queued import dicom_files
from pipeline.delivery.masks import queued_masks
from pipeline.delivery.node.outbox import Outbox
from pipeline.delivery.results import write_results
from pipeline.delivery.worker import Judging, judge
from pipeline.imaging.channels import Channel
from pipeline.inference.model import Model, StudiesError
from pipeline.inference.result import MEANINGS

STRUCTURES = {1: "nodule", 2: "effusion"}
VOLUME = (16, 24, 32)  # superior, anterior, right


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("masks")


@pytest.fixture(scope="module")
def model_folder(folder):
    return small_model(folder / "model", structures=STRUCTURES)


@pytest.fixture(scope="module")
def model(model_folder):
    return Model.load(model_folder, device="cpu", threads=1)


@pytest.fixture(scope="module")
def studies(folder):
    """Two pictures and a DICOM study of two images."""
    place = folder / "studies"
    place.mkdir()
    for seed in (1, 2):
        pillow.fromarray(picture(seed)).save(place / f"p{seed}.png")
    for number in (1, 2):
        (place / f"d{number}.dcm").write_bytes(image(7, number))
    return place


@pytest.fixture(scope="module")
def written(folder, model, studies):
    out = folder / "out"
    write_results(model.predict([studies], workers=1, pictures=True, masks=True), out)
    return out


def rows(out):
    return {row["path"]: row for row in json.loads((out / "results.json").read_text())["results"]}


def expected(model, path):
    """What the model marks in a file of 64 x 64, each pixel of its 32 x 32 array four of the file."""
    (one,) = model.read([path]).images
    array = model.read([path]).to_array(model.rendering)
    mask = model.ensemble.segment(array).masks[0]
    assert one.image.pixels.shape == (64, 64)
    return np.repeat(np.repeat(mask, 2, 0), 2, 1)


def test_pictures_get_a_png_of_their_size(model, studies, written):
    for name in ("p1.png", "p2.png"):
        row = rows(written)[name]
        assert row["masks_of"] == [name]
        mask = np.asarray(pillow.open(written / row["masks"][0]))
        wanted = expected(model, studies / name)
        assert 0 < (wanted > 0).mean() < 1
        assert np.array_equal(mask, wanted)


def test_dicom_images_get_a_segmentation_each(model, studies, written):
    row = rows(written)["d1.dcm"]
    assert (row["masks_of"], row["masks_missing"]) == (["d1.dcm", "d2.dcm"], [])
    for name, file in zip(row["masks_of"], row["masks"], strict=True):
        found = highdicom.seg.segread(written / file)
        wanted = expected(model, studies / name)
        assert [found.get_segment_description(n).SegmentLabel for n in found.segment_numbers] == ["nodule", "effusion"]
        references = found.get_source_image_uids()
        assert len(references) == 1
        shown = found.get_pixels_by_source_instance([references[0][2]], combine_segments=True)[0]
        assert np.array_equal(shown, wanted)
        assert not errors_of(written / file)
    assert written.stat().st_mode & 0o777 == 0o700


def test_results_say_what_the_numbers_in_masks_are(written):
    content = json.loads((written / "results.json").read_text())
    assert content["model"]["structures"] == {"1": "nodule", "2": "effusion"}
    assert content["meaning"]["masks"] == MEANINGS["masks"]


def test_the_page_outlines_what_was_marked(written):
    texts = [" ".join(PdfReader(page).pages[0].extract_text().split()) for page in (written / "pages").iterdir()]
    assert all("an outline round what the model marked" in text for text in texts)
    assert all("It is no finding" in text for text in texts)


def test_a_mask_that_is_gone_is_written_again_and_no_other(folder, model, studies, written):
    before = {path: path.read_bytes() for path in sorted((written / "masks").rglob("*")) if path.is_file()}
    assert len(before) == 4
    kept = {path: path.stat().st_mtime_ns for path in before}
    first = next(path for path in before if path.suffix == ".png")
    first.unlink()
    results = (written / "results.json").read_bytes()
    write_results(model.predict([studies], workers=1, pictures=True, masks=True), written)
    assert {path: path.read_bytes() for path in before} == before
    assert sum(path.stat().st_mtime_ns != kept[path] for path in before) == 1
    assert (written / "results.json").read_bytes() == results


def test_without_the_option_there_are_no_masks(folder, model, studies):
    out = folder / "plain"
    write_results(model.predict([studies], workers=1), out)
    assert not (out / "masks").exists()
    assert not {"masks", "masks_of", "masks_missing"} & set(rows(out)["p1.png"])


def test_a_model_that_does_not_segment_refuses(folder, studies):
    other = small_model(folder / "other")
    with pytest.raises(StudiesError, match="not trained to segment"):
        Model.load(other, device="cpu", threads=1).predict([studies], masks=True)
    done = CliRunner().invoke(app, ["predict", str(other), str(studies), "--out", str(folder / "no"), "--masks"])
    assert done.exit_code == 1
    assert "was not trained to segment" in done.output
    assert not (folder / "no").exists()


def test_the_command_counts_masks(folder, model_folder, studies):
    out = folder / "counted"
    done = CliRunner().invoke(
        app, ["predict", str(model_folder), str(studies), "--out", str(out), "--masks", "--no-pages", "--threads", "1"]
    )
    assert done.exit_code == 0, done.output
    assert "4 masks in" in done.output


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR", "PIR"])
def test_volumes_get_a_nifti_on_their_own_grid(folder, codes):
    # The volume has the size of the network's array, so that the way there and back loses nothing.
    made = folder / "volume_model"
    if not made.exists():
        small_model(made, size=VOLUME, structures=STRUCTURES)
    model = Model.load(made, device="cpu", threads=1)
    spacing = (2.0, 2.0, 2.0)
    canonical = nib.Nifti1Image(
        np.random.default_rng(5).integers(0, 900, VOLUME[::-1]).astype(np.int16), np.diag([*spacing, 1.0])
    )
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
    )
    stored = canonical.as_reoriented(turn)
    stored.header.set_xyzt_units("mm")
    place = folder / codes
    place.mkdir()
    stored.to_filename(place / "head.nii.gz")
    write_results(model.predict([place], workers=1, masks=True), place / "out")
    (file,) = rows(place / "out")["head.nii.gz"]["masks"]
    mask = nib.load(place / "out" / file)
    assert np.allclose(mask.affine, stored.affine)
    assert mask.shape == stored.shape
    array = model.read([place / "head.nii.gz"]).to_array(model.rendering)
    wanted = model.ensemble.segment(array).masks[0]
    assert (wanted > 0).any()
    assert np.array_equal(np.asarray(nib.as_closest_canonical(mask).dataobj), wanted.transpose(2, 1, 0))


class Archive:
    name = "the archive"

    def __init__(self) -> None:
        self.got: list[bytes] = []

    def send(self, files: list[Path]) -> None:
        self.got += [path.read_bytes() for path in files]


def test_services_give_the_masks_of_predict(model, studies, written, tmp_path):
    """As a zip archive over HTTP; as segmentations beside the other objects to the archive."""
    writers = {"masks": queued_masks(segmentations=True), "dicom": dicom_files(("sr",))}
    with running(tmp_path) as up:
        sent = {name: up.client.ask("POST", "/studies", (studies / name).read_bytes()) for name in ("p1.png", "d1.dcm")}
        judge(up.queue, model, Judging(workers=1, writers=writers))
        assert "does not segment" in up.client.get(f"/studies/{judged(up)}/masks.zip").why
        for name, answer in sent.items():
            found = up.client.get(f"/studies/{answer.json['id']}/masks.zip")
            assert (found.status, found.headers["content-type"]) == (200, "application/zip")
            with zipfile.ZipFile(io.BytesIO(found.body)) as archive:
                about = json.loads(archive.read("masks.json"))
                (file,) = about.pop("files")
                content = archive.read(file)
            assert about == {"structures": {"1": "nodule", "2": "effusion"}, "images": 1, "missing": []}
            wanted = expected(model, studies / name)
            if name == "p1.png":
                assert np.array_equal(np.asarray(pillow.open(io.BytesIO(content))), wanted)
            else:
                seg = highdicom.seg.segread(io.BytesIO(content))
                (source,) = seg.get_source_image_uids()
                assert np.array_equal(seg.get_pixels_by_source_instance([source[2]], combine_segments=True)[0], wanted)
        archive = Archive()
        Outbox(up.queue, archive, print).step()
        assert sorted(pydicom.dcmread(io.BytesIO(one)).Modality for one in archive.got) == ["SEG", "SR"]


def test_a_service_that_writes_no_dicom_names_no_patient_in_a_mask(model, studies, tmp_path):
    with running(tmp_path) as up:
        sent = up.client.ask("POST", "/studies", (studies / "d1.dcm").read_bytes()).json["id"]
        judge(up.queue, model, Judging(workers=1, writers={"masks": queued_masks(segmentations=False)}))
        with zipfile.ZipFile(io.BytesIO(up.client.get(f"/studies/{sent}/masks.zip").body)) as archive:
            assert archive.namelist() == ["masks.json", "mask-001.png"]
            mask = np.asarray(pillow.open(io.BytesIO(archive.read("mask-001.png"))))
        assert np.array_equal(mask, expected(model, studies / "d1.dcm"))


def test_of_a_study_of_several_series_the_segmentation_is_about_the_first_channels(folder):
    channels = (Channel("t1", description=("T1",)), Channel("flair", description=("FLAIR",)))
    model = Model.load(
        small_model(folder / "channels_model", size=VOLUME, structures=STRUCTURES, channels=channels),
        device="cpu", threads=1,
    )  # fmt: skip
    place, planes = folder / "channels", []
    place.mkdir()
    first = Grid(spacing_mm=(2.0, 2.0, 2.0), shape=VOLUME)
    finer = Grid(spacing_mm=(2.2, 1.0, 0.9), shape=(16, 60, 80))
    # The series of the first channel comes last, by number and by UID.
    for number, grid, words in ((1, finer, "FLAIR"), (2, first, "T1")):
        said = {"SeriesDescription": words, "FrameOfReferenceUID": "2.25.1"}
        own = grid.planes(first_number=100 * number, series=number, add=0)
        planes += [replace(plane, elements=said) for plane in own]
    write_case(Case("study", planes), place)
    written = write_results(model.predict([place], workers=1, masks=True), place / "out")
    (row,) = written.rows
    assert row["masks_missing"] == []
    found = highdicom.seg.segread(place / "out" / row["masks"][0])
    assert not errors_of(place / "out" / row["masks"][0])
    headers = [pydicom.dcmread(path) for path in sorted(place.glob("*.dcm"))]
    own = sorted((one for one in headers if one.SeriesDescription == "T1"), key=lambda one: one.ImagePositionPatient[2])
    names = [str(one.SOPInstanceUID) for one in own]
    assert {str(uid) for _, _, uid in found.get_source_image_uids()} <= {*names}
    wanted = model.ensemble.segment(model.read([place]).to_array(model.rendering)).masks[0]
    shown = found.get_pixels_by_source_instance(names, combine_segments=True, assert_missing_frames_are_empty=True)
    assert (wanted > 0).any()
    assert np.array_equal(shown, wanted[:, ::-1, ::-1])  # columns are stored towards the left, rows to the back
