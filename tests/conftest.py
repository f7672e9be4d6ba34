"""A finished run of the small project, shared by all tests that only look at it."""

import os

# Tests run beside each other; threads that wait by spinning would take the cores from them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import logging
import shutil
import warnings
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from project import Project, made_once, make_project

# How long something takes is no verdict: on a busy machine everything is slow.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Project:
    """A project that was run from end to end once, by the command; `said.txt` holds all that it said and logged."""
    return Project(made_once(tmp_path_factory, "mini", _run_once))


def _run_once(folder: Path) -> None:
    from typer.testing import CliRunner

    from pipeline.cli import app

    project, logged = make_project(folder), StringIO()
    handler, root = logging.StreamHandler(logged), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            result = CliRunner().invoke(app, ["run", str(project.config)])
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
    assert result.exit_code == 0, result.stderr
    words = [result.stdout, result.stderr, logged.getvalue(), *(str(one.message) for one in warned)]
    (folder / "said.txt").write_text("\n".join(words))


@pytest.fixture(autouse=True, scope="session")
def one_pool():
    """Two workers import what any stage needs, so that one pool serves all tests; yields what else says it."""
    from pipeline.imaging.archive import workers

    patch, own, executor = pytest.MonkeyPatch(), workers._module, workers.get_reusable_executor
    patch.setattr(workers, "_module", lambda task: "pipeline.stages.preprocess")
    patch.setattr(workers, "get_reusable_executor", lambda **words: executor(**{**words, "max_workers": 2}))
    patch.setattr(workers, "IDLE_S", 3600)
    yield {"_module": own, "get_reusable_executor": executor}
    patch.undo()


@pytest.fixture(autouse=True, scope="session")
def one_database(tmp_path_factory):
    """MLflow takes a second to make its tables; each new store is given a copy of the first one's, which is empty.

    Yields what makes them.
    """
    from pipeline.store import tracking

    make, empty = tracking._create_database, tmp_path_factory.mktemp("database") / "mlflow.db"

    def create(store: Path) -> None:
        if not empty.exists():
            make(empty.parent)
        if not (store / empty.name).exists():
            shutil.copyfile(empty, store / empty.name)

    patch = pytest.MonkeyPatch()
    patch.setattr(tracking, "_create_database", create)
    yield make
    patch.undo()


@pytest.fixture
def small_pools(one_pool, monkeypatch):
    """For tests whose workers die, and are started again and again."""
    from pipeline.imaging.archive import workers

    for name, own in one_pool.items():
        monkeypatch.setattr(workers, name, own)


# Longest first. One process runs a file alone: last, a long one would keep the other process waiting. Two that need the
# same finished run do not come first side by side: one of them would wait for the other's.
LONG_FILES = (
    "test_kills.py test_plan_battery.py test_privacy.py test_dicom_node.py test_serve.py test_report.py "
    "test_distributed.py test_hostile.py test_ingest.py test_judging.py test_registry.py test_predict.py "
    "test_segmentation_run.py test_volume_run.py test_channels_run.py test_views_run.py "
    "test_colour_run.py test_init.py test_tuberculosis.py test_extending.py test_wheel.py "
    "test_without_pretraining.py test_gc.py test_cli.py test_patients_and_labels.py"
).split()


def pytest_collection_modifyitems(items):
    place = {name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONG_FILES)))
