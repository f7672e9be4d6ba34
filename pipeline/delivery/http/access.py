"""Who may ask: a token from a file, sessions of browsers, and forms that only the page itself can send."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import stat
import time
from dataclasses import dataclass
from pathlib import Path

LEAST_CHARACTERS, MOST_BYTES = 32, 1024
SESSION_S = 12 * 3600  # a long shift
MOST_SESSIONS = 1000
MAKE_ONE = "(umask 077; python3 -c 'import secrets; print(secrets.token_urlsafe(32))' > FILE)"


class TokenError(ValueError):
    """The file of the token cannot be used; the message says why and what to do, never what is in it."""


def read_token(file: Path) -> str:
    """Return the token in a file.

    Raises TokenError when it is not there, readable by others than its owner, or no token of 32 characters or more.
    """
    try:
        status = file.stat()
    except FileNotFoundError:
        raise TokenError(f"{file}: no such file; make one with: {MAKE_ONE}") from None
    if not stat.S_ISREG(status.st_mode):
        raise TokenError(f"{file} is no file; make one with: {MAKE_ONE}")
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise TokenError(f"{file} can be read or changed by others; allow its owner alone: chmod 600 FILE")
    content = file.read_bytes()[: MOST_BYTES + 1]
    token = content.decode("ascii", "replace").strip()
    if len(content) > MOST_BYTES or not token.isascii() or not token.isprintable() or " " in token:
        raise TokenError(f"{file} holds no token: expected one line of ASCII without spaces; make one with: {MAKE_ONE}")
    if len(token) < LEAST_CHARACTERS:
        raise TokenError(f"{file}: a token has {LEAST_CHARACTERS} characters or more; make one with: {MAKE_ONE}")
    return token


@dataclass(frozen=True)
class Session:
    """A browser that has shown the token: `form` is in each of its forms, so that no other page can send one."""

    form: str
    until: float


class Access:
    """The token, and the sessions that were opened with it; they end with the process."""

    def __init__(self, token: str) -> None:
        self._token = _hash(token)
        self._sessions: dict[bytes, Session] = {}

    def allows(self, token: str) -> bool:
        """Say whether this is the token, in a time that does not depend on it."""
        return hmac.compare_digest(_hash(token), self._token)

    def open(self) -> str:
        """Return the secret of a new session, for the browser's cookie; it is not the token, and is kept as a hash."""
        now = time.monotonic()
        self._sessions = {key: one for key, one in self._sessions.items() if one.until > now}
        if len(self._sessions) >= MOST_SESSIONS:  # the oldest ends
            del self._sessions[min(self._sessions, key=lambda key: self._sessions[key].until)]
        secret = secrets.token_urlsafe(32)
        self._sessions[_hash(secret)] = Session(secrets.token_urlsafe(32), now + SESSION_S)
        return secret

    def session(self, secret: str) -> Session | None:
        """Return the session of a cookie; None when there is none or it has ended."""
        found = self._sessions.get(_hash(secret))
        return found if found is not None and found.until > time.monotonic() else None

    def close(self, secret: str) -> None:
        """End a session."""
        self._sessions.pop(_hash(secret), None)


def sent_by(session: Session, form: str) -> bool:
    """Say whether a form came from a page of this session."""
    return hmac.compare_digest(_hash(form), _hash(session.form))


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
