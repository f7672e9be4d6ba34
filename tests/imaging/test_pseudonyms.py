"""Pseudonyms are keyed, keys are guarded, and the way back is private."""

import hashlib
import hmac
import json
import stat

import pytest

from pipeline.imaging.pseudonyms import (
    KeyFileError,
    Lookup,
    day_shift,
    fingerprint,
    load_key,
    patient_pseudonym,
    pseudonym,
)

SECRET, OTHER = b"s" * 32, b"o" * 32


def test_the_formula():
    digest = hmac.new(SECRET, b"patient\0ID-1", hashlib.sha256).digest()[:16]
    value = int.from_bytes(digest, "big") << 2
    letters = "abcdefghijklmnopqrstuvwxyz234567"
    assert pseudonym(SECRET, "patient", "ID-1") == "".join(letters[(value >> (5 * k)) & 31] for k in range(25, -1, -1))


def test_key_domain_and_value_all_matter():
    names = {pseudonym(key, kind, value) for key in (SECRET, OTHER) for kind in ("a", "b") for value in ("1", "2")}
    assert len(names) == 8
    assert fingerprint(SECRET) != fingerprint(OTHER)


def test_a_list_of_all_identifiers_does_not_help_without_the_key():
    wanted = patient_pseudonym(SECRET, "0042")
    tried = {patient_pseudonym(OTHER, f"{number:04d}") for number in range(10_000)}
    assert wanted not in tried


def test_one_patient_however_the_number_is_written():
    assert patient_pseudonym(SECRET, " Zoe\u0308 7 ") == patient_pseudonym(SECRET, "Zo\u00eb 7")


def test_shifts_keep_intervals_and_differ_between_patients():
    shifts = [day_shift(SECRET, f"p{number}") for number in range(2000)]
    assert min(shifts) >= 1
    assert max(shifts) <= 3650
    assert len(set(shifts)) > 1000


def test_a_key_is_made_once_and_for_its_owner_only(tmp_path):
    path = tmp_path / "keys" / "project.key"
    key = load_key(path, "real")
    assert len(key) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_key(path, "real") == key
    assert [entry.name for entry in path.parent.iterdir()] == ["project.key"]


def test_a_key_that_others_can_read_is_refused_unless_nothing_is_secret(tmp_path):
    path = tmp_path / "open.key"
    path.write_text("# public\n" + "ab" * 32 + "  # comment\n")
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        load_key(path, "real")
    assert load_key(path, "synthetic") == bytes.fromhex("ab" * 32)


@pytest.mark.parametrize(("text", "message"), [("ab" * 31, "31 bytes"), ("", "0 bytes"), ("secret!", "hex digits")])
def test_a_key_file_that_holds_no_key(tmp_path, text, message):
    path = tmp_path / "bad.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match=message) as error:
        load_key(path, "real")
    assert "secret!" not in str(error.value)


def test_a_missing_public_key_is_not_replaced(tmp_path):
    with pytest.raises(KeyFileError, match="come with a public key"):
        load_key(tmp_path / "demo.key", "synthetic")


def test_the_way_back_is_private_and_grows_only_by_what_is_new(tmp_path):
    path = tmp_path / "project.lookup"
    Lookup(path).add(
        [("patient", "abc", "Müller\n7"), ("path", "def", "a/\udcff.dcm"), ("patient", "abc", "Müller\n7")]
    )
    Lookup(path).add([("patient", "abc", "Müller\n7"), ("patient", "xyz", "8")])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["original"] for line in lines] == ["Müller\n7", "a/\udcff.dcm", "8"]
