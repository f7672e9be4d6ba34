"""A finished run of the small project, shared by all tests that only look at it."""

import os

# Tests run beside each other; threads that wait by spinning would take the cores from them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from project import Project, make_project


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Project:
    """A project that was run from end to end once."""
    from pipeline.orchestration.run import run

    project = make_project(tmp_path_factory.mktemp("mini") / "project")
    run(*project.load(), say=lambda line: None)
    return project


# Longest first. One process runs a file alone: last, a long one would keep the other process waiting.
LONG_FILES = ("test_kills.py", "test_privacy.py", "test_report.py", "test_distributed.py", "test_ingest.py")


def pytest_collection_modifyitems(items):
    def place(item):
        return LONG_FILES.index(item.path.name) if item.path.name in LONG_FILES else len(LONG_FILES)

    items.sort(key=place)
