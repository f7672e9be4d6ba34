"""Paths of a label table and of an archive: what is the same, and which setting makes more so."""

import unicodedata
from collections.abc import Callable

import pytest

from pipeline.imaging.archive.sources import Source
from pipeline.imaging.pseudonyms import normal_path, path_pseudonym
from pipeline.imaging.quarantine import Refusal
from pipeline.labels.path_rules import PathRule, apart, check_paths, join_paths
from pipeline.labels.values import LabelsError

FILES = [f"site/p{n:03d}/im{k}.png" for n in range(20) for k in range(2)]


@pytest.mark.parametrize(
    ("spelt", "normal"),
    [
        ("./a\\b/c.dcm", "a/b/c.dcm"),
        (".//a/./b//c.dcm", "a/b/c.dcm"),
        ("C:\\a\\b", "C:/a/b"),
        ("/a/b", "/a/b"),
        (unicodedata.normalize("NFD", "Zürich"), unicodedata.normalize("NFC", "Zürich")),
        (unicodedata.normalize("NFD", "Zürich").encode().decode("cp437"), "Zürich"),
        ("Zürich", "Zürich"),
        ("結果/à", "結果/à"),
        (" a/b.png ", "a/b.png"),
        ("l\udce4ngs", "längs"),  # a name in Windows-1252, as Python gets it
        ("a\udc81", "a\udc81"),
    ],
)
def test_one_path_has_one_spelling(spelt, normal):
    assert normal_path(spelt) == normal
    assert path_pseudonym(b"k" * 32, spelt) == path_pseudonym(b"k" * 32, normal)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda p: f"images/{p}", PathRule(without="images/")),
        (lambda p: f"/home/me/{p}", PathRule(without="/home/me/")),
        (lambda p: "C:\\data\\" + p.replace("/", "\\"), PathRule(without="C:/data/")),
        (lambda p: p[5:], PathRule(within="site/")),
        (lambda p: f"/home/me/{p[5:]}", PathRule(without="/home/me/", within="site/")),
        (lambda p: p[:-4], PathRule(ignore=("suffix",))),
        (lambda p: f"{p[:-4]}.nii.gz", PathRule(ignore=("suffix",))),
        (str.upper, PathRule(ignore=("case",))),
        (lambda p: p.replace("/", "%2F"), PathRule(ignore=("escapes",))),
        (lambda p: f"images/{p[:-4]}", PathRule(without="images/", ignore=("suffix",))),
    ],
)
def test_the_least_change_that_joins_all_is_found(change: Callable[[str], str], rule: PathRule):
    rows = [change(path) for path in FILES]
    found = join_paths(rows, FILES, PathRule())
    assert (found.matched, found.would, found.better, found.stops) == (0, 40, rule, True)
    again = join_paths(rows, FILES, rule)
    assert (again.matched, again.better) == (40, None)


def test_folders_are_only_left_out_where_names_are_unique():
    unique, repeated = [f"{n % 3}/{n}.png" for n in range(30)], [f"{n % 10}/{n // 10}.png" for n in range(30)]
    assert join_paths([f"{n}.png" for n in range(30)], unique, PathRule()).better == PathRule(ignore=("folders",))
    found = join_paths([f"x{n}/{n // 10}.png" for n in range(30)], repeated, PathRule())
    assert found.better is None or "folders" not in found.better.ignore


def test_a_table_of_more_files_than_the_archive_has_is_no_problem():
    rows = FILES + [f"site/q{n}/im0.png" for n in range(1000)]
    found = join_paths(rows, FILES, PathRule())
    assert (found.matched, found.better, found.stops) == (40, None, False)
    assert check_paths(rows, FILES, PathRule(), "path") == ""


def test_a_few_rows_are_warned_of_and_many_stop():
    few = ["old/" + path if n < 1 else path for n, path in enumerate(FILES)]
    assert "40 would be with columns.path_without: old/" in check_paths(few, FILES, PathRule(), "path")
    many = ["old/" + path if n < 4 else path for n, path in enumerate(FILES)]
    with pytest.raises(LabelsError, match="36 of 40 different paths"):
        check_paths(many, FILES, PathRule(), "path")


def test_no_name_is_shown():
    with pytest.raises(LabelsError, match=r"looks like A\^a_9, one of the 40 files like a/a9/a9\.a") as error:
        check_paths([f"MEIER^erika_{n}" for n in range(9)], FILES, PathRule(), "path")
    assert "meier" not in str(error.value).lower()


def test_files_that_differ_in_the_spelling_alone_are_refused_and_stay_apart():
    sources = [Source(name, name) for name in ("a/ü.png", unicodedata.normalize("NFD", "a/ü.png"), "a\\ü.png", "b.png")]
    found = apart(sources)
    assert [source.refusal for source in found] == [Refusal("ambiguous_name")] * 3 + [None]
    assert len({path_pseudonym(b"k" * 32, source.path) for source in found}) == 4
    assert [source.file for source in found] == [source.file for source in sources]
    assert [source.refusal for source in apart(sources[1:3])] == [Refusal("ambiguous_name")] * 2
