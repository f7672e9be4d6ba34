"""Every file is found once, and nothing is followed, opened or unpacked that should not be."""

import os
import warnings
import zipfile
from pathlib import Path

import pytest

from pipeline.imaging.archive.sources import SourcesError, find_sources, read_bytes
from pipeline.imaging.quarantine import Refused

LIMIT = 1_000_000


def verdicts(root: Path) -> dict[str, str]:
    found = {}
    for source in find_sources([root]):
        try:
            read_bytes(source, LIMIT)
            found[source.path] = "ok"
        except Refused as refused:
            found[source.path] = refused.refusal.reason
    return found


def test_files_in_folders_and_archives_in_a_fixed_order(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.dcm").write_bytes(b"2")
    (tmp_path / "a.dcm").write_bytes(b"a")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("z.dcm", b"z")
        archive.writestr("inner/y.dcm", b"y")
    sources = find_sources([tmp_path])
    assert [source.path for source in sources] == ["a.dcm", "b/2.dcm", "c.zip/inner/y.dcm", "c.zip/z.dcm"]
    assert [read_bytes(source, LIMIT) for source in sources] == [b"a", b"2", b"y", b"z"]
    assert [source.path for source in find_sources([tmp_path / "c.zip"])] == ["inner/y.dcm", "z.dcm"]
    assert [source.path for source in find_sources([tmp_path / "a.dcm"])] == ["a.dcm"]


def test_links_pipes_and_empty_files(tmp_path):
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert verdicts(tmp_path) == {
        "real": "ok", "empty": "empty_file", "link": "symbolic_link", "loop": "symbolic_link", "pipe": "special_file"
    }  # fmt: skip


def test_a_file_exchanged_for_a_link_or_pipe_after_it_was_listed(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "b").write_bytes(b"x")
    sources = find_sources([tmp_path])
    (tmp_path / "a").unlink()
    (tmp_path / "a").symlink_to("/etc/hostname")
    (tmp_path / "b").unlink()
    os.mkfifo(tmp_path / "b")
    for source in sources:
        with pytest.raises(Refused) as refused:
            read_bytes(source, LIMIT)
        assert refused.value.refusal.reason == "unreadable"


def test_hostile_archive_members(tmp_path):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("../up.dcm", "/etc/passwd", "a/../../b", "..\\up", "C:\\x", "good", "twice", "twice"):
            archive.writestr(name, name)
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("bomb", bytes(50_000_000))
    found = verdicts(tmp_path / "evil.zip")
    assert found.pop("good") == found.pop("twice") == "ok"
    assert found.pop("bomb") == "too_large"
    assert len(found) == 7
    assert set(found.values()) == {"unsafe_member"}
    assert not (tmp_path.parent / "up.dcm").exists()


def test_encrypted_damaged_and_overlapping(tmp_path):
    path = tmp_path / "one.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"content " * 20)
    whole = path.read_bytes()
    flags = whole.rindex(b"PK\x01\x02") + 8
    path.write_bytes(whole[:flags] + b"\x01" + whole[flags + 1 :])
    assert verdicts(path) == {"a": "encrypted"}
    path.write_bytes(whole.replace(b"content content", b"c0ntent content", 1))  # the checksum no longer fits
    assert verdicts(path) == {"a": "damaged_archive"}
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "cut.zip").write_bytes(whole[:60])
    assert verdicts(folder) == {"cut.zip": "damaged_archive"}
    size = whole.rindex(b"PK\x01\x02") + 20
    (folder / "cut.zip").write_bytes(whole[:size] + (10**6).to_bytes(4, "little") + whole[size + 4 :])
    assert verdicts(folder) == {"cut.zip": "damaged_archive"}


def test_an_archive_of_nothing_is_told_of(tmp_path):
    zipfile.ZipFile(tmp_path / "empty.zip", "w").close()
    assert verdicts(tmp_path) == {"empty.zip": "damaged_archive"}
    assert verdicts(tmp_path / "empty.zip") == {"empty.zip": "damaged_archive"}


def test_files_beyond_the_limit_are_not_read(tmp_path):
    with (tmp_path / "sparse").open("wb") as stream:
        stream.truncate(10**12)
    assert verdicts(tmp_path) == {"sparse": "too_large"}


def test_names_that_are_not_text(tmp_path):
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n'<b>"))).write_bytes(b"x")
    assert list(verdicts(tmp_path).values()) == ["ok"]


def test_the_label_table_is_no_study(tmp_path):
    (tmp_path / "labels.csv").touch()
    (tmp_path / "a").touch()
    assert [source.path for source in find_sources([tmp_path], tmp_path / "labels.csv")] == ["a"]


def test_the_same_path_under_two_roots(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.dcm").write_bytes(name.encode())
    roots = [tmp_path / "one", tmp_path / "two"]
    assert [source.path for source in find_sources(roots)] == ["a.dcm", "a.dcm"]
    assert [source.place for source in find_sources(roots)] == ["a.dcm", "1\0a.dcm"]
    with pytest.raises(SourcesError, match="1 path occurs under more than one"):
        find_sources(roots, unique_paths=True)


def test_no_two_sources_have_the_same_place_and_moving_or_adding_changes_none(tmp_path):
    """Roots with the same paths, one inside another, one twice, a zip beside a folder, names that look like numbers."""
    for name in ("a/x/p1/1.dcm", "b/x/p1/1.dcm", "b/x/1/p1/1.dcm", "a/x/1/p1/1.dcm", "c/z.dcm"):
        (tmp_path / "old" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "old" / name).write_bytes(name.encode())
    with zipfile.ZipFile(tmp_path / "old/c.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("z.dcm", "z.dcm", "1/p1/1.dcm"):
            archive.writestr(name, name)
        second = archive.infolist()[1].header_offset
        archive.writestr(f"z.dcm#{second}", "named like a repeat")

    def places(folder: str) -> dict[str, str]:
        names = ("a/x", "b/x", "a/x", "a", "c", "c.zip", "c/z.dcm")
        found = find_sources([tmp_path / folder / name for name in names])
        assert len({source.place for source in found}) == len(found) == 14
        return {source.place: str(Path(source.file).relative_to(tmp_path / folder)) for source in found}

    before = places("old")
    (tmp_path / "old").rename(tmp_path / "new")
    assert places("new") == before
    (tmp_path / "new/a/x/0.dcm").write_bytes(b"one more")
    after = {s.place: s.file for s in find_sources([tmp_path / "new/a/x", tmp_path / "new/b/x"])}
    assert after.keys() - before.keys() == {"0.dcm"}
    assert all(Path(after[name]) == tmp_path / "new" / before[name] for name in after.keys() & before.keys())


def test_a_root_that_is_not_there(tmp_path):
    with pytest.raises(SourcesError, match="no such file or folder"):
        find_sources([tmp_path / "nowhere"])
