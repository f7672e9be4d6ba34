"""The token: from a file that its owner alone may read, compared in constant time, never shown."""

from __future__ import annotations

import pytest
from service import TOKEN

from pipeline.delivery.http import access
from pipeline.delivery.http.access import Access, TokenError, read_token


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o601])
def test_a_token_that_others_can_read_or_write_is_refused(tmp_path, mode):
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(mode)
    with pytest.raises(TokenError, match="read or changed by others"):
        read_token(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"short", "32 characters or more"),
        (b"", "32 characters"),
        (b"x" * 2000, "one line"),
        (b"a b" * 20, "spaces"),
        (("ä" * 40).encode(), "ASCII"),
        (b"x" * 40 + b"\n" + b"y" * 40, "one line"),
    ],
)
def test_what_is_no_token_is_refused_without_being_shown(tmp_path, content, message):
    file = tmp_path / "token"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(TokenError, match=message) as refused:
        read_token(file)
    assert not content or content.decode() not in str(refused.value)
    with pytest.raises(TokenError, match="no such file"):
        read_token(tmp_path / "elsewhere")


def test_the_token_is_compared_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr(access.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    known = Access(TOKEN)
    assert (known.allows(TOKEN), known.allows("x"), known.allows("")) == (True, False, False)
    assert [(len(a), len(b)) for a, b in compared] == [(32, 32)] * 3


def test_a_session_is_not_the_token_ends_in_time_and_there_are_so_many(monkeypatch):
    known = Access(TOKEN)
    secret = known.open()
    assert known.session(secret).form not in (secret, TOKEN)
    assert known.session(TOKEN) is known.session("") is None
    monkeypatch.setattr(access, "MOST_SESSIONS", 3)
    later = [known.open() for _ in range(3)]
    assert known.session(secret) is None
    assert all(known.session(one) for one in later)
    now = access.time.monotonic()
    monkeypatch.setattr(access.time, "monotonic", lambda: now + access.SESSION_S + 1)
    assert not any(known.session(one) for one in later)
