"""Registered models: a name and a version, aliases with a memory, served by MLflow without pickle or parameters."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import socket
import threading
import time
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.commands.registry import packaged
from pipeline.inference.model_folder import seal, verified
from pipeline.store.registry import Registry, RegistryError
from pipeline.store.served_model import Serving


def invoke(*words: str | Path):
    return CliRunner().invoke(app, [str(word) for word in words])


@dataclass(frozen=True)
class Registered:
    """A store in which version 1 of `chest` is the hog model and version 2 one that is not usable."""

    store: Path
    source: Path
    unusable: Path

    def model(self, *words: str | Path):
        return invoke("model", *words, "--store", self.store)


@pytest.fixture(scope="module")
def registered(hog, tmp_path_factory) -> Registered:
    folder = tmp_path_factory.mktemp("registered")
    unusable = shutil.copytree(hog.model, folder / "unusable")
    content = json.loads((unusable / "model.json").read_text())
    content["rule"] |= {"usable": False, "not_usable_because": ["Test patients: contradicted."], "operating_points": []}
    (unusable / "model.json").write_text(json.dumps(content))
    seal(unusable)
    made = Registered(folder / "store", hog.model, unusable)
    for model, reference in ((hog.model, "models:/chest/1"), (unusable, "models:/chest/2")):
        done = made.model("register", model, "--name", "chest")
        assert (done.exit_code, done.stdout.strip()) == (0, reference), done.output
    return made


def served(registered: Registered, version: str = "1"):
    import mlflow

    source = Registry(registered.store).find(f"models:/chest/{version}").source
    return mlflow.pyfunc.load_model(source)


def test_the_same_model_is_registered_once(registered):
    again = registered.model("register", registered.source, "--name", "chest")
    assert again.stdout.strip() == "models:/chest/1"


def test_an_alias_leads_to_a_model_and_its_moves_are_remembered(registered):
    first = registered.model("promote", "chest", "1", "--alias", "shadow", "--why", "better on site B")
    assert first.stdout.strip() == "models:/chest@shadow", first.output
    _, sha256 = verified(registered.source)
    info = json.loads(registered.model("info", "models:/chest@shadow", "--json").stdout)
    assert info["sha256"] == sha256
    assert info["registered"]["version"] == "1"
    assert info["forced"] == []
    history = registered.model("history", "chest", "--json")
    assert history.exit_code == 0, history.output
    move = json.loads(history.stdout)["moves"][0]
    assert (move["alias"], move["to_sha256"], move["why"]) == ("shadow", sha256, "better on site B")
    assert move["account"]
    shown = registered.model("history", "chest").stdout
    assert "@shadow: nothing -> version 1" in shown


def test_a_model_that_is_not_usable_is_promoted_only_by_force_and_that_is_shown_for_ever(registered):
    words = ("promote", "chest", "2", "--alias", "champion", "--why", "for teaching only")
    refused = registered.model(*words)
    assert refused.exit_code == 1
    assert "Test patients: contradicted." in refused.output
    assert "--force" in refused.output
    assert registered.model("info", "models:/chest@champion").exit_code == 1
    assert registered.model(*words, "--force").exit_code == 0
    assert registered.model("promote", "chest", "1", "--alias", "champion", "--why", "back").exit_code == 0
    for reference in ("models:/chest/2", registered.unusable):
        info = registered.model("info", reference)
        assert "FORCED" in info.stdout, info.output
        assert "for teaching only" in info.stdout
    history = registered.model("history", "chest").stdout
    assert "FORCED: the model is not usable: Test patients: contradicted." in history
    assert "@champion: version 2" in history
    assert "FORCED" not in registered.model("info", "models:/chest@champion").stdout


def test_words_that_mean_nothing_are_refused_with_what_there_is(registered):
    for reference, told in [
        ("models:/breast/1", "registered: chest"),
        ("models:/chest/7", "versions: 1, 2"),
        ("models:/chest@nobody", "is not there; versions: 1, 2"),
        ("models:/chest", "expected models:/NAME@ALIAS"),
    ]:
        done = registered.model("info", reference)
        assert done.exit_code == 1
        assert told in done.output
    for alias, why, told in [("latest", "x", "looks like a version"), ("a b", "x", "--alias"), ("a", " ", "--why")]:
        done = registered.model("promote", "chest", "1", "--alias", alias, "--why", why)
        assert done.exit_code == 1
        assert told in done.output


def test_predict_takes_a_registered_model(registered, hog, tmp_path):
    out = {}
    for reference in ("models:/chest/1", hog.model):
        out[reference] = tmp_path / str(len(out))
        options = ["--out", out[reference], "--workers", "1", "--no-pages", "--store", registered.store]
        done = invoke("predict", reference, hog.studies, *options)
        assert done.exit_code == 0, done.output
    first, second = ((folder / "results.json").read_bytes() for folder in out.values())
    assert first == second


def test_served_rows_are_those_of_predict(registered, hog, tmp_path):
    with zipfile.ZipFile(hog.studies) as archive:
        contents = [archive.read(name) for name in archive.namelist()[:3]]
    paths = _written(contents, tmp_path)
    alone = [next(iter(hog.load().predict([path], workers=1))) for path in paths]
    table = pd.DataFrame(
        {"content": [*contents, b"no image", hog.studies.read_bytes()], "study": [*"abc", None, "all"]}
    )
    rows = served(registered).predict(table)
    assert [row["study"] for row in rows] == ["a", "b", "c", "4", "all"]
    assert [row["score_hex"] for row in rows[:3]] == [one.judgement.score.hex() for one in alone]
    assert [row["decision"] for row in rows[:3]] == [one.judgement.decision for one in alone]
    assert (rows[3]["decision"], rows[3]["reasons"]) == ("not assessable", ["no_image"])
    highest = max(one.judgement.score for one in hog.load().predict([hog.studies], workers=1) if one.judgement.score)
    assert float.fromhex(rows[4]["score_hex"]) == highest  # one study, whatever is in the archive
    assert rows[0]["threshold"] == hog.load().rule.points[0].threshold


def _written(contents: list[bytes], folder: Path) -> list[Path]:
    paths = [folder / f"{number}.dcm" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def test_archives_of_every_kind_are_one_row_each(hog):
    from pipeline.inference.table import judge_table

    empty, escaping = hog.studies.parent / "empty.zip", hog.studies.parent / "escaping.zip"
    zipfile.ZipFile(empty, "w").close()
    with zipfile.ZipFile(escaping, "w") as archive:
        archive.writestr("../outside.dcm", b"x")
    contents = [empty.read_bytes(), escaping.read_bytes(), b"", b"PK\x05\x06" + bytes(18) + b"!"]
    rows = judge_table(hog.load(), contents, [None] * len(contents))
    assert [row["decision"] for row in rows] == ["not assessable"] * len(contents)
    assert judge_table(hog.load(), [], []) == []


@pytest.mark.parametrize("params", [{"threshold": -9.0}, {"treshold": -9.0}])
def test_there_is_no_parameter_not_even_a_misspelt_one(registered, params):
    model = served(registered)
    example = model.input_example
    assert len(model.predict(example)) == 1
    with pytest.raises(Exception, match="the model takes no parameters"):
        model.predict(example, params=params)


def test_over_http_content_is_base64(registered, hog):
    with zipfile.ZipFile(hog.studies) as archive:
        content = archive.read(archive.namelist()[0])
    table = {"dataframe_records": [{"content": base64.b64encode(content).decode(), "study": "a"}]}
    with _http(served(registered)) as post:
        code, answer = post(table)
        assert code == 200, answer
        assert (answer["predictions"][0]["study"], answer["predictions"][0]["images"]) == ("a", 1)
        code, answer = post({**table, "params": {"threshold": 0}})
        assert (code, "takes no parameters" in json.dumps(answer)) == (400, True)


@contextmanager
def _http(model):
    """MLflow's own scoring server, as `mlflow models serve` runs it."""
    import uvicorn
    from mlflow.pyfunc.scoring_server import init

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(init(model), host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)

    def post(content):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        connection.request("POST", "/invocations", json.dumps(content), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    try:
        yield post
    finally:
        server.should_exit = True
        thread.join()


def test_mlflow_holds_no_pickle_no_path_of_this_machine_and_nothing_of_a_patient(registered, hog, judged):
    import pydicom

    version = Registry(registered.store).find("models:/chest/1")
    folder = Path(version.source.removeprefix("file://"))
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    assert {"MLmodel", "mlflow_model.py", "input_example.json"} <= {path.name for path in files}
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".joblib", ".pt", ".pth")]
    project, _ = judged
    everything = b"\n".join(path.read_bytes() for path in files)
    planted = {str(project.folder), str(registered.store), str(Path.home()), "/tmp/"}
    with zipfile.ZipFile(project.folder / "studies.zip") as archive:
        for name in archive.namelist():
            with archive.open(name) as stream:
                header = pydicom.dcmread(stream, stop_before_pixels=True)
            planted |= {header.PatientID, str(header.PatientName), header.StudyInstanceUID}
    assert not [text for text in planted if len(text) > 3 and text.encode() in everything]
    requirements = (folder / "requirements.txt").read_text()
    assert requirements.startswith("maescreen==")
    assert "+" not in requirements


def test_what_others_moved_and_lines_that_are_gone_are_told(registered, tmp_path):
    store = shutil.copytree(registered.store, tmp_path / "store")
    registry = Registry(store)
    registry.promote(registry.find("models:/chest/1"), "trial", "why not", (), force=False)
    assert not registry.history("chest").problems
    registry._client().set_registered_model_alias("chest", "trial", "2")
    assert any("moved by other means" in problem for problem in registry.history("chest").problems)
    registry._client().set_registered_model_alias("chest", "trial", "1")
    file = store / "models" / "history.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    done = invoke("model", "history", "chest", "--store", store)
    assert done.exit_code == 1
    assert "the last entry that was written for chest is gone" in done.output


def test_files_that_were_changed_in_mlflow_are_refused(registered, tmp_path):
    registry = Registry(registered.store)
    version = registry.find("models:/chest/1")
    with registry.folder(version) as folder:
        weights = next(folder.rglob("*.safetensors"))
        before = weights.read_bytes()
        try:
            weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
            done = registered.model("info", "models:/chest/1")
            assert (done.exit_code, "SHA-256 differs" in done.output) == (1, True)
            weights.write_bytes(before)
            sums = folder / "SHA256SUMS"
            whole = sums.read_bytes()
            (folder / "MODEL_CARD.md").write_text("another card")
            seal(folder)
            done = registered.model("info", "models:/chest/1")
            assert (done.exit_code, "was registered" in done.output) == (1, True)
        finally:
            weights.write_bytes(before)
            shutil.copyfile(registered.source / "MODEL_CARD.md", folder / "MODEL_CARD.md")
            sums.write_bytes(whole)


def test_looking_for_a_model_makes_no_database(tmp_path):
    done = invoke("model", "info", "models:/chest/1", "--store", tmp_path / "nowhere")
    assert done.exit_code == 1
    assert "holds no registered models" in done.output
    assert not (tmp_path / "nowhere").exists()


def test_a_run_is_registered_in_its_own_store_by_its_config(finished, tmp_path):
    project = finished.copy(tmp_path / "project")
    done = invoke("model", "register", project.config, "--name", "chest")
    assert (done.exit_code, done.stdout.strip()) == (0, "models:/chest/1"), done.output
    done = invoke("model", "promote", "chest", "1", "--alias", "champion", "--why", "first", "--config", project.config)
    assert done.exit_code == 0, done.output
    assert (project.store / "models" / "history.jsonl").is_file()
    info = invoke("model", "info", "models:/chest@champion", "--config", project.config, "--json")
    assert json.loads(info.stdout)["registered"]["aliases"] == ["champion"]
    assert json.loads(invoke("model", "info", project.config, "--json").stdout)["forced"] == []


def test_reindex_restores_names_versions_aliases_and_reasons_after_a_lost_database(registered, finished, tmp_path):
    project = finished.copy(tmp_path / "project")
    where = ("--config", project.config)
    for model in (project.config, registered.unusable):
        assert invoke("model", "register", model, "--name", "chest", *where).exit_code == 0
    promote = ("model", "promote", "chest", *where)
    assert invoke(*promote, "1", "--alias", "champion", "--why", "first").exit_code == 0
    assert invoke(*promote, "2", "--alias", "shadow", "--why", "to look", "--force").exit_code == 0
    before = json.loads(invoke("model", "info", "models:/chest@champion", *where, "--json").stdout)
    # A copy, since this process has the database open.
    moved = project.copy(tmp_path / "moved")
    for path in moved.store.glob("mlflow.db*"):
        path.unlink()
    where = ("--config", moved.config)
    done = invoke("reindex", moved.config)
    assert done.exit_code == 0, done.output
    assert "models:/chest/1 is registered again, @champion" in done.output
    assert "models:/chest/2" in done.output
    assert "is not in the store any more" in done.output
    after = json.loads(invoke("model", "info", "models:/chest@champion", *where, "--json").stdout)
    assert after == before
    history = json.loads(invoke("model", "history", "chest", *where, "--json").stdout)
    assert ([move["alias"] for move in history["moves"]], history["problems"]) == (["champion", "shadow"], [])
    shadow = Registry(moved.store).find("models:/chest@shadow")
    assert (shadow.version, shadow.forced.endswith("to look")) == ("2", True)
    gone = invoke("model", "info", "models:/chest@shadow", *where)
    assert gone.exit_code == 1
    assert "register the model again" in gone.output
    # Which then makes a version of its own; a second reindex leaves all of it alone.
    again = invoke("model", "register", registered.unusable, "--name", "chest", *where)
    assert again.stdout.strip() == "models:/chest/3"
    again = invoke("reindex", moved.config)
    assert (again.exit_code, "registered again" in again.output) == (0, False)


def test_the_name_of_a_model_is_one_word(registered):
    with pytest.raises(RegistryError, match="--name"):
        Registry(registered.store).register(packaged(registered.source), "a/b", Serving(Path(), pd.DataFrame(), {}))


def test_every_field_of_a_row_is_in_the_signature(registered, hog):
    from pipeline.inference.table import columns, judge_table

    row = judge_table(hog.load(), [b"x"], [None])[0]
    assert columns().keys() == row.keys()
    signature = served(registered).metadata.signature
    assert signature.outputs.input_names() == list(columns())
    assert signature.inputs.input_names() == ["content", "study"]
    assert np.all([not one.required for one in signature.outputs.inputs])
