"""How paths of a label table lead to files: what is the same, and which change of the card would make it so."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from urllib.parse import unquote

from pipeline.imaging.archive.sources import Source
from pipeline.imaging.pseudonyms import normal_path
from pipeline.imaging.quarantine import Refusal
from pipeline.labels.values import LabelsError
from pipeline.store.wording import counted

# Only suffixes of images: what follows the last dot of a UID is part of its name.
SUFFIX = re.compile(
    r"\.(dcm|dicom|ima|png|jpe?g|jp2|tiff?|pgm|ppm|pnm|bmp|gif|npy|nii|hdr|img|mha|mhd|nrrd)(\.gz)?$", re.IGNORECASE
)
# So many rows are enough to guess by which folders in front table and archive differ.
ROWS_LOOKED_AT = 2000
# From this share of the rows on, those that one setting would join stop the run; below, they are warned of.
SHARE_TO_STOP = 0.05
IGNORED = ("suffix", "case", "escapes")


@dataclass(frozen=True)
class PathRule:
    """What a card says about paths: folders in front that only one side has, and what is not compared.

    `without` are folders that only the label table names, `within` those that only the archive has; `ignore` holds
    `folders`, `suffix`, `case` and `escapes`.
    """

    without: str = ""
    within: str = ""
    ignore: tuple[str, ...] = ()

    def of_file(self, path: str) -> str:
        """Return what is compared of a path inside an archive."""
        return self._compared(normal_path(path))

    def of_row(self, path: str) -> str:
        """Return what is compared of a path in the label table."""
        path = normal_path(unquote(path) if "escapes" in self.ignore else path)
        if self.without:
            path = path.removeprefix(folder(self.without))
        return self._compared(folder(self.within) + path if self.within else path)

    def _compared(self, path: str) -> str:
        if "folders" in self.ignore:
            path = path.rpartition("/")[2]
        if "suffix" in self.ignore:
            path = SUFFIX.sub("", path)
        return path.casefold() if "case" in self.ignore else path

    def settings(self) -> str:
        """Return the lines of a card that say this."""
        said = [
            f"columns.path_{name}: {folder(value)}" for name in ("without", "within") if (value := getattr(self, name))
        ]
        return " and ".join(said + ([f"columns.path_ignore: [{', '.join(self.ignore)}]"] if self.ignore else []))


def folder(path: str) -> str:
    """Return a folder's path with one slash at its end."""
    return normal_path(path).rstrip("/") + "/"


def apart(sources: Sequence[Source]) -> list[Source]:
    """Return the sources, those refused whose paths differ in nothing but the spelling: nobody can tell them apart."""
    names = Counter(normal_path(source.path) for source in sources)
    if len(names) == len(sources):
        return list(sources)
    found, before = [], Counter()
    for source in sources:
        name = normal_path(source.path)
        if names[name] > 1:
            mark = f"#{before[name]}" if before[name] else ""
            source = replace(source, path=f"{source.path}{mark}", refusal=source.refusal or Refusal("ambiguous_name"))
            before[name] += 1
        found.append(source)
    return found


@dataclass(frozen=True)
class PathJoin:
    """How many of the table's different paths are files, and with which other rule how many would be."""

    rows: int
    files: int
    matched: int
    better: PathRule | None
    would: int
    row_form: str
    file_form: str

    def problem(self, column: str) -> str:
        """Return what is wrong and which setting mends it; nothing when all is well."""
        said = f"{self.matched} of {self.rows} different paths in column {column} are files under data.studies"
        if self.better is not None:
            return f"{said}; {self.would} would be with {self.better.settings()} in the dataset card"
        if self.matched or not self.rows:
            return ""
        return (
            f"{said}, whatever folders, suffixes and case are left out of account; a path of the table looks like "
            f"{self.row_form}, one of the {self.files} files like {self.file_form} (a and A stand for letters, 9 for "
            "digits). Correct data.studies or the table; where the column names patients, studies or images, not "
            "files, name it in the card as columns.patient_id, study_instance_uid, series_instance_uid or "
            "sop_instance_uid"
        )

    @property
    def stops(self) -> bool:
        """Whether too much is lost to go on."""
        gained = 0 if self.better is None else self.would - self.matched
        return bool(self.rows) and (not self.matched or gained >= SHARE_TO_STOP * self.rows)


def join_paths(rows: Collection[str], files: Collection[str], rule: PathRule) -> PathJoin:
    """Compare the paths of a label table with those of an archive, and look for a rule that joins more of them."""
    rows, files = sorted(set(rows)), sorted(set(files))
    matched = _matched(rows, files, rule)
    better, would = None, matched
    # What no rule of all joins, none of its parts does: most tables list more files than an archive has.
    most = _matched(rows, files, replace(rule, ignore=("folders", *IGNORED)))
    if most > matched:
        for other in _other_rules(rows, files, rule):
            found = _matched(rows, files, other)
            if found > would and _unambiguous(rows, files, other):
                better, would = other, found
            if would >= most:
                break
    form_of = _commonest([_form(path) for path in rows]), _commonest([_form(path) for path in files])
    return PathJoin(len(rows), len(files), matched, better, would, *form_of)


def check_paths(rows: Collection[str], files: Collection[str], rule: PathRule, column: str) -> str:
    """Return a warning, or nothing.

    Raises LabelsError when the table's paths match no files, or many would with a setting that is named.
    """
    join = join_paths(rows, files, rule)
    problem = join.problem(column)
    if problem and join.stops:
        raise LabelsError(f"label table: {problem}")
    return problem


def refuse_shared_rows(rows: Collection[str], files: Collection[str], rule: PathRule, column: str) -> None:
    """Raise LabelsError when one row would be about several files, which are other people's as a rule.

    Files that differ in their suffix alone are one image: a header and its voxels.
    """
    keys = {rule.of_row(path) for path in rows}
    names = {(key, SUFFIX.sub("", normal_path(path))) for path in files if (key := rule.of_file(path)) in keys}
    several = sum(count > 1 for count in Counter(key for key, _ in names).values())
    if several:
        raise LabelsError(
            f"label table: {counted(several, 'path')} in column {column} {'fits' if several == 1 else 'fit'} several "
            f"files, since columns.path_ignore leaves {' and '.join(rule.ignore)} out of account: write the paths as "
            "they are, or leave the other files out (data.exclude)"
        )


def _matched(rows: Sequence[str], files: Sequence[str], rule: PathRule) -> int:
    known = {rule.of_file(path) for path in files}
    return sum(rule.of_row(path) in known for path in rows)


def _unambiguous(rows: Sequence[str], files: Sequence[str], rule: PathRule) -> bool:
    """Say whether no two rows become the same and, where folders are left out, no two files."""
    known = Counter(rule.of_file(path) for path in files)
    joined = Counter(key for path in rows if (key := rule.of_row(path)) in known)
    return max(joined.values(), default=1) == 1 and ("folders" not in rule.ignore or max(known[k] for k in joined) == 1)


def _other_rules(rows: Sequence[str], files: Sequence[str], rule: PathRule) -> Iterator[PathRule]:
    """Yield rules that say more than the given one, those that change least first."""
    ignored = [extra for count in range(len(IGNORED) + 1) for extra in combinations(IGNORED, count)]
    for extra in ignored:
        wider = replace(rule, ignore=_together(rule.ignore, extra))
        yield wider
        if not rule.without and not rule.within and "folders" not in rule.ignore:
            yield _other_folders(rows, files, wider)
            yield replace(wider, ignore=_together(wider.ignore, ("folders",)))


def _together(before: Sequence[str], more: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in ("folders", *IGNORED) if name in {*before, *more})


def _other_folders(rows: Sequence[str], files: Sequence[str], rule: PathRule) -> PathRule:
    """Return the rule with the folders in front by which most of the unmatched rows differ from files."""
    known = {rule.of_file(path) for path in files}
    plain = replace(rule, ignore=tuple(name for name in rule.ignore if name == "escapes"))
    wanted: dict[str, str] = {}  # what a path ends with, as compared, by the folders of the table before that
    for path in [path for path in rows if rule.of_row(path) not in known][:ROWS_LOOKED_AT]:
        for front, end in _ends(plain.of_row(path)):
            wanted.setdefault(rule.of_file(end), front)
    pairs: Counter[tuple[str, str]] = Counter()
    for path in files:
        for front, end in _ends(normal_path(path)):
            if (compared := rule.of_file(end)) in wanted:
                pairs[wanted[compared], front] += 1
                break  # the longest that they have in common
    (without, within), _ = pairs.most_common(1)[0] if pairs else (("", ""), 0)
    return replace(rule, without=without, within=within)


def _ends(path: str) -> Iterator[tuple[str, str]]:
    """Yield the folders in front and the rest of a path, the longest rest first."""
    yield "", path
    for found in re.finditer("/", path):
        yield path[: found.end()], path[found.end() :]


def _form(path: str) -> str:
    """Return a path with its letters and digits hidden."""
    kept = re.sub(r"\d+", "9", re.sub(r"[^\W\d_]+", lambda word: "A" if word.group().isupper() else "a", path))
    return kept if len(kept) <= 80 else f"...{kept[-77:]}"


def _commonest(forms: Sequence[str]) -> str:
    return Counter(forms).most_common(1)[0][0] if forms else "nothing"
