"""Masks from files to arrays: none is taken for an image, each has a verdict, each lies on its image's pixels.

What a mask marks is bright in its image, so that arrays can be compared pixel by pixel, wherever they were turned to.
"""

import importlib
import io
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from imaging.files import POLICY, make_dicom
from imaging.phantom import Case, write_case
from imaging.phantom import Grid as Stack
from PIL import Image
from pydantic import ValidationError
from stages.sources_run import Archive, make_card

from pipeline.delivery.dicom.objects import finished
from pipeline.delivery.dicom.segmentation import segmentation
from pipeline.delivery.dicom.source import read_source
from pipeline.imaging.archive.sources import find_sources
from pipeline.imaging.quarantine import Refused
from pipeline.labels.values import LabelsError
from pipeline.models.images import ImagesError, read_images
from pipeline.models.mask_arrays import MaskArrays, read_masks
from pipeline.store.artifacts import Artifact

FRACTIONS = {"train": 0.4, "tune": 0.2, "calibration": 0.2, "test": 0.2}
RULE = {"image": r"images/(.+)\.png", "mask": r"masks/\1.png"}
SPLITS = ("train", "tune", "calibration", "test")
PATIENTS = 40
EMPTY, WELL_WITH_MASK = 2, 1


@pytest.fixture(autouse=True)
def serial(monkeypatch):
    """Do the work in this process: how it is shared out is tested elsewhere, and starting workers takes longer."""

    def guarded(task, item):
        try:
            return task(item)
        except Refused as refused:
            return refused.refusal

    def each_batch(task, batches, *_):
        for number, batch in sorted(batches.items()):
            yield number, [guarded(task, item) for item in batch]

    for module in ("stages.ingest", "imaging.archive.journal", "stages.preprocess", "imaging.masks.examination"):
        monkeypatch.setattr(f"pipeline.{module}.each_batch", each_batch)


def png(values: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG", **options)
    return stream.getvalue()


def lesion(number: int) -> np.ndarray:
    mask = np.zeros((40, 48), np.uint8)
    mask[4 + number % 20 : 14 + number % 20, 6 : 20 + number % 7] = 255
    return mask


def picture(number: int) -> np.ndarray:
    noise = np.random.default_rng(number).integers(0, 90, (40, 48))
    return np.where(lesion(number), 200 + noise // 2, noise).astype(np.uint8)


def pictures(folder: Path, **mask) -> Archive:
    """Pictures of forty patients; the ill have a mask, one of them an empty one, and so has one of the well."""
    archive = Archive(folder)
    rows = []
    for number in range(PATIENTS):
        ill = number % 2 == 0
        archive.add(f"images/{number:02d}.png", png(picture(number)))
        name = f"masks/{number:02d}.png" if ill or number == WELL_WITH_MASK else ""
        if name:
            archive.add(name, png(lesion(number) * (number != EMPTY)))
        label = "ill" if ill else "well"
        rows.append({"path": f"images/{number:02d}.png", "patient": f"P{number}", "label": label, "mask": name})
    archive.label(rows)
    archive.card = make_card(path="path", patient_id="patient", mask=mask)
    return archive


def prepared(archive: Archive, **settings) -> Archive:
    archive.run("ingest", min_side=8).run("split", fractions=FRACTIONS)
    return archive.run("preprocess", **({"image_size": [40, 48], "shard_size": 7} | settings))


def prepared_stage(archive: Archive, stage: str) -> None:
    archive.run(stage, **({"min_side": 8} if stage == "ingest" else {"image_size": [40, 48], "shard_size": 7}))


def opened(archive: Archive, split: str) -> tuple[np.ndarray, MaskArrays]:
    """Return the pixels of a split and their masks."""
    work = archive.work("preprocess")
    images = read_images([work / f"index_{split}.parquet"], sorted(work.glob(f"{split}-*.npy")))
    masks = read_masks(images, sorted(work.glob(f"masks-{split}-*.npy")), work / "mask_grid.parquet")
    return images.raw(np.arange(len(images))).numpy()[:, 0], masks


def everything(archive: Archive) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return pixels, masks, which have one, and spacing, of all splits."""
    found = [opened(archive, split) for split in SPLITS]
    masks = [masks.at(range(len(masks))) for _, masks in found]
    pixels = [pixels for pixels, _ in found]
    parts = zip(pixels, masks, [m.annotated for _, m in found], [m.spacing_mm for _, m in found], strict=True)
    return tuple(map(np.concatenate, zip(*parts, strict=True)))


@pytest.mark.parametrize("how", [{"rule": RULE}, {"column": "mask"}], ids=["rule", "column"])
def test_masks_are_no_images_and_lie_on_theirs(how, tmp_path):
    archive = prepared(pictures(tmp_path, **how))
    summary = archive.summary("ingest")
    assert (summary["received"], summary["accepted"], summary["quarantined"]) == (61, 40, {})
    assert summary["masks"] == {"files": 21, "accepted": 21, "images": 21, "named_but_missing": 0, "refused": {}}
    found = archive.summary("preprocess")["masks"]
    assert found["structures"] == {"1": "lesion"}
    assert sum(found["annotated"].values()) == 21
    assert (found["positive_without_mask"], found["positive_annotated"]) == (1, 20)
    assert (found["negative_with_mask"], found["negative_annotated"]) == (1, 1)
    pixels, masks, annotated, spacing_mm = everything(archive)
    assert annotated.sum() == 21
    assert (masks[~annotated] == 255).all()
    assert {*np.unique(masks[annotated])} == {0, 1}
    assert np.isnan(spacing_mm).all()
    bright = pixels > 150
    same = (bright == (masks == 1)).all(axis=(1, 2))
    assert same[annotated].sum() == 20
    assert not masks[annotated & ~same].any()  # the empty one


def test_a_negative_without_a_mask_can_stand_for_an_empty_one(tmp_path):
    archive = pictures(tmp_path, rule=RULE, missing="empty")
    archive.add("masks/03.png", png(lesion(3)[:-1]))  # refused: of another size
    found = prepared(archive, image_size=[40, 64]).summary("preprocess")["masks"]
    assert found["taken_for_empty"] == 18  # of 20 negatives, one has a mask, and one a refused one
    assert sum(found["annotated"].values()) == 39
    assert (found["negative_with_mask"], found["negative_annotated"]) == (1, 19)
    _, masks, annotated, _ = everything(archive)
    assert (~annotated).sum() == 1
    padding = masks[annotated] == 255
    assert padding.any(axis=(1, 2)).all()
    assert (padding == padding[0]).all()
    lit = (masks == 1).any(axis=(1, 2))
    assert (lit.sum(), (annotated & ~lit).sum()) == (20, 19)


def test_padding_is_not_annotated_and_a_structure_keeps_its_place(tmp_path):
    archive = prepared(pictures(tmp_path, rule=RULE), image_size=[64, 64])
    pixels, masks, annotated, _ = everything(archive)
    assert (masks[annotated][:, :5] == 255).all()
    assert (masks[annotated][:, 6:58] != 255).all()
    inside = [(mask == 1).sum() > 0 and pixels[n][mask == 1].mean() > 150 for n, mask in enumerate(masks)]
    assert sum(inside) == 20


def test_a_changed_mask_is_rendered_again_and_no_other_image(tmp_path, monkeypatch):
    from pipeline.stages.preprocess import each_batch

    archive = prepared(pictures(tmp_path, rule=RULE))
    before = {}
    for stage in ("ingest", "preprocess"):
        archive.work(stage).rename(tmp_path / f"{stage}-before")
        before[stage] = Artifact(stage, "0" * 16, tmp_path / f"{stage}-before")
    moved = np.roll(lesion(6), 5, axis=1)
    archive.add("masks/06.png", png(moved))
    asked = []

    def noted(task, batches, *rest):
        asked.extend((task.func.__name__, item) for batch in batches.values() for item in batch)
        return each_batch(task, batches, *rest)

    for module in ("stages.preprocess", "imaging.masks.examination"):
        monkeypatch.setattr(f"pipeline.{module}.each_batch", noted)
    archive.previous = before["ingest"]
    archive.run("ingest", min_side=8).run("split", fractions=FRACTIONS)
    archive.previous = before["preprocess"]
    archive.run("preprocess", image_size=[40, 48], shard_size=7)
    assert [name for name, _ in asked] == ["check_mask", "_render"]
    assert asked[1][1][0][0][0].path == "images/06.png"
    again = archive.files("preprocess")
    archive.previous = None
    for stage in ("ingest", "preprocess"):
        archive.work(stage).rename(tmp_path / f"{stage}-again")
    assert prepared(archive).files("preprocess") == again
    assert any(np.array_equal(mask, moved // 255) for mask in everything(archive)[1])


def test_an_interrupted_run_goes_on_and_leaves_the_same(tmp_path, monkeypatch):
    archive = prepared(pictures(tmp_path, rule=RULE))
    expected = {stage: archive.files(stage) for stage in ("ingest", "preprocess")}
    for module, stage in (("imaging.masks.examination", "ingest"), ("stages.preprocess", "preprocess")):
        batches_of = importlib.import_module(f"pipeline.{module}").each_batch
        shutil.rmtree(archive.work(stage))
        left = [2]

        def stopping(task, batches, *rest, each_batch=batches_of, left=left):
            for number, results in each_batch(task, batches, *rest):
                if not left[0]:
                    raise KeyboardInterrupt
                left[0] -= 1
                yield number, results

        with monkeypatch.context() as patch:
            patch.setattr("pipeline.imaging.masks.examination.BATCH", 4)
            patch.setattr(f"pipeline.{module}.each_batch", stopping)
            with pytest.raises(KeyboardInterrupt):
                prepared_stage(archive, stage)
            again: list[dict] = []

            def noted(task, batches, *rest, each_batch=batches_of, again=again):
                again.append(batches)
                return each_batch(task, batches, *rest)

            patch.setattr(f"pipeline.{module}.each_batch", noted)
            prepared_stage(archive, stage)
        # Two batches of masks, or two array files with their masks, were not made a second time.
        assert len(again[0]) == 4 if stage == "ingest" else len(again) < len(SPLITS) + 3
        assert archive.files(stage) == expected[stage]


def test_every_mask_that_does_not_fit_is_refused_by_name(tmp_path):
    archive = pictures(tmp_path, rule=RULE, structures={1: "vessel", 255: "lesion"})
    grey = np.where(lesion(10), 7, 0).astype(np.uint8)
    archive.add("masks/10.png", png(grey))
    archive.add("masks/12.png", png(lesion(12)[:, :-1]))
    archive.add("masks/14.png", b"\xff\xd8\xff\xe0 no picture")
    archive.add("masks/16.png", b"what is this")
    archive.add("images/18.png", b"the image is damaged")
    archive.run("ingest", min_side=8)
    quarantine = archive.table("ingest", "quarantine")
    assert quarantine["reason"].value_counts().to_dict() == {
        "mask_values": 1, "mask_size": 1, "mask_format": 2, "mask_without_image": 1, "unknown_format": 1,
    }  # fmt: skip
    details = dict(zip(quarantine["reason"], quarantine["detail"], strict=True))
    assert details["mask_values"] == "1 not named: 7"
    assert details["mask_size"] == "40 x 47 instead of 40 x 48"
    summary = archive.summary("ingest")
    assert (summary["received"], summary["accepted"]) == (61, 39)
    assert summary["masks"]["accepted"] == 16
    assert archive.table("ingest", "masks")["reason"].eq("").sum() == 16


def test_a_rule_that_leads_nowhere_stops(tmp_path):
    archive = pictures(tmp_path, rule={"image": r"pictures/(.+)\.png", "mask": r"masks/\1.png"})
    with pytest.raises(LabelsError, match="leads from none of 61 files under"):
        archive.run("ingest", min_side=8)


def test_a_mask_named_for_a_patient_of_several_pictures_is_nobodys(tmp_path):
    archive = Archive(tmp_path)
    for number in range(4):
        archive.add(f"images/{number}.png", png(picture(number)))
    archive.add("masks/a.png", png(lesion(0)))
    archive.add("masks/b.png", png(lesion(3)))
    rows = [{"path": f"images/{n}.png", "patient": f"P{n}", "label": "ill", "mask": "masks/a.png"} for n in range(4)]
    archive.label(rows)
    archive.card = make_card(path="path", patient_id="patient", mask={"column": "mask"})
    archive.run("ingest", min_side=8)  # by path, one mask may be that of several pictures, if the table says so
    assert archive.table("ingest", "masks")["reason"].tolist() == [""] * 4
    pd.DataFrame([*rows, {**rows[3], "mask": "masks/b.png"}]).to_csv(archive.folder / "labels.csv", index=False)
    archive.run("ingest", min_side=8)
    assert sorted(archive.table("ingest", "masks")["reason"]) == ["", "", "", "mask_ambiguous", "mask_ambiguous"]
    assert archive.table("ingest", "quarantine")["reason"].tolist() == ["mask_ambiguous"]


def test_a_config_without_masks_leaves_the_files_it_always_left(tmp_path):
    archive = pictures(tmp_path / "a", rule=RULE)
    archive.card = make_card(path="path", patient_id="patient")
    for path in (archive.studies / "masks").iterdir():
        path.unlink()
    prepared(archive)
    assert not [name for stage in ("ingest", "preprocess") for name in archive.files(stage) if "mask" in name]
    assert "masks" not in archive.summary("preprocess")
    assert "masks" not in archive.summary("ingest")
    images = read_images(
        [archive.work("preprocess") / "index_train.parquet"], sorted(archive.work("preprocess").glob("train-*.npy"))
    )
    with pytest.raises(ImagesError, match=r"masks-train-000\.npy is missing"):
        read_masks(images, [])


def test_a_segmentation_of_a_series(tmp_path):
    """Every slice leads to the one object; contours are refused; a second object about another series is not taken."""
    archive, rows = Archive(tmp_path), []
    for name, elements in (("a", {}), ("b", {}), ("c", {})):
        folder = archive.studies / name
        folder.mkdir(parents=True)
        planes = Stack(shape=(5, 12, 10)).planes(elements={"FrameOfReferenceUID": "2.25.77", **elements})
        write_case(Case(name, planes), folder)
        rows.append({"patient": f"phantom {name}", "label": "ill"})
    mask = np.random.default_rng(3).integers(0, 3, (5, 12, 10)).astype(np.uint8)
    archive.add("a.seg", segmented(archive.studies / "a", mask))
    archive.add("b.seg", segmented(archive.studies / "a", mask))
    contours = make_dicom(np.zeros((8, 8), np.uint8), SOPClassUID="1.2.840.10008.5.1.4.1.1.481.3", Modality="RTSTRUCT")
    archive.add("c.seg", contours)
    archive.label(rows)
    rule = {"image": r"(.+)/[^/]+\.dcm", "mask": r"\1.seg"}
    archive.card = make_card(patient_id="patient", mask={"rule": rule, "structures": {1: "head", 2: "tail"}})
    archive.run("ingest", min_side=8)
    summary = archive.summary("ingest")
    assert (summary["received"], summary["accepted"]) == (18, 3)
    assert summary["masks"] == {
        "files": 3,
        "accepted": 1,
        "images": 1,
        "named_but_missing": 0,
        "refused": {"mask_contours": 1, "mask_reference": 1},
    }
    (row,) = archive.table("ingest", "masks").query("reason == ''").itertuples()
    assert row.format == "segmentation"
    assert row.pixels.tolist() == [(mask == 1).sum(), (mask == 2).sum()]


def segmented(folder: Path, mask: np.ndarray) -> bytes:
    model = SimpleNamespace(content={"title": "m"}, sha256="ab" * 32)
    source = read_source(find_sources([folder]), (), (), POLICY)
    files = [path.read_bytes() for path in sorted(folder.iterdir())]
    dataset = segmentation(mask, ("head", "tail"), files, POLICY, source, model)
    return finished(dataset, "seg", source, SimpleNamespace(model=model, settings_sha256="cd" * 32))


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ({}, "name either `column` or `rule`"),
        ({"column": "mask", "rule": RULE}, "name either `column` or `rule`"),
        ({"rule": {"image": "images/(.+", "mask": "x"}}, "no expression and its replacement"),
        ({"rule": {"image": "images/(.+)", "mask": r"masks/\2"}}, "no expression and its replacement"),
        ({"column": "mask", "structures": {0: "nothing"}}, "0 is background"),
        ({"column": "mask", "structures": {"nonzero": "a", 1: "b"}}, "or nonzero alone"),
        ({"column": "mask", "structures": {1: "a", 2: "a"}}, "names must be distinct"),
    ],
)
def test_a_card_says_what_is_wrong_with_its_masks(mask, said):
    with pytest.raises(ValidationError, match=re.escape(said)):
        make_card(path="path", mask=mask)


def nifti(values: np.ndarray, affine: np.ndarray) -> bytes:
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    return image.to_bytes()


def test_volumes_whose_masks_are_stored_the_other_way_round(tmp_path):
    archive, rows = Archive(tmp_path), []
    affine = np.array([[-1.5, 0, 0, 30], [0, 1, 0, -20], [0, 0, 2, 5], [0, 0, 0, 1]])
    for number in range(PATIENTS):
        generator = np.random.default_rng(number)
        mask = np.zeros((20, 24, 18), np.uint8)
        corner = generator.integers(2, 8, 3)
        mask[tuple(slice(start, start + 6) for start in corner)] = 1 + number % 2
        values = np.where(mask, 210 + 20 * (mask == 2), generator.integers(0, 90, mask.shape)).astype(np.int16)
        archive.add(f"images/{number}.nii", nifti(values, affine))
        turned = nib.Nifti1Image(mask, affine).as_reoriented(nib.orientations.axcodes2ornt(("S", "P", "R")))
        archive.add(f"masks/{number}.nii", nifti(np.asarray(turned.dataobj), turned.affine))
        label = "ill" if number % 2 else "well"
        rows.append({"path": f"images/{number}.nii", "patient": f"P{number}", "label": label})
    shifted = affine.copy()
    shifted[0, 3] += 0.75  # half a voxel
    archive.add("masks/3.nii", nifti(np.ones((20, 24, 18), np.uint8), shifted))
    archive.add("masks/5.nii", nifti(np.ones((10, 24, 18), np.uint8), affine * [2, 1, 1, 1]))
    archive.label(rows)
    rule = {"image": r"images/(.+)\.nii", "mask": r"masks/\1.nii"}
    structures = {1: "front", 2: "back"}
    archive.card = make_card(path="path", patient_id="patient", mask={"rule": rule, "structures": structures})
    prepared(archive, image_size=[36, 24, 32], spacing_mm=[1, 1, 1])
    refused = archive.table("ingest", "quarantine")
    assert dict(zip(refused["reason"], refused["detail"], strict=True)).keys() == {"mask_position"}
    assert sorted(refused["detail"]) == [
        "0.50 voxels off",
        "size 10 x 24 x 18 instead of 18 x 24 x 20, spacing 1 x 2 x 3 instead of 1 x 1.5 x 2 mm, centre 0.8 mm apart",
    ]
    pixels, masks, annotated, spacing_mm = everything(archive)
    assert annotated.sum() == PATIENTS - 2
    assert np.allclose(spacing_mm, [[1, 1, 1]])
    assert {*np.unique(masks[annotated])} == {0, 1, 2, 255}
    for volume, mask in zip(pixels[annotated], masks[annotated], strict=True):
        # Interpolation blurs the faces by a voxel.
        assert ((volume > 150) == np.isin(mask, (1, 2))).mean() > 0.97
        assert (mask[:, :, 0] == 255).all()  # 30 mm in 32
