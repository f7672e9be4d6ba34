"""predict: the logits of `score` bit for bit, a row for every study, nothing from outside the model folder."""

from __future__ import annotations

import io
import json
import random
import shutil
import socket
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from starting import kill, start
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.delivery.results import write_results
from pipeline.imaging.pseudonyms import pseudonym
from pipeline.inference.description import describe
from pipeline.inference.ensemble import to_pixels
from pipeline.inference.model import Model, StudiesError
from pipeline.inference.rule import RuleError
from pipeline.inference.study import read_study
from pipeline.models.classifier import Classifier
from pipeline.models.vit import EncoderSpec


def expected(packaged, studies: Path) -> dict[str, float]:
    """The highest mean logit of the images of each Study Instance UID, as the pipeline's own `score` has them."""
    logits = packaged.scores.sort_values("seed").groupby("image_id")["logit"].apply(lambda v: np.mean(v.to_numpy()))
    found: dict[str, float] = {}
    with zipfile.ZipFile(studies) as archive:
        for name in archive.namelist():
            header = pydicom.dcmread(io.BytesIO(archive.read(name)), stop_before_pixels=True)
            image = pseudonym(packaged.secret, "image", header.SOPInstanceUID)
            if image in logits.index:
                uid = str(header.StudyInstanceUID)
                found[uid] = max(found.get(uid, -np.inf), float(logits[image]))
    return found


def scores(results) -> dict[str, str]:
    return {one.study: one.judgement.score.hex() for one in results if one.judgement.score is not None}


@pytest.mark.parametrize("which", ["hog", "mae", "attentive", "cnn", "classical", "ensemble"])
def test_logits_are_those_of_score_bit_for_bit(which, request, tmp_path):
    packaged = request.getfixturevalue(which)
    model = packaged.load()
    wanted = {uid: logit.hex() for uid, logit in expected(packaged, packaged.studies).items()}
    assert len(wanted) > 20
    as_zip = scores(model.predict([packaged.studies], workers=1))
    assert {uid: as_zip[uid] for uid in wanted} == wanted
    files = sorted(packaged.unpacked(tmp_path).rglob("*.dcm"))
    assert scores(model.predict([tmp_path], workers=2)) == as_zip
    random.Random(1).shuffle(files)
    assert scores(model.predict(files, workers=1)) == as_zip
    alone = dict(pair for file in files[:4] for pair in scores(model.predict([file], workers=1)).items())
    singles = {uid: as_zip[uid] for uid in alone}
    counts = {one.study: one.images for one in model.predict([packaged.studies], workers=1)}
    assert {uid: logit for uid, logit in alone.items() if counts[uid] == 1} == {
        uid: logit for uid, logit in singles.items() if counts[uid] == 1
    }


@pytest.mark.parametrize("which", ["mae", "ensemble"])
def test_typicality_is_judged_by_the_pass_that_gives_the_logits(which, request, monkeypatch):
    """Nothing goes through a network twice, and what is found is what a pass of a study's own finds."""
    packaged = request.getfixturevalue(which)
    model = packaged.load()
    before = scores(model.predict([packaged.studies], workers=1))
    reference = replace(model.reference, rate=0.5)  # the patients of a small project are few
    monkeypatch.setattr(Model, "reference", reference)
    network = model.ensemble.networks[0]
    block = network.encoder.blocks[0] if hasattr(network, "encoder") else network.body.layer1
    passed = []
    hook = block.register_forward_hook(lambda _module, _inputs, output: passed.append(len(output)))
    predictions = model.predict([packaged.studies], workers=1)
    results = {one.study: one for one in predictions}
    hook.remove()
    assert scores(results.values()) == before
    assert sum(passed) == sum(one.images for one in results.values()) > 20
    for group in predictions.found.groups:
        study = read_study(group.sources, model.policy, model.task.limits, model.task.min_slices)
        arrays = study.to_array(model.rendering)
        assert len(arrays) == results[group.name].images
        if not len(arrays):
            continue
        alone = reference.of(describe(network, to_pixels(arrays)))
        found = results[group.name].typicality
        assert found.p_value == alone.p_value
        # A convolution chooses its way by the size of the batch.
        assert found.statistic == pytest.approx(alone.statistic, rel=0, abs=0 if which == "mae" else 1e-4)


@pytest.mark.parametrize("size", [(32, 32), (16, 16, 16)])
def test_a_logit_does_not_depend_on_its_batch(size, tmp_path):
    import torch

    from pipeline.inference.ensemble import Ensemble
    from pipeline.models.arms import finish

    spec = EncoderSpec(size, (8,) * len(size), 1, 48, 2, 4, (0.5,), (0.25,))
    torch.manual_seed(3)
    network = Classifier(spec, "norm_linear", labels=2)
    torch.nn.init.normal_(network.head.weight)
    content = {"spec": spec.to_json(), "head": "norm_linear", "further_labels": ["other"]}
    finish(tmp_path, "mae", network.state_dict(), [], content, {})
    files = {1: (tmp_path / "model.json", tmp_path / "model.safetensors")}
    ensemble = Ensemble.load(files, torch.device("cpu"))
    arrays = np.random.default_rng(0).integers(0, 256, (37, 1, *size), dtype=np.uint8)
    whole = ensemble.logits(arrays)
    for batch in (1, 2, 5, 16, 36):
        assert (ensemble.logits(arrays, batch) == whole).all()
    order = np.random.default_rng(1).permutation(37)
    assert (ensemble.logits(arrays[order]) == whole[order]).all()


def test_the_folder_is_enough(hog, tmp_path, monkeypatch):
    """Copied elsewhere, without the store, the key and the network."""
    before = scores(hog.load().predict([hog.studies], workers=1))
    copied = shutil.copytree(hog.model, tmp_path / "elsewhere" / "model")
    studies = shutil.copyfile(hog.studies, tmp_path / "studies.zip")

    def refused(*_args, **_options):
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.chdir(tmp_path)
    model = Model.load(copied, device="cpu", threads=1, say=lambda line: None)
    assert scores(model.predict([studies], workers=1)) == before


@pytest.mark.parametrize("poison", ["flip", "missing", "extra", "pickle", "outward", "link"])
def test_a_poisoned_folder_is_refused_by_name(hog, tmp_path, poison):
    names = sorted(str(p.relative_to(hog.model)) for p in hog.model.rglob("*") if p.is_file())
    for name in names if poison in ("flip", "missing") else names[:1]:
        folder = shutil.copytree(hog.model, tmp_path / name.replace("/", "-") / "model")
        target, named = folder / name, name
        if poison == "flip":
            content = bytearray(target.read_bytes())
            content[len(content) // 2] ^= 1
            target.write_bytes(content)
        elif poison == "missing":
            target.unlink()
        elif poison == "extra":
            (folder / "more.json").write_text("{}")
            named = "more.json"
        elif poison == "pickle":
            named = "members/seed1/model.safetensors"
            (folder / named).write_bytes(b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.")
        elif poison == "outward":
            named = "../outside.json"
            (folder / "SHA256SUMS").write_text((folder / "SHA256SUMS").read_text() + f"{'0' * 64}  {named}\n")
        else:
            named = "model.json"
            shutil.move(folder / named, tmp_path / "model.json")
            (folder / named).symlink_to(tmp_path / "model.json")
        done = CliRunner().invoke(app, ["model", "info", str(folder)])
        assert done.exit_code == 1
        # With another hash in SHA256SUMS, the file of that line is the one that looks wrong.
        assert named == "SHA256SUMS" or named in done.output


def test_model_json_that_was_resealed_with_a_path_outward_is_refused(hog, tmp_path):
    from pipeline.inference.model_folder import seal

    folder = shutil.copytree(hog.model, tmp_path / "model")
    content = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(content | {"files": {"weights": "/etc/passwd"}}))
    seal(folder)
    done = CliRunner().invoke(app, ["model", "info", str(folder)])
    assert done.exit_code == 1
    assert "/etc/passwd" in done.output


def test_golden_images_that_score_otherwise_are_refused(hog, tmp_path):
    from pipeline.inference.model_folder import ModelError, seal

    folder = shutil.copytree(hog.model, tmp_path / "model")
    logits = np.load(folder / "golden" / "logits.npy")
    np.save(folder / "golden" / "logits.npy", logits + 0.01)
    seal(folder)
    with pytest.raises(ModelError, match=r"golden images differ by 0\.01"):
        Model.load(folder, device="cpu", threads=1)


def test_every_study_has_a_row_and_every_file_a_place(hog, tmp_path):
    studies = hog.unpacked(tmp_path / "studies")
    files = sorted(studies.rglob("*.dcm"))
    cut = files[0].read_bytes()
    (studies / "cut.dcm").write_bytes(cut[: len(cut) // 2])
    (studies / "noise.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (studies / "README.txt").write_text("what these are")
    predictions = hog.load().predict([studies], workers=2)
    written = write_results(predictions, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = {row["study"]: row for row in content["results"]}
    assert len(rows) == len(content["results"]) == len(predictions.found.groups)
    assert content["files"]["received"] == len(files) + 3 == content["files"]["used"] + content["files"]["quarantined"]
    noise = rows["noise"]
    assert (noise["decision"], noise["reasons"]) == ("not assessable", ["no_image"])
    quarantine = (tmp_path / "out" / "quarantine.csv").read_text()
    assert {"noise.png", "README.txt", "cut.dcm"} <= {line.split(",")[0] for line in quarantine.splitlines()}
    damaged = str(pydicom.dcmread(files[0], stop_before_pixels=True).StudyInstanceUID)
    # The cut copy of an image belongs to the same study: it refers what the rest refers, and else nobody knows.
    assert rows[damaged]["decision"] in ("refer", "not assessable")
    assert sum(written.counts().values()) == len(rows)
    names = {one.PatientID for one in map(pydicom.dcmread, files)} | {str(pydicom.dcmread(files[0]).PatientName)}
    everything = "".join(path.read_text("utf-8") for path in (tmp_path / "out").iterdir() if path.is_file())
    assert not [name for name in names if f'"{name}"' in everything or f",{name}," in everything]


def test_only_certified_operating_points_can_be_chosen(hog):
    model = hog.load()
    with pytest.raises(RuleError, match=r"recall 0\.99 is not certified for this model; certified: 0\.8"):
        model.predict([hog.studies], recall_target=0.99)
    with pytest.raises(StudiesError, match="1 of 1 paths"):
        model.predict([hog.studies], studies={"nowhere.png": "a"})


def test_a_model_whose_gate_failed_gives_scores_and_never_decisions(judged, tmp_path):
    from pipeline.orchestration.run import run

    project, _ = judged
    loaded = project.load("calibrate.recall_targets=[0.99]", "machine.workers=1")
    result = run(*loaded, until="package", say=lambda line: None)
    folder = result.artifacts["package"].path / "model"
    studies = project.folder / "new" / "studies.zip"
    arguments = ["predict", str(folder), str(studies), "--out", str(tmp_path / "out"), "--workers", "1", "--no-pages"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 3, done.output
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert {row["decision"] for row in rows} == {"not assessable"}
    assert {row["threshold"] for row in rows} == {None}
    assert all(isinstance(row["score"], float) for row in rows)
    assert json.loads((folder / "model.json").read_text())["rule"]["operating_points"] == []


def test_the_folder_holds_no_row_about_a_patient(hog, judged, finished):
    from pipeline.store.tables.ingest import IMAGES
    from pipeline.store.tables.io import read_table

    project, _ = judged
    table = next(iter((project.store / "ingest").glob("*/images.parquet")))

    images = read_table(table, IMAGES)
    with zipfile.ZipFile(project.folder / "studies.zip") as archive:
        headers = [pydicom.dcmread(io.BytesIO(archive.read(n)), stop_before_pixels=True) for n in archive.namelist()]
    planted = {
        text for h in headers for text in (h.PatientID, str(h.PatientName), h.StudyInstanceUID, h.SOPInstanceUID)
    }
    planted |= {*images["image_id"], *images["patient_id"], *images["study_id"], str(project.folder)}
    content = b"\n".join(path.read_bytes() for path in hog.model.rglob("*") if path.is_file())
    assert not [text for text in planted if len(text) > 3 and text.encode() in content]


def test_a_killed_command_goes_on_to_the_same_bytes(hog, tmp_path):
    def words(out: Path) -> list[str]:
        options = ["--out", str(out), "--workers", "1", "--threads", "1", "--no-pages"]
        return ["predict", str(hog.model), str(hog.studies), *options]

    assert CliRunner().invoke(app, words(tmp_path / "whole")).exit_code == 0
    whole = (tmp_path / "whole" / "results.json").read_bytes()
    out, journal = tmp_path / "killed", tmp_path / "killed" / "journal.jsonl"
    for lines in (1, 12):
        process = start(*words(out), said=tmp_path / "said.txt")
        while process.is_alive() and (not journal.exists() or journal.read_bytes().count(b"\n") < lines):
            time.sleep(0.01)
        kill(process)
    with journal.open("ab") as stream:
        stream.write(b'{"settings": "cut')
    assert CliRunner().invoke(app, words(out)).exit_code == 0
    assert (out / "results.json").read_bytes() == whole
    assert (out / "results.csv").read_bytes() == (tmp_path / "whole" / "results.csv").read_bytes()
