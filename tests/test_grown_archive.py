"""Ingest of an archive that grows and has files that cannot be read, as `run` does it: what is new is read, no more."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import yaml
from project import DEMO, SETTINGS

from pipeline.imaging.pseudonyms import load_key
from pipeline.orchestration.run import run
from pipeline.settings.load import load
from pipeline.store.artifacts import Artifact

IMAGES = 6


# A file that fails while it is read, whoever reads, root too.
FAILING = Path("/proc/self/mem")


def write(folder: Path) -> list[Path]:
    """Write a project of a few radiographs as single files, with real identifiers; return them."""
    with zipfile.ZipFile(DEMO / "studies.zip") as demo:
        names = demo.namelist()[:IMAGES]
        demo.extractall(folder / "studies", names)
    card = (DEMO / "card.yaml").read_text().replace("identifiers: synthetic", "identifiers: real")
    (folder / "card.yaml").write_text(card)
    (folder / "labels.csv").write_text((DEMO / "labels.csv").read_text())
    studies = ["studies", str(FAILING)] if FAILING.exists() else ["studies"]
    data = {"studies": studies, "labels": "labels.csv", "card": "card.yaml", "key_file": "secret.key"}
    machine = {**SETTINGS["machine"], "workers": 1}
    settings = {**SETTINGS, "store": "store", "data": data, "machine": machine}
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return [folder / "studies" / name for name in names]


def ingest(folder: Path, *overrides: str) -> Artifact:
    config, card = load(folder / "run.yaml", list(overrides))
    secret = load_key(config.data.key_file, card.identifiers)
    return run(config, card, secret, until="ingest", say=lambda line: None).artifacts["ingest"]


def test_an_archive_that_grows_is_read_piecemeal_and_what_cannot_be_read_costs_itself_alone(tmp_path, capfd):
    files = write(tmp_path)
    late = files[-1].rename(tmp_path / "late")
    failing = {"unreadable": 1} if FAILING.exists() else {}
    first = ingest(tmp_path)
    summary = json.loads(first.file("summary.json").read_text())
    assert (summary["files_accepted"], summary["quarantined"]) == (IMAGES - 1, failing)
    assert ingest(tmp_path).key == first.key

    late.rename(files[-1])
    capfd.readouterr()
    second = ingest(tmp_path)
    said = capfd.readouterr().err
    assert f"{IMAGES - 1} files are unchanged since the last ingest" in said
    assert not [name for name in (*files, FAILING) if str(name) in said]
    assert json.loads(second.file("summary.json").read_text())["files_accepted"] == IMAGES

    # With another setting nothing is taken over; into an empty store the same bytes come.
    other = ingest(tmp_path, "ingest.max_aspect=5")
    fresh = ingest(tmp_path, f"store={tmp_path / 'another'}")
    assert "unchanged since the last ingest" not in capfd.readouterr().err
    assert fresh.key == second.key != other.key
    assert fresh.record["files"] == second.record["files"]

    lookup = tmp_path / "secret.lookup"
    assert lookup.stat().st_mode & 0o777 == 0o600
    entries = [json.loads(line) for line in lookup.read_text().splitlines()]
    paths = {entry["original"] for entry in entries if entry["kind"] == "path"}
    assert {str(path.relative_to(tmp_path / "studies")) for path in files} <= paths
