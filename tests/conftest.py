"""A finished run of the small project, shared by all tests that only look at it."""

import os

# Tests run beside each other; threads that wait by spinning would take the cores from them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from project import Project, make_project


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Project:
    """A project that was run from end to end once."""
    from pipeline.run import run

    project = make_project(tmp_path_factory.mktemp("mini") / "project")
    run(*project.load(), say=lambda line: None)
    return project


def pytest_collection_modifyitems(items):
    """Start with the longest file, which one process runs alone: last, it would keep the other waiting."""
    items.sort(key=lambda item: item.path.name != "test_kills.py")
