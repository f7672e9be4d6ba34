"""Keyed pseudonyms: HMAC-SHA256 under a secret that stays outside the data and the store.

An unkeyed hash of a patient number is undone by hashing all numbers; a keyed one only with the key.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
import shlex
import stat
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pipeline.store.files import flush_directory

MIN_KEY_BYTES = 32
LONGEST_SHIFT_DAYS = 3650


class KeyFileError(ValueError):
    """The key file cannot be used; the message says why and what to do."""


def pseudonym(secret: bytes, domain: str, value: str) -> str:
    """Return 128 bits of HMAC-SHA256(secret, domain, 0x00, value) as 26 lower-case letters and digits.

    Domains (`patient`, `study`, `image`, `path`, `site`) keep equal values of different kinds apart.
    """
    message = f"{domain}\0{value}".encode("utf-8", "surrogateescape")
    digest = hmac.new(secret, message, hashlib.sha256).digest()[:16]
    return base64.b32encode(digest).decode().rstrip("=").lower()


def patient_pseudonym(secret: bytes, patient: str) -> str:
    """Return the pseudonym of a patient identifier.

    Who issued the identifier is left out, so that label tables, which do not say, still join.
    """
    return pseudonym(secret, "patient", visible(patient).strip())


def visible(text: str) -> str:
    """Return a text as a reader tells it from others: letters composed and of usual width, none without any width."""
    if text.isascii():
        return text
    plain = unicodedata.normalize("NFKC", text)
    return unicodedata.normalize("NFC", "".join(one for one in plain if unicodedata.category(one) != "Cf"))


def path_pseudonym(secret: bytes, path: str) -> str:
    """Return the source_id of a relative path; all spellings that `normal_path` knows have the same."""
    return pseudonym(secret, "path", normal_path(path))


def normal_path(path: str) -> str:
    """Return the one spelling of a path: composed letters (NFC), `/` between folders, none of them `.`.

    Blanks around it are none, as in a cell of a table; names that are not UTF-8 are read as Windows-1252.
    """
    path = path.strip()
    if not path.isascii():
        path = _decoded(path)
        # zip takes names without a flag for code page 437; those from macOS are UTF-8.
        with suppress(UnicodeError):
            path = path.encode("cp437").decode("utf-8")
        path = unicodedata.normalize("NFC", path)
    path = path.replace("\\", "/")
    folders = [part for part in path.split("/") if part not in ("", ".")]
    return ("/" if path.startswith("/") else "") + "/".join(folders)


def _decoded(path: str) -> str:
    """Return a path in which Python could not decode a byte as Windows-1252, where that can; any other as it is."""
    try:
        path.encode()
    except UnicodeEncodeError:
        with suppress(UnicodeError):
            return path.encode("utf-8", "surrogateescape").decode("cp1252")
    return path


def day_shift(secret: bytes, patient_id: str) -> int:
    """Return a patient's secret shift, 1 to 3,650 days, which hides dates and keeps the days between them."""
    digest = hmac.new(secret, f"date\0{patient_id}".encode(), hashlib.sha256).digest()
    return 1 + int.from_bytes(digest[:8], "big") % LONGEST_SHIFT_DAYS


def fingerprint(secret: bytes) -> str:
    """Return 8 hex digits that tell keys apart and reveal nothing of them."""
    return hmac.new(secret, b"fingerprint", hashlib.sha256).hexdigest()[:8]


def load_key(path: Path, identifiers: str) -> bytes:
    """Return the key in a file of hex digits, `#` starting comments; make the file, mode 0600, when there is none.

    Raises KeyFileError when the file is not hex, too short, or readable by others although `identifiers` is not
    `synthetic`.
    """
    if not path.exists():
        if identifiers == "synthetic":
            raise KeyFileError(f"{path}: no such key file; data with synthetic identifiers come with a public key")
        _create_key(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077 and identifiers != "synthetic":
        todo = f"run: chmod 600 {shlex.quote(str(path))}"
        raise KeyFileError(f"{path}: other users can read this secret key (mode {mode:04o}); {todo}")
    try:
        lines = path.read_text("ascii").splitlines()
        key = bytes.fromhex("".join(line.split("#")[0].strip() for line in lines))
    except (OSError, ValueError):
        raise KeyFileError(f"{path}: cannot be read as hex digits; restore the key from your backup") from None
    if len(key) < MIN_KEY_BYTES:
        raise KeyFileError(f"{path}: the key has {len(key)} bytes; at least {MIN_KEY_BYTES} are needed")
    return key


def _create_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write("# Secret key of the pseudonyms. Back it up; never share it; keep it away from the data.\n")
            stream.write(secrets.token_hex(MIN_KEY_BYTES) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(temporary, path)  # fails, unlike a rename, when another process was first
        except FileExistsError:
            return
        flush_directory(path.parent)
    finally:
        temporary.unlink()


class Lookup:
    """The private table from pseudonyms back to paths and patients, for the site's own look-ups: one JSON per line.

    The file has mode 0600 and lies beside the key. Lines are only appended; a repeated line means the same.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._known: set[int] = set()  # hashes of lines, which take a tenth of the memory
        if path.exists():
            with path.open(encoding="utf-8", errors="surrogateescape") as stream:
                self._known = {hash(line.rstrip("\n")) for line in stream}

    def add(self, entries: Iterable[tuple[str, str, str]]) -> None:
        """Append (kind, pseudonym, original) triples that are not there yet."""
        lines = [json.dumps(dict(zip(("kind", "pseudonym", "original"), entry, strict=True))) for entry in entries]
        new = [line for line in dict.fromkeys(lines) if hash(line) not in self._known]
        if not new:
            return
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            stream.write("".join(f"{line}\n" for line in new))
        self._known.update(map(hash, new))
