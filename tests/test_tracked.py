"""What reaches a tracking server elsewhere: aggregates of an allow-list, and hashes that nobody without the key has."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.orchestration.mlflow_runs import OF_PATIENTS, REPORT_TABLES, TRACKED
from pipeline.store.artifacts import Store
from pipeline.store.files import sha256_file


@pytest.fixture(scope="module")
def told(finished, tmp_path_factory) -> list:
    """All runs of a server that knew nothing before the finished project was indexed on it."""
    folder = tmp_path_factory.mktemp("server")
    server = f"sqlite:///{folder}/elsewhere.db"
    client = MlflowClient(tracking_uri=server)
    experiment = client.create_experiment("mini", (folder / "files").as_uri())
    result = CliRunner().invoke(app, ["reindex", str(finished.config), f"tracking.uri={server}"])
    assert result.exit_code == 0, result.output
    return list(client.search_runs([experiment], max_results=1000))


def everything(told) -> dict[str, bytes]:
    """Return all that the server holds, by what it is: tags, parameters, metrics, data sets and files of each run."""
    found = {}
    for run in told:
        name = run.data.tags["maescreen.key"]
        inputs = [(one.dataset.name, one.dataset.digest, one.dataset.source) for one in run.inputs.dataset_inputs]
        found[f"{name} itself"] = str((run.info, run.data.tags, run.data.params, run.data.metrics, inputs)).encode()
        root = Path(run.info.artifact_uri.removeprefix("file://"))
        for path in root.rglob("*"):
            if path.is_file():
                found[f"{name} file {path.relative_to(root)}"] = path.read_bytes()
    return found


def test_no_digest_of_labels_or_files_and_no_patient_reaches_a_server(finished, told):
    held = everything(told)
    assert len(held) > 60
    store = Store(finished.store)
    (ingest,), (split,) = store.all("ingest"), store.all("split")
    files, images = (pd.read_parquet(ingest.file(name)) for name in ("files.parquet", "images.parquet"))
    plain = {sha256_file(finished.labels), ingest.record["sources"]["studies"], split.record["sources"]["labels"]}
    plain |= {*files["sha256"]}
    people = {*images["patient_id"], *images["image_id"], *images["study_id"]}
    assert len(plain) > 100
    # Shortened forms are as good as the whole: MLflow's digests are cut, and a report shows twelve digits of a patient.
    wanted = [digest[:32].encode() for digest in plain] + [person[:12].encode() for person in people]
    assert [(name, one) for name, content in held.items() for one in wanted if one in content] == []


def test_every_file_on_a_server_is_on_the_list(told):
    names = {name.partition(" file ")[2] for name in everything(told) if " file " in name}
    allowed = {pattern for patterns in TRACKED.values() for pattern in patterns} | {"sweep.json"}
    assert {name for name in names if not any(fnmatch(name, pattern) for pattern in allowed)} == set()
    assert {"summary.json", "tables/discrimination.csv", "data/subgroups.csv"} <= names
    assert not names & {"report.json", "report.pdf", "report.html", "reconstructions.png", "tables/misses.csv"}
    assert not names & {"tables/data_provenance.csv", "tables/false_alarms.csv", "threshold.json", "metrics.json"}


def test_data_sets_are_named_by_the_keys_of_artifacts(told):
    keys = {run.data.tags["maescreen.key"].partition("/")[2] for run in told}
    digests = {one.dataset.digest for run in told for one in run.inputs.dataset_inputs}
    assert digests
    assert digests <= keys


def test_every_table_of_a_report_is_either_tracked_or_known_not_to_be(finished):
    (report,) = Store(finished.store).all("report")
    made = {Path(name).stem for name in report.record["files"] if name.startswith("tables/")}
    left = {name for name in made if not any(fnmatch(name, pattern) for pattern in REPORT_TABLES)}
    assert left <= {"misses", "false_alarms", "data_provenance", "hashes"}
    assert set(OF_PATIENTS) <= set(TRACKED)
