"""Whose study is a file?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from imaging.files import POLICY

from pipeline.imaging.archive.quality import Limits
from pipeline.imaging.archive.sources import find_sources
from pipeline.imaging.archive.workers import Pool
from pipeline.imaging.transforms import Rendering
from pipeline.inference import batch
from pipeline.inference.batch import Task, sort_files
from pipeline.inference.grouping import glance, own_key

pytestmark = pytest.mark.usefixtures("small_pools")

TASK = Task(POLICY, Limits(), 1, Rendering((16, 16), None, 0.5, 99.5))


def deadly(policy, named, item):
    """A look that kills its process, as a decoder may."""
    if item[0].path.startswith("dies"):
        os._exit(1)
    return glance(item[0], policy, named)


@pytest.mark.parametrize("named", [{}, {"dies.png": "Anna", "lives.png": "Anna"}])
def test_a_file_at_which_a_worker_dies_stays_with_its_study(tmp_path: Path, monkeypatch, named):
    studies, scratch = tmp_path / "studies", tmp_path / "scratch"
    studies.mkdir()
    scratch.mkdir()
    for name in ("dies.png", "lives.png"):
        (studies / name).write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    sources = find_sources([studies])
    monkeypatch.setattr(batch, "_glance", deadly)
    found = sort_files(sources, TASK, Pool(1, 30.0), scratch, named, lambda *_: None)
    assert found.alone == ()
    names = [(group.name, [one.path for one in group.sources]) for group in found.groups]
    expected = [("Anna", ["dies.png", "lives.png"])] if named else [("dies", ["dies.png"]), ("lives", ["lives.png"])]
    assert names == expected
    assert {own_key(one, named, POLICY) for one in sources} == (
        {"table\0Anna"} if named else {"path\x000\0dies", "path\x000\0lives"}
    )
