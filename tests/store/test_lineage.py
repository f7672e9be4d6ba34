"""A key changes exactly when something that can change the result changes."""

import os
import subprocess
from pathlib import Path

import pytest
from unprivileged import unprivileged

from pipeline.store import lineage
from pipeline.store.lineage import SourceHashes, studies_digest


@pytest.fixture
def package(tmp_path: Path, monkeypatch) -> Path:
    """A package of a stage, the helper that it imports, one that only its types need, and a stranger."""
    root = tmp_path / "pipeline"
    for name, text in {
        "stages/fit.py": (
            "from typing import TYPE_CHECKING\nfrom pipeline.models import line\n"
            "if TYPE_CHECKING:\n    from pipeline.config import Settings\n"
            'X = Column("x", TEXT, "position in mm", optional=True)\nY = Column("y", TEXT, meaning=f"score of {X}")\n'
            'class Settings:\n    seed: int = Field(17, ge=0, description="of the fit")\n'
            'def fit(x):\n    """Fit."""\n    return line.slope(x)\n'
        ),
        "models/line.py": "def slope(x):\n    # first difference\n    return x[1] - x[0]\n",
        "models/curve.py": "def bend(x):\n    return 2\n",
        "config.py": "class Settings:\n    pass\n",
        "models/weights.txt": "1\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(lineage, "PACKAGE_FOLDER", root)
    return root


def digests() -> dict[str, str]:
    return lineage.code_digests("pipeline.stages.fit")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_only_what_the_stage_uses_at_run_time_counts(package):
    assert set(digests()) == {"stages.fit", "models.line", "models/weights.txt"}


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("models/line.py", "# first difference", "# the slope of two points"),
        ("stages/fit.py", '"""Fit."""', '"""Fit a line to two points."""'),
        ("models/line.py", "x[1] - x[0]", "(x[1]  -  x[0])"),
        ("models/curve.py", "return 2", "return 3"),
        ("config.py", "pass", "seed = 1"),
        ("stages/fit.py", "position in mm", "position along the axis, mm"),
        ("stages/fit.py", "score of {X}", "what {X} gives"),
        ("stages/fit.py", "of the fit", "from which all chance is drawn"),
        ("stages/fit.py", ', description="of the fit"', ""),
    ],
)
def test_what_cannot_change_the_result_changes_no_digest(package, file, old, new):
    before = digests()
    edit(package / file, old, new)
    assert digests() == before


def test_edited_arithmetic_changes_the_digest_of_its_module_alone(package):
    before = digests()
    edit(package / "models/line.py", "x[1] - x[0]", "x[0] - x[1]")
    after = digests()
    assert {name for name in after if after[name] != before[name]} == {"models.line"}


@pytest.mark.parametrize(
    ("old", "new"),
    [('"x", TEXT', '"z", TEXT'), ("TEXT", "NUMBER"), (", optional=True", ""), ("17", "18"), ("ge=0", "ge=1")],
)
def test_all_else_of_a_column_or_a_setting_counts(package, old, new):
    before = digests()
    edit(package / "stages/fit.py", old, new)
    assert digests() != before


def test_edited_data_file_counts(package):
    before = digests()
    edit(package / "models/weights.txt", "1", "2")
    assert digests() != before


def test_key_depends_on_every_part():
    whole = ("fit", {"a": 1}, {"split": "k"}, {"labels": "l"}, "code")
    key = lineage.artifact_key(*whole)
    changed = ("cut", {"a": 2}, {"split": "m"}, {"labels": "n"}, "edoc")
    keys = {lineage.artifact_key(*whole[:i], changed[i], *whole[i + 1 :]) for i in range(len(whole))}
    assert len(keys | {key}) == 6
    assert lineage.artifact_key(*whole) == key


def write_studies(root: Path) -> None:
    (root / "Mueller^Anna").mkdir(parents=True)
    (root / "Mueller^Anna" / "1.dcm").write_bytes(b"one")
    (root / "2.dcm").write_bytes(b"two")


def test_moving_an_archive_changes_nothing(tmp_path):
    write_studies(tmp_path / "a")
    before = lineage.studies_digest([tmp_path / "a"], SourceHashes(b"k" * 32, tmp_path / "hashes.sqlite"))
    (tmp_path / "a").rename(tmp_path / "b")
    assert lineage.studies_digest([tmp_path / "b"], SourceHashes(b"k" * 32, tmp_path / "hashes.sqlite")) == before


def test_changed_renamed_or_added_files_change_the_digest(tmp_path):
    write_studies(tmp_path / "a")
    seen = {lineage.studies_digest([tmp_path / "a"], SourceHashes())}
    (tmp_path / "a/2.dcm").write_bytes(b"too")
    seen.add(lineage.studies_digest([tmp_path / "a"], SourceHashes()))
    (tmp_path / "a/2.dcm").rename(tmp_path / "a/3.dcm")
    seen.add(lineage.studies_digest([tmp_path / "a"], SourceHashes()))
    (tmp_path / "a/4.dcm").write_bytes(b"four")
    seen.add(lineage.studies_digest([tmp_path / "a"], SourceHashes()))
    assert len(seen) == 4


def test_a_label_table_among_the_studies_is_no_study(tmp_path):
    write_studies(tmp_path / "a")
    before = lineage.studies_digest([tmp_path / "a"], SourceHashes())
    (tmp_path / "a/labels.csv").write_text("path,label\n2.dcm,1\n")
    assert lineage.studies_digest([tmp_path / "a"], SourceHashes(), tmp_path / "a/labels.csv") == before


def test_unchanged_files_are_not_read_again_and_the_memory_holds_no_path(tmp_path, monkeypatch):
    write_studies(tmp_path / "a")
    memory = tmp_path / "hashes.sqlite"
    first = lineage.studies_digest([tmp_path / "a"], SourceHashes(b"k" * 32, memory))
    read = []
    monkeypatch.setattr(lineage, "sha256_file", lambda path: read.append(path.name) or "0" * 64)
    assert lineage.studies_digest([tmp_path / "a"], SourceHashes(b"k" * 32, memory)) == first
    assert read == []
    os.utime(tmp_path / "a/2.dcm", ns=(1, 1))
    lineage.studies_digest([tmp_path / "a"], SourceHashes(b"k" * 32, memory))
    assert read == ["2.dcm"]
    assert b"Mueller" not in memory.read_bytes()


def test_what_was_planned_is_remembered_although_the_file_has_changed(tmp_path):
    write_studies(tmp_path / "a")
    file = tmp_path / "a/2.dcm"
    hashes = SourceHashes(b"k" * 32, tmp_path / "hashes.sqlite")
    lineage.studies_digest([tmp_path / "a"], hashes)
    planned = hashes.of(file)
    file.write_bytes(b"another content")
    assert SourceHashes(b"k" * 32, tmp_path / "hashes.sqlite").as_planned(file) == planned
    assert hashes.of(file) != planned


def test_what_cannot_be_read_counts_as_such_until_it_can_be_read(tmp_path):
    with unprivileged() as folder:
        write_studies(folder / "a")
        memory = folder / "hashes.sqlite"

        def digest() -> str:
            found = {studies_digest([folder / "a"], SourceHashes(b"k" * 32, file)) for file in (None, memory)}
            assert len(found) == 1
            return found.pop()

        whole = digest()
        seen = {whole}
        for path in (folder / "a/2.dcm", folder / "a/Mueller^Anna/1.dcm", folder / "a/Mueller^Anna"):
            mode = path.stat().st_mode
            path.chmod(0)
            seen.add(closed := digest())
            assert digest() == closed
            path.chmod(mode)
            assert digest() == whole
        (folder / "a/Mueller^Anna").chmod(0o600)  # its files can be listed, but not looked at
        seen.add(digest())
        (folder / "a/Mueller^Anna").chmod(0o700)
        assert len(seen) == 4  # the last is as if the file itself could not be read


def test_a_single_file_that_fails_while_it_is_read_counts_as_unreadable():
    failing = Path("/proc/self/mem")
    if not failing.exists():
        pytest.skip("needs a file of which reading fails whoever reads")
    assert studies_digest([failing], SourceHashes()) == studies_digest([failing], SourceHashes())


def repository(folder: Path, *tracked: str) -> None:
    git = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x"]
    for command in (["init", "-q"], ["add", "-f", *tracked], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True)


@pytest.mark.parametrize(
    ("place", "tracked", "own"),
    [
        ("pipeline", "pipeline/__init__.py", True),
        ("pipeline", "other", False),  # beside somebody's files, and not theirs
        ("lib/python/site-packages/pipeline", "other", False),
        ("lib/python/site-packages/pipeline", "lib", False),  # an environment that was committed
    ],
)
def test_the_commit_is_that_of_our_own_tree_or_none(tmp_path, monkeypatch, place, tracked, own):
    package = tmp_path / "tree" / place
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("1")
    (tmp_path / "tree" / "other").write_text("x")
    repository(tmp_path / "tree", tracked)
    monkeypatch.setattr(lineage, "PACKAGE_FOLDER", package)
    assert bool(lineage.git_commit()) == own
    if own:
        (package / "__init__.py").write_text("2")
        assert lineage.git_commit().endswith("+changes")


def test_a_hook_of_another_repository_does_not_lend_its_commit(tmp_path, monkeypatch):
    before = lineage.git_commit()
    (tmp_path / "x").write_text("x")
    repository(tmp_path, "x")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    assert lineage.git_commit() == before


def test_every_version_of_python_gives_the_same_digest(package):
    """Known from Python 3.11, 3.12 and 3.13, which write and extend syntax trees otherwise."""
    (package / "models/line.py").write_text(
        'class A:\n    x: int = 1\n\ndef slope(x, *, y=None):\n    return f"{x!r:>{y}} \\"{x[\'a\']}\\" {1e3}" "more"\n'
    )
    assert digests()["models.line"] == "b0368a6dcdab4e89c9f47e00f8a688225c9959af20122c51121a079d93b5f3dd"
