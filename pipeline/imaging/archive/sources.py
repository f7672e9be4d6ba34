"""Every file under the given roots, once, in a fixed order, and its bytes.

Links are not followed unless asked for, and never out of the roots; special files are not opened, archives (.zip, and
.npz as MedMNIST has them) not unpacked: members are read into memory, within limits. What cannot be read is a source
with a verdict: no OSError, which would name the file, comes out.
"""

from __future__ import annotations

import io
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.imaging.archive.choice import ARRAYS_SUFFIX, Choice, has_images
from pipeline.imaging.formats.numpy_array import array_header
from pipeline.imaging.quarantine import Refusal, Refused
from pipeline.store.wording import counted

ARCHIVE_SUFFIX = ".zip"
ENCRYPTED = 0x1
LOCAL_HEADER_BYTES = 30


@dataclass(frozen=True, slots=True)
class Source:
    """A file in a folder or a member of a zip archive.

    `path` is relative to its root, the `root`-th of those given, and serves for joining labels and, in `place`, for
    keyed hashes only: it can carry names.
    `row` is set when the member is an array of images, of which this is one. `refusal` is set when looking at the
    directory entry was enough to refuse the file. `channel` and `study` are set where a table says of which study the
    file is which channel.
    """

    path: str
    file: str
    member: str | None = None
    refusal: Refusal | None = None
    row: int | None = None
    root: int = 0
    channel: str = ""
    study: str = ""

    @property
    def place(self) -> str:
        """What tells this source from all others, wherever the roots are: no path holds the character NUL."""
        return f"{self.root}\0{self.path}" if self.root else self.path


class SourcesError(ValueError):
    """The sources as a whole cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class _Links:
    """Where links may lead, nowhere when `roots` is empty, and the folders entered by one: no other enters them."""

    roots: tuple[Path, ...] = ()
    entered: set[Path] = field(default_factory=set)

    def target(self, link: Path) -> Path | None:
        """Return what a link leads to in the end; None when it is not followed. Raises OSError."""
        if not self.roots:
            return None
        try:
            target = link.resolve(strict=True)
        except (FileNotFoundError, RuntimeError):  # leads nowhere, or in a circle
            return None
        if not any(target.is_relative_to(root) for root in self.roots):
            return None
        if target.is_dir():
            if target in self.entered or link.is_relative_to(target):
                return None
            self.entered.add(target)
        return target


def find_sources(
    roots: Sequence[Path],
    leave_out: Path | None = None,
    unique_paths: bool = False,
    choice: Choice | None = None,
    follow_links: bool = False,
) -> list[Source]:
    """Return every file under `roots` (folders, zip archives, single files), sorted by path within each root.

    `leave_out`, the label table, is no study, unless it has images, too; what `choice` does not take is a source
    refused as `left_out`. Links are refused, or with `follow_links` followed where they stay under the roots.
    No two sources have the same `place`. When labels join by path (`unique_paths`), a path that occurs under several
    roots is an error, since a label could mean either.

    Raises SourcesError.
    """
    left_out = leave_out.resolve() if leave_out and not has_images(leave_out) else None
    links = _Links(tuple(root.resolve() for root in roots) if follow_links else ())
    found = [replace(source, root=n) for n, root in enumerate(roots) for source in _under(root, left_out, links)]
    if choice is not None:
        found = [s if choice.takes(s.path) else replace(s, refusal=Refusal("left_out")) for s in found]
    paths = [source.path for source in found if source.refusal != Refusal("left_out")]
    repeated = len(paths) - len({*paths})
    if repeated and unique_paths:
        raise SourcesError(
            f"{counted(repeated, 'path occurs', 'paths occur')} under more than one of data.studies, and labels join "
            "by path; give their common parent folder as the only entry, or rename"
        )
    return found


def _under(root: Path, left_out: Path | None, links: _Links) -> Iterator[Source]:
    try:
        root = root.resolve()
        is_folder, is_file = root.is_dir(), root.is_file()
    except OSError:
        raise SourcesError(f"{root}: may not be looked at") from None
    if is_folder:
        yield from _in_folder(root, "", left_out, links)
    elif is_file:
        yield from _in_file(root, root.name, "")
    else:
        raise SourcesError(f"{root}: no such file or folder")


def _in_folder(folder: Path, prefix: str, left_out: Path | None, links: _Links) -> Iterator[Source]:
    """Yield what is in a folder, sorted, whatever the depth."""
    levels = [_listed(folder, prefix)]
    while levels:
        found = next(levels[-1], None)
        if found is None:
            levels.pop()
        elif isinstance(found, Source):
            yield found
        else:
            entry, relative = found
            place = _place(entry, links)
            if isinstance(place, Refusal):
                yield Source(relative, entry.path, refusal=place)
                continue
            path, is_folder = place
            if is_folder:
                levels.append(_listed(path, f"{relative}/"))
            elif path == left_out:
                continue
            elif path.suffix.lower() in (ARCHIVE_SUFFIX, ARRAYS_SUFFIX):
                yield from _in_file(path, relative, f"{relative}/")
            else:
                yield Source(relative, str(path))


def _listed(folder: Path, prefix: str) -> Iterator[Source | tuple[os.DirEntry, str]]:
    """Yield the entries of one folder with their paths, or the refusal of the folder."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        yield Source(prefix, str(folder), refusal=Refusal("unreadable", "folder"))
        return
    for entry in entries:
        yield entry, f"{prefix}{entry.name}"


def _place(entry: os.DirEntry, links: _Links) -> tuple[Path, bool] | Refusal:
    """Return the file or folder that an entry is or leads to, and whether it is a folder; or why there is none."""
    try:
        if not entry.is_symlink():
            path, is_folder, is_file = Path(entry.path), entry.is_dir(), entry.is_file()
        else:
            target = links.target(Path(entry.path))
            if target is None:
                return Refusal("symbolic_link")
            path, is_folder, is_file = target, target.is_dir(), target.is_file()
    except OSError:
        return Refusal("unreadable")
    return (path, is_folder) if is_folder or is_file else Refusal("special_file")


def _in_file(file: Path, path: str, prefix: str) -> Iterator[Source]:
    is_arrays, is_archive = (file.suffix.lower() == suffix for suffix in (ARRAYS_SUFFIX, ARCHIVE_SUFFIX))
    if (is_arrays or is_archive) and not _opens(file):
        yield Source(path, str(file), refusal=Refusal("unreadable"))
    elif is_arrays:
        yield from _in_arrays(file, path, prefix)
    elif is_archive or zipfile.is_zipfile(file):
        yield from _in_archive(file, prefix)
    else:
        yield Source(path, str(file))


def _opens(file: Path) -> bool:
    try:
        file.open("rb").close()
    except OSError:
        return False
    return True


def _in_arrays(file: Path, path: str, prefix: str) -> Iterator[Source]:
    """Yield every image of every array of images: `train_images/000017` is row 17 of the array `train_images`."""
    try:
        arrays = image_arrays(file)
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, zlib.error):
        yield Source(path, str(file), refusal=Refusal("damaged_archive", "arrays"))
        return
    if not arrays:
        yield Source(path, str(file), refusal=Refusal("damaged_archive", "no array of images"))
    for name, count in arrays.items():
        for row in range(count):
            yield Source(f"{prefix}{array_path(name, row)}", str(file), f"{name}.npy", row=row)


def image_arrays(file: Path) -> dict[str, int]:
    """Return the arrays of images in a .npz file, three or more axes with the first over images, and their lengths."""
    found = {}
    with zipfile.ZipFile(file) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".npy"):
                with archive.open(name) as stream:
                    shape, _ = array_header(stream)
                if len(shape) >= 3:
                    found[name.removesuffix(".npy")] = shape[0]
    return found


def array_path(name: str, row: int) -> str:
    """Return the path of one image inside a .npz file."""
    return f"{name}/{row:06d}"


def _in_archive(archive: Path, prefix: str) -> Iterator[Source]:
    path = prefix.rstrip("/") or archive.name
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
        size = archive.stat().st_size
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        yield Source(path, str(archive), refusal=Refusal("damaged_archive", "directory"))
        return
    if _overlap(members) or sum(member.compress_size for member in members) > size:
        yield Source(path, str(archive), refusal=Refusal("damaged_archive", "members overlap"))
        return
    if not members:
        yield Source(path, str(archive), refusal=Refusal("damaged_archive", "no member"))
    seen: set[str] = set()
    for member in sorted(members, key=lambda member: (member.filename, member.header_offset)):
        refusal = _member_refusal(member, member.filename in seen)
        repeat = f"\0{member.header_offset}" if member.filename in seen else ""
        seen.add(member.filename)
        yield Source(f"{prefix}{member.filename}{repeat}", str(archive), member.filename, refusal)


def _overlap(members: Sequence[zipfile.ZipInfo]) -> bool:
    """Say whether bytes of the archive belong to several members, as in bombs that need no nesting."""
    end = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        if member.header_offset < end:
            return True
        end = member.header_offset + LOCAL_HEADER_BYTES + member.compress_size
    return False


def _member_refusal(member: zipfile.ZipInfo, repeated: bool) -> Refusal | None:
    name = member.orig_filename.replace("\\", "/")
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or name[1:2] == ":" or "\0" in name:
        return Refusal("unsafe_member", "absolute or escaping name")
    if repeated:
        return Refusal("unsafe_member", "name occurs twice")
    if stat.S_ISLNK(member.external_attr >> 16):
        return Refusal("unsafe_member", "symbolic link")
    if member.flag_bits & ENCRYPTED:
        return Refusal("encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # zipfile inflates the others without limit.
        return Refusal("damaged_archive", "compression other than deflate")
    return None


def read_bytes(source: Source, limit: int) -> bytes:
    """Return the bytes of a source.

    Raises Refused when it was refused at sight, cannot be read, is empty or is larger than `limit` bytes.
    """
    if source.refusal is not None:
        raise Refused(source.refusal.reason, source.refusal.detail)
    try:
        content = _read(source, limit)
    except Refused:
        raise
    except MemoryError:
        raise Refused("too_large", "no memory to read") from None
    except (OSError, zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        gone = source.member is None or isinstance(error, PermissionError | FileNotFoundError)
        reason = "unreadable" if gone else "damaged_archive"
        raise Refused(reason, type(error).__name__) from None
    except Exception as error:
        # zlib, bz2 and lzma have exceptions of their own.
        raise Refused("damaged_archive", type(error).__name__) from None
    if not content:
        raise Refused("empty_file")
    return content


def _read(source: Source, limit: int) -> bytes:
    if source.member is None:
        return _read_file(source.file, limit)
    return _read_member(source, limit) if source.row is None else _read_row(source, limit)


def _read_file(path: str, limit: int) -> bytes:
    # The entry may have been exchanged since it was listed: neither follow a link nor wait for a pipe.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError
        if status.st_size > limit:
            raise Refused("too_large", f"file of more than {limit} bytes")
        return stream.read(status.st_size + 1)


def _read_member(source: Source, limit: int) -> bytes:
    status = os.stat(source.file)
    archive, members = _opened(source.file, status.st_size, status.st_mtime_ns)
    member = members[source.member or ""]
    if member.file_size > limit:
        raise Refused("too_large", f"file of more than {limit} bytes")
    with archive.open(member) as stream:
        content = stream.read(limit + 1)
    if len(content) != member.file_size:
        raise zipfile.BadZipFile
    return content


def _read_row(source: Source, limit: int) -> bytes:
    """Return one image of an array as an array file of its own."""
    status = os.stat(source.file)
    images = _array(source.file, source.member or "", status.st_size, status.st_mtime_ns, limit)
    stream = io.BytesIO()
    np.save(stream, images[source.row], allow_pickle=False)
    return stream.getvalue()


@lru_cache(maxsize=1)
def _array(path: str, member: str, size: int, modified: int, limit: int) -> np.ndarray:
    with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise ValueError
    return np.load(io.BytesIO(content), allow_pickle=False)


@lru_cache(maxsize=4)
def _opened(path: str, size: int, modified: int) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """Return an archive and its members by name, the first where a name occurs twice; zipfile takes the last.

    Reading the directory of a large archive anew for every member would take longer than the members.
    """
    archive = zipfile.ZipFile(path)
    members: dict[str, zipfile.ZipInfo] = {}
    for member in sorted(archive.infolist(), key=lambda member: member.header_offset):
        members.setdefault(member.filename, member)
    return archive, members
