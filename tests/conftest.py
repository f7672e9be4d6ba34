"""A finished run of the small project, shared by all tests that only look at it."""

import pytest
from project import Project, make_project


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Project:
    """A project that was run from end to end once."""
    from pipeline.run import run

    project = make_project(tmp_path_factory.mktemp("mini") / "project")
    run(*project.load(), say=lambda line: None)
    return project
