"""Damaged and hostile files through the real worker pool: one right verdict each, and nothing else happens."""

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest
from imaging import hostile
from imaging.mutants import EITHER, Verdicts, dicom_mutants, nifti_mutants
from pydicom.data import get_testdata_files

from pipeline.imaging.archive.examination import Assembled, Examined, Member, Rules
from pipeline.imaging.archive.quality import Limits
from pipeline.imaging.archive.sources import Source, find_sources
from pipeline.imaging.archive.tasks import examine_file, examine_members
from pipeline.imaging.archive.workers import Pool, each_batch
from pipeline.imaging.image import MB, Policy
from pipeline.imaging.quarantine import REASONS, Refusal
from pipeline.settings.images import IngestSettings

TESTS = Path(__file__).parents[1]
SECRET = b"k" * 32
TIMEOUT_S = 20
# Nothing should run into the worker's time limit. What does, does so twice: room for some, to name them.
LONGEST_S = 300
LARGEST_BYTES = 1.5e9
SAMPLED_EVERY_S = 0.05
ESCAPES = ("/etc/up.dcm", "/tmp/up.dcm", "/tmp/x")


def verdicts(folder: Path, scratch: Path) -> dict[str, str | None]:
    """Return, for the path of every source under a folder, the reason why ingest refuses it, or None."""
    settings = IngestSettings()
    rules = Rules(Policy.from_settings(settings.model_dump()), Limits(), SECRET)
    pool = Pool(2, TIMEOUT_S, memory_bytes=int(settings.max_memory_mb * MB))
    sources = find_sources([folder])
    found: dict[str, str | None] = {}
    series: dict[str, list[tuple[Source, Examined]]] = {}
    for source, result in _each(
        partial(examine_file, rules), sources, [(source, "P1") for source in sources], pool, scratch
    ):
        if source.path in found:
            raise RuntimeError("a source with two verdicts")
        found[source.path] = result.reason if isinstance(result, Refusal) else _reason(result.refusal)
        if isinstance(result, Examined) and result.part_of:
            series.setdefault(result.part_of, []).append((source, result))
        elif isinstance(result, Examined) and (result.row is None) == (result.refusal is None):
            raise RuntimeError("neither image nor refusal, or both")
    groups = [*series.values()]
    items = [(tuple(Member(e.source_id, s, e.sha256) for s, e in group), ("P1",)) for group in groups]
    for group, result in _each(partial(examine_members, rules), groups, items, pool, scratch):
        paths = {examined.source_id: source.path for source, examined in group}
        if isinstance(result, Refusal):
            result = [Assembled(tuple(paths), refusal=result)]
        if sorted(name for one in result for name in one.source_ids) != sorted(paths):
            raise RuntimeError("a slice without exactly one verdict")
        found |= {paths[name]: _reason(one.refusal) for one in result for name in one.source_ids}
    if len(found) != len(sources):
        raise RuntimeError("a source without a verdict")
    return found


def _each(task: Callable, things: list, items: list, pool: Pool, scratch: Path) -> Iterator[tuple]:
    size = IngestSettings().batch_size
    batches = {start: items[start : start + size] for start in range(0, len(items), size)}
    for start, results in each_batch(task, batches, pool, scratch):
        yield from zip(things[start : start + size], results, strict=True)


def _reason(refusal: Refusal | None) -> str | None:
    return refusal.reason if refusal else None


@dataclass(frozen=True, repr=False)
class Run:
    """What a run in a process of its own did."""

    verdicts: dict[str, str]
    expected: dict[str, Verdicts]
    seconds: float
    peak_bytes: int
    printed: str
    before: dict[str, tuple]
    after: dict[str, tuple]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run the whole corpus once. What is in `empty` is written by nobody but the code under test."""
    top = tmp_path_factory.mktemp("hostile")
    corpus, empty = top / "corpus", top / "empty"
    expected = _build(corpus)
    for name in ("home", "here", "temporary", "scratch"):
        (empty / name).mkdir(parents=True)
    before = _entries(top)
    try:
        yield _watched(top, corpus, empty, expected, before)
    finally:
        _remove(corpus)


def _remove(folder: Path) -> None:
    """Remove what the standard library may not enter, or finds too deep."""
    subprocess.run(["chmod", "-R", "u+rwX", folder], check=False, capture_output=True)
    subprocess.run(["rm", "-rf", folder], check=True)


def _build(corpus: Path) -> dict[str, Verdicts]:
    expected = {f"hostile/{path}": right for path, right in hostile.build(corpus / "hostile").items()}
    for kind, suffix, mutants in (("dicom", ".dcm", dicom_mutants()), ("nifti", "", nifti_mutants())):
        (corpus / kind).mkdir()
        for mutant in mutants:
            (corpus / kind / f"{mutant.name}{suffix}").write_bytes(mutant.data)
            expected[f"{kind}/{mutant.name}{suffix}"] = mutant.expected
    (corpus / "pydicom").mkdir()
    for number, name in enumerate(sorted(filter(os.path.isfile, get_testdata_files()))):
        path = f"pydicom/{number:03d}-{os.path.basename(name)}"
        shutil.copyfile(name, corpus / path)
        expected[path] = EITHER
    return expected


def _watched(top: Path, corpus: Path, empty: Path, expected: dict[str, Verdicts], before: dict[str, tuple]) -> Run:
    code = (
        "import json, sys; from pathlib import Path; from imaging.test_hostile import verdicts\n"
        "found = verdicts(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "sys.stdout.write(json.dumps(found))"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        "HOME": str(empty / "home"),
        "TMPDIR": str(empty / "temporary"),
    }
    start, peak = time.monotonic(), 0
    with (top / "out").open("w") as out, (top / "err").open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(corpus), str(empty / "scratch")],
            stdout=out,
            stderr=err,
            cwd=empty / "here",
            env=environment,
        )
        try:
            while process.poll() is None and time.monotonic() < start + LONGEST_S:
                peak = max(peak, _largest_child(process.pid))
                time.sleep(SAMPLED_EVERY_S)
        finally:
            process.kill()
    seconds = time.monotonic() - start
    printed = (top / "err").read_text()
    assert process.wait() == 0, f"exit code {process.returncode} after {seconds:.0f} s\n{printed[-2000:]}"
    found = {path: reason or "accepted" for path, reason in json.loads((top / "out").read_text()).items()}
    (top / "out").unlink()
    (top / "err").unlink()
    return Run(found, expected, seconds, peak, printed, before, _entries(top))


def _largest_child(pid: int) -> int:
    """Return the most memory, in bytes, that any process now running below this one has ever held."""
    largest = 0
    try:
        for child in psutil.Process(pid).children(recursive=True):
            status = Path(f"/proc/{child.pid}/status")
            # The kernel's own high-water mark misses no peak between two samples.
            lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
            largest = max(largest, 1024 * int(lines[0].split()[1]) if lines else child.memory_info().rss)
    except (psutil.Error, OSError):
        pass  # it ended while it was looked at
    return largest


def _entries(top: Path) -> dict[str, tuple]:
    """Return kind and number of everything under a folder, and size and time of change of what is no folder.

    Places outside that names in the corpus point at are looked at, too; they may be there for other reasons.
    """
    found = {place: (*os.lstat(place)[:2], *_written(os.lstat(place))) for place in ESCAPES if os.path.lexists(place)}
    folders = [os.fspath(top)]
    while folders:
        for entry in os.scandir(folders.pop()):
            status = entry.stat(follow_symlinks=False)
            found[entry.path] = (stat.S_IFMT(status.st_mode), status.st_ino)
            if not entry.is_dir(follow_symlinks=False):
                found[entry.path] += _written(status)
            elif os.access(entry.path, os.R_OK):
                folders.append(entry.path)
    return found


def _written(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _wrong(run: Run, kind: str) -> list[str]:
    """Return a line for every source of a kind whose verdict is not right."""
    lines = []
    for path, verdict in run.verdicts.items():
        right = hostile.right(run.expected, path)
        # What can be read may still show nothing: black pictures, and noise that left two values.
        right = right | {"blank", "two_valued"} if "accepted" in right else right
        if path.startswith(kind) and verdict not in right:
            listed = "anything but a crash or a timeout" if right == EITHER else " or ".join(sorted(right))
            lines.append(f"{path.encode('ascii', 'backslashreplace').decode()}: {verdict}, not {listed}")
    return lines


def test_the_corpora_are_as_large_as_they_should_be():
    dicom, nifti = dicom_mutants(), nifti_mutants()
    assert len({mutant.name for mutant in dicom}) == len(dicom) >= 200
    assert len({mutant.name for mutant in nifti}) == len(nifti) >= 50
    assert dicom == dicom_mutants()
    assert nifti == nifti_mutants()


@pytest.mark.slow
def test_everything_has_one_verdict_from_the_closed_list(run):
    assert set(run.verdicts.values()) <= {"accepted", *REASONS}
    exact = {path for path in run.expected if not path.endswith("/")}
    assert exact <= set(run.verdicts)
    for place in set(run.expected) - exact:
        assert any(path.startswith(place) or path == place[:-1] for path in run.verdicts), place


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dicom", "nifti", "hostile"])
def test_every_verdict_is_right(run, kind):
    wrong = _wrong(run, f"{kind}/")
    assert not wrong, f"{len(wrong)} wrong verdicts:\n" + "\n".join(wrong)


@pytest.mark.slow
def test_every_file_of_pydicom_has_a_verdict_that_is_no_crash(run):
    counts = Counter(verdict for path, verdict in run.verdicts.items() if path.startswith("pydicom/"))
    assert counts.total() == sum(path.startswith("pydicom/") for path in run.expected) >= 170
    assert set(counts) <= EITHER
    assert counts["not_an_image"] >= 50
    assert counts["accepted"] >= 20


@pytest.mark.slow
def test_nothing_is_written_changed_or_left(run):
    changed = {path for path in run.before.keys() | run.after.keys() if run.before.get(path) != run.after.get(path)}
    assert changed == set()


@pytest.mark.slow
def test_nothing_is_printed(run):
    assert run.printed == ""


@pytest.mark.slow
def test_no_worker_takes_more_memory_than_it_may(run):
    assert run.peak_bytes < LARGEST_BYTES, f"{run.peak_bytes / 1e9:.2f} GB"


@pytest.mark.slow
def test_no_file_holds_up_the_others(run):
    assert run.seconds < LONGEST_S
    assert [path for path, verdict in run.verdicts.items() if verdict in ("timeout", "decoder_crash")] == []


def test_folders_in_folders_beyond_the_depth_of_the_stack(tmp_path):
    (tmp_path / "scratch").mkdir()
    deep = tmp_path / "deep"
    deep.mkdir()
    try:
        hostile.dig(deep, sys.getrecursionlimit() + 200)
        found = verdicts(deep, tmp_path / "scratch")
        assert len(found) == 1
        assert set(found.values()) <= {None, "unreadable"}
    finally:
        _remove(deep)
