"""What is printed of an exception is what this package said of it; a library may quote a patient."""

import errno
import io
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import torch
import typer
from typer.testing import CliRunner

from pipeline.cli.shared import errors
from pipeline.commands.failures import Nameable, described, frames
from pipeline.imaging.pseudonyms import KeyFileError, load_key
from pipeline.store.files import read_json, sha256_file

NAME = "Hollerbusch^Wendelin"


def caught(function: Callable, *arguments: object) -> Exception:
    try:
        function(*arguments)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def both(error: Exception) -> str:
    return described(error, Nameable()) + frames(error)


def test_our_own_words_are_printed_with_type_and_place(tmp_path):
    (tmp_path / "key").write_text("00" * 8)
    error = caught(load_key, tmp_path / "key", "synthetic")
    assert isinstance(error, KeyFileError)
    said = described(error, Nameable())
    assert said.startswith(f"{tmp_path / 'key'}: the key has 8 bytes; at least 32 are needed (KeyFileError at imaging/")


@pytest.mark.parametrize(
    "quoting",
    [
        lambda: int(NAME),
        lambda: float(NAME),
        lambda: {}[NAME],
        lambda: pd.to_datetime(NAME),
        lambda: pd.DataFrame({NAME: [1]})["age"].loc[NAME],
        lambda: pd.Series([NAME]).astype(float),
        lambda: pd.read_csv(io.StringIO(f"a,b\n1,2\n{NAME},3,4\n")),
        lambda: pa.array([NAME]).cast(pa.int64()),
        lambda: NAME.encode("ascii") and getattr(NAME, f"{NAME}x"),
        lambda: Path(f"/nowhere/{NAME}").read_bytes(),
        lambda: sha256_file(Path(f"/nowhere/{NAME}")),
        lambda: read_json(Path(f"/nowhere/{NAME}")),
    ],
)
def test_what_libraries_quote_is_not(quoting):
    said = both(caught(quoting))
    assert NAME not in said.replace(f"/{NAME}x", "")
    assert "Traceback" in said


def test_errors_behind_an_error_are_shown_by_type_and_place_alone():
    def outer() -> None:
        try:
            int(NAME)
        except ValueError as error:
            raise LookupError(NAME) from error

    said = frames(caught(outer))
    assert said.index("ValueError: its text is not shown") < said.index("which led to") < said.index("LookupError")
    assert NAME not in said


def test_what_the_system_says_is_printed_but_names_only_files_that_the_user_named(tmp_path):
    labels, store = tmp_path / "labels.csv", tmp_path / "store"
    nameable = Nameable(folders={store})
    nameable.add(labels, None)
    for path, shown in ((labels, labels), (store / "ingest" / "k", store / "ingest" / "k"), (tmp_path / NAME, None)):
        said = described(OSError(errno.EACCES, "Permission denied", str(path)), nameable)
        assert said == f"{shown or 'a file or folder'}: Permission denied (PermissionError)"
    assert described(OSError(errno.ENOSPC, "No space left on device"), nameable).startswith("No space left on device")


def test_numbers_that_torch_quotes_and_a_lack_of_memory_are_told():
    said = described(caught(lambda: torch.nn.Linear(3, 2)(torch.zeros(2, 4))), Nameable())
    assert said.startswith("mat1 and mat2 shapes cannot be multiplied (2x4 and 3x2)")
    assert described(MemoryError("Unable to allocate 8 GiB"), Nameable()).startswith("Unable to allocate 8 GiB")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyError(NAME), 1, "KeyError: its text is not shown"),
        (ValueError(NAME), 1, "ValueError: its text is not shown"),
        (OSError(errno.EIO, "Input/output error", f"/archive/{NAME}.dcm"), 1, "a file or folder: Input/output error"),
        (KeyboardInterrupt(), 75, "interrupted"),
    ],
)
def test_the_command_line_ends_in_one_way(error, code, words):
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        with errors():
            raise error

    result = CliRunner().invoke(app)
    assert (result.exit_code, NAME in result.output) == (code, False)
    assert words in result.stderr
