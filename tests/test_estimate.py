"""What a run will take: counted from outside, learnt from earlier artifacts, and said before it starts."""

import json
import zipfile
from dataclasses import replace

import pytest
from toy import Toy

from pipeline.orchestration import estimate, work
from pipeline.orchestration.estimate import estimates, job_of, lines, timed_factor, warnings
from pipeline.orchestration.items import counted_items
from pipeline.orchestration.plan import plan
from pipeline.orchestration.run import run
from pipeline.orchestration.work import Items, disk_mb, forward_flops, memory_mb, pretrain_flops, seconds
from pipeline.settings.training import ENCODER_SIZES, FinetuneSettings, PretrainSettings

SOME = Items(files=100, megabytes=10.0, images=100, train=50, tune=10, calibration=20, test=20)
SMALL = {"patch_size": [8, 8], "width": 96, "depth": 4, "heads": 3}


@pytest.fixture
def toy(tmp_path):
    with Toy(tmp_path / "toy").installed() as project:
        yield project


def small_job(toy, items=SOME, **finetune):
    config = toy.load()[0]
    job = job_of(config, items)
    return replace(
        job,
        image_size=[64, 64],
        pretrain=PretrainSettings.model_validate(
            {"encoder": {"patch_size": [8, 8], "width": 96, "depth": 4, "heads": 3}}
        ),
        finetune=FinetuneSettings.model_validate({"arms": ["mae", "hog"], **finetune}),
    )


def test_files_are_counted_as_ingest_chooses_them(toy):
    studies = toy.folder / "studies"
    (studies / "one").unlink()
    for name in ("a.png", "b.png", "masks/a.png"):
        (studies / name).parent.mkdir(exist_ok=True)
        (studies / name).write_bytes(b"x" * 1000)
    with zipfile.ZipFile(studies / "more.zip", "w") as archive:
        archive.writestr("c.png", b"x" * 1000)
        archive.writestr("masks/c.png", b"x" * 1000)
    (studies / "labels.csv").write_text("path,label\na.png,1\nb.png,0\n")
    config = toy.load()[0]
    data = config.data.model_copy(update={"exclude": ["masks"], "labels": studies / "labels.csv"})
    found = counted_items(config, data)
    assert (found.files, found.images) == (3, 3)
    assert found.megabytes == pytest.approx(0.003)
    assert found.prepared == 3
    assert found.pretrain == 1  # the third has no row
    external = counted_items(config, data, test_only=True)
    assert (external.train, external.test) == (0, 2)


def test_work_grows_with_what_makes_it(toy):
    job = small_job(toy)
    more = replace(SOME, files=200, megabytes=20.0, images=200, train=100, tune=20, calibration=40, test=40)
    for stage in ("ingest", "split", "preprocess", "pretrain", "finetune", "score", "calibrate", "evaluate", "package"):
        assert seconds(stage, replace(job, items=more)) > seconds(stage, job) > 0
        assert disk_mb(stage, replace(job, items=more)) >= disk_mb(stage, job) > 0
    assert seconds("finetune", small_job(toy, epochs=100)) > 1.5 * seconds("finetune", small_job(toy, epochs=50))
    # Seeds are trainings of networks, not of classical arms.
    assert small_job(toy, seeds=[1, 2, 3, 4]).networks == ["mae"] * 4
    assert seconds("pretrain", replace(job, threads=4)) < seconds("pretrain", job)
    assert memory_mb("finetune", replace(job, image_size=[128, 128])) > memory_mb("finetune", job)


def test_a_vit_small_costs_what_is_published_for_it(toy):
    """4.6 GFLOP of multiply-adds for 224 × 224 pixels in patches of 16 (Touvron et al. 2021), two operations each."""
    encoder = {"patch_size": [16, 16], **ENCODER_SIZES["small"]}
    job = replace(small_job(toy), image_size=[224, 224], pretrain=PretrainSettings.model_validate({"encoder": encoder}))
    assert forward_flops(job) == pytest.approx(2 * 4.6e9, rel=0.03)
    assert pretrain_flops(job) < forward_flops(job)


def made_in(toy, stage, time_s, **changes):
    """Run, and let the artifact of a stage have taken so long."""
    run(*toy.load(**changes), until="score", say=lambda line: None)
    for path in (toy.store.root / "ingest").glob("*/artifact.json"):
        (path.parent / "summary.json").write_text(json.dumps({"received": 40, "accepted": 40}))
    path = next((toy.store.root / stage).glob("*/artifact.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": time_s}))
    return json.loads(path.read_text())


def test_what_a_stage_took_before_is_what_it_is_expected_to_take(toy, monkeypatch):
    monkeypatch.setattr(work, "TORCH_S", 0.0)  # to start takes no longer for twice the epochs
    record = made_in(toy, "pretrain", 400.0)
    assert set(record["machine"]) == {"cores", "threads", "workers"}
    for epochs, times in ((200, 1), (400, 2)):
        config, card, secret = toy.load(pretrain={"epochs": epochs, "seed": 5})
        found = estimates(config, plan(config, card, secret))
        assert list(found) == ["pretrain", "score"]
        assert found["pretrain"].seconds == pytest.approx(400 * times, rel=0.1)
        assert found["pretrain"].basis == "1 earlier artifact"
        assert found["score"].basis == "the reference machine"


def test_another_machine_teaches_nothing(toy, monkeypatch):
    made_in(toy, "pretrain", 400.0)
    config, card, secret = toy.load(pretrain={"seed": 5})
    monkeypatch.setattr(estimate, "cores", lambda: 64)
    assert estimates(config, plan(config, card, secret))["pretrain"].basis == "the reference machine"


def test_a_finished_run_has_nothing_to_be_estimated(toy):
    made_in(toy, "pretrain", 400.0)
    config, card, secret = toy.load()
    assert estimates(config, plan(config, card, secret)) == {}
    assert warnings({}, config.store) == []


def test_the_network_of_the_nearest_size_that_was_timed_counts(toy):
    job = small_job(toy)
    steps = [
        {"forward_flops": 6e7, "pretrain": 2.0, "finetune": 3.0},
        {"forward_flops": 1e10, "pretrain": 7.0, "finetune": 8.0},
    ]
    speed = {"steps": steps, "factors": {"ingest": 5.0}}
    assert [timed_factor(stage, job, speed)[0] for stage in ("ingest", "pretrain", "finetune", "score", "report")] == [
        5.0, 2.0, 3.0, 3.0, 1.0,
    ]  # fmt: skip
    large = replace(job, image_size=[224, 224], pretrain=PretrainSettings(), finetune=FinetuneSettings())
    assert timed_factor("pretrain", large, speed)[0] == 7.0


def test_other_programs_lengthen_what_was_not_seen_on_this_machine(toy, monkeypatch):
    made_in(toy, "pretrain", 400.0)
    config, card, secret = toy.load(pretrain={"seed": 5})
    found = {}
    for load in (0.0, 15.0):
        monkeypatch.setattr(estimate, "load", lambda load=load: load)
        monkeypatch.setattr(estimate, "cores", lambda: 2)
        found[load] = estimates(config, plan(config, card, secret))
    assert found[15.0]["score"].seconds > 4 * found[0.0]["score"].seconds
    assert "other programs keep this machine busy (load 15 on 2 cores)" in "\n".join(lines(found[15.0], config.store))


def test_long_runs_and_small_machines_are_told_before_the_run_starts(toy, monkeypatch):
    made_in(toy, "pretrain", 3 * 3600.0)
    monkeypatch.setattr(estimate, "memory_gb", lambda: 0.1)
    said = []
    run(*toy.load(pretrain={"seed": 5}), until="score", say=said.append)
    assert any(line.startswith("this will take about 3.") and "pretrain alone 3.0 h" in line for line in said)
    assert any("of memory, and this machine has 0 GB" in line for line in said)
